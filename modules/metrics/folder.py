"""Folders of pictures for metrics: listed without opening a file, each file then read once, as a viewer shows it."""
from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from ..data.folder_files import KIND, UNREAD, held_by, listed
from ..data.frames import BrokenVideoError
from ..data.image_folder import STILLS, ImageFolderError
from ..data.image_sequences import UNREADABLE, natural_order, read_picture

CAPTIONS = (".txt", ".csv", ".jsonl")
GENERAL, PAPER_PARITY = "general", "paper parity"
OUTSIDE = "left aside, links that lead out of the folders that may be read"
GONE = "left aside, changed or removed while the folder was read"


@dataclass
class PictureFiles:
    """The picture files of a folder, in natural order, and what is not read."""

    folder: Path
    paths: list[Path]
    aside: dict[str, list[str]] = field(default_factory=dict)

    def leave_aside(self, reason: str, path: Path) -> None:
        self.aside.setdefault(reason, []).append(self.name(path))

    def name(self, path: Path) -> str:
        """Relative to the folder; bytes that are no UTF-8 are shown as question marks."""
        return os.fsencode(path.relative_to(self.folder).as_posix()).decode("utf-8", "replace")

    def notes(self) -> list[str]:
        return [f"{len(names)} {reason}: {listed(names)}" for reason, names in self.aside.items()]


def list_pictures(folder: Path, subfolders: bool, allowed: Callable[[Path], bool] = lambda path: True) -> PictureFiles:
    """The pictures of a folder, those that `allowed` says may be read; links to folders are not followed.

    Raises ImageFolderError for a folder that is not there or holds no picture.
    """
    if not folder.is_dir():
        raise ImageFolderError(f"There is no folder {folder}.")
    found = PictureFiles(folder, [])
    for root, names, files in os.walk(folder):
        names[:] = sorted(name for name in names if name[0] != ".") if subfolders else []
        paths = [Path(root, name) for name in files if name[0] != "."]
        for path in natural_order(path for path in paths if path.suffix.lower() in STILLS):
            if path.is_symlink() and not allowed(path.resolve()):
                found.leave_aside(OUTSIDE, path)
            else:
                found.paths.append(path)
        for path in sorted(path for path in paths if path.suffix.lower() in UNREAD):
            found.leave_aside(KIND, path)
    if not found.paths:
        raise ImageFolderError(f"No picture in {folder}: {held_by(folder)}. Expected picture files "
                               f"({' '.join(STILLS)}){'' if subfolders else ', or switch subfolders on'}.")
    return found


def open_picture(path: Path, how: str) -> Image.Image:
    """A file as an 8-bit RGB picture, the first frame of what moves. Raises BrokenVideoError with the reason.

    general: upright by EXIF, over white where it is transparent, 16 bits scaled. paper parity: as the official code
    converts it, EXIF and transparency ignored.
    """
    if how == PAPER_PARITY:
        try:
            with Image.open(path) as image:
                return image.convert("RGB")
        except UNREADABLE as error:
            raise BrokenVideoError("cannot be read") from error
    pixels = read_picture(path, alpha=True)                                     # [H, W, 4]
    picture = Image.fromarray(pixels[..., :3])
    if pixels[..., 3].min() < 255:
        white = Image.new("RGB", picture.size, "white")
        white.paste(picture, mask=Image.fromarray(pixels[..., 3]))
        picture = white
    return picture


def for_encoder(picture: Image.Image, size: int) -> Tensor:
    """[3, size, size] uint8: the short side scaled to `size` by PIL's bicubic filter, the middle cut out, as OpenAI's
    CLIP has it.
    """
    width, height = picture.size
    if (width, height) != (size, size):
        short = min(width, height)
        picture = picture.resize((max(size, int(size * width / short)), max(size, int(size * height / short))),
                                 Image.Resampling.BICUBIC)
        left, top = round((picture.width - size) / 2), round((picture.height - size) / 2)
        picture = picture.crop((left, top, left + size, top + size))
    return torch.from_numpy(np.asarray(picture).copy()).movedim(-1, 0)


def thumbnail(picture: Image.Image, side: int) -> Tensor:
    """[side, side, 3] uint8, the middle of a picture."""
    return torch.from_numpy(np.asarray(ImageOps.fit(picture, (side, side))).copy())


def state_of_file(path: Path) -> str:
    """Name, size and time of change."""
    state = path.stat()
    return f"{os.fsencode(path.resolve()).hex()}|{state.st_size}|{state.st_mtime_ns}"


def state_of_folder(folder: Path, subfolders: bool) -> str:
    """A text that changes when a picture or caption is added, removed or changed; "missing" without a folder."""
    if not folder.is_dir():
        return "missing"
    states = []
    for root, names, _ in os.walk(folder):
        names[:] = sorted(names) if subfolders else []
        with os.scandir(root) as entries:
            states += [(os.fsencode(entry.path), entry.stat().st_size, entry.stat().st_mtime_ns) for entry in entries
                       if entry.is_file() and Path(entry.name).suffix.lower() in (*STILLS, *CAPTIONS)]
    return str(sorted(states))
