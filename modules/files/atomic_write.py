"""Writing a safetensors file that appears complete or not at all."""
from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Mapping
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor


class CheckpointError(RuntimeError):
    """A checkpoint, or what a training keeps beside it, could not be written, read, or does not belong to this run."""


def write_atomically(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str], what: str,
                     writer: str = "") -> None:
    """Write `what` (e.g. "The motion module") to `path`, which holds either the old file or the whole new one.

    Folders are made. `writer` tells apart those who may write the same file at the same time. Raises OSError naming
    folder, size and free space when it cannot be written; nothing is left behind then.
    """
    draft = path.with_name(f".{path.name}.{writer}.part" if writer else f".{path.name}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file(dict(tensors), draft, metadata=dict(metadata))
        with open(draft, "rb+") as file:
            os.fsync(file.fileno())
        os.chmod(draft, 0o644)      # safetensors makes it readable by its owner only
        os.replace(draft, path)
    except (OSError, SafetensorError) as error:
        with contextlib.suppress(OSError):
            draft.unlink()
        size = sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
        raise OSError(f"{what} could not be written to {path} ({error}). It needs {size / 2**20:.1f} MiB and "
                      f"{free_bytes(path) / 2**20:.1f} MiB are free. Free some space or choose another folder."
                      ) from error


def free_bytes(path: Path) -> int:
    """Of the disk on which `path` is or would be."""
    return shutil.disk_usage(next(folder for folder in path.absolute().parents if folder.is_dir())).free


def save_atomically(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str], what: str) -> None:
    """Write `what` to `path`, which holds either the old file or the whole new one.

    Raises CheckpointError (full disk, no permission); nothing is left behind then.
    """
    try:
        write_atomically(path, tensors, metadata, what)
    except OSError as error:
        kept = ("The previous one there is intact, and the same training goes on from it." if path.is_file()
                else "There was none before, so the same training begins anew.")
        raise CheckpointError(f"{error} {kept}") from error
