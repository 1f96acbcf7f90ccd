"""Files inside a plain .tar, read where they lie: nothing is unpacked."""
from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from .frames import BrokenVideoError


@dataclass(frozen=True)
class TarMember:
    """A file inside an archive. Opens like a Path."""

    archive: Path
    name: str                   # its path in the archive
    offset: int                 # bytes from the archive's begin to the file's
    size: int                   # bytes
    archive_state: tuple[int, int]      # size and time of change (ns) of the archive when it was looked through

    @property
    def suffix(self) -> str:
        return PurePosixPath(self.name).suffix

    @property
    def identity(self) -> str:
        """What decides its bytes: the archive's path, size and time of change, and its place there."""
        return "|".join(map(str, (self.archive.resolve(), *self.archive_state, self.name, self.offset, self.size)))

    def open(self, mode: str = "rb") -> io.BufferedReader:
        """Raises BrokenVideoError if the archive changed since it was looked through."""
        if mode != "rb":
            raise ValueError(f"A file inside an archive is opened for reading bytes, \"rb\"; {mode!r} was given.")
        if state_of(self.archive) != self.archive_state:
            raise BrokenVideoError(f"{self.archive.name} is gone or was changed after it was looked through")
        return io.BufferedReader(_Window(self))

    def __str__(self) -> str:
        return f"{self.archive}/{self.name}"


def state_of(archive: Path) -> tuple[int, int]:
    """Size and time of change (ns); (-1, -1) if there is no such file."""
    try:
        stat = archive.stat()
    except OSError:
        return -1, -1
    return stat.st_size, stat.st_mtime_ns


class _Window(io.RawIOBase):
    """A part of a file as a file of its own."""

    def __init__(self, member: TarMember):
        self._file = member.archive.open("rb", buffering=0)
        self._begin, self._size, self._position = member.offset, member.size, 0
        self.name = f"file{member.suffix}"      # a decoder may look at the ending

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._size}[whence]
        if base + offset < 0:
            raise OSError(f"cannot seek to {base + offset}, before the begin of the file")
        self._position = base + offset
        return self._position

    def readinto(self, buffer) -> int:
        wanted = max(0, min(len(buffer), self._size - self._position))
        self._file.seek(self._begin + self._position)
        count = self._file.readinto(memoryview(buffer)[:wanted])
        self._position += count
        return count

    def close(self) -> None:
        self._file.close()
        super().close()
