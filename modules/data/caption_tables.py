"""The captions of a folder of clips or pictures in a table: which row is meant for which file."""
from __future__ import annotations

import codecs
import csv
import json
import posixpath
import re
import unicodedata
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from .folder_files import listed, relative_name

FILE_COLUMNS = ("file", "filename", "file_name", "video", "path", "name", "image")
TEXT_COLUMNS = ("caption", "text", "prompt")
JSON_TABLES = ("metadata.jsonl", "captions.jsonl")
FIRST_ROWS = 5                      # that are named of those that fit nothing
WINDOWS = "cp1252"
BOMS = ((codecs.BOM_UTF8, "utf-8-sig"), (codecs.BOM_UTF32_LE, "utf-32"), (codecs.BOM_UTF32_BE, "utf-32"),
        (codecs.BOM_UTF16_LE, "utf-16"), (codecs.BOM_UTF16_BE, "utf-16"))
ABSOLUTE = re.compile(r"/|[A-Za-z]:/")


class CaptionTableError(ValueError):
    """A table of captions cannot be used; the message says why."""


def read_table(folder: Path, paths: Sequence[Path], tick: Callable[[], None], kind: str
               ) -> tuple[dict[Path, str], list[str]]:
    """The captions in the one .csv of the folder, else in its metadata.jsonl, and notes about the rows.

    `kind` is what `paths` are, e.g. "picture". Raises CaptionTableError.
    """
    tables = sorted(path for path in folder.iterdir() if path.suffix.lower() == ".csv")
    tables = tables or sorted(path for path in folder.iterdir() if path.name.lower() in JSON_TABLES)
    if len(tables) > 1:
        names = ", ".join(table.name for table in tables)
        raise CaptionTableError(f"{folder} holds several {tables[0].suffix} files ({names}); keep the one with the "
                                "captions.")
    if not tables:
        return {}, []
    table = tables[0]
    with table.open("rb") as file:
        encodings = encodings_of(file.read(4096))
    for encoding in encodings:
        try:
            captions, notes = _match_rows(table, encoding, folder, paths, tick, kind)
        except UnicodeDecodeError:
            continue
        except csv.Error as error:
            raise CaptionTableError(f"{table} cannot be read as a table: {error}.") from error
        if encoding == WINDOWS:
            notes.append(f"{table.name}: not in UTF-8, read as Windows-1252")
        return captions, notes
    raise CaptionTableError(f"{table} cannot be read as a table in UTF-8. Save it in UTF-8.")


def encodings_of(data: bytes) -> list[str]:
    """The encodings to try, by the first bytes of a text: its byte order mark, else UTF-8 and then Windows-1252."""
    marked = next((encoding for mark, encoding in BOMS if data.startswith(mark)), None)
    if marked:
        return [marked]
    if b"\0" in data:               # UTF-16 of mostly Latin text: every second byte is zero
        return ["utf-16-le" if data[1::2].count(0) > data[::2].count(0) else "utf-16-be"]
    return ["utf-8", WINDOWS]


def _match_rows(table: Path, encoding: str, folder: Path, paths: Sequence[Path], tick: Callable[[], None],
                kind: str) -> tuple[dict[Path, str], list[str]]:
    """The caption of each path by the row that names it best; of equally good ones the last."""
    names = _Names(folder, paths)
    best: dict[Path, tuple[int, str]] = {}
    unmatched, lost, short, doubled = 0, [], [], set()
    for number, files, caption in (_json_rows if table.suffix.lower() == ".jsonl" else _rows)(table, encoding):
        if number % 10_000 == 0:
            tick()
        if caption is None:
            short.append(str(number))
            continue
        ranked = [pair for file in files for pair in names.match(file)]
        if not ranked:
            unmatched += 1
            lost += [f"{number} ({files[0]})"] * (len(lost) < FIRST_ROWS)
        for path, rank in ranked:
            before = best.get(path)
            if before and before[0] == rank and before[1] != caption:
                doubled.add(path)
            if not before or rank <= before[0]:
                best[path] = rank, caption
    notes = []
    if unmatched:
        more = f" and {unmatched - len(lost)} more" if unmatched > len(lost) else ""
        notes.append(f"{table.name}: rows that name no {kind}: {', '.join(lost)}{more}")
    if short:
        notes.append(f"{table.name}: rows without a caption column: {listed(short)}")
    if doubled:
        notes.append(f"{table.name}: several rows with different captions, the last one is used: "
                     + listed(sorted(relative_name(path, folder) for path in doubled)))
    return {path: caption for path, (_, caption) in best.items()}, notes


def _rows(table: Path, encoding: str) -> Iterator[tuple[int, list[str], str | None]]:
    """(number of the row, names of its file, its caption or None if the row is too short).

    In WebVid's tables (videoid, contentUrl, duration, page_dir, name) the file is page_dir/videoid.mp4 or videoid.mp4,
    and `name` is the caption.
    """
    with table.open(encoding="utf-8-sig" if encoding == "utf-8" else encoding, newline="") as file:
        first = file.readline()
        for delimiter in (",", ";", "\t"):
            header = [cell.strip().lower() for cell in next(csv.reader([first], delimiter=delimiter), [])]
            if (columns := _columns(header)) is not None:
                break
        else:
            raise CaptionTableError(
                f"{table} needs a first line that names a column of files ({', '.join(FILE_COLUMNS)}) and one of "
                f"captions ({', '.join(TEXT_COLUMNS)}), or WebVid's columns videoid and name; it reads: "
                f"{first.strip()[:80]!r}.")
        page, file_name, caption = columns
        for number, row in enumerate(csv.reader(file, delimiter=delimiter), 2):
            if not any(cell.strip() for cell in row):
                continue
            if len(row) <= max(column for column in columns if column is not None):
                yield number, [], None
                continue
            bare = row[file_name].strip()
            yield number, [bare] if page is None else [f"{row[page].strip()}/{bare}", bare], row[caption].strip()


def _json_rows(table: Path, encoding: str) -> Iterator[tuple[int, list[str], str | None]]:
    """As `_rows`, of a table with one JSON object a line, as Hugging Face's folders of images and videos have them."""
    with table.open(encoding=encoding) as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
                row = {name.strip().lower(): value for name, value in row.items()}
            except (json.JSONDecodeError, AttributeError) as error:
                raise CaptionTableError(f"{table} cannot be read as a table: line {number} is no JSON object, it reads "
                                        f"{line.strip()[:80]!r}.") from error
            name = next((row[column] for column in FILE_COLUMNS if column in row), None)
            if not isinstance(name, str):
                raise CaptionTableError(f"{table} needs the name of a file in each line ({', '.join(FILE_COLUMNS)}) "
                                        f"and a caption ({', '.join(TEXT_COLUMNS)}); line {number} reads "
                                        f"{line.strip()[:80]!r}.")
            yield number, [name.strip()], caption_in(row)


def caption_in(row: dict) -> str | None:
    """The caption among the values of a JSON object, None if there is none."""
    text = next((row[column] for column in TEXT_COLUMNS if isinstance(row.get(column), str)), None)
    return text if text is None else " ".join(text.split())


def _columns(header: list[str]) -> tuple[int | None, int, int] | None:
    """Columns of (the folder or None, the file, the caption) by the header; None if it does not tell them."""
    file, text = (next((header.index(name) for name in names if name in header), None)
                  for names in (FILE_COLUMNS, TEXT_COLUMNS))
    if file is not None and text is not None:
        return None, file, text
    if "videoid" not in header or (text is None and "name" not in header):
        return None
    page = header.index("page_dir") if "page_dir" in header else None
    return page, header.index("videoid"), header.index("name") if text is None else text


class _Names:
    """Which of some paths a name in a table is meant for.

    `/` and `\\` are the same; `./` at the front, the case of letters and the form of accents do not matter.
    """

    def __init__(self, folder: Path, paths: Sequence[Path]):
        self.tops = [unicodedata.normalize("NFC", top.as_posix()) for top in (folder.absolute(), folder.resolve())]
        self.by_name: dict[str, list[tuple[Path, str]]] = {}
        for path in paths:
            relative = _plain(relative_name(path, folder))
            bare = posixpath.basename(relative)
            for name in {bare.casefold(), posixpath.splitext(bare)[0].casefold()}:
                self.by_name.setdefault(name, []).append((path, relative))

    def match(self, name: str) -> list[tuple[Path, int]]:
        """(path, rank) of every path that may be meant; a lower rank is a better match, an odd one has another case."""
        name = _plain(name)
        if not name:
            return []
        found = []
        for path, relative in self.by_name.get(posixpath.basename(name).casefold(), ()):
            same, folded = _rank(name, relative, self.tops), _rank(
                name.casefold(), relative.casefold(), [top.casefold() for top in self.tops])
            if folded is not None:
                found.append((path, 2 * folded + 1 if same is None else 2 * same))
        same_case = [pair for pair in found if pair[1] % 2 == 0]
        return same_case or found


def _rank(name: str, relative: str, tops: Sequence[str]) -> int | None:
    """How well a name in a table fits a file below `tops`; None if it does not.

    0 its path, 1 the path from a folder above, 2 without the ending, 3 its bare name, 4 its bare name without the
    ending, 5 a path inside a folder that was moved.
    """
    stem = posixpath.splitext(relative)[0]
    if "/" not in name:
        ranks = {posixpath.basename(stem): 4, posixpath.basename(relative): 3, stem: 2, relative: 0}
        return ranks.get(name)
    if name == relative:
        return 0
    if any(f"/{top}/{relative}".endswith(f"/{name}") for top in tops):
        return 1
    if name == stem or any(f"/{top}/{stem}".endswith(f"/{name}") for top in tops):
        return 2
    return 5 if ABSOLUTE.match(name) and name.endswith((f"/{relative}", f"/{stem}")) else None


def _plain(name: str) -> str:
    """A name of a file with `/` only and without `./`, quotes and spaces around it; its accents in one form."""
    name = unicodedata.normalize("NFC", name).strip().strip("\"'").replace("\\", "/")
    return posixpath.normpath(name) if name else ""
