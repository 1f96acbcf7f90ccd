"""What a file is that holds no tensors, or not all of them: told from its first bytes."""
from __future__ import annotations

import json
import struct
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from pickle import UnpicklingError

from safetensors import SafetensorError

SAFETENSORS = (".safetensors", ".sft")
ZIP, PICKLE = b"PK\x03\x04", b"\x80"      # how PyTorch's files begin, new and old
WEB_PAGE = (b"<!doctype", b"<html", b"<head", b"<?xml")
AGAIN = "Download it again."
Load = Callable[[str], tuple[object, Mapping[str, str] | None]]     # of a path: (state, metadata)


def check_file(path: Path, error: type[ValueError]) -> None:
    """Refuse what is no file of tensors, as far as can be told without loading it. Raises `error`."""
    size = path.stat().st_size
    with path.open("rb") as file:
        head = file.read(512)
    if size == 0:
        raise error(f"{path.name} is empty (0 bytes): the download failed. {AGAIN}")
    if head.lstrip().lower().startswith(WEB_PAGE):
        raise error(f"{path.name} is a saved web page, not a model: the page about the model was "
                              "downloaded instead of the file. Use the download link of the file itself.")
    if head.startswith(b"version https://git-lfs"):
        raise error(f"{path.name} is a Git LFS pointer of {size} bytes, not the model itself. Run "
                              "`git lfs pull` where it was cloned, or download the file from its web page.")
    if path.suffix.lower() in SAFETENSORS:
        check_safetensors(path, size, head, error)
    elif header_length(head) is not None:
        raise error(f"{path.name} is a safetensors file with another ending. Rename it to "
                              f"{path.stem}.safetensors.")
    elif not head.startswith((ZIP, PICKLE)):
        raise error(f"{path.name} is no model file: it begins neither like safetensors nor like a "
                              f"PyTorch file. {AGAIN}")
    elif head.startswith(ZIP) and not zipfile.is_zipfile(path):
        raise error(f"{path.name} is cut off: {size:,} bytes of a PyTorch file without its end. "
                              f"{AGAIN}")


def read_tensors(path: Path, load: Load, error: type[ValueError]) -> tuple[object, Mapping[str, str] | None]:
    """(what is in a file of tensors, its metadata or None). `load` must refuse pickled code. Raises `error`."""
    check_file(path, error)
    try:
        return load(str(path))
    except UnpicklingError as reason:
        raise error(f"{path.name} holds Python objects besides weights. Such a file can run code when it is opened, so "
                    "it is refused. Get a .safetensors version.") from reason
    except (RuntimeError, ValueError, OSError, EOFError, SafetensorError) as reason:
        said = str(reason).partition("\n")[0]
        raise error(f"{path.name} cannot be read ({said}). It is damaged or no model file. {AGAIN}") from reason


def header_length(head: bytes) -> int | None:
    """Length of the JSON header if the first bytes of a file look like safetensors, else None."""
    if len(head) < 10 or head[8:9] != b"{":
        return None
    length = struct.unpack("<Q", head[:8])[0]
    return length if length < 100_000_000 else None


def check_safetensors(path: Path, size: int, head: bytes, error: type[ValueError]) -> None:
    """Compare the size of a safetensors file with what its header promises. Raises `error`."""
    length = header_length(head)
    if length is None:
        cure = "it is a PyTorch file; rename it to .ckpt" if head.startswith(ZIP) else "it is damaged"
        raise error(f"{path.name} does not begin like a safetensors file: {cure}, or get it again.")
    promised = 8 + length
    if promised <= size:
        try:
            entries = [entry for name, entry in read_header(path).items() if name != "__metadata__"]
            promised += max((entry["data_offsets"][1] for entry in entries), default=0)
        except (ValueError, TypeError, KeyError, AttributeError) as damage:
            raise error(f"The header of {path.name} is damaged ({damage}). {AGAIN}") from damage
    if promised > size:
        raise error(f"{path.name} is cut off: it has {size:,} bytes and should have at least "
                              f"{promised:,}. {AGAIN}")


def read_header(path: Path) -> dict:
    """The JSON header of a safetensors file: names, shapes and metadata, without the weights.

    Raises ValueError when there is none.
    """
    with path.open("rb") as file:
        length = header_length(file.read(10))
        if length is None:
            raise ValueError(f"{path.name} does not begin like a safetensors file")
        file.seek(8)
        return json.loads(file.read(length))


def has_format(path: Path, wanted: str) -> bool:
    """Whether a safetensors file says in its header that it has a format of the pack; a damaged file does not."""
    try:
        return (read_header(path).get("__metadata__") or {}).get("format") == wanted
    except (OSError, ValueError, AttributeError):
        return False


def check_format(path: Path, metadata: Mapping[str, str] | None, wanted: str, version: str, what: str, node: str,
                 error: type[ValueError]) -> None:
    """Refuse a safetensors file that is not `what`, as the node of that name writes it. Raises `error`."""
    metadata = metadata or {}
    if metadata.get("format") != wanted:
        raise error(f"{path.name} is a safetensors file, but no {what}: its format is "
                    f"{metadata.get('format', 'not named')!r}. Choose a file that {node} wrote.")
    if problem := version_problem(metadata, version):
        raise error(f"{path.name}: {problem}")


def version_problem(metadata: Mapping[str, str], version: str) -> str | None:
    """Why this pack does not read a file of ours with such metadata; None if it is of the version it reads."""
    given = metadata.get("format_version")
    if given == version:
        return None
    if given is not None and given.isdecimal() and int(given) > int(version):
        return f"it is of version {given} and this pack reads version {version}. Update the pack."
    return (f"format_version is {given!r} in its metadata; expected {version!r}. The file is damaged, or was changed "
            "by hand: get it again.")
