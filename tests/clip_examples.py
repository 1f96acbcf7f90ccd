"""Videos for tests, written by PyAV."""
from __future__ import annotations

from fractions import Fraction

import av
import numpy as np
from PIL import Image


def pattern(seed: int) -> np.ndarray:
    """A smooth coloured background, [48, 64, 3]."""
    coarse = np.random.default_rng(seed).integers(0, 255, (3, 4, 3), dtype=np.uint8)
    return np.asarray(Image.fromarray(coarse).resize((64, 48), Image.BILINEAR)).copy()


def moving(count: int, seed: int = 0, speed: float = 1.0) -> list[np.ndarray]:
    """A white square that crosses the picture."""
    frames = []
    for index in range(count):
        frame = pattern(seed)
        x = int(index * speed) % 52
        frame[18:30, x:x + 12] = 255
        frames.append(frame)
    return frames


def numbered(count: int) -> list[np.ndarray]:
    """Frame n is a grey of its own, so that a decoded picture tells its number."""
    return [np.full((48, 64, 3), 20 + 2 * index, dtype=np.uint8) for index in range(count)]


def write_video(path, frames, fps=25, codec="libx264", times=None, aspect=None, rotation=0):
    """`times`: time stamps in 1/1000 s, for files of variable rate; `aspect`: of a pixel; `rotation`: degrees."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=fps)
        stream.width, stream.height, stream.pix_fmt = frames[0].shape[1], frames[0].shape[0], "yuv420p"
        stream.options = {"crf": "8", "g": "12"} if codec == "libx264" else {}
        if aspect:
            stream.codec_context.sample_aspect_ratio = aspect
        if rotation:
            stream.set_display_rotation(rotation)
        if times:
            stream.codec_context.time_base = Fraction(1, 1000)
        for index, frame in enumerate(frames):
            picture = av.VideoFrame.from_ndarray(frame, format="rgb24")
            if times:
                picture.pts, picture.time_base = times[index], Fraction(1, 1000)
            container.mux(stream.encode(picture))
        container.mux(stream.encode())


def captions(clips) -> dict[str, str]:
    return {clip.path.name: clip.caption for clip in clips.clips}


def save_pictures(folder, frames, name="frame_{}.png"):
    folder.mkdir(parents=True, exist_ok=True)
    for index, frame in enumerate(frames):
        picture = frame if isinstance(frame, Image.Image) else Image.fromarray(frame)
        picture.save(folder / name.format(index))
