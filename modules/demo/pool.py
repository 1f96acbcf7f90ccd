"""Training pictures of sprite world, rendered once and kept in memory as bytes."""
from __future__ import annotations

import random
from dataclasses import dataclass

import torch

from .renderer import FRAMES, render
from .world import Scene, random_scene


@dataclass(frozen=True)
class Pool:
    """Pictures with their scenes; frames drawn from clips carry the clip's motion in their scene."""

    pixels: torch.Tensor            # [N, 3, 128, 128] uint8
    scenes: tuple[Scene, ...]

    def __len__(self) -> int:
        return len(self.scenes)


def as_bytes(pixels: torch.Tensor) -> torch.Tensor:
    """0..1 -> uint8."""
    return (pixels * 255).round().to(torch.uint8)


def signed(pixels: torch.Tensor) -> torch.Tensor:
    """uint8 -> -1..1, what the autoencoder and CLIP vision take."""
    return pixels.float() / 127.5 - 1


def draw_pool(pictures: int, clip_frames: int, seed: int, frames_per_clip: int = 4) -> Pool:
    """`pictures` stills and `clip_frames` frames of clips, `frames_per_clip` from each clip, never a held-out pair."""
    rng, generator = random.Random(seed), torch.Generator().manual_seed(seed)
    pixels, scenes = [], []
    for start in range(0, pictures, 64):
        batch = [random_scene(rng) for _ in range(min(64, pictures - start))]
        pixels.append(as_bytes(render(batch, generator)[0][:, 0]))
        scenes += batch
    for _ in range(0, clip_frames, frames_per_clip):
        scene = random_scene(rng, clip=True)
        clip = render([scene], generator, FRAMES)[0][0]
        chosen = torch.randperm(FRAMES, generator=generator)[:frames_per_clip]
        pixels.append(as_bytes(clip[chosen]))
        scenes += [scene] * frames_per_clip
    return Pool(torch.cat(pixels), tuple(scenes))
