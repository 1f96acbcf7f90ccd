"""A small encoder, its latent and its dense Jacobian, for the tests of the latent basis."""
from __future__ import annotations

import math

import torch
from torch.nn import functional

from frozen_diffusion.modules.basis.products import Jacobian

CHANNELS, SIZE = 3, 8


def normal(*shape: int, seed: int = 0, dtype=torch.float32) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


class Encoder(torch.nn.Module):
    """A U-Net's way down in small: convolutions, a norm and plain self-attention; 192 numbers -> 128."""

    def __init__(self, dtype=torch.float32):
        super().__init__()
        shapes = {"first": (16, CHANNELS, 3, 3), "down": (32, 16, 3, 3), "qkv": (96, 32), "out": (8, 32, 1, 1)}
        for seed, (name, shape) in enumerate(shapes.items()):
            fan = torch.Size(shape[1:]).numel()
            setattr(self, name, torch.nn.Parameter(normal(*shape, seed=seed, dtype=dtype) * 1.5 / fan ** 0.5))

    def forward(self, x):
        h = functional.silu(functional.conv2d(x, self.first, padding=1))
        h = functional.group_norm(functional.conv2d(h, self.down, padding=1, stride=2), 4)
        q, k, v = (h.flatten(2).transpose(1, 2) @ self.qkv.T).chunk(3, dim=2)
        h = h + ((q @ k.transpose(1, 2) / 32 ** 0.5).softmax(-1) @ v).transpose(1, 2).unflatten(2, h.shape[2:])
        return functional.conv2d(functional.silu(h), self.out)


def latent(seed: int = 7, dtype=torch.float32) -> torch.Tensor:
    return normal(1, CHANNELS, SIZE, SIZE, seed=seed, dtype=dtype)


def dense(jacobian: Jacobian) -> torch.Tensor:
    """J [m, n] column by column."""
    units = torch.eye(jacobian.n, dtype=jacobian.dtype).view(-1, *jacobian.x.shape)
    return torch.stack([jacobian.push(unit).flatten() for unit in units], dim=1)


def angle(a: torch.Tensor, b: torch.Tensor) -> float:
    """Largest principal angle in degrees between the spans of a and b [k, ...]."""
    a, b = (torch.linalg.qr(t.flatten(1).double().T).Q for t in (a, b))
    return math.degrees(math.asin(min(1.0, float(torch.linalg.norm(b - a @ (a.T @ b), 2)))))
