"""Videos and image sequences: where the scenes are, and the pictures seen at given times."""
from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from .frames import LATE, BrokenVideoError, Frame, fit
from .image_sequences import PICTURES, animation_frames, picture_files, sequence_frames
from .tar_files import TarMember
from .video_file import video_frames

VIDEOS = (".mp4", ".mov", ".m4v", ".mkv", ".webm", ".avi", ".gif", ".mpg", ".mpeg", ".wmv", ".flv", ".ts", ".m2ts",
          ".mts", ".3gp", ".ogv")
THUMB = 24                          # pixels a side of the thumbnails that cuts and stillness are judged by
CUT_LEVEL, CUT_RATIO = 22.0, 2.2    # of 255: mean change between two frames; how far it stands out
STILL_LEVEL = 6                     # of 255: the largest change of any thumbnail pixel within a still clip

# A file, one inside an archive, or the pictures of a sequence (a folder: all that it holds).
Source = Path | TarMember | Sequence[Path]


@dataclass(frozen=True)
class Scan:
    """All frames of a file in short: the time each appears, when the last ends, and thumbnails."""

    times: np.ndarray               # [N]            seconds
    end: float                      #                seconds
    thumbs: np.ndarray              # [N, 24, 24, 3] uint8
    conversions: tuple[str, ...] = ()   # what was done to show them as a player does, see frames.py


def scan_video(source: Source, fps: float, tick: Callable[[], None] = lambda: None) -> Scan:
    """Look at every frame once.

    `source` is a video file, an animated picture, or pictures, of which `fps` are taken to be shown a second.
    `tick` is called now and then; it may raise to stop. Raises BrokenVideoError.
    """
    times, thumbs, conversions, frame = [], [], set(), None
    for frame in _frames(source, fps, 0.0, conversions):
        if len(times) % 50 == 0:
            tick()
        times.append(frame.time)
        thumbs.append(frame.picture(THUMB, THUMB))
    if frame is None:
        raise BrokenVideoError("it holds no frame")
    step = (times[-1] - times[0]) / (len(times) - 1) if len(times) > 1 else 1 / fps
    return Scan(np.array(times), frame.end or times[-1] + step, np.stack(thumbs), tuple(sorted(conversions)))


def read_frames(source: Source, times: Sequence[float], fps: float, width: int, height: int) -> Tensor:
    """The pictures on screen at `times` (ascending, seconds): short side resized, centre cropped.

    Returns [F, 3, height, width] uint8. Raises BrokenVideoError.
    """
    frames: list[Tensor] = []
    shown = None
    for frame in _frames(source, fps, times[0], set()):
        if shown is not None and frame.time > times[len(frames)] + LATE:
            still = fit(shown.picture(), width, height, shown.pixel_aspect)
            while len(frames) < len(times) and frame.time > times[len(frames)] + LATE:
                frames.append(still)
        shown = frame
        if len(frames) == len(times):
            break
    if shown is None:
        raise BrokenVideoError("it holds no frame")
    if len(frames) < len(times):
        frames += [fit(shown.picture(), width, height, shown.pixel_aspect)] * (len(times) - len(frames))
    return torch.stack(frames)


def _frames(source: Source, fps: float, start: float, conversions: set[str]) -> Iterator[Frame]:
    """The frames of any source from the one on screen at `start` seconds, or from before it."""
    if not isinstance(source, (Path, TarMember)):
        return sequence_frames(source, fps, start, conversions)
    if isinstance(source, Path) and source.is_dir():
        return sequence_frames(picture_files(source), fps, start, conversions)
    if source.suffix.lower() in PICTURES:
        return animation_frames(source, conversions)
    return video_frames(source, start, conversions)


def find_cuts(thumbs: np.ndarray) -> list[int]:
    """Indices of the frames that begin a new scene after a hard cut.

    A cut is a change from one frame to the next that is large (CUT_LEVEL) and stands out from those around
    it (CUT_RATIO times the second largest, for another cut may be near): fast motion changes many frames in a
    row, a cut one.
    """
    change = np.abs(np.diff(thumbs.astype(np.int16), axis=0)).mean(axis=(1, 2, 3))      # [N - 1]
    cuts = []
    for index in np.flatnonzero(change > CUT_LEVEL):
        around = np.concatenate([change[max(0, index - 6):index], change[index + 1:index + 7]])
        if len(around) < 2 or change[index] > CUT_RATIO * np.sort(around)[-2]:
            cuts.append(int(index) + 1)
    return cuts


def is_still(thumbs: np.ndarray) -> bool:
    """Whether nothing moves: no pixel of the thumbnails [N, 24, 24, 3] changes by more than STILL_LEVEL."""
    return bool((thumbs.max(axis=0).astype(int) - thumbs.min(axis=0)).max() <= STILL_LEVEL)
