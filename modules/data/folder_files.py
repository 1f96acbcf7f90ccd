"""What a folder of training data holds: the files that are clips, and those that are left aside."""
from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from .image_sequences import PICTURES, is_animated, natural_order, picture_files
from .tar_files import TarMember
from .video import VIDEOS

Item = TypeVar("Item")

# Media and archives that people put into such folders and that are not read.
UNREAD = (".heic", ".heif", ".avif", ".jxl", ".exr", ".hdr", ".tga", ".dds", ".psd", ".dng", ".zip", ".rar", ".7z",
          ".gz", ".parquet")
PREVIEW = "left aside as previews, for a video or folder of the same name lies beside them"
BESIDE = "left aside, for they lie beside videos. If they are an image sequence, put them into a folder of their own"
SINGLE = "left aside, for a single picture is no clip"
KIND = "left aside, for such files are not read. Convert or unpack them"
SHARDS = "left aside, for shards are read only from a folder of their own"
CLOSED = "left aside, for these folders cannot be opened"
AGAIN = "left aside, links to folders that are read already"


@dataclass(frozen=True)
class Found:
    """The media below a folder.

    Attributes:
        sources: (path, pictures): a video or animated picture, with no pictures; or a folder and its image sequence.
        texts: all .txt files.
        aside: reason -> files that are not trained on.
    """
    sources: list[tuple[Path, tuple[Path, ...]]] = field(default_factory=list)
    texts: list[Path] = field(default_factory=list)
    aside: dict[str, list[Path]] = field(default_factory=dict)

    def leave_aside(self, reason: str, paths: Iterable[Path]) -> None:
        """Note files that are not trained on."""
        if paths := list(paths):
            self.aside.setdefault(reason, []).extend(paths)

    def notes(self, folder: Path) -> list[str]:
        """A line for each reason, with the first of its files."""
        return [f"{listed(relative_name(path, folder) for path in paths)}: {reason}"
                for reason, paths in self.aside.items()]


def find_files(folder: Path, tick: Callable[[], None]) -> Found:
    """Look through a folder, its subfolders and the folders that are linked there. `tick` may raise to stop."""
    found = Found()
    for root in folders_below(folder, lambda reason, path: found.leave_aside(reason, [path])):
        tick()
        _sort_files(root, found)
    return found


def folders_below(folder: Path, leave_aside: Callable[[str, Path], None] = lambda reason, path: None
                  ) -> Iterator[Path]:
    """The folder and all below it, each once, linked ones last; `leave_aside` is called for those not entered."""
    seen, tops = set(), [folder]
    while tops:
        top = tops.pop(0)
        for root, names, _ in os.walk(top, onerror=lambda error: leave_aside(CLOSED, Path(error.filename))):
            path, real = Path(root), os.path.realpath(root)
            if real in seen:
                names.clear()
                if path == top:
                    leave_aside(AGAIN, path)
                continue
            seen.add(real)
            names[:] = sorted(name for name in names if not name.startswith("."))
            tops += [path / name for name in names if (path / name).is_symlink()]      # os.walk does not enter them
            yield path


def _sort_files(root: Path, found: Found) -> None:
    """Sort the files of one folder into clips, pictures, captions and what is left aside."""
    with os.scandir(root) as entries:
        visible = sorted((entry.name, entry.is_dir()) for entry in entries if not entry.name.startswith("."))
    folders = {name.casefold() for name, is_folder in visible if is_folder}
    files = [root / name for name, is_folder in visible if not is_folder]
    pictures = [path for path in files if path.suffix.lower() in (*PICTURES, ".gif")]
    stills = {path for path in pictures if not is_animated(path)}
    clips = [path for path in files if path.suffix.lower() in (*VIDEOS, *PICTURES) and path not in stills]
    found.sources.extend((path, ()) for path in clips)
    found.texts.extend(path for path in files if path.suffix.lower() == ".txt")
    found.leave_aside(KIND, (path for path in files if path.suffix.lower() in UNREAD))
    found.leave_aside(SHARDS, (path for path in files if path.suffix.lower() == ".tar"))
    taken = folders | {name.casefold() for path in clips for name in (path.name, path.stem)}
    previews = [path for path in pictures if path in stills and path.stem.casefold() in taken]
    found.leave_aside(PREVIEW, previews)
    rest = natural_order(stills.difference(previews))
    if clips:
        found.leave_aside(BESIDE, rest)
    elif len(rest) == 1:
        found.leave_aside(SINGLE, rest)
    elif rest:
        found.sources.append((root, tuple(rest)))


def relative_name(path: Path, folder: Path) -> str:
    """The name of a file for the report; a caption of the folder itself lies beside it."""
    return path.relative_to(folder).as_posix() if path != folder and path.is_relative_to(folder) else path.name


def listed(names: Iterable[str], most: int = 5) -> str:
    """The first names of a list, and how many there are besides."""
    names = list(names)
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def file_state(path: Path | TarMember, pictures: tuple[Path, ...] = ()) -> str:
    """Path, size and time of change of a file, or of the pictures of a sequence."""
    if isinstance(path, TarMember):
        return path.identity
    files = pictures or (picture_files(path) if path.is_dir() else [path])
    stats = [file.stat() for file in files]
    size, changed = sum(stat.st_size for stat in stats), max(stat.st_mtime_ns for stat in stats)
    return f"{path.resolve()}|{len(files)}|{size}|{changed}"


def held_by(folder: Path) -> str:
    """What a folder holds, for an error: "it holds a.pdf, b.pdf"."""
    names = sorted(path.name for path in folder.iterdir())
    return f"it holds {', '.join(names[:5])}{', ...' if len(names) > 5 else ''}" if names else "it is empty"


def first_reasons(notes: Sequence[str]) -> str:
    """The first lines of a report, for an error."""
    return "; ".join(notes[:5]) + ("; ..." if len(notes) > 5 else "")


def spread(items: Sequence[Item], limit: int, kind: str, notes: list[str]) -> list[Item]:
    """At most `limit` items, taken evenly from all; 0 = all. Adds a note if some are left out."""
    if not limit or len(items) <= limit:
        return list(items)
    notes.append(f"{len(items) - limit} {kind} left out by the limit of {limit}")
    return [items[index * len(items) // limit] for index in range(limit)]
