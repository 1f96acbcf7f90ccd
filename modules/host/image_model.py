"""Image models for the command line."""
from __future__ import annotations

from pathlib import Path

import comfy.sd
import folder_paths

from .demo import load_sprite_world


def load_image_model(path: Path | None) -> tuple:
    """(MODEL, CLIP, VAE) of a checkpoint file, or of sprite world if `path` is None, for the command line.

    Raises FileNotFoundError.
    """
    if path is None:
        return load_sprite_world()[:3]
    if not path.is_file():
        raise FileNotFoundError(f"There is no checkpoint {path}. Give the path of a checkpoint file.")
    return comfy.sd.load_checkpoint_guess_config(
        str(path), embedding_directory=folder_paths.get_folder_paths("embeddings"))[:3]
