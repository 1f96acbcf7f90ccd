"""What a clip to train on is, where clips come from, and sprite world as such a source."""
from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from ..demo.renderer import render
from ..demo.world import Scene, caption, random_scene
from .order import seed_for, stream


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
    def report(self) -> str: ...


@dataclass(frozen=True)
class SpriteClips:
    """Clips of sprite world, rendered when asked for. Never one of the held-out (sprite, motion) pairs.

    Of `settings` only frames and fps count; the pictures are the world's.
    """

    count: int
    settings: ClipSettings
    seed: int = 0

    def __len__(self) -> int:
        return self.count

    def caption(self, index: int) -> str:
        rng, scene = self._scene(index)
        return caption(scene, rng)

    def pixels(self, index: int) -> Tensor:
        """[F, 3, 128, 128] uint8."""
        _, scene = self._scene(index)
        frames = render([scene], stream("sprite clip", self.seed, index), self.settings.frames)[0][0]
        return (frames * 255).round().to(torch.uint8)

    def key(self, index: int) -> str:
        return f"sprite world|{self.seed}|{index}|{self.settings.frames}"

    def report(self) -> str:
        return f"{self.count} clips of sprite world, {self.settings.frames} frames each"

    def _scene(self, index: int) -> tuple[random.Random, Scene]:
        rng = random.Random(seed_for("sprite scene", self.seed, index))
        return rng, random_scene(rng, clip=True)
