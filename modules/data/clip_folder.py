"""Clips cut out of a folder of video files and image sequences."""
from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from ..seeding import seed_for
from .caption_tables import CaptionTableError
from .captions import read_captions
from .clips import ClipSettings
from .folder_files import file_state, find_files, folders_below, held_by, listed, relative_name, spread
from .frames import CONVERSIONS, BrokenVideoError
from .image_sequences import PICTURES
from .video import VIDEOS, Scan, find_cuts, is_still, read_frames, scan_video

SHORTEST = 2 / 3    # of a clip's length: a shorter scene is skipped (harivo.md 3: 2 s for 24 frames at 8 fps)


class ClipFolderError(ValueError):
    """A folder gives nothing to train on."""


@dataclass(frozen=True)
class Clip:
    """One clip of a file: what is on screen at `times`."""

    path: Path                  # a video file or animated picture, or a folder of pictures
    caption: str
    times: tuple[float, ...]    # seconds, one a frame
    mirrored: bool = False
    pictures: tuple[Path, ...] = ()     # of a folder: its sequence
    conversions: tuple[str, ...] = ()   # what is done to show it as a player does, see frames.py


@dataclass(frozen=True)
class ClipFolder:
    """The clips found in a folder, and what was found wrong. Made by `find_clips`."""

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
    sequence), else the file's row in the one .csv at the top. Scenes end at hard cuts; files that are broken, too short
    or still are skipped. The report names whatever is not used, and why. `tick` is called often and may raise to stop.

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
    clips: list[Clip] = []
    notes: list[str] = []
    converted: dict[str, list[str]] = {}
    for path, pictures in found.sources:
        name = relative_name(path, folder)
        try:
            scan = scan_video(pictures or path, settings.fps, tick)
        except BrokenVideoError as error:
            notes.append(f"{name}: skipped, {error}")
            continue
        cut = [Clip(path, captions.get(path, ""), times, mirrored, pictures, scan.conversions)
               for times, mirrored in _cut(scan, settings, name, notes)]
        if cut and path not in captions:
            notes.append(f"{name}: has no caption; it is trained without text")
        for conversion in scan.conversions if cut else ():
            converted.setdefault(conversion, []).append(name)
        clips += cut
    notes += [f"{listed(converted[kind])}: {text}" for kind, text in CONVERSIONS.items() if kind in converted]
    notes += found.notes(folder) + told
    if not clips:
        raise ClipFolderError(_nothing(folder, len(found.sources), notes))
    return ClipFolder(folder, settings, tuple(spread(clips, settings.max_clips, "clips", notes)), tuple(notes))


def folder_state(folder: Path) -> str:
    """A text that changes when a file in the folder, or in one linked there, is added, removed or changed."""
    if not folder.is_dir():
        return "missing"
    files = []
    for root in folders_below(folder):
        with os.scandir(root) as entries:
            files += [f"{entry.path}|{entry.stat().st_size}|{entry.stat().st_mtime_ns}"
                      for entry in entries if entry.is_file()]
    return str(seed_for(*sorted(files)))


def _cut(scan: Scan, settings: ClipSettings, name: str, notes: list[str]) -> Iterator[tuple[tuple[float, ...], bool]]:
    """(times of the frames, mirrored) of each clip of one file; adds notes on cuts, short scenes and still clips."""
    cuts = find_cuts(scan.thumbs)
    if cuts:
        where = ", ".join(f"{scan.times[cut]:.2f} s" for cut in cuts[:5]) + (", ..." if len(cuts) > 5 else "")
        notes.append(f"{name}: split at {len(cuts)} cut{'s' * (len(cuts) > 1)} ({where})")
    short = still = 0
    bounds = [0, *cuts, len(scan.times)]
    for first, last in zip(bounds, bounds[1:], strict=False):
        begin, end = scan.times[first], scan.times[last] if last < len(scan.times) else scan.end
        starts, step = _starts(begin, end, settings)
        short += not starts
        if starts and step < 1 / settings.fps:
            notes.append(f"{name}: a scene of {end - begin:.2f} s is slowed down to {settings.seconds:.2f} s")
        for start in starts:
            times = tuple(round(start + k * step, 6) for k in range(settings.frames))
            begins, ends = scan.times.searchsorted([times[0] + 1e-5, times[-1] + 1e-5])
            if not settings.keep_still and is_still(scan.thumbs[begins - 1:ends]):
                still += 1
                continue
            mirrored = settings.mirror and bool(seed_for("mirror", name, times[0]) & 1)
            yield times, mirrored
    if short:
        what = "it is" if not cuts else f"{short} of {len(bounds) - 1} scenes are"
        all_of_it, least = scan.end - scan.times[0], SHORTEST * settings.seconds
        notes.append(f"{name}: skipped, {what} too short ({all_of_it:.2f} s in all, {least:.2f} s needed)")
    if still:
        notes.append(f"{name}: {still} clip{'s' * (still > 1)} skipped, nothing moves")


def _starts(begin: float, end: float, settings: ClipSettings) -> tuple[list[float], float]:
    """Start times of the clips of a scene, and the seconds between two of their frames."""
    length, whole = end - begin + 1e-3, settings.seconds
    if length < SHORTEST * whole:
        return [], 0.0
    if length < whole:
        return [float(begin)], float(end - begin) / settings.frames
    count = int((length - whole) / (settings.stride or whole)) + 1
    return [float(begin + index * (settings.stride or whole)) for index in range(count)], 1 / settings.fps


def _nothing(folder: Path, sources: int, notes: list[str]) -> str:
    reasons = "; ".join(notes[:5]) + ("; ..." if len(notes) > 5 else "")
    if sources:
        return f"No usable clip in {folder}, of {sources} found: {reasons}."
    return (f"No video in {folder}: {held_by(folder)}. Expected video files ({' '.join(VIDEOS)}), animated pictures or "
            f"subfolders of pictures ({' '.join(PICTURES)}).{f' {reasons}.' if notes else ''}")
