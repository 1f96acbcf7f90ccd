"""Writing a safetensors file that appears complete or not at all."""
from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor


def write_whole(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str], what: str) -> None:
    """Write `what` (e.g. "The motion module") to `path`; folders are made.

    Raises OSError naming folder, size and free space when it cannot be written; nothing is left behind then.
    """
    size = sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, draft = tempfile.mkstemp(prefix=f".{path.stem}.", suffix=".part", dir=path.parent)
    os.close(handle)
    try:
        save_file(dict(tensors), draft, metadata=dict(metadata))
        os.chmod(draft, 0o644)      # mkstemp makes it readable by its owner only
        os.replace(draft, path)
    except (OSError, SafetensorError) as error:
        free = shutil.disk_usage(path.parent).free
        raise OSError(f"{what} could not be written to {path} ({error}). It needs {size / 2**20:.1f} MiB and "
                      f"{free / 2**20:.1f} MiB are free. Free some space or choose another folder.") from error
    finally:
        Path(draft).unlink(missing_ok=True)
