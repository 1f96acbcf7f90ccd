"""WebDataset shards: plain .tar files whose members are samples, grouped by what comes before the first dot."""
from __future__ import annotations

import json
import os
import posixpath
import re
import tarfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from .caption_tables import caption_in
from .captions import decoded_caption
from .folder_files import folders_below, listed, relative_name
from .image_sequences import natural_order
from .tar_files import TarMember, state_of

ENDING = ".tar"
BRACES = re.compile(r"\{([^{}]*(?:,|\.\.)[^{}]*)\}")
DOUBLED = "twice in a shard; the last one is used, as if it were unpacked"
SAME_NAME = "samples of the same name are in several shards; all are used"


class ShardError(ValueError):
    """There are no such shards; the message says which were looked for."""


@dataclass
class Sample:
    """The files of one name in a shard."""

    name: str                                                       # with the shard's, for reports
    files: dict[str, TarMember] = field(default_factory=dict)       # by all that follows the first dot, in lower case
    captions: dict[str, str] = field(default_factory=dict)          # by "txt", "json"

    @property
    def caption(self) -> str | None:
        """Of the .txt, else of the .json; None if there is none."""
        return self.captions.get("txt", self.captions.get("json"))

    def first(self, wanted: Callable[[TarMember], bool]) -> tuple[TarMember | None, int]:
        """The file that is wanted, one like NAME.mp4 before one like NAME.left.mp4; and how many there are."""
        found = [self.files[ending] for ending in sorted(self.files, key=lambda ending: ending.count("."))
                 if wanted(self.files[ending])]
        return (found[0] if found else None), len(found)


@dataclass(frozen=True)
class Shards:
    """What shards hold. Made by `read_shards`."""

    files: list[Path]
    samples: list[Sample]
    notes: list[str]


def names_shards(path: Path) -> bool:
    """Whether a path is meant to name shards: a .tar file, or a pattern. A folder may hold some or not."""
    return not path.is_dir() and (path.suffix.lower() == ENDING or BRACES.search(str(path)) is not None)


def shard_files(path: Path) -> list[Path]:
    """The shards of a path: one file, those of a pattern like clips/{000..010}.tar, or all in a folder and below.

    A pattern holds ranges {000..010} and lists {train,val}. Raises ShardError for shards that do not exist.
    """
    if path.is_dir():
        below = [[file for file in root.iterdir() if file.suffix.lower() == ENDING and file.name[0] != "."]
                 for root in folders_below(path)]
        return [file for files in below for file in natural_order(files) if file.is_file()]
    files = [Path(text) for text in _expanded(str(path))]
    if missing := [str(file) for file in files if not file.is_file()]:
        raise ShardError(f"There is no file {listed(missing, 3)}, of {len(files)} that {path} names. Give shards that "
                         "are on a disk: a folder with .tar files, one .tar, or a pattern like clips/{000..010}.tar.")
    return files


def read_shards(path: Path, tick: Callable[[], None] = lambda: None) -> Shards:
    """Look through the headers of all shards of a path once; captions are read, other files only noted.

    Shards that are no plain .tar are skipped, of those that are cut off the whole samples are used. `tick` is called
    often and may raise to stop. Raises ShardError.
    """
    files = shard_files(path)
    base = path if path.is_dir() else Path(os.path.commonpath([file.parent for file in files]))
    samples: list[Sample] = []
    shards: dict[str, int] = {}         # how many have a sample of this name
    notes: list[str] = []
    problems: dict[str, list[str]] = {}
    for file in files:
        found = _read_shard(file, relative_name(file, base), problems, tick)
        for name in found:
            shards[name] = shards.get(name, 0) + 1
        samples += found.values()
    notes += [f"{listed(names)}: {problem}" for problem, names in problems.items()]
    if common := [name for name, count in shards.items() if count > 1]:
        notes.append(f"{listed(common)}: {SAME_NAME}")
    return Shards(files, samples, notes)


def _read_shard(file: Path, label: str, problems: dict[str, list[str]], tick: Callable[[], None]) -> dict[str, Sample]:
    """The samples of one shard by name; adds to the names of what has a problem."""
    samples: dict[str, Sample] = {}
    state = state_of(file)

    def note(problem: str, name: str = "") -> None:
        problems.setdefault(problem, []).append(f"{label}/{name}" if name else label)

    try:
        with tarfile.open(file, "r:") as archive:
            for number, info in enumerate(archive):
                if number % 100 == 0:
                    tick()
                path = posixpath.normpath(info.name)
                folder, base = posixpath.split(path)
                name, _, ending = base.partition(".")
                if not info.isreg() or not name or not ending:      # folders, links, hidden files
                    continue
                if info.offset_data + info.size > state[0]:         # cut off; the next header will not be found
                    continue
                if info.issparse():
                    note("skipped, stored as a sparse file, which cannot be read in place", path)
                    continue
                name, ending = posixpath.join(folder, name), ending.lower()
                sample = samples.setdefault(name, Sample(f"{label}/{name}"))
                if ending in sample.files:
                    note(DOUBLED, path)
                sample.files[ending] = TarMember(file, path, info.offset_data, info.size, state)
                if ending in ("txt", "json"):
                    caption, problem = _caption(archive.extractfile(info).read(), ending)
                    sample.captions.pop(ending, None)
                    if caption is not None:
                        sample.captions[ending] = caption
                    if problem:
                        note(problem, path)
            end = archive.offset
        with file.open("rb") as raw:
            raw.seek(end)
            if raw.read(tarfile.BLOCKSIZE).strip(b"\0"):            # an archive ends with zeros
                note("damaged; what comes before the damage is used")
    except (tarfile.TarError, OSError, EOFError) as error:
        note(f"skipped, no plain .tar ({error}). A compressed one has to be decompressed" if not samples
             else f"cut off or damaged ({error}); what comes before is used")
    return samples


def _caption(data: bytes, ending: str) -> tuple[str | None, str | None]:
    """(caption, what to note) of a .txt, or of the caption, text or prompt in a .json."""
    if ending == "txt":
        return decoded_caption(data)
    try:
        row = json.loads(data)
    except ValueError:                  # of JSON and of its encoding
        return None, "captions that cannot be read as JSON"
    return (caption_in(row) or None) if isinstance(row, dict) else None, None


def _expanded(text: str) -> list[str]:
    """All that a pattern with braces stands for, in order."""
    match = BRACES.search(text)
    if match is None:
        return [text]
    rest = _expanded(text[match.end():])
    return [text[:match.start()] + choice + end for choice in _choices(match[1]) for end in rest]


def _choices(text: str) -> list[str]:
    if ".." not in text:
        return text.split(",")
    first, _, last = text.partition("..")
    if not (first.isdecimal() and last.isdecimal() and int(first) <= int(last)):
        raise ShardError(f"{{{text}}} in the name of the shards is no range. Write one like {{000..010}}.")
    width = max(len(first), len(last)) if "0" in (first[0], last[0]) else 0
    return [str(number).zfill(width) for number in range(int(first), int(last) + 1)]
