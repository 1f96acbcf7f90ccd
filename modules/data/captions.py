"""Captions of a folder of clips or pictures: text files beside them, or the rows of one table."""
from __future__ import annotations

import unicodedata
from collections.abc import Callable, Sequence
from pathlib import Path

from .caption_tables import WINDOWS, encodings_of, read_table
from .folder_files import listed, relative_name


def read_captions(folder: Path, paths: Sequence[Path], texts: Sequence[Path], tick: Callable[[], None] = lambda: None,
                  kind: str = "video or sequence", folder_texts: bool = False) -> tuple[dict[Path, str], list[str]]:
    """The caption of each of `paths` (videos, folders of an image sequence, pictures), and notes about what was not
    used.

    The text of NAME.txt or NAME.ENDING.txt beside a file, or of caption.txt inside a sequence; else the row of the one
    .csv or metadata.jsonl in the folder that names the file; else, with `folder_texts`, the nearest caption.txt of the
    folders that the file lies in. `texts` are all .txt files below the folder. `tick` is called now and then; it may
    raise to stop. Raises CaptionTableError.
    """
    table, notes = read_table(folder, paths, tick, kind)
    captions, problems = {}, {}
    read: dict[Path, str | None] = {}
    beside = _TextFiles()
    for path in paths:
        text = beside.of(path)
        if text is None and table.get(path):
            captions[path] = table[path]
            continue
        if text is None and folder_texts:
            text = beside.above(path, folder)
        if text is None:
            continue
        if text not in read:
            read[text], problem = read_caption(text)
            if problem:
                problems.setdefault(problem, []).append(relative_name(text, folder))
        if read[text] is not None:
            captions[path] = read[text]
    notes += [f"{listed(names)}: {problem}" for problem, names in problems.items()]
    used = {str(text).casefold() for text in read}
    if lost := [relative_name(text, folder) for text in texts if str(text).casefold() not in used]:
        notes.append(f"{listed(lost)}: text that belongs to no {kind}")
    return captions, notes


def read_caption(path: Path) -> tuple[str | None, str | None]:
    """(caption in one line, what to note); the caption is None if the file cannot be read."""
    try:
        return decoded_caption(path.read_bytes())
    except OSError as error:
        return None, f"captions that cannot be read ({error.strerror})"


def decoded_caption(data: bytes) -> tuple[str | None, str | None]:
    """As `read_caption`, of the bytes of a text file."""
    for encoding in encodings_of(data):
        try:
            text = data.decode(encoding)
        except UnicodeDecodeError:
            continue
        if any(unicodedata.category(letter) == "Cc" and not letter.isspace() for letter in text):
            break
        caption = " ".join(text.split())
        if not caption:
            return None, "empty captions"
        return caption, "captions not in UTF-8, read as Windows-1252" if encoding == WINDOWS else None
    return None, "captions that cannot be read as text. Save them in UTF-8"


class _TextFiles:
    """Finds the caption file of a source; the case of its name does not matter."""

    def __init__(self):
        self.folders: dict[Path, dict[str, Path]] = {}

    def of(self, path: Path) -> Path | None:
        wanted = (path.with_suffix(".txt"), path.parent / f"{path.name}.txt", path / "caption.txt")
        exact = next((text for text in wanted if text.is_file()), None)
        return exact or next((found for text in wanted if (found := self.find(text))), None)

    def above(self, path: Path, top: Path) -> Path | None:
        """The caption.txt of the folder that a file lies in, or of the nearest above it, up to `top`."""
        folders = [parent for parent in path.parents if parent.is_relative_to(top)]
        return next((found for parent in folders if (found := self.find(parent / "caption.txt"))), None)

    def find(self, text: Path) -> Path | None:
        if text.parent not in self.folders:
            try:
                entries = list(text.parent.iterdir())
            except OSError:                     # no folder, or one that must not be listed
                entries = []
            self.folders[text.parent] = {entry.name.casefold(): entry for entry in entries
                                         if entry.suffix.lower() == ".txt" and entry.is_file()}
        return self.folders[text.parent].get(text.name.casefold())
