"""Random scenes of sprite world with their true pictures."""
from __future__ import annotations

import random

import torch
from torch import Tensor

from ..seeding import seed_for, stream
from .renderer import render
from .world import Scene, caption, random_scene

AT_ONCE = 100


def random_scenes(count: int, seed: int) -> list[Scene]:
    """Drawn evenly, each by itself."""
    rng = random.Random(seed_for("scenes", seed))
    return [random_scene(rng) for _ in range(count)]


def pictures_of(scenes: list[Scene], seed: int) -> Tensor:
    """True pictures [N, H, W, 3] in 0..1, as IMAGE."""
    parts = [render(scenes[start:start + AT_ONCE], stream("pictures", seed, start))[0][:, 0]
             for start in range(0, len(scenes), AT_ONCE)]
    return torch.cat(parts).movedim(1, -1).contiguous()


def drawn_scenes(count: int, seed: int) -> tuple[list[str], Tensor]:
    """(captions, true pictures [N, H, W, 3])."""
    scenes = random_scenes(count, seed)
    return [caption(scene) for scene in scenes], pictures_of(scenes, seed)
