"""Sprite world's clips of unknown motions as video files, so that they are loaded as a user's own are."""
from __future__ import annotations

import re
from pathlib import Path

import av
import folder_paths

from ..demo.paths import PATH_CLIPS

QUALITY = {"crf": "6", "preset": "medium"}          # of x264: the pictures are small and are learned from


def path_clip_folder(name: str) -> Path:
    """The folder with the video and the caption of each clip of one of PATH_CLIPS, inside ComfyUI's input folder.

    Files that are there already are left as they are. Raises OSError.
    """
    source = PATH_CLIPS[name]()
    folder = Path(folder_paths.get_input_directory(), "frozen_diffusion", file_name(name))
    folder.mkdir(parents=True, exist_ok=True)
    for index in range(len(source)):
        path = folder / f"{index + 1} {file_name(source.video(index))}.mp4"
        if not path.exists():
            beside = path.with_suffix(".part.mp4")
            write_video(beside, source.pixels(index).movedim(1, -1).numpy(), source.settings.fps)
            beside.replace(path)
        text = path.with_suffix(".txt")
        if not text.exists():
            text.write_text(source.caption(index), encoding="utf-8")
    return folder


def file_name(name: str) -> str:
    """A name without marks that a file system may not take."""
    return re.sub(r"[^a-z0-9]+", " ", name.lower()).strip()


def write_video(path: Path, frames, fps: float) -> None:
    """Frames [F, H, W, 3] uint8 as an mp4 file."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=round(fps))
        stream.height, stream.width, stream.pix_fmt = *frames[0].shape[:2], "yuv420p"
        stream.options = QUALITY
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())
