"""The specification's golden data of SaD and PaD (sad_pad.md 8.1), which has no randomness, and what is to come out."""
from __future__ import annotations

import math

import torch
from scipy.stats import norm

SINGLE = {((0, 4), (1, 4)): (29.959707, 29.959707), ((0, 4), (0, 5)): (43.342038, 64.283011),
          ((-5, 2), (25, 2)): (15927.38, 15927.38)}
A, B, C, D = (0, 0), (1, 0), (0, 0.5), (0, -0.5)           # (shift, correlation)
PAIRS = {(A, B): 28.7859, (B, A): 28.7760, (A, C): 229.0675, (C, D): 768.2898}
LITERAL = {1000: 299.3373, 100: 2966.423}                   # as the code prints it at so many points


def normal(mean: float, deviation: float) -> torch.Tensor:
    steps = (torch.arange(2000).double() + 0.5) / 2000
    return (mean + deviation * torch.from_numpy(norm.ppf(steps.numpy())))[:, None]


def correlated(shift: float, rho: float) -> torch.Tensor:
    steps = torch.arange(512).double()
    one, other = (torch.from_numpy(norm.ppf(part.numpy())) for part in (
        (steps + 0.5) / 512, (0.5 + 0.6180339887498949 * steps) % 1))
    return torch.stack([shift + 4 * one, 4 * (rho * one + math.sqrt(1 - rho ** 2) * other)], 1)
