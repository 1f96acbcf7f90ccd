"""Guide files: safetensors with all that tells what a guide belongs to and how it is used (guide_model.md 2.7)."""
from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from safetensors.torch import load_file
from torch import Tensor

from ..files.atomic_write import write_atomically
from ..files.checks import check_file, check_format, read_header
from .shape import GuideShape

FORMAT, VERSION = "frozen_diffusion.guide", "1"
G_CONVENTION = "1=off"          # eps_u + g (eps_c - eps_u); others count g - 1
TINY, FULL = "tiny", "full"
MARKS = 16                      # numbers by which a text is known again


class GuideFileError(ValueError):
    """A file is no usable guide model; the message says what it is and what to do."""


@dataclass(frozen=True)
class GuideConfig:
    """What a guide is.

    Attributes:
        kind: TINY or FULL.
        family: of its base, by the host's name, e.g. "sd15".
        prediction: of its base, "eps" or "v".
        shape: of the base and, of a tiny guide, of itself.
        g_min, g_max: the scales that it was trained on.
        resolution: pixels a side that it was trained at.
        sigmas: noise levels that a guide of stage 2 is for, the last one 0; () = any.
        base: identity of the weights that it was trained on.
        unet: settings of the base's U-Net, of a full guide.
        fed: whether a tiny guide reads the base's features.
        negative_aware: whether it guides away from a negative prompt that it reads, not from the empty one.
        empty_text: `marks_of_text` of the empty prompt, by which it is known again; () = unknown.
    """
    kind: str
    family: str
    prediction: str
    shape: GuideShape
    g_min: float = 1.0
    g_max: float = 9.0
    resolution: int = 512
    sigmas: tuple[float, ...] = ()
    base: str = ""
    unet: Mapping[str, Any] | None = None
    fed: bool = False
    negative_aware: bool = False
    empty_text: tuple[float, ...] = ()

    @property
    def steps(self) -> int:
        """Steps that a guide of stage 2 is for, 0 = any."""
        return max(0, len(self.sigmas) - 1)


def marks_of_text(text: Tensor) -> Tensor:
    """A few numbers of an encoded text [B, L, D] -> [MARKS], by which it is told from others: of its second token."""
    token = text[0, 1].float().cpu()
    return token[::max(1, len(token) // MARKS)][:MARKS]


def to_metadata(config: GuideConfig) -> dict[str, str]:
    """A config as the metadata of a file."""
    return {"format": FORMAT, "format_version": VERSION, "kind": config.kind, "base_family": config.family,
            "prediction": config.prediction, "g_min": str(config.g_min), "g_max": str(config.g_max),
            "g_convention": G_CONVENTION, "trained_resolution": str(config.resolution), "n_steps": str(config.steps),
            "sigmas": json.dumps(config.sigmas),
            "skip_channels": json.dumps([*config.shape.skips, config.shape.middle]),
            "context_dim": str(config.shape.context_dim), "base_checkpoint_hash": config.base,
            "negative_aware": str(int(config.negative_aware)), "fed": str(int(config.fed)),
            "empty_text": json.dumps([round(mark, 4) for mark in config.empty_text]),
            "shape": json.dumps(asdict(config.shape)), "unet": json.dumps(config.unet)}


def from_metadata(metadata: Mapping[str, str]) -> GuideConfig:
    """The inverse of `to_metadata`. Raises GuideFileError naming the field that cannot be read."""
    field = ""
    try:
        field = "g_convention"
        if metadata[field] != G_CONVENTION:
            raise ValueError(f"{metadata[field]!r}; this pack counts {G_CONVENTION!r}")
        field = "kind"
        if metadata[field] not in (TINY, FULL):
            raise ValueError(f"{metadata[field]!r} is neither {TINY} nor {FULL}")
        field = "shape"
        shape = {name: tuple(value) if isinstance(value, list) else value
                 for name, value in json.loads(metadata[field]).items()}
        values = {"shape": GuideShape(**shape)}
        for name, key, read in (("g_min", "g_min", float), ("g_max", "g_max", float),
                                ("resolution", "trained_resolution", int), ("sigmas", "sigmas", json.loads),
                                ("unet", "unet", json.loads)):
            field = key
            values[name] = read(metadata[key])
        for name in ("fed", "negative_aware"):
            field = name
            values[name] = bool(int(metadata.get(name, "0")))
        field = "empty_text"
        values[field] = tuple(map(float, json.loads(metadata.get(field, "[]"))))
        values["sigmas"] = tuple(map(float, values["sigmas"]))
        return GuideConfig(metadata["kind"], metadata["base_family"], metadata["prediction"],
                           base=metadata["base_checkpoint_hash"], **values)
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise GuideFileError(f"the field {field} of its metadata cannot be read ({error}). The file is damaged, or was "
                             "changed by hand: get it again.") from error


def write_guide(path: Path, config: GuideConfig, state: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Write a guide, complete or not at all. Raises OSError, and leaves nothing behind then."""
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}
    write_atomically(path, tensors, {**metadata, **to_metadata(config)}, "The guide model")


def read_guide(path: Path) -> tuple[GuideConfig, dict[str, Tensor], dict[str, str]]:
    """(config, weights, metadata) of a guide file. Raises GuideFileError."""
    check_file(path, GuideFileError)
    try:
        metadata = read_header(path).get("__metadata__") or {}
    except ValueError as error:
        raise GuideFileError(f"{path.name} is no guide model: {error}. Guides are safetensors files that Save Guide "
                             "Model writes.") from error
    check_format(path, metadata, FORMAT, VERSION, "guide model", "Save Guide Model", GuideFileError)
    try:
        config = from_metadata(metadata)
    except GuideFileError as error:
        raise GuideFileError(f"{path.name}: {error}") from error
    state = load_file(str(path))
    broken = [name for name, tensor in state.items() if not tensor.isfinite().all()]
    if broken:
        raise GuideFileError(f"{path.name} holds numbers that are not finite (in {broken[0]}). Get the file again, or "
                             "train the guide again with a lower learning rate.")
    return config, state, metadata
