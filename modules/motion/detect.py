"""Which family a motion module is of, and whether its weights are whole."""
from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, replace

import torch
from torch import Tensor

from .file_checks import MotionFileError
from .keys import CONVOLUTION, MAPPING, POSITIONAL_ENCODING, TOKENS, Names
from .module import MotionConfig, MotionModule

# What the configuration is read off.
WIDEST = "down_blocks.{}.motion_modules.0.temporal_transformer.proj_in.weight"
FIRST, QUERIES = MAPPING + "first.conv.weight", TOKENS + "queries"
GROUPNORMS = ("per frame", "pooled")
BETA_SCHEDULES = {"animatediff sdxl": "linear (AnimateDiff-SDXL)", "hotshotxl": "linear", "animatelcm": "lcm"}


def detect(weights: Mapping[str, Tensor], names: Names) -> MotionConfig:
    """The configuration that a normalised state was made with. Raises MotionFileError."""
    channels = []
    while (level := WIDEST.format(len(channels))) in weights:
        channels.append(sizes(weights, level, 2, 4)[0])
    if not channels:
        raise MotionFileError(nothing_found(weights, names, level))
    lengths = {sizes(weights, name, 3)[1] for name in weights if name.endswith(POSITIONAL_ENCODING)}
    if len(lengths) != 1:
        raise MotionFileError(f"Its layers have positional encoding for different clip lengths ({sorted(lengths)} "
                              "frames); expected one length. The file is damaged.")
    config = MotionConfig(family="sdxl" if len(channels) == 3 else "sd15", channels=tuple(channels),
                          mid=any(name.startswith("mid_block.") for name in weights),
                          max_frames=lengths.pop(),
                          temporal_convolution=any(name.startswith(CONVOLUTION) for name in weights))
    if FIRST in weights:
        config = replace(config, mapping_width=sizes(weights, FIRST, 5)[0])
    if QUERIES in weights:
        tokens, width = sizes(weights, QUERIES, 2)
        config = replace(config, frame_tokens=tokens, text_channels=width)
    kind = kind_of(config, names)
    return replace(config, kind=kind, beta_schedule=BETA_SCHEDULES.get(kind, "sqrt_linear"),
                   groupnorm="pooled" if kind == "animatediff v1" else "per frame")


def nothing_found(weights: Mapping[str, Tensor], names: Names, expected: str) -> str:
    """Why a state has no temporal layer where one is expected: none at all, or all under an unknown prefix."""
    prefix, layer, _ = next((name.partition(expected) for name in weights if expected in name), ("", "", ""))
    if layer:
        return (f"The names of its {len(weights)} motion weights begin with {prefix!r}, which is not known; expected "
                f"{expected}. Remove {prefix!r} from the names and save the file again.")
    if weights:
        return (f"This is not a whole motion module: {len(weights)} of its {names.entries} entries are named like "
                f"temporal layers ({some(weights)}), but {expected} is missing.")
    return (f"This is not a motion module: no temporal layer among its {names.entries} entries "
            f"({some(names.dropped)}). Expected keys like {expected}.")


def sizes(weights: Mapping[str, Tensor], name: str, *dimensions: int) -> torch.Size:
    """Shape of a tensor that tells the configuration. Raises MotionFileError if it has not so many dimensions."""
    shape = weights[name].shape
    if len(shape) not in dimensions:
        raise MotionFileError(f"1 of wrong shape: {name} {tuple(shape)}, expected "
                              f"{' or '.join(map(str, dimensions))} dimensions. The file is damaged.")
    return shape


def kind_of(config: MotionConfig, names: Names) -> str:
    """The family of a file that is not ours, by the marks its authors' loaders go by."""
    if names.layout == "hotshotxl":
        return "hotshotxl"
    if config.family == "sdxl":
        return "animatediff sdxl"
    if names.pia:
        return "pia"
    if names.layout == "animatediff" and not names.positional_encoding:
        return "animatelcm"
    if config.mid:
        return "animatediff v2"
    return "animatediff v3" if config.max_frames == 32 else "animatediff v1"


def to_metadata(config: MotionConfig) -> dict[str, str]:
    """What a file of ours says about itself in its metadata (harivo.md 2.9.2)."""
    mapping = "every_step" if config.mapping_width else "off"       # training knows no other mode
    return {key: str(value) for key, value in asdict(config).items()} | {"mapping": mapping}


def from_metadata(config: MotionConfig, metadata: Mapping[str, str]) -> MotionConfig:
    """`config` with what cannot be seen in the weights, from the metadata of a file of ours.

    Raises MotionFileError if the weights were made for another width of a part than the metadata says.
    """
    for key, name in (("mapping_width", FIRST), ("frame_tokens", QUERIES)):
        seen = str(getattr(config, key))
        said = metadata.get(key, seen)
        if said != seen:
            raise MotionFileError(f"{key} is {said} by its metadata, but {seen} by its tensors ({name}). The file is "
                                  "damaged, or its metadata are of another file.")
    told = {key: metadata[key] for key in ("kind", "beta_schedule", "groupnorm") if key in metadata}
    if told.get("groupnorm") not in (None, *GROUPNORMS):
        raise wrong_field("groupnorm", told["groupnorm"], " or ".join(GROUPNORMS))
    fps = number("fps", metadata, config.fps, float, "a number above 0")
    frames = number("frames", metadata, config.frames, int, "a whole number, 0 if it is not known")
    if not (fps > 0 and math.isfinite(fps)):
        raise wrong_field("fps", metadata["fps"], "a number above 0")
    if frames < 0:
        raise wrong_field("frames", metadata["frames"], "a whole number, 0 if it is not known")
    return replace(config, **told, fps=fps, frames=frames)


def number(field: str, metadata: Mapping[str, str], default: float, kind: type, expected: str) -> float:
    """A number of the metadata, `default` if it is not there. Raises MotionFileError naming the field."""
    try:
        return kind(metadata.get(field, default))
    except ValueError as error:
        raise wrong_field(field, metadata[field], expected) from error


def wrong_field(field: str, given: str, expected: str) -> MotionFileError:
    """The error for a value of the metadata that cannot be."""
    return MotionFileError(f"{field} is {given!r} in its metadata; expected {expected}. The file is damaged, or was "
                           "changed by hand: correct its metadata or get it again.")


def check_shapes(config: MotionConfig, weights: Mapping[str, Tensor]) -> None:
    """Compare names and shapes with an empty module of the same configuration. Raises MotionFileError."""
    try:
        empty = MotionModule(config, device="meta").state_dict()
    except ValueError as error:
        told = [name for name in (*map(WIDEST.format, range(len(config.channels))), FIRST) if name in weights]
        raise MotionFileError(f"There is no motion module of the widths that it tells by {', '.join(told)}: "
                              f"{describe(config)}, mapping width {config.mapping_width} ({error}). At least one of "
                              "them is of wrong shape; the file is damaged.") from error
    expected = {name: tuple(tensor.shape) for name, tensor in empty.items()}
    found = {name: tuple(tensor.shape) for name, tensor in weights.items()}
    problems = {
        "missing": [name for name in expected if name not in found],
        "unknown": [name for name in found if name not in expected],
        "of wrong shape": [f"{name} {found[name]}, expected {shape}" for name, shape in expected.items()
                           if found.get(name, shape) != shape]}
    if any(problems.values()):
        listed = "; ".join(f"{len(names)} {what}: {some(names)}" for what, names in problems.items() if names)
        raise MotionFileError(f"This {config.kind} motion module ({describe(config)}) is not whole. Tensors "
                              f"{listed}. The file is incomplete, or of a family not known here.")


def check_values(weights: Mapping[str, Tensor]) -> None:
    """Raises MotionFileError if a weight is not a finite number."""
    def finite(tensor: Tensor) -> bool:
        return bool(torch.isfinite(tensor.float() if tensor.element_size() == 1 else tensor).all())

    bad = [name for name, tensor in weights.items() if not finite(tensor)]
    if bad:
        raise MotionFileError(f"{len(bad)} tensors hold NaN or infinite numbers: {some(bad)}. The file is "
                              "damaged or its training diverged. Use another one.")


def is_output(name: str) -> bool:
    """Whether a weight ends a branch that changes nothing while it is zero."""
    return (".proj_out." in name or name.startswith((MAPPING + "last.", TOKENS + "out."))
            or name.startswith(CONVOLUTION) and ".conv2." in name)


def warnings(config: MotionConfig, weights: Mapping[str, Tensor], names: Names) -> list[str]:
    """What a user should know about a file that loads."""
    found = []
    if not any(tensor.any() for name, tensor in weights.items() if is_output(name)):
        found.append("untrained: every output projection is zero, so this module changes nothing")
    if not names.positional_encoding:
        found.append(f"the file has no positional encoding; sinusoids for {config.max_frames} frames were rebuilt")
    if names.pia:
        found.append("only PIA's motion part is used; its first convolution (the image input) is left out")
    if names.layout == "diffusers" and config.kind == "animatediff v3":
        found.append("in this naming v1 cannot be told from v3; if it is v1, set groupnorm to pooled")
    return found


def describe(config: MotionConfig) -> str:
    """One line for reports and errors: family, widths, places, frames."""
    parts = {"temporal convolutions": config.temporal_convolution, "mapping network": config.mapping_width,
             f"{config.frame_tokens} frame tokens": config.frame_tokens}
    return ", ".join([f"{config.family}, channels {config.channels}, {'with' if config.mid else 'no'} middle layer, "
                      f"up to {config.max_frames} frames", *(name for name, there in parts.items() if there)])


def some(names: Iterable[str], most: int = 5) -> str:
    """The first names of a list, for an error."""
    names = list(names)
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")
