"""What a clip to train on is, and what a source of clips offers."""
from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from torch import Tensor


@dataclass(frozen=True)
class ClipSettings:
    """What a clip is: frames at fps, of width x height pixels, and which clips to take."""

    frames: int = 16
    fps: float = 8.0
    width: int = 256
    height: int = 256
    stride: float = 0.0         # seconds between the starts of two clips of a scene; 0 = no overlap
    max_clips: int = 0          # 0 = all
    mirror: bool = False        # mirror half of the clips, each as a whole
    keep_still: bool = False    # keep clips in which nothing moves

    def __post_init__(self):
        if self.frames < 2:
            raise ValueError(f"A clip needs at least 2 frames; {self.frames} was given.")
        if self.fps <= 0:
            raise ValueError(f"fps must be above 0; {self.fps} was given.")
        for name in ("width", "height"):
            if (pixels := getattr(self, name)) < 32 or pixels % 8:
                raise ValueError(f"{name} must be a multiple of 8 and at least 32; {pixels} was given.")

    @property
    def seconds(self) -> float:
        return self.frames / self.fps

    @property
    def size(self) -> str:
        return f"{self.width}x{self.height}"


class ClipSource(Protocol):
    """Clips by number. `key` names a clip's pixels for a cache: the same key, the same pixels."""

    settings: ClipSettings

    def __len__(self) -> int: ...
    def caption(self, index: int) -> str: ...
    def pixels(self, index: int) -> Tensor: ...             # [F, 3, H, W] uint8
    def key(self, index: int) -> str: ...
    def video(self, index: int) -> str: ...                 # what the clip was cut from
    def report(self) -> str: ...
