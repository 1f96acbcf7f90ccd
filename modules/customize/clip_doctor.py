"""What is wrong with a clip before a motion is learned from it, and which part to take (customize_a_video.md 7, 9)."""
from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor

from .meters import SIDE, camera_path, centroids, moves, small

CUT = 0.18              # mean change of colours from one frame to the next that no motion makes
STILL = 0.004           # mean change below which nothing moves
DOUBLE = 1e-3           # below which a frame is the one before again
WIDTH, HEIGHT, MARGIN = 640, 240, 30


@dataclass(frozen=True)
class Diagnosis:
    """What was found in a clip of `frames` frames.

    Attributes:
        change: [F - 1], mean absolute difference of neighbours.
        cuts, doubles: frames that begin another shot, frames that repeat the one before.
        start, end: the part with most motion that holds no cut.
        what: "the subject", else "the camera", else "nothing", whichever moves in that part.
    """
    change: Tensor
    cuts: tuple[int, ...]
    doubles: tuple[int, ...]
    start: int
    end: int
    what: str
    fps: float

    def text(self) -> str:
        """In words."""
        count = len(self.change) + 1
        lines = [f"{count} frames at {self.fps:g} fps, {count / self.fps:.1f} s. Take frames {self.start} to "
                 f"{self.end - 1} ({self.start / self.fps:.1f} to {self.end / self.fps:.1f} s): there {self.what} "
                 "moves most."]
        if self.what == "nothing":
            lines.append("Warning: hardly anything moves; there is no motion to learn in it.")
        if self.cuts:
            lines.append(f"Cuts at frame {', '.join(map(str, self.cuts))}: never learn across one.")
        if self.doubles:
            share = len(self.doubles) / count
            lines.append(f"{len(self.doubles)} frames repeat the one before ({share:.0%}): the clip was made for a "
                         f"lower frame rate, about {self.fps * (1 - share):.3g} fps. Load it at that rate.")
        if self.end - self.start < 8:
            lines.append("Warning: that is fewer than 8 frames. Load the clip at a higher frame rate, or a longer one.")
        return "\n".join(lines)


def diagnose(clip: Tensor, fps: float, seconds: float = 2.0) -> Diagnosis:
    """Look through a clip [F, H, W, 3] in 0..1. Raises ValueError for fewer than two frames."""
    if len(clip) < 2:
        raise ValueError("A clip of one frame has no motion. Connect a batch of frames, e.g. from Load Video and Get "
                         "Video Components.")
    change = torch.stack([(after - before).abs().mean() for before, after in zip(small(clip), small(clip)[1:],
                                                                                 strict=False)])
    moving = change[change > DOUBLE]
    typical = moving.median() if len(moving) else change.max()
    cuts = tuple(int(index) + 1 for index in ((change > CUT) & (change > 4 * typical)).nonzero().flatten())
    doubles = tuple(int(index) + 1 for index in (change < DOUBLE).nonzero().flatten()) if change.max() > STILL else ()
    start, end = best_part(change, cuts, max(2, round(seconds * fps)))
    part = clip[start:end]
    what = "nothing"
    if float(change[start:max(start + 1, end - 1)].mean()) > STILL:
        what = "the camera" if moves(camera_path(part)) and not moves(centroids(part)) else "the subject"
    return Diagnosis(change, cuts, doubles, start, end, what, fps)


def best_part(change: Tensor, cuts: tuple[int, ...], length: int) -> tuple[int, int]:
    """(first frame, frame after the last) of the part of at most `length` frames with most change and no cut."""
    edges = [0, *cuts, len(change) + 1]
    found, most = (0, min(length, edges[1])), -1.0
    for begin, end in zip(edges, edges[1:], strict=False):
        size = min(length, end - begin)
        for start in range(begin, end - size + 1):
            energy = float(change[start:start + size - 1].sum())
            if energy > most:
                found, most = (start, start + size), energy
    return found


def diagnosis_plot(found: Diagnosis) -> Tensor:
    """Motion over the clip, cuts in red, the part to take in green: [1, H, W, 3] in 0..1."""
    picture = Image.new("RGB", (WIDTH, HEIGHT), "white")
    draw = ImageDraw.Draw(picture)
    count, top = len(found.change), max(float(found.change.max()), STILL)

    def x(frame: float) -> float:
        return MARGIN + (WIDTH - 2 * MARGIN) * frame / max(1, count)

    def y(value: float) -> float:
        return HEIGHT - MARGIN - (HEIGHT - 2 * MARGIN) * min(1.0, value / top)

    draw.rectangle([x(found.start), MARGIN, x(found.end - 1), HEIGHT - MARGIN], fill=(214, 240, 214))
    draw.line([(x(index + 0.5), y(float(value))) for index, value in enumerate(found.change)], fill=(30, 90, 200),
              width=2)
    for cut in found.cuts:
        draw.line([(x(cut - 0.5), MARGIN), (x(cut - 0.5), HEIGHT - MARGIN)], fill=(220, 40, 40), width=3)
    draw.line([(MARGIN, HEIGHT - MARGIN), (WIDTH - MARGIN, HEIGHT - MARGIN)], fill="black")
    draw.text((MARGIN, 8), f"change from frame to frame (seen at {SIDE} pixels); green: learn from this", fill="black")
    draw.text((MARGIN, HEIGHT - MARGIN + 8), "0 s", fill="black")
    draw.text((WIDTH - MARGIN - 30, HEIGHT - MARGIN + 8), f"{(count + 1) / found.fps:.1f} s", fill="black")
    return torch.from_numpy(np.asarray(picture, dtype=np.float32) / 255)[None]
