"""Files of FurryGAN: ours, and the checkpoints of its official training."""
from __future__ import annotations

import argparse
import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

from ..files.checks import SAFETENSORS, check_format, read_header, read_tensors
from .discriminator import Discriminator
from .layers import TAPS
from .networks import Generator, Shape

FORMAT, VERSION = "frozen_diffusion.furrygan", "1"
GENERATOR, DISCRIMINATOR, MEANS = "generator.", "discriminator.", ("mean.foreground", "mean.background")
NAMED = 5               # keys that an error lists


class FurryFileError(ValueError):
    """A file that holds no FurryGAN."""


@dataclass(frozen=True)
class FurryFile:
    """What a file holds.

    Attributes:
        shape: sizes of the networks.
        generator: its weights, averaged where the file has an average.
        discriminator: its weights, None without.
        means: of the mapped latents (foreground, background), None where they have to be drawn.
        metadata: what is told of its making.
    """
    shape: Shape
    generator: Mapping[str, Tensor]
    discriminator: Mapping[str, Tensor] | None
    means: tuple[Tensor, Tensor] | None
    metadata: Mapping[str, str]


def furry_tensors(file: FurryFile) -> tuple[dict[str, Tensor], dict[str, str]]:
    """(tensors, metadata) for a safetensors file."""
    tensors = {GENERATOR + key: value for key, value in file.generator.items()}
    tensors |= {DISCRIMINATOR + key: value for key, value in (file.discriminator or {}).items()}
    tensors |= dict(zip(MEANS, file.means or (), strict=False))
    return tensors, {**file.metadata, "format": FORMAT, "format_version": VERSION,
                     "shape": json.dumps(asdict(file.shape))}


def read_furry_file(path: Path) -> FurryFile:
    """A file of ours, or a .pt of the official training, told by their keys. Raises FurryFileError."""
    state, metadata = read_tensors(path, _load, FurryFileError)
    if metadata is not None:
        check_format(path, metadata, FORMAT, VERSION, "FurryGAN", "Save FurryGAN", FurryFileError)
        found = _ours(path, state, metadata)
    else:
        found = official_file(state, path.name)
    _check(found, path.name)
    return found


def _load(path: str) -> tuple[object, Mapping[str, str] | None]:
    if path.lower().endswith(SAFETENSORS):
        return load_file(path), read_header(Path(path)).get("__metadata__") or {}
    with torch.serialization.safe_globals([argparse.Namespace]):        # the official files keep their options so
        return torch.load(path, map_location="cpu", weights_only=True), None


def _ours(path: Path, state: Mapping[str, Tensor], metadata: Mapping[str, str]) -> FurryFile:
    try:
        shape = Shape(**json.loads(metadata["shape"]))
    except (KeyError, TypeError, ValueError) as error:
        raise FurryFileError(f"{path.name}: its shape cannot be read ({error}). The file is damaged; get it again."
                             ) from error
    parts = [{key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
             for prefix in (GENERATOR, DISCRIMINATOR)]
    means = tuple(state[name] for name in MEANS) if all(name in state for name in MEANS) else None
    return FurryFile(shape, parts[0], parts[1] or None, means, metadata)


def official_file(state: object, name: str) -> FurryFile:
    """What torch.save of the official training holds. Raises FurryFileError, also for a plain StyleGAN2."""
    if not isinstance(state, Mapping):
        raise FurryFileError(f"{name} holds a {type(state).__name__}; expected the checkpoint of a FurryGAN training.")
    generator = state.get("g_ema", state.get("g", state))
    if not isinstance(generator, Mapping) or not any(key.startswith("conv1") for key in map(str, generator)):
        raise FurryFileError(f"{name} holds no FurryGAN: expected g_ema with style_fg, style_bg and pre_m; it has "
                             f"{', '.join(sorted(map(str, state))[:NAMED])}.")
    if "pre_m.conv.weight" not in generator:
        raise FurryFileError(f"{name} is a plain StyleGAN2 without a mask branch. A FurryGAN is trained with one from "
                             "the start; it cannot be added.")
    discriminator = state.get("d") if state is not generator else None
    return FurryFile(shape_of(generator), own_keys(generator), own_keys(discriminator) if discriminator else None, None,
                     {"from": name})


def own_keys(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Without what is computed anew: filters, fixed noise, the means of latents."""
    return {key: value for key, value in state.items()
            if not (key.endswith(".kernel") or key.startswith(("noises.", "ema_latent_")))}


def shape_of(generator: Mapping[str, Tensor]) -> Shape:
    """The sizes that a generator's weights tell."""
    levels = 1 + max((int(key.split(".")[1]) for key in generator if key.startswith("convs_fg.")), default=1)
    size = 4 * 2 ** (levels // 2)
    style = sum(generator[f"style_{part}.1.weight"].shape[0] for part in ("fg", "bg"))
    cap = sum(generator[f"input_{part}.input"].shape[1] for part in ("fg", "bg"))
    last = sum(generator[f"to_{part}.conv.weight"].shape[2] for part in ("fg", "bg"))
    return Shape(size, style, cap, last * size if last < cap else cap * size, generator["pre_m.conv.weight"].shape[1])


def official_state(generator: Generator, noises: list[Tensor] | None = None) -> dict[str, Tensor]:
    """All keys of the official generator, those that are computed included."""
    state, shape = dict(generator.state_dict()), generator.shape
    taps = torch.tensor(TAPS)
    kernel = 4 * torch.outer(taps, taps)
    for part in ("fg", "bg"):
        for number in range(0, len(shape.noise_sides) - 1, 2):
            state[f"convs_{part}.{number}.conv.blur.kernel"] = kernel
        state[f"to_{part}.upsample.kernel"] = kernel
    for number, side in enumerate(shape.noise_sides):
        state[f"noises.noise_{number}"] = noises[number] if noises else torch.zeros(1, 1, side, side)
    return state


def _check(found: FurryFile, name: str) -> None:
    """Raises FurryFileError for keys or shapes that do not fit, and for numbers that are not finite."""
    with torch.device("meta"):
        networks = [(Generator(found.shape), found.generator)]
        if found.discriminator is not None:
            networks.append((Discriminator(found.shape), found.discriminator))
    for network, given in networks:
        wanted = network.state_dict()
        wrong = [key for key in wanted if key not in given or given[key].shape != wanted[key].shape]
        wrong += [key for key in given if key not in wanted]
        if wrong:
            raise FurryFileError(f"{name}: {len(wrong)} weights do not fit a FurryGAN of size {found.shape.size}, e.g. "
                                 f"{', '.join(wrong[:NAMED])}.")
        broken = [key for key, value in given.items() if not value.isfinite().all()]
        if broken:
            raise FurryFileError(f"{name}: the weight {broken[0]} holds numbers that are not finite. The training "
                                 "broke; take an earlier checkpoint.")


def count(state: Mapping[str, Tensor]) -> int:
    """Numbers of a network's weights."""
    return sum(math.prod(value.shape) for value in state.values())
