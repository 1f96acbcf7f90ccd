"""The renderer of sprite world: scenes to pictures and clips with exact truth, vectorised in torch."""
from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw, ImageFont

from .world import GLYPHS, RGB, SPRITES, TEXTURES, Scene

SIDE = 128                                  # pixels of a frame
TILE = 128                                  # pixels of a sprite in the atlas
FRAMES, FPS = 16, 8
ATLAS = Path(__file__).with_name("atlas.png")
WIDTH = {"small": 44.0, "large": 70.0}      # pixels across a sprite's tile
CENTRE = {"left": 38.0, "middle": 64.0, "right": 90.0}


def draw_atlas(font_path: str) -> Image.Image:
    """The 24 sprites in one row, RGBA, drawn from the Noto Color Emoji font (SIL OFL 1.1)."""
    font = ImageFont.truetype(font_path, 109)
    atlas = Image.new("RGBA", (TILE * len(SPRITES), TILE))
    for index, glyph in enumerate(GLYPHS):
        tile = Image.new("RGBA", (136, 128))
        ImageDraw.Draw(tile).text((0, 0), glyph, font=font, embedded_color=True)
        tile = tile.crop(tile.getbbox())
        tile.thumbnail((TILE - 8, TILE - 8), Image.LANCZOS)
        atlas.paste(tile, (TILE * index + (TILE - tile.width) // 2, (TILE - tile.height) // 2))
    return atlas


@functools.cache
def atlas() -> torch.Tensor:
    """[24, 4, 128, 128], premultiplied colour and alpha, 0..1."""
    pixels = np.asarray(Image.open(ATLAS).convert("RGBA"), dtype=np.float32) / 255
    tiles = torch.from_numpy(pixels).reshape(TILE, len(SPRITES), TILE, 4).permute(1, 3, 0, 2).contiguous()
    tiles[:, :3] *= tiles[:, 3:]
    return tiles


@dataclass(frozen=True)
class Truth:
    """What is really there. N pictures or clips of F frames (F = 1 for pictures); pixels, radians, clockwise."""

    scenes: tuple[Scene, ...]
    centre: torch.Tensor        # [N, F, 2] x, y
    width: torch.Tensor         # [N, F]    pixels across the sprite's tile
    angle: torch.Tensor         # [N, F]
    alpha: torch.Tensor         # [N, F, 1, H, W]


def accent(colour: torch.Tensor) -> torch.Tensor:
    """The second shade of a textured background, [..., 3]: darker, or lighter where the colour is dark."""
    dark = (colour.mean(-1, keepdim=True) < 0.3).float()
    return colour * 0.72 * (1 - dark) + (colour + 0.24) * dark


def background(colour: torch.Tensor, texture: torch.Tensor, height: int = SIDE, width: int = SIDE) -> torch.Tensor:
    """[N, 3] colours and [N] texture indices -> [N, 3, H, W]. Dots repeat every 16 pixels, stripes every 32."""
    y, x = torch.meshgrid(torch.arange(height) + 0.5, torch.arange(width) + 0.5, indexing="ij")
    stripes = ((x + y) % 32 - 16).abs().sub(8).clamp(-0.5, 0.5) + 0.5
    dots = (4.5 - ((x % 16 - 8) ** 2 + (y % 16 - 8) ** 2).sqrt()).clamp(-0.5, 0.5) + 0.5
    mask = torch.stack([torch.zeros_like(stripes), stripes, dots])[texture][:, None]
    base = colour[:, :, None, None]
    return base + mask * (accent(colour)[:, :, None, None] - base)


def place_sprites(sprite: torch.Tensor, centre: torch.Tensor, width: torch.Tensor, angle: torch.Tensor,
                  height: int = SIDE, side: int = SIDE) -> torch.Tensor:
    """Sample the atlas: [M] indices, [M, 2] centres, [M] widths, [M] angles -> [M, 4, H, W] premultiplied RGBA.

    Differentiable in centre, width and angle.
    """
    y, x = torch.meshgrid(torch.arange(height) + 0.5, torch.arange(side) + 0.5, indexing="ij")
    dx, dy = x - centre[:, 0, None, None], y - centre[:, 1, None, None]
    cos, sin = angle.cos()[:, None, None], angle.sin()[:, None, None]
    half = width[:, None, None] / 2
    grid = torch.stack([(cos * dx + sin * dy) / half, (cos * dy - sin * dx) / half], dim=-1)
    return F.grid_sample(_small_atlas()[sprite], grid, align_corners=False)


@functools.cache
def _small_atlas() -> torch.Tensor:
    return F.avg_pool2d(atlas(), 2)


def trajectory(scene: Scene, frames: int, generator: torch.Generator) -> tuple[torch.Tensor, ...]:
    """Centre [F, 2], width [F] and angle [F] of a scene; `place` and `size` describe the middle of the path.

    Straight motions start from rest, so that a single frame already hints at its direction, as real pictures do:
    otherwise an image model would have no reason to keep "left" and "right" apart in what it hands to motion layers.
    """
    jitter = torch.rand(5, generator=generator) * 2 - 1
    x, y = CENTRE[scene.place] + 4 * jitter[0].item(), 64 + 8 * jitter[1].item()
    width = WIDTH[scene.size] * (1 + 0.06 * jitter[2].item())
    speed = 1 + 0.2 * jitter[3].item()
    t = torch.linspace(0, 1, frames) if frames > 1 else torch.full((1,), 0.5)
    swing = (t ** 1.7 - 0.5) * speed                            # -0.5 .. 0.5
    zero = torch.zeros_like(t)
    dx, dy, log_scale, angle = zero, zero, zero, zero
    match scene.motion:
        case "left" | "right":
            dx = 36 * swing * (1 if scene.motion == "right" else -1)
        case "up" | "down":
            dy = 40 * swing * (1 if scene.motion == "down" else -1)
        case "grow" | "shrink":
            log_scale = math.log(2.1) * swing * (1 if scene.motion == "grow" else -1)
        case "spin":
            angle = 2 * math.pi * t * speed
        case "bounce":
            dy = 16 - 34 * (2 * math.pi * t * speed).sin().abs()
        case "circle":
            phase = 2 * math.pi * (t + 0.5 * jitter[4].item())
            dx, dy = 17 * phase.cos() * speed, 17 * phase.sin() * speed
    return torch.stack([x + dx, y + dy], dim=-1), width * log_scale.exp(), angle


def render(scenes: list[Scene], generator: torch.Generator, frames: int = 1) -> tuple[torch.Tensor, Truth]:
    """Scenes to pixels.

    Args: N scenes; a generator that decides all jitter; frames of each (1 = a picture).
    Returns [N, F, 3, 128, 128] in 0..1, and the truth.
    """
    paths = [trajectory(scene, frames, generator) for scene in scenes]
    centre, width, angle = (torch.stack(part) for part in zip(*paths, strict=True))
    colour = torch.tensor([RGB[s.colour] for s in scenes])
    colour = (colour + 0.04 * (torch.rand(colour.shape, generator=generator) * 2 - 1)).clamp(0, 1)
    texture = torch.tensor([TEXTURES.index(s.texture) for s in scenes])
    sprite = torch.tensor([SPRITES.index(s.sprite) for s in scenes]).repeat_interleave(frames)
    rgba = place_sprites(sprite, centre.flatten(0, 1), width.flatten(), angle.flatten()).unflatten(0, (-1, frames))
    picture = rgba[:, :, :3] + (1 - rgba[:, :, 3:]) * background(colour, texture)[:, None]
    return picture.clamp(0, 1), Truth(tuple(scenes), centre, width, angle, rgba[:, :, 3:])


