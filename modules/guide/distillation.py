"""What a guide learns: the guided prediction in stage 1, two steps of its teacher in one in stage 2 (guide_model.md
2.1, 2.5, 2.6), and how far it is from that.
"""
from __future__ import annotations

import torch
from torch import Tensor

WEIGHT_LIMIT = 5.0          # of stage 2's weights: truncated SNR alone would put a third of the loss on one timestep


def by_row(value: Tensor, like: Tensor) -> Tensor:
    """[B] -> [B, 1, ...] to multiply a batch like `like`."""
    return value.to(like).view(-1, *[1] * (like.ndim - 1))


def guided(conditional: Tensor, unconditional: Tensor, g: Tensor) -> Tensor:
    """Classifier-free guidance at scales g [B], 1 = off: u + g (c - u), in eps, v or x0 alike (Ho & Salimans 2022)."""
    return unconditional + by_row(g, conditional) * (conditional - unconditional)


def unexplained(predicted: Tensor, conditional: Tensor, unconditional: Tensor, g: Tensor) -> Tensor:
    """FGU, the fraction of guidance unexplained, of each row [B] (8.1): 1 = as without a guide, 0 = exactly guided."""
    error = (predicted - guided(conditional, unconditional, g)).float().square().flatten(1).sum(1)
    whole = (conditional - unconditional).float().square().flatten(1).sum(1)
    return error / ((g.to(whole) - 1).square() * whole).clamp(min=1e-12)


def two_steps_in_one(first: Tensor, second: Tensor, sigma_t: Tensor, sigma_m: Tensor, sigma_s: Tensor) -> Tensor:
    """The eps with which one Euler step from sigma_t lands where the teacher's two steps over sigma_m end (2.6).

    first, second: its eps at sigma_t and at sigma_m; sigmas [B]. Salimans & Ho 2022, algorithm 2, in the variance
    exploding form.
    """
    k = by_row((sigma_t - sigma_m) / (sigma_t - sigma_s), first)
    return k * first + (1 - k) * second


def step_weight(sigma: Tensor, limit: float = WEIGHT_LIMIT) -> Tensor:
    """The weight of stage 2's squared error in eps: truncated SNR on x0, max(1, sigma^2), up to a limit; 0 = none."""
    weight = sigma.square().clamp(min=1)
    return weight.clamp(max=limit) if limit else weight


def scale_weight(g: Tensor) -> Tensor:
    """The weight of stage 1's squared error at scales g [B], which grows as (g - 1)^2 by itself (2.5)."""
    return 1 / ((g - 1).square() + 1)


def stratified(count: int, generator: torch.Generator) -> Tensor:
    """[count] numbers in 0..1, one in each of as many equal parts, in random order."""
    numbers = (torch.arange(count) + torch.rand(count, generator=generator)) / count
    return numbers[torch.randperm(count, generator=generator)]
