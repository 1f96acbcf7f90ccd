"""Rulers in the host: the shipped one, and those that Save Ruler wrote."""
from __future__ import annotations

from pathlib import Path

import folder_paths

from ...metrics.hcs import Ruler
from ..folders import SHIPPED, WEIGHTS

SAVED = "rulers"


def ruler_names() -> list[str]:
    """The files of output/rulers, the newest first, then the shipped ones."""
    shipped = sorted(path.stem for path in (WEIGHTS / "rulers").glob("*.safetensors"))
    own = sorted(_folder().glob("*.safetensors"), key=lambda path: -path.stat().st_mtime) if _folder().is_dir() else []
    return [path.name for path in own] + [SHIPPED + name for name in shipped]


def find_ruler(name: str) -> Path:
    """Raises FileNotFoundError."""
    path = (WEIGHTS / "rulers" / f"{name.removeprefix(SHIPPED)}.safetensors" if name.startswith(SHIPPED)
            else _folder() / Path(name).name)
    if not path.is_file():
        raise FileNotFoundError(f"There is no ruler {name!r} in {path.parent}. Save Ruler writes one.")
    return path


def ruler_text(ruler: Ruler) -> str:
    """In words."""
    return (f"{len(ruler.names)} attributes (list {ruler.list_hash}, text centre {ruler.text_centre}), 0 is the mean "
            f"of {ruler.images} reference pictures, encoder {ruler.encoder}, {ruler.directions.shape[1]} wide: "
            f"{', '.join(ruler.names[:20])}{', ...' if len(ruler.names) > 20 else ''}")


def _folder() -> Path:
    return Path(folder_paths.get_output_directory(), SAVED)
