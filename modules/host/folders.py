"""The pack's own weights in the host's folders, so that the host's loaders list them beside the user's files."""
from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import folder_paths

from .boot import PACK

WEIGHTS = PACK / "weights"
SHIPPED = "frozen-diffusion/"       # marks files of the pack in the list of a loader


def register_weights() -> None:
    """Add `weights/loras` and `weights/controlnet` to where Load LoRA and Load ControlNet Model look."""
    for key in ("loras", "controlnet"):
        folder_paths.add_model_folder_path(key, str(WEIGHTS / key))


def register_models(folder: str, *others: Path) -> None:
    """Make the host know models/FOLDER, and other folders, as the place of a kind of model."""
    for path in (Path(folder_paths.models_dir) / folder, *others):
        folder_paths.add_model_folder_path(folder, str(path))
    paths, endings = folder_paths.folder_names_and_paths[folder]
    if not endings:
        folder_paths.folder_names_and_paths[folder] = (paths, folder_paths.supported_pt_extensions)


def listed(folder: str, place: Path, wanted: Callable[[Path], bool] = lambda path: True) -> list[str]:
    """Names for a loader: the files of the host's folder first, then those of the pack in `place` that are wanted."""
    shipped = [SHIPPED + path.name for path in sorted(place.glob("*.safetensors")) if wanted(path)]
    return folder_paths.get_filename_list(folder) + shipped


def shipped_file(name: str, place: Path) -> Path | None:
    """The pack's file in `place` behind a name of a list; None for others."""
    path = place / name.removeprefix(SHIPPED)
    return path if name.startswith(SHIPPED) and path.is_file() else None
