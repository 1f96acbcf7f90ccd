"""Clips cut out of videos: where scenes begin, which of them are too short, which do not move."""
from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..seeding import seed_for
from .clips import ClipSettings
from .folder_files import listed
from .frames import CONVERSIONS, BrokenVideoError
from .tar_files import TarMember
from .video import Scan, find_cuts, is_still, scan_video

SHORTEST = 2 / 3    # of a clip's length: a shorter scene is skipped (harivo.md 3: 2 s for 24 frames at 8 fps)

Note = tuple[str, str]      # (names of the videos it is about, what is to be said)


@dataclass(frozen=True)
class Clip:
    """One clip of a file: what is on screen at `times`."""

    path: Path | TarMember      # a video file or animated picture, or a folder of pictures
    caption: str
    times: tuple[float, ...]    # seconds, one a frame
    mirrored: bool = False
    pictures: tuple[Path, ...] = ()     # of a folder: its sequence
    conversions: tuple[str, ...] = ()   # what is done to show it as a player does, see frames.py


@dataclass(frozen=True)
class Footage:
    """A video that clips are cut from."""

    name: str                           # in reports; it also decides which clips are mirrored
    path: Path | TarMember              # a video file or animated picture, or a folder of pictures
    pictures: tuple[Path, ...] = ()     # of a folder: its sequence
    caption: str | None = None          # None: it has none


def cut_clips(footage: Sequence[Footage], settings: ClipSettings, tick: Callable[[], None]
              ) -> tuple[list[Clip], list[Note]]:
    """The clips of some videos, and notes about those that are broken, cut, too short, still, converted or bare."""
    clips: list[Clip] = []
    notes: list[Note] = []
    converted: dict[str, list[str]] = {}
    for video in footage:
        try:
            scan = scan_video(video.pictures or video.path, settings.fps, tick)
        except BrokenVideoError as error:
            notes.append((video.name, f"skipped, {error}"))
            continue
        cut = [Clip(video.path, video.caption or "", times, mirrored, video.pictures, scan.conversions)
               for times, mirrored in _cut(scan, settings, video.name, notes)]
        if cut and video.caption is None:
            notes.append((video.name, "has no caption; it is trained without text"))
        for conversion in scan.conversions if cut else ():
            converted.setdefault(conversion, []).append(video.name)
        clips += cut
    notes += [(listed(converted[kind]), text) for kind, text in CONVERSIONS.items() if kind in converted]
    return clips, notes


def _cut(scan: Scan, settings: ClipSettings, name: str, notes: list[Note]) -> Iterator[tuple[tuple[float, ...], bool]]:
    """(times of the frames, mirrored) of each clip of one file; adds notes on cuts, short scenes and still clips."""
    cuts = find_cuts(scan.thumbs)
    if cuts:
        where = ", ".join(f"{scan.times[cut]:.2f} s" for cut in cuts[:5]) + (", ..." if len(cuts) > 5 else "")
        notes.append((name, f"split at {len(cuts)} cut{'s' * (len(cuts) > 1)} ({where})"))
    short = still = 0
    bounds = [0, *cuts, len(scan.times)]
    for first, last in zip(bounds, bounds[1:], strict=False):
        begin, end = scan.times[first], scan.times[last] if last < len(scan.times) else scan.end
        starts, step = _starts(begin, end, settings)
        short += not starts
        if starts and step < 1 / settings.fps:
            notes.append((name, f"a scene of {end - begin:.2f} s is slowed down to {settings.seconds:.2f} s"))
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
        notes.append((name, f"skipped, {what} too short ({all_of_it:.2f} s in all, {least:.2f} s needed)"))
    if still:
        notes.append((name, f"{still} clip{'s' * (still > 1)} skipped, nothing moves"))


def _starts(begin: float, end: float, settings: ClipSettings) -> tuple[list[float], float]:
    """Start times of the clips of a scene, and the seconds between two of their frames."""
    length, whole = end - begin + 1e-3, settings.seconds
    if length < SHORTEST * whole:
        return [], 0.0
    if length < whole:
        return [float(begin)], float(end - begin) / settings.frames
    count = int((length - whole) / (settings.stride or whole)) + 1
    return [float(begin + index * (settings.stride or whole)) for index in range(count)], 1 / settings.fps
