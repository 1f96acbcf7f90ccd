"""SaD and PaD on the specification's golden data (sad_pad.md 8.1), which has no randomness.

`worst_relative`: of all its numbers by the exact path. `binned_relative`: the same by bins. `series_relative`: pairs by
the series that sets of usual size take. `n_independence`: of the published unit, 1000 against 10 000 points. Name:
metrics-golden.
"""
from __future__ import annotations

import math
from dataclasses import replace

import torch
from scipy.stats import norm

from frozen_diffusion.modules.metrics.divergence import GENERAL, PAPER_PARITY, all_pairs, pad, sad

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


def worst(settings) -> float:
    """The largest relative difference from all golden numbers."""
    found = [abs(value / wanted - 1) for (one, other), both in SINGLE.items()
             for value, wanted in zip((float(part) for part in (lambda d: (d.kl, d.reverse))(
                 sad(normal(*one), normal(*other), settings))), both, strict=True)]
    return max(*found, worst_pair(settings))


def worst_pair(settings) -> float:
    return max(abs(float(pad(correlated(*one), correlated(*other), all_pairs(2), settings).kl) / wanted - 1)
               for (one, other), wanted in PAIRS.items())


def run() -> dict:
    literal = [abs(float(sad(normal(0, 4), normal(1, 4), replace(PAPER_PARITY, nodes=nodes)).kl) * 1e4 / nodes / wanted
                   - 1) for nodes, wanted in LITERAL.items()]
    few, many = (float(sad(normal(0, 4), normal(1, 4), replace(GENERAL, nodes=nodes)).kl) for nodes in (1000, 10_000))
    figures = {"worst_relative": max(worst(PAPER_PARITY), *literal),
               "binned_relative": worst(replace(PAPER_PARITY, method="binned")), "series_relative": worst_pair(GENERAL),
               "n_independence": abs(few / many - 1)}
    return {"figures": figures, "context": {}}
