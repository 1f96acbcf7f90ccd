"""Reading video files and image sequences: where the scenes are, and the pictures seen at given times."""
from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

VIDEOS = (".mp4", ".mov", ".m4v", ".mkv", ".webm", ".avi", ".gif", ".mpg", ".mpeg", ".wmv", ".flv", ".ts")
PICTURES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff")
THUMB = 24                          # pixels a side of the thumbnails that cuts and stillness are judged by
CUT_LEVEL, CUT_RATIO = 22.0, 2.2    # of 255: mean change between two frames; how far it stands out
STILL_LEVEL = 6                     # of 255: the largest change of any thumbnail pixel within a still clip
LATE = 1e-4                         # seconds of rounding forgiven in time stamps


class BrokenVideoError(ValueError):
    """A file cannot be decoded."""


@dataclass(frozen=True)
class Scan:
    """All frames of a file in short: the time each appears, when the last ends, and thumbnails."""

    times: np.ndarray               # [N]            seconds
    end: float                      #                seconds
    thumbs: np.ndarray              # [N, 24, 24, 3] uint8


def scan_video(path: Path, fps: float, tick: Callable[[], None] = lambda: None) -> Scan:
    """Look at every frame once.

    `path` is a video file, or a folder of pictures, of which `fps` are taken to be shown a second.
    `tick` is called now and then; it may raise to stop. Raises BrokenVideoError.
    """
    times, thumbs = [], []
    for time, picture in _sequence(path, fps) if path.is_dir() else _video(path):
        if len(times) % 50 == 0:
            tick()
        times.append(time)
        thumbs.append(picture(THUMB, THUMB))
    if not times:
        raise BrokenVideoError("it holds no frame")
    step = (times[-1] - times[0]) / (len(times) - 1) if len(times) > 1 else 1 / fps
    return Scan(np.array(times), times[-1] + step, np.stack(thumbs))


def read_frames(path: Path, times: Sequence[float], fps: float, width: int, height: int) -> Tensor:
    """The pictures on screen at `times` (ascending, seconds): short side resized, centre cropped.

    Returns [F, 3, height, width] uint8. Raises BrokenVideoError.
    """
    source = _sequence(path, fps) if path.is_dir() else _video(path, times[0])
    frames: list[Tensor] = []
    shown = None
    for time, picture in source:
        if shown is not None and time > times[len(frames)] + LATE:
            still = fit(shown(), width, height)
            while len(frames) < len(times) and time > times[len(frames)] + LATE:
                frames.append(still)
        shown = picture
        if len(frames) == len(times):
            break
    if shown is None:
        raise BrokenVideoError("it holds no frame")
    if len(frames) < len(times):
        frames += [fit(shown(), width, height)] * (len(times) - len(frames))
    return torch.stack(frames)


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


def fit(picture: np.ndarray, width: int, height: int) -> Tensor:
    """[H, W, 3] uint8 -> [3, height, width] uint8: scaled until it covers the size, then centre cropped."""
    pixels = torch.from_numpy(np.array(picture)).permute(2, 0, 1)
    scale = max(width / pixels.shape[2], height / pixels.shape[1])
    size = max(height, round(pixels.shape[1] * scale)), max(width, round(pixels.shape[2] * scale))
    scaled = F.interpolate(pixels[None].float(), size, mode="bicubic", antialias=True, align_corners=False)[0]
    top, left = (size[0] - height) // 2, (size[1] - width) // 2
    return scaled[:, top:top + height, left:left + width].round().clamp(0, 255).to(torch.uint8)


def picture_files(folder: Path) -> list[Path]:
    """The pictures directly in a folder in natural order: frame_2 before frame_10."""
    files = [path for path in folder.iterdir() if path.suffix.lower() in PICTURES and path.name[0] != "."]
    return sorted(files, key=lambda path: [int(part) if part.isdigit() else part.lower()
                                           for part in re.split(r"(\d+)", path.name)])


# A frame is handed on as (time, picture): picture() gives it in full, picture(w, h) scaled, [H, W, 3] uint8.
Frame = tuple[float, Callable[..., np.ndarray]]


def _sequence(folder: Path, fps: float) -> Iterator[Frame]:
    for index, path in enumerate(picture_files(folder)):
        try:
            with Image.open(path) as image:
                pixels = ImageOps.exif_transpose(image).convert("RGB")
        except (OSError, UnidentifiedImageError, Image.DecompressionBombError) as error:
            raise BrokenVideoError(f"the picture {path.name} cannot be read") from error
        yield index / fps, lambda *size, pixels=pixels: np.asarray(
            pixels.resize(size, Image.BOX) if size else pixels)


def _video(path: Path, start: float = 0.0) -> Iterator[Frame]:
    """Frames from the one on screen at `start`, or a little before it, to the end."""
    with _opened(path) as (container, stream):
        if start > 2:
            container.seek(int(start / stream.time_base), stream=stream)
        first = next(container.decode(stream), None)
        reached = first is not None and first.time is not None and first.time <= start + LATE
    with _opened(path) as (container, stream):
        if start > 2 and reached:
            container.seek(int(start / stream.time_base), stream=stream)
        gap, time = 1 / float(stream.average_rate or 25), None
        for frame in container.decode(stream):
            time = frame.time if frame.time is not None else (0.0 if time is None else time + gap)
            yield time, lambda *size, frame=frame: _pixels(frame, *size)


def _pixels(frame, width: int | None = None, height: int | None = None) -> np.ndarray:
    scaled = frame.reformat(width, height, "rgb24", interpolation="AREA" if width else None)
    return np.rot90(scaled.to_ndarray(), k=round((getattr(frame, "rotation", 0) or 0) / 90))


@contextmanager
def _opened(path: Path):
    """The container and its video stream, every failure of the decoder as BrokenVideoError."""
    import av
    try:
        with av.open(str(path)) as container:
            if not container.streams.video:
                raise BrokenVideoError("it has no video stream")
            stream = container.streams.video[0]
            stream.thread_type = "AUTO"
            yield container, stream
    except (av.FFmpegError, OSError, EOFError) as error:
        raise BrokenVideoError(f"it cannot be decoded: {error}") from error
