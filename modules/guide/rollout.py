"""Sampling with and without a guide beside real guidance: how close the pictures come."""
from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ..training.denoising import NoiseLevels

Guided = Callable[[Tensor, Tensor], Tensor]         # (x_t [B, C, h, w], t [B]) -> eps or v, as it is to be followed


@torch.no_grad()
def rollout(predict: Guided, levels: NoiseLevels, noise: Tensor, times: Sequence[int]) -> Tensor:
    """DDIM from noise [B, C, h, w] at times[0] over falling timesteps to x_0."""
    x = noise
    for step, time in enumerate(times):
        t = torch.full((len(x),), time, device=x.device)
        x0, eps = levels.split(x, predict(x, t).float(), t)
        x = x0 if step + 1 == len(times) else levels.add_noise(x0, eps, torch.full_like(t, times[step + 1]))
    return x


def distance_ratio(guide: Tensor, plain: Tensor, real: Tensor) -> float:
    """Squared distance to real guidance's samples over that of samples without guidance; 0 = the same, 1 = no help."""
    return float((guide - real).square().mean() / (plain - real).square().mean().clamp(min=1e-12))
