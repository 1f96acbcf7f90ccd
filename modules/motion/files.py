"""Reading every kind of motion file into one form, and writing our own."""
from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from ..files.atomic_write import write_atomically
from ..files.checks import Load, read_header, read_tensors, version_problem
from . import detect, keys
from .file_checks import MotionFileError, name_other
from .module import MotionConfig, MotionModule

FORMAT, VERSION = "frozen-diffusion motion", "1"


@dataclass(frozen=True)
class MotionReport:
    """What reading a file found.

    Attributes:
        tensors: motion tensors in the file.
        parameters: their numbers, positional encoding not counted.
        dropped: names of tensors that are no motion weights and were left out.
        warnings: what the user should know.
    """
    tensors: int
    parameters: int
    dropped: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()


def read_motion_file(path: str | Path, load: Load
                     ) -> tuple[MotionConfig, dict[str, Tensor], MotionReport, dict[str, str]]:
    """Read a motion module of any family; returns (config, state with AnimateDiff keys, report, metadata).

    Args:
        load: reads a file into (state dict, metadata or None); it must refuse pickled code.

    Raises MotionFileError that says what the file is instead, or what is wrong with it.
    """
    path = Path(path)
    state, metadata = read_tensors(path, load, MotionFileError)
    try:
        return *read_motion_state(state, metadata), dict(metadata or {})
    except MotionFileError as error:
        raise MotionFileError(f"{path.name}: {error}") from error


def read_motion_state(state: Mapping, metadata: Mapping[str, str] | None = None
                      ) -> tuple[MotionConfig, dict[str, Tensor], MotionReport]:
    """(config, state with AnimateDiff keys, report) of a loaded file of any family.

    Raises MotionFileError for anything that is not a whole motion module.
    """
    if is_ours(metadata) and (problem := version_problem(metadata, VERSION)):
        raise MotionFileError(problem)
    state = keys.unwrap(state)
    other = name_other(state)
    if other is not None:
        raise MotionFileError(f"This is not a motion module but {other}.")
    weights, names = keys.normalise(state)
    config = detect.detect(weights, names)
    if is_ours(metadata):
        config = detect.from_metadata(config, metadata)
    detect.check_shapes(config, weights)
    detect.check_values(weights)
    encodings = {name for name in weights if name.endswith(keys.POSITIONAL_ENCODING)}
    return config, weights, MotionReport(
        tensors=len(weights) - (0 if names.positional_encoding else len(encodings)),
        parameters=sum(tensor.numel() for name, tensor in weights.items() if name not in encodings),
        dropped=tuple(name for name in names.dropped if isinstance(state[name], Tensor)),
        warnings=tuple(detect.warnings(config, weights, names)))


def is_ours(metadata: Mapping[str, str] | None) -> bool:
    """Whether metadata says that `write_motion_file` wrote the file."""
    return (metadata or {}).get("format") == FORMAT


def is_our_file(path: Path) -> bool:
    """Whether a safetensors file was written by `write_motion_file`, told from its header."""
    try:
        return is_ours(read_header(path).get("__metadata__"))
    except (OSError, ValueError, AttributeError):
        return False


def write_motion_file(path: str | Path, module: MotionModule, metadata: Mapping[str, str] | None = None) -> None:
    """Write our format: safetensors, AnimateDiff's keys, the configuration and `metadata`.

    The file appears complete or not at all. Raises OSError naming folder, size and free space when it cannot
    be written; nothing is left behind then.
    """
    path = Path(path)
    state = {name: tensor.detach().cpu().contiguous() for name, tensor in module.state_dict().items()}
    told = {key: str(value) for key, value in (metadata or {}).items()}
    metadata = {**told, **detect.to_metadata(module.config), "format": FORMAT, "format_version": VERSION}
    write_atomically(path, state, metadata, "The motion module")
