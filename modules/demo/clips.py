"""Sprite world as a source of clips to train on."""
from __future__ import annotations

import random
from dataclasses import dataclass

from torch import Tensor

from ..data.clips import ClipSettings
from ..seeding import seed_for, stream
from .pool import as_bytes
from .renderer import render
from .world import MOTIONS, Scene, caption, random_scene


@dataclass(frozen=True)
class SpriteClips:
    """Clips of sprite world, rendered when asked for. Never one of the held-out (sprite, motion) pairs.

    Of `settings` only frames counts: size and speed are the world's. A motion that `motions` names twice is drawn
    twice as often.

    Raises ValueError for a motion that the world does not have.
    """

    count: int
    settings: ClipSettings
    seed: int = 0
    motions: tuple[str, ...] = MOTIONS

    def __post_init__(self) -> None:
        unknown = sorted({*self.motions} - {*MOTIONS})
        if unknown or not self.motions:
            raise ValueError(f"The motions of sprite world's clips are some of {', '.join(MOTIONS)}; "
                             f"{', '.join(unknown) or 'none'} was given.")

    def __len__(self) -> int:
        return self.count

    def caption(self, index: int) -> str:
        rng, scene = self._scene(index)
        return caption(scene, rng)

    def pixels(self, index: int) -> Tensor:
        """[F, 3, 128, 128] uint8."""
        _, scene = self._scene(index)
        frames = render([scene], stream("sprite clip", self.seed, index), self.settings.frames)[0][0]
        return as_bytes(frames)

    def key(self, index: int) -> str:
        chosen = "" if self.motions == MOTIONS else "|" + ",".join(self.motions)
        return f"sprite world|{self.seed}|{index}|{self.settings.frames}{chosen}"

    def video(self, index: int) -> str:
        return self.key(index)

    def report(self) -> str:
        return f"{self.count} clips of sprite world, {self.settings.frames} frames each"

    def _scene(self, index: int) -> tuple[random.Random, Scene]:
        rng = random.Random(seed_for("sprite scene", self.seed, index))
        return rng, random_scene(rng, clip=True, motions=self.motions)
