"""Close-ups with soft alpha over sprite world's textures, for FurryGAN: of the emoji world, and of sprite world.

The emoji world's faces, animals and food are drawn from the Noto Color Emoji font (SIL OFL 1.1) when they are needed;
nothing of it is kept here. Sprite world has two dozen sprites of its own, and needs no font.
"""
from __future__ import annotations

import functools
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from ..data.images import ImageSettings
from ..seeding import stream
from .renderer import atlas, background
from .world import COLOURS, RGB, TEXTURES

FONT = Path("/usr/share/fonts/truetype/noto/NotoColorEmoji.ttf")        # Debian's fonts-noto-color-emoji
RANGES = ((0x1F600, 0x1F637), (0x1F910, 0x1F92F), (0x1F970, 0x1F976),   # faces
          (0x1F400, 0x1F43D), (0x1F980, 0x1F9AE),                       # animals
          (0x1F32D, 0x1F37F), (0x1F950, 0x1F96F), (0x1F9C0, 0x1F9CB))   # food
COVERAGE = (0.45, 0.85)         # of its square, of a sprite that is taken
WANTED = (0.58, 0.72)           # of the frame, of a sprite as it is drawn
TILE, GRAIN = 128, 0.03
EMOJI, SPRITE = "emoji world", "sprite world"


@functools.cache
def sprites(font: Path = FONT) -> Tensor:
    """[K, 4, 128, 128] premultiplied RGBA in 0..1, each filling its square.

    Raises FileNotFoundError that says how to get the font.
    """
    if not font.is_file():
        raise FileNotFoundError(f"The font {font} is not there. Install it: apt install fonts-noto-color-emoji.")
    face, found = ImageFont.truetype(str(font), 109), []
    for character in _characters():
        tile = Image.new("RGBA", (160, 160))
        ImageDraw.Draw(tile).text((12, 12), character, font=face, embedded_color=True)
        box = tile.getbbox()
        if box is None:
            continue
        side = max(box[2] - box[0], box[3] - box[1])
        square = Image.new("RGBA", (side, side))
        square.paste(tile.crop(box), ((side - box[2] + box[0]) // 2, (side - box[3] + box[1]) // 2))
        pixels = np.asarray(square.resize((TILE, TILE), Image.LANCZOS), dtype=np.float32) / 255
        if COVERAGE[0] <= pixels[..., 3].mean() <= COVERAGE[1]:
            found.append(torch.from_numpy(pixels).movedim(-1, 0))
    tiles = torch.stack(found)
    tiles[:, :3] *= tiles[:, 3:]
    return tiles


@functools.cache
def close_sprites() -> Tensor:
    """[K, 4, 128, 128] as `sprites`, of sprite world."""
    tiles = atlas()
    shares = tiles[:, 3].mean((1, 2))
    return tiles[(shares >= COVERAGE[0]) & (shares <= COVERAGE[1])]


def _characters() -> Iterator[str]:
    for first, last in RANGES:
        yield from map(chr, range(first, last + 1))


@dataclass(frozen=True)
class EmojiPictures:
    """Pictures of a world by number, as an image source; the same number, the same picture.

    Attributes:
        count: how many there are.
        settings: their size.
        first: number of the first; other ranges are other pictures, e.g. held-out ones.
        world: EMOJI or SPRITE.
    """
    count: int
    settings: ImageSettings
    first: int = 0
    world: str = EMOJI

    def __len__(self) -> int:
        return self.count

    def caption(self, index: int) -> str:
        return ""

    def name(self, index: int) -> str:
        return f"{self.world} {self.first + index}"

    def key(self, index: int) -> str:
        return f"{self.world}|{self.first + index}|{self.settings.size}"

    def report(self) -> str:
        return f"{self.count} pictures of the {self.world}, {self.settings.size}"

    def pixels(self, index: int) -> Tensor:
        """[3, S, S] uint8."""
        return (self.drawn(index)[0] * 255).round().to(torch.uint8)

    def drawn(self, index: int) -> tuple[Tensor, Tensor]:
        """(picture [3, S, S] in 0..1, its true alpha [1, S, S])."""
        generator = stream("emoji", self.first + index)
        tiles, size = sprites() if self.world == EMOJI else close_sprites(), self.settings.width
        tile = tiles[int(torch.randint(len(tiles), (), generator=generator))]
        jitter = torch.rand(8, generator=generator)
        low, high = WANTED
        scale = float(((low + (high - low) * jitter[0]) / tile[3].mean()).sqrt())        # of the frame's side
        shift = 0.06 * (2 * jitter[1:3] - 1)
        mirrored = -1.0 if jitter[3] < 0.5 else 1.0
        theta = torch.tensor([[[mirrored / scale, 0, -mirrored * float(shift[0]) / scale],
                               [0, 1 / scale, -float(shift[1]) / scale]]])
        fine = F.affine_grid(theta, [1, 4, 2 * size, 2 * size], align_corners=False)
        rgba = F.avg_pool2d(F.grid_sample(tile[None], fine, align_corners=False), 2)[0]
        colour = torch.tensor(RGB[COLOURS[int(jitter[4] * len(COLOURS))]]) + 0.1 * (jitter[5:8] - 0.5)
        texture = torch.randint(len(TEXTURES), (1,), generator=generator)
        behind = background(colour.clamp(0, 1)[None], texture, 2 * size, 2 * size)
        behind = F.avg_pool2d(behind, 2)[0] + GRAIN * torch.randn(3, size, size, generator=generator)
        alpha = rgba[3:].clamp(0, 1)
        return (rgba[:3] + (1 - alpha) * behind).clamp(0, 1), alpha
