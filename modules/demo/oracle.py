"""Sprite world's oracle: pictures to what is in them, by the truth of the world. For tests and benchmarks.

1. The background, by a truncated fit of every colour and texture.
2. The best place and size of every sprite at every angle, by one exact correlation in Fourier space.
3. Analysis by synthesis: the best few sprites are moved, scaled and turned until they fit best.
"""
from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from .fitting import COARSE, FINE, backdrop, compose, fit_backgrounds, refine, search_bank, shrink, soften
from .renderer import CENTRE, SIDE, WIDTH, place_sprites
from .world import COLOURS, POSITIONS, SIZES, SPRITES, TEXTURES, Scene

CANDIDATES = 4              # sprites fitted finely in each picture
TRUST = 0.12                # rms error of a picture at which confidence has fallen to 1/e
EVIDENCE = 40               # independent pixels that a picture counts for
FLOOR = 0.01                # rms error below which a better fit says nothing more


@dataclass(frozen=True)
class Reading:
    """What the oracle sees: the renderer's `Truth`, read back. N pictures (F = 1) or clips of F frames."""

    scenes: tuple[Scene, ...]       # a clip's scene has a motion
    centre: torch.Tensor            # [N, F, 2] x, y in pixels
    width: torch.Tensor             # [N, F]    pixels across the sprite's tile
    angle: torch.Tensor             # [N, F]    radians, clockwise
    alpha: torch.Tensor             # [N, F, 1, 128, 128]
    confidence: torch.Tensor        # [N, F]    0..1, of the sprite
    frame_sprites: torch.Tensor     # [N, F]    index of the sprite that each frame shows when read by itself

    @property
    def sprite_constant(self) -> torch.Tensor:
        """[N] bool: every frame by itself shows the clip's sprite."""
        clip_sprite = torch.tensor([SPRITES.index(scene.sprite) for scene in self.scenes])
        return (self.frame_sprites == clip_sprite[:, None]).all(1)


@dataclass(frozen=True)
class Frames:
    """M frames taken apart: all that the decisions are made from."""

    pixels: torch.Tensor            # [M, 3, 128, 128]
    fine: torch.Tensor              # [M, 3, 64, 64] the same, softened
    colour: torch.Tensor            # [M, 3] of the background
    texture: torch.Tensor           # [M]
    backgrounds: torch.Tensor       # [M, 3, 64, 64]
    gain: torch.Tensor              # [M, 24, 12] of the search, by sprite and angle
    found: torch.Tensor             # [M, 24, 12, 4] its poses
    error: torch.Tensor             # [M, 24] squared error of each sprite at its best pose
    pose: torch.Tensor              # [M, 24, 4]


def read_frames(pixels: torch.Tensor, colour: torch.Tensor, texture: torch.Tensor) -> Frames:
    """Search and refine in [M, 3, 128, 128] before backgrounds of [M, 3] base colours and [M] textures."""
    fine, coarse = soften(shrink(pixels, FINE)), shrink(pixels, COARSE)
    backgrounds, behind = backdrop(colour, texture, FINE), backdrop(colour, texture, COARSE)
    parts = [search_bank()(*part) for part in zip(coarse.split(4), behind.split(4), strict=True)]
    gain, found = (torch.cat(part) for part in zip(*parts, strict=True))
    best, turn = gain.max(-1)                                                           # [M, 24]
    pose = found.gather(2, turn[..., None, None].expand(-1, -1, 1, 4))[:, :, 0].clone()
    error = (FINE / COARSE) ** 2 * ((coarse - behind).square().sum((1, 2, 3))[:, None] - best)
    for row in range(len(pixels)):
        sprite = best[row].topk(CANDIDATES).indices
        same = [part[row].expand(CANDIDATES, -1, -1, -1) for part in (fine, backgrounds)]
        pose[row, sprite], error[row, sprite] = refine(*same, sprite, pose[row, sprite])
    return Frames(pixels, fine, colour, texture, backgrounds, gain, found, error, pose)


def confidence(frames: Frames, error: torch.Tensor, sprite: torch.Tensor, pose: torch.Tensor) -> torch.Tensor:
    """How sure the readings [M] and [M, 4] are, [M] in 0..1: they must explain the picture, and alone.

    The posterior of the sprite among all sprites [M, 24] and an empty background, under noise of the size of its own
    error, times the trust in what it leaves unexplained at full resolution.
    """
    empty = (frames.fine - soften(frames.backgrounds)).square().sum((1, 2, 3))
    mean_square = torch.cat([error, empty[:, None]], 1) / (3 * FINE ** 2)               # [M, 25]
    own = mean_square.gather(1, sprite[:, None])
    odds = (-EVIDENCE / 2 * mean_square / (own + FLOOR ** 2)).softmax(1)
    whole = compose(sprite, pose, backdrop(frames.colour, frames.texture, SIDE))
    trust = (-(frames.pixels - whole).square().mean((1, 2, 3)) / TRUST ** 2).exp()
    return odds.gather(1, sprite[:, None])[:, 0] * trust


def nearest(value: float, names: dict[str, float]) -> str:
    """The name whose value is nearest."""
    return min(names, key=lambda name: abs(names[name] - value))


def describe(sprite: int, pose: list[float], behind: int, motion: str | None = None) -> Scene:
    """The words for a sprite, the middle of its path (x, y, log width) and a fitted background's number."""
    size = nearest(pose[2], {name: math.log(WIDTH[name]) for name in SIZES})
    place = nearest(pose[0], {name: CENTRE[name] for name in POSITIONS})
    colour, texture = divmod(behind, len(TEXTURES))
    return Scene(SPRITES[sprite], size, place, COLOURS[colour], TEXTURES[texture], motion)


def make_reading(scenes: list[Scene], pose: torch.Tensor, sure: torch.Tensor,
                 frame_sprites: torch.Tensor) -> Reading:
    """A `Reading` from [N, F, 4] poses, [N, F] confidence and the [N, F] sprites of single frames."""
    sprite = torch.tensor([SPRITES.index(scene.sprite) for scene in scenes]).repeat_interleave(pose.shape[1])
    flat = pose.flatten(0, 1)
    rgba = place_sprites(sprite, flat[:, :2], flat[:, 2].exp(), flat[:, 3])
    return Reading(tuple(scenes), pose[..., :2], pose[..., 2].exp(), pose[..., 3],
                   rgba[:, 3:].unflatten(0, pose.shape[:2]), sure, frame_sprites)


def check_pixels(pixels: torch.Tensor, dims: str) -> None:
    """Raise ValueError unless `pixels` has the named dimensions and the world's size."""
    if pixels.ndim != len(dims.split()) or pixels.shape[-3:] != (3, SIDE, SIDE):
        raise ValueError(f"The oracle got pixels of shape {tuple(pixels.shape)}; expected [{dims}] with 3 "
                         f"channels and {SIDE} x {SIDE} pixels. Resize them, or move the channels forward.")


@torch.no_grad()
def read_pictures(pixels: torch.Tensor) -> Reading:
    """Read [N, 3, 128, 128] in 0..1. Raises ValueError for another shape."""
    check_pixels(pixels, "N 3 H W")
    scenes, poses, sure, sprites = [], [], [], []
    for part in pixels.float().split(8):
        base, misfit = fit_backgrounds(shrink(part, FINE))
        behind, row = misfit.argmin(1), torch.arange(len(part))
        frames = read_frames(part, base[row, behind], behind % len(TEXTURES))
        sprite = frames.error.argmin(1)
        pose = frames.pose[row, sprite]
        scenes += map(describe, sprite.tolist(), pose.tolist(), behind.tolist())
        poses.append(pose)
        sure.append(confidence(frames, frames.error, sprite, pose))
        sprites.append(sprite)
    return make_reading(scenes, torch.cat(poses)[:, None], torch.cat(sure)[:, None],
                        torch.cat(sprites)[:, None])
