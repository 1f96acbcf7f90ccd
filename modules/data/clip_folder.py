"""Clips cut out of a folder of video files and image sequences."""
from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from ..seeding import seed_for
from .caption_tables import CaptionTableError
from .captions import read_captions
from .clips import ClipSettings
from .cutting import Clip, Footage, cut_clips
from .folder_files import file_state, find_files, first_reasons, folders_below, held_by, relative_name, spread
from .frames import BrokenVideoError
from .image_sequences import PICTURES
from .shards import ShardError, shard_files
from .video import VIDEOS, read_frames


class ClipFolderError(ValueError):
    """A folder, or shards, give nothing to train on."""


@dataclass(frozen=True)
class ClipFolder:
    """The clips found in a folder or in shards, and what was found wrong. `find_clips` and sources.py make it."""

    folder: Path
    settings: ClipSettings
    clips: tuple[Clip, ...]
    notes: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.clips)

    def caption(self, index: int) -> str:
        return self.clips[index].caption

    def pixels(self, index: int) -> Tensor:
        """[F, 3, H, W] uint8. Raises BrokenVideoError naming the file, if it changed since it was scanned."""
        clip, settings = self.clips[index], self.settings
        try:
            frames = read_frames(clip.pictures or clip.path, clip.times, settings.fps, settings.width,
                                 settings.height)
        except BrokenVideoError as error:
            raise BrokenVideoError(
                f"{clip.path}: {error}. Remove the file and build the dataset again.") from error
        return frames.flip(-1) if clip.mirrored else frames

    def key(self, index: int) -> str:
        clip, settings = self.clips[index], self.settings
        how = "".join(f"|{conversion}" for conversion in clip.conversions)
        return f"{file_state(clip.path, clip.pictures)}|{clip.times}|{clip.mirrored}|{settings.size}{how}"

    def video(self, index: int) -> str:
        return str(self.clips[index].path)

    def report(self) -> str:
        files = len({clip.path for clip in self.clips})
        kind = f"{self.settings.frames} frames at {self.settings.fps:g} fps, {self.settings.size}"
        return "\n".join([f"{len(self)} clips of {kind}, from {files} files in {self.folder}", *self.notes])


def find_clips(folder: Path, settings: ClipSettings, tick: Callable[[], None] = lambda: None) -> ClipFolder:
    """Scan a folder, its subfolders and the folders linked there, and cut what moves into clips.

    Clips come from video files, animated WebP, PNG and GIF, and from folders of pictures: each is one sequence, unless
    videos lie beside the pictures. A caption is the text of NAME.txt beside a file (or of caption.txt inside a
    sequence), else the file's row in the one .csv or metadata.jsonl at the top. Scenes end at hard cuts; files that are
    broken, too short or still are skipped. The report names whatever is not used, and why. `tick` is called often and
    may raise to stop.

    Raises ClipFolderError if the folder does not exist or yields no clip: it says what was found.
    """
    if not folder.is_dir():
        raise ClipFolderError(f"There is no folder {folder}. Give the folder that holds your videos, or "
                              "image sequences in subfolders.")
    found = find_files(folder, tick)
    try:
        captions, told = read_captions(folder, [path for path, _ in found.sources], found.texts, tick)
    except CaptionTableError as error:
        raise ClipFolderError(str(error)) from error
    footage = [Footage(relative_name(path, folder), path, pictures, captions.get(path))
               for path, pictures in found.sources]
    clips, cut_notes = cut_clips(footage, settings, tick)
    notes = [f"{name}: {text}" for name, text in cut_notes] + found.notes(folder) + told
    if not clips:
        raise ClipFolderError(_nothing(folder, len(found.sources), notes))
    return ClipFolder(folder, settings, tuple(spread(clips, settings.max_clips, "clips", notes)), tuple(notes))


def folder_state(folder: Path) -> str:
    """A text that changes when a file in the folder, or in one linked there, is added, removed or changed.

    Instead of a folder it may be what names shards, see `shard_files`.
    """
    if not folder.is_dir():
        try:
            return str(seed_for(*map(file_state, shard_files(folder))))
        except ShardError:
            return "missing"
    files = []
    for root in folders_below(folder):
        with os.scandir(root) as entries:
            files += [f"{entry.path}|{entry.stat().st_size}|{entry.stat().st_mtime_ns}"
                      for entry in entries if entry.is_file()]
    return str(seed_for(*sorted(files)))


def _nothing(folder: Path, sources: int, notes: list[str]) -> str:
    if sources:
        return f"No usable clip in {folder}, of {sources} found: {first_reasons(notes)}."
    return (f"No video in {folder}: {held_by(folder)}. Expected video files ({' '.join(VIDEOS)}), animated pictures or "
            f"subfolders of pictures ({' '.join(PICTURES)}).{f' {first_reasons(notes)}.' if notes else ''}")
