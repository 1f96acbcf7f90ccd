"""The pack's own files of tensors in the host's output folder: saving under the next number, finding again."""
from __future__ import annotations

import math
import os
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import folder_paths
from torch import Tensor

from ..files.atomic_write import write_atomically
from ..files.checks import has_format


def save_tensors(what: str, tensors: Mapping[str, Tensor], metadata: Mapping[str, str], prefix: str) -> Path:
    """Write into the output folder under the next free number; returns the path. Raises OSError, and leaves nothing."""
    path = next_file(prefix)
    write_atomically(path, tensors, metadata, f"The {what}")
    return path


def next_file(prefix: str) -> Path:
    """The next free number of a name in the output folder."""
    folder, name, counter, _, _ = folder_paths.get_save_image_path(prefix, folder_paths.get_output_directory())
    return Path(folder) / f"{name}_{counter:05}_.safetensors"


def find_file(name: str) -> Path:
    """A file by its path inside the output or input folder, or by an absolute one. Raises FileNotFoundError."""
    name = name.strip().strip('"')
    folders = [Path(folder_paths.get_output_directory()), Path(folder_paths.get_input_directory())]
    for folder in folders:
        if name and (folder / name).is_file():      # an absolute name stays what it is
            return folder / name
    raise FileNotFoundError(f"There is no file {name!r} in {folders[0]} or {folders[1]}. Give the path that the Save "
                            "node showed, e.g. h_traces/trace_00001_.safetensors.")


def saved_files(format_: str, example: str) -> list[str]:
    """The pack's files of a format in the output and the input folder, the newest first; `example` if there are none.

    As `find_file` takes them: by their paths inside those folders, with "/".
    """
    found: dict[str, float] = {}
    for folder in (folder_paths.get_output_directory(), folder_paths.get_input_directory()):
        for path in _tensor_files(Path(folder)):
            name = path.relative_to(folder).as_posix()
            if name not in found:           # what lies in the output folder hides the input's, as for find_file
                found[name] = path.stat().st_mtime if has_format(path, format_) else -math.inf
    return sorted((name for name in found if found[name] >= 0), key=found.get, reverse=True) or [example]


def _tensor_files(folder: Path) -> Iterator[Path]:
    """The safetensors files below a folder, through links to folders too, each folder once."""
    seen: set[str] = set()
    for place, below, names in os.walk(folder, followlinks=True):
        if (real := os.path.realpath(place)) in seen:
            below.clear()
            continue
        seen.add(real)
        yield from (path for name in names if (path := Path(place, name)).suffix == ".safetensors" and path.is_file())


def state_of(name: str | None, find: Callable[[str], Path] = find_file) -> str:
    """What changes when the file that `find` finds does, for the host's cache. A name that comes by wire is None."""
    if name is None:
        return ""
    try:
        status = find(name).stat()
    except FileNotFoundError:
        return ""
    return f"{status.st_mtime_ns} {status.st_size}"


def checkpoint_path(name: str, folder: str) -> Path:
    """Where a training of that name keeps its checkpoint, in a folder of the output folder.

    Raises ValueError if it is no plain file name.
    """
    if not re.fullmatch(r"\w[\w .-]*", name):
        raise ValueError(f"The checkpoint name {name!r} is not a plain name. Use letters, digits, spaces, "
                         "dots, dashes and underscores, e.g. 'my_motion'.")
    return Path(folder_paths.get_output_directory(), folder, f"{name}.safetensors")


def cache_folder(what: str) -> Path:
    """Where `what`, e.g. encoded clips, is kept between runs of the host."""
    return Path(folder_paths.get_user_directory(), "frozen_diffusion", what)
