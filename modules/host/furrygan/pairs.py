"""Pictures and masks as files, for those who train segmenters."""
from __future__ import annotations

import shutil
from pathlib import Path

import folder_paths
import torch
from PIL import Image

from ...furrygan.sampling import draw_styles
from ...pictures.frame_sheet import to_image
from .apply import cut_outs
from .files import LoadedFurry

AT_ONCE = 32


def write_pairs(loaded: LoadedFurry, count: int, seed: int, psi: float, prefix: str,
                node_id: str | None = None) -> Path:
    """images/000000.png and masks/000000.png (grey, 255 = foreground) in a new folder of the output folder.

    Returns the folder. Raises OSError; a folder that could not be filled, or whose filling was cancelled, is removed.
    """
    parent, name, number, _, _ = folder_paths.get_save_image_path(prefix, folder_paths.get_output_directory())
    folder = Path(parent) / f"{name}_{number:05}_"
    try:
        for kind in ("images", "masks"):
            (folder / kind).mkdir(parents=True)
        loaded.on_device()
        for start in range(0, count, AT_ONCE):
            indices = range(start, min(start + AT_ONCE, count))
            made = cut_outs(loaded, draw_styles(loaded.generator, loaded.means, seed, indices, (psi, psi)),
                            node_id=node_id)
            for index, picture, mask in zip(indices, made.composite, made.mask, strict=True):
                to_image(picture).save(folder / "images" / f"{index:06}.png")
                grey = (mask * 255).round().to(torch.uint8).numpy()
                Image.fromarray(grey).save(folder / "masks" / f"{index:06}.png")
    except BaseException as error:
        shutil.rmtree(folder, ignore_errors=True)
        if isinstance(error, OSError):
            raise OSError(f"The pairs could not be written to {folder} ({error}); nothing was kept. Free some space or "
                          "choose another folder.") from error
        raise
    return folder
