"""Styles of sprite world: what the two style LoRAs learn. Pixels in, pixels out, [..., 3, H, W] in 0..1."""
from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F


def pencil(pixels: torch.Tensor) -> torch.Tensor:
    """A soft grey drawing: light shading, broad dark outlines (thinner ones do not survive the autoencoder)."""
    flat = pixels.reshape(-1, *pixels.shape[-3:])
    soft = F.avg_pool2d(F.pad(flat, (3, 3, 3, 3), mode="replicate"), 5, stride=1)
    dx = soft[:, :, 1:-1, 2:] - soft[:, :, 1:-1, :-2]
    dy = soft[:, :, 2:, 1:-1] - soft[:, :, :-2, 1:-1]
    edge = (dx.square() + dy.square()).sum(1, keepdim=True).add(1e-6).sqrt()
    paper = 0.45 + 0.5 * flat.mean(1, keepdim=True)
    return (paper - 0.7 * edge).clamp(0, 1).expand_as(flat).reshape(pixels.shape)


def swapped(pixels: torch.Tensor) -> torch.Tensor:
    """Red and blue change places; its own inverse.

    A negative would turn the sign of the latents, and with it of all features: motion layers then find nothing they
    know. Here light stays light, as in the styles that image models are tuned to.
    """
    return pixels.flip(-3)


STYLES: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {"pencil": pencil, "swapped": swapped}
