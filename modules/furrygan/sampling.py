"""From seeds to layers: latents, truncation, row mixing, and a mask that is fit to be saved.

Pictures are in -1..1 inside and in 0..1 in what leaves. The same seed and index give the same picture in any batch.
"""
from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor

from ..seeding import stream
from .networks import Generator, Layers, NoiseMaps, Shape, truncated

SNAP = 1 / 512          # masks this near 1 are 1: pictures are cut off, not rounded, when they are saved
VEIL = 0.15             # what counts as nothing
SPECK, SEEN = 3 / 32, 0.25      # smallest region that stays, in pixels a pixel of the side; of pixels above
AT_ONCE = 8 * 256 ** 2  # pixels
ROWS = {"none": (0, 0), "pose and shape": (0, 3), "middle": (3, 7), "colour and texture": (7, -1),
        "last row": (-1, None)}     # of W+, in parts: 4 and 8, 16 and 32, finer, colours and masks

Means = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Styles:
    """What B pictures are made of.

    Attributes:
        foreground, background: W+ [B, rows, D_fg], [B, rows, D_bg], on the CPU.
        noise: (seed, index) that each picture's noise is drawn of.
    """
    foreground: Tensor
    background: Tensor
    noise: Sequence[tuple[int, int]]

    def __len__(self) -> int:
        return len(self.noise)

    def part(self, start: int, stop: int) -> Styles:
        return Styles(self.foreground[start:stop], self.background[start:stop], self.noise[start:stop])


@dataclass(frozen=True)
class Cutouts:
    """Layers as pictures: foreground, background, composite [B, S, S, 3] in 0..1, mask [B, S, S], 1 = foreground."""

    foreground: Tensor
    background: Tensor
    composite: Tensor
    mask: Tensor

    @property
    def rgba(self) -> Tensor:
        """[B, S, S, 4], straight alpha: colours are not multiplied by it."""
        return torch.cat([self.foreground, self.mask[..., None]], -1)


def latents(shape: Shape, seed: int, indices: Sequence[int]) -> Tensor:
    """z [B, D_fg]: picture `index` of a seed is the same in any batch."""
    return torch.stack([torch.randn(shape.foreground, generator=stream("furry style", seed, index))
                        for index in indices])


@torch.no_grad()
def draw_styles(network: Generator, means: Means, seed: int, indices: Sequence[int],
               psi: tuple[float, float] = (0.7, 0.7), background_seed: int | None = None) -> Styles:
    """The styles of pictures of a seed; psi of foreground and background, 1 as trained, 0 the mean of all.

    With a background seed the background is drawn by itself, else it is the one that belongs to the foreground.
    Raises ValueError for a negative psi.
    """
    device = network.to_fg.bias.device
    w, w_bg = network.split(latents(network.shape, seed, indices).to(device))
    if background_seed is not None:
        w_bg = network.split(latents(network.shape, background_seed, indices).to(device))[1]
    rows = network.shape.rows
    parts = [truncated(part, mean.to(device), amount)[:, None].expand(-1, rows, -1).contiguous().cpu()
             for part, mean, amount in zip((w, w_bg), means, psi, strict=True)]
    return Styles(*parts, [(seed, index) for index in indices])


def mixed(styles: Styles, other: Styles, rows: str) -> Styles:
    """`styles` with some rows of `other`'s foregrounds, one of ROWS."""
    start, stop = ROWS[rows]
    foreground = styles.foreground.clone()
    foreground[:, start:stop] = other.foreground[:, start:stop]
    return replace(styles, foreground=foreground)


def noise_of(shape: Shape, styles: Styles, device: torch.device) -> NoiseMaps:
    """The noise of each picture, drawn on the CPU."""
    return NoiseMaps.drawn(shape, [stream("furry noise", *names) for names in styles.noise], device)


@torch.no_grad()
def render(network: Generator, styles: Styles, device: torch.device, clean: bool = True) -> Iterator[Cutouts]:
    """Layers of some pictures after another, in float32."""
    count = min(64, max(1, AT_ONCE // network.shape.size ** 2))
    for start in range(0, len(styles), count):
        part = styles.part(start, start + count)
        layers = network(part.foreground.to(device), part.background.to(device), noise_of(network.shape, part, device))
        yield cut_out(layers, clean)


def cut_out(layers: Layers, clean: bool = True) -> Cutouts:
    """Layers as pictures. Composites are put together of the mask that comes out; clean: see `clean_mask`."""
    mask = clean_mask(layers.mask) if clean else layers.mask
    mask = torch.where(mask > 1 - SNAP, 1.0, mask)
    layers = replace(layers, mask=mask)
    pictures = [((part.float() + 1) / 2).clamp(0, 1).movedim(1, -1).cpu()
                for part in (layers.foreground, layers.background, layers.composite)]
    return Cutouts(*pictures, mask[:, 0].float().cpu())


def joined(parts: Sequence[Cutouts]) -> Cutouts:
    """One after another."""
    return Cutouts(*[torch.cat([getattr(part, name) for part in parts])
                     for name in ("foreground", "background", "composite", "mask")])


def clean_mask(mask: Tensor) -> Tensor:
    """Masks [B, 1, S, S] without specks and without a veil.

    Both masks are 1 somewhere by construction, at times at a single pixel: tiny regions (below 3 pixels at 32x32,
    24 at 256x256) become 0. And only the darkest pixel of a coarse mask is 0: what is below VEIL becomes 0, what is
    above 1 - VEIL becomes 1, and half stays half.
    """
    cleaned = ((mask - VEIL) / (1 - 2 * VEIL)).clamp(0, 1)
    for picture in cleaned[:, 0]:
        labels, count = ndimage.label((picture > SEEN).cpu().numpy(), structure=np.ones((3, 3)))
        specks = np.flatnonzero(np.bincount(labels.ravel(), minlength=count + 1) < SPECK * mask.shape[-1])
        picture[torch.from_numpy(np.isin(labels, specks)).to(mask.device)] = 0
    return cleaned
