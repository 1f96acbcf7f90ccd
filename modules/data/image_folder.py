"""Folders of pictures as data: each picture by its number, read when it is asked for."""
from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from .caption_tables import CaptionTableError
from .captions import read_captions
from .folder_files import (
    KIND,
    SHARDS,
    UNREAD,
    Found,
    file_state,
    first_reasons,
    folders_below,
    held_by,
    listed,
    relative_name,
    spread,
)
from .frames import BrokenVideoError, fit
from .image_sequences import PICTURES, look_at, natural_order, read_picture
from .images import ImageSettings
from .tar_files import TarMember
from .video import VIDEOS

STILLS = (*PICTURES, ".gif")
MOVING = "left aside, for these are videos or animations and no pictures"
SMALL = "left aside, for their short side has less than {} pixels"


class ImageFolderError(ValueError):
    """A folder, or shards, give no picture."""


@dataclass(frozen=True)
class Picture:
    """One picture."""

    path: Path | TarMember
    name: str                   # in reports
    caption: str = ""


@dataclass(frozen=True)
class ImageFolder:
    """The pictures found in a folder or in shards, and what was found wrong. `find_images` and sources.py make it."""

    folder: Path
    settings: ImageSettings
    pictures: tuple[Picture, ...]
    notes: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.pictures)

    def caption(self, index: int) -> str:
        return self.pictures[index].caption

    def pixels(self, index: int) -> Tensor:
        """[3, H, W] uint8, with alpha kept [4, H, W]. Raises BrokenVideoError naming the file if it cannot be read."""
        path, settings = self.pictures[index].path, self.settings
        try:
            picture = read_picture(path, settings.alpha)
        except BrokenVideoError as error:
            raise BrokenVideoError(f"{path}: {error}. Remove the file and build the dataset again.") from error
        return fit(picture, settings.width, settings.height, whole=settings.fit == "pad")

    def key(self, index: int) -> str:
        settings = self.settings
        return (f"picture|{file_state(self.pictures[index].path)}|{settings.size}|{settings.fit}"
                f"{'|alpha' * settings.alpha}")

    def name(self, index: int) -> str:
        return self.pictures[index].name

    def report(self) -> str:
        return "\n".join([f"{len(self)} pictures of {self.settings.size} in {self.folder}", *self.notes])


def find_images(folder: Path, settings: ImageSettings, tick: Callable[[], None] = lambda: None) -> ImageFolder:
    """Look through a folder, and, if the settings say so, its subfolders and the folders linked there.

    The pictures of a folder come in natural order. A caption is the text of NAME.txt beside a picture, else its row in
    the one .csv or metadata.jsonl at the top, else the nearest caption.txt of its folder or those above. Files that
    cannot be read, move or are too small are left aside. The report names whatever is not used, and why. `tick` is
    called often and may raise to stop.

    Raises ImageFolderError if the folder does not exist or holds no usable picture: it says what was found.
    """
    if not folder.is_dir():
        raise ImageFolderError(f"There is no folder {folder}. Give the folder that holds your pictures.")
    found = Found()
    below = folders_below(folder, lambda reason, path: found.leave_aside(reason, [path]))
    for root in below if settings.subfolders else [folder]:
        tick()
        _sort_files(root, found)
    paths = [path for path, _ in found.sources]
    try:
        captions, told = read_captions(folder, paths, found.texts, tick, "picture", folder_texts=True)
    except CaptionTableError as error:
        raise ImageFolderError(str(error)) from error
    pictures, notes = usable([Picture(path, relative_name(path, folder), captions.get(path, "")) for path in paths],
                             settings, tick)
    notes += found.notes(folder) + told
    if not pictures:
        raise ImageFolderError(_nothing(folder, len(paths), notes))
    return ImageFolder(folder, settings, tuple(spread(pictures, settings.max_images, "pictures", notes)), tuple(notes))


def usable(pictures: Sequence[Picture], settings: ImageSettings, tick: Callable[[], None]
           ) -> tuple[list[Picture], list[str]]:
    """Those that can be read, do not move and are large enough; notes about the others, and about missing captions."""
    good: list[Picture] = []
    aside: dict[str, list[str]] = {}
    for number, picture in enumerate(pictures):
        if number % 50 == 0:
            tick()
        try:
            short_side, moves = look_at(picture.path)
            reason = MOVING if moves else SMALL.format(settings.min_side) if short_side < settings.min_side else None
        except BrokenVideoError as error:
            reason = f"skipped, {error}"
        if reason:
            aside.setdefault(reason, []).append(picture.name)
        else:
            good.append(picture)
    notes = [f"{listed(names)}: {reason}" for reason, names in aside.items()]
    if bare := [picture.name for picture in good if not picture.caption]:
        notes.append(f"{listed(bare)}: no caption" if len(bare) < len(good) else "no picture has a caption")
    return good, notes


def _sort_files(root: Path, found: Found) -> None:
    """Sort the files of one folder into pictures, captions and what is left aside."""
    with os.scandir(root) as entries:
        files = [root / entry.name for entry in entries if entry.name[0] != "." and not entry.is_dir()]
    found.sources.extend((path, ()) for path in natural_order(files) if path.suffix.lower() in STILLS)
    found.texts.extend(sorted(path for path in files if path.suffix.lower() == ".txt"))
    found.leave_aside(MOVING, sorted(path for path in files
                                     if path.suffix.lower() in VIDEOS and path.suffix.lower() not in STILLS))
    found.leave_aside(KIND, sorted(path for path in files if path.suffix.lower() in UNREAD))
    found.leave_aside(SHARDS, sorted(path for path in files if path.suffix.lower() == ".tar"))


def _nothing(folder: Path, pictures: int, notes: Sequence[str]) -> str:
    if pictures:
        return f"No usable picture in {folder}, of {pictures} found: {first_reasons(notes)}."
    return (f"No picture in {folder}: {held_by(folder)}. Expected picture files ({' '.join(STILLS)})."
            f"{f' {first_reasons(notes)}.' if notes else ''}")
