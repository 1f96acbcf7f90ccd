"""The pack's own weights in the host's folders, so that the host's loaders list them beside the user's files."""
from __future__ import annotations

import folder_paths

from .boot import PACK

WEIGHTS = PACK / "weights"


def register_weights() -> None:
    """Add `weights/loras` and `weights/controlnet` to where Load LoRA and Load ControlNet Model look."""
    for key in ("loras", "controlnet"):
        folder_paths.add_model_folder_path(key, str(WEIGHTS / key))
