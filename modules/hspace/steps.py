"""Sampling with injected features: Asyrp's asymmetric step, latent calibration and quality boosting.

Variance-exploding form, as the host samples: X = x / sqrt(abar), sigma = sqrt((1 - abar) / abar), and the network is
known by its denoised prediction D(X, sigma). Source: InjectFusion and Asyrp; specification: h-space injection, 2.4,
2.5, 2.7 and 2.9.
"""
from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from .curve import Curve

T = 1000                    # timesteps of the model
DT_END = 950                # dt_lambda acts from here up
PAPER_STEPS = 30            # injected steps of the paper's setting, by which `auto_gamma` scales
MOST_GAMMA = 0.6            # above it content saturates and quality falls (the paper's figures)

Denoise = Callable[[Tensor, int, bool], Tensor]     # (X, number of the step, with injection) -> D


@dataclass(frozen=True)
class InjectionSettings:
    """How features are injected. The defaults are the paper's.

    Attributes:
        gamma: weight of the content over timesteps.
        t_edit: injection acts down to this timestep; above T it never acts.
        t_boost: at and below this timestep sampling is stochastic (eta 1).
        omega: latent calibration, 0 off, towards 1 more of the original. Acts in asymmetric mode only.
        mode: "asymmetric" changes the predicted x_0 alone, "symmetric" the whole step, which nearly cancels.
        dt_lambda: factor on the direction to x_t on injected steps with t >= 950; of the released code only.
        replace_steps: of more steps than that only so many may be injected, evenly spread over them.
        auto_gamma: scale gamma by 30 (the paper's setting) over the number of injected steps, up to 0.6.
        gamma_skips: weight of the content's deep skips, where the trace has them. Ours; 0 = the paper's.
        lead: the content's features are those of so many timesteps further on, where less noise is in them. Ours.
    """

    gamma: Curve = Curve(((0.0, 0.3),))
    t_edit: float = 400
    t_boost: float = 200
    omega: float = 0.3
    mode: Literal["asymmetric", "symmetric"] = "asymmetric"
    dt_lambda: float = 1.0
    replace_steps: int = 50
    auto_gamma: bool = False
    gamma_skips: float = 0.0
    lead: float = 0.0

    def __post_init__(self):
        if not 0 <= self.lead <= T:
            raise ValueError(f"lead is from 0 (the same timestep) to {T}; {self.lead} was given.")
        if not (math.isfinite(self.omega) and 0 <= self.omega <= 1):
            raise ValueError(f"omega is from 0 (off) to 1 (all original); {self.omega} was given.")
        if self.mode not in ("asymmetric", "symmetric"):
            raise ValueError(f"mode is asymmetric or symmetric; {self.mode!r} was given.")

    def gamma_at(self, time: float, injected: int) -> float:
        """gamma of a step when `injected` steps are injected in all."""
        gamma = self.gamma.at(time)
        return min(MOST_GAMMA, gamma * PAPER_STEPS / injected) if self.auto_gamma else gamma


PRESETS = {
    "paper": InjectionSettings(),
    "official script": InjectionSettings(omega=0.0),
    "painting": InjectionSettings(gamma=Curve(((0.0, 0.4),)), t_boost=0, omega=0.0),
    "face part": InjectionSettings(omega=0.0),
}


@dataclass(frozen=True)
class Step:
    """What one step did: the latent after it, its prediction, and how far injection moved it.

    dose: |X' - X'_plain| / |X'_plain|, 0 where nothing was injected.
    """

    x: Tensor
    denoised: Tensor
    injected: bool
    dose: float


def timestep_grid(count: int, last: int = T - 1) -> list[int]:
    """`count` timesteps from 0 to `last`, both included, rounded down: the released code's grid. Strictly rising for
    count <= last + 1."""
    return [point * last // max(1, count - 1) for point in range(count)]


def injected_steps(times: Sequence[float], settings: InjectionSettings) -> list[bool]:
    """Which steps are injected: at or above t_edit, one of `replace_steps`, a weight above 0. times: falling."""
    spread = set(timestep_grid(min(settings.replace_steps, len(times)), len(times) - 1))
    chosen = [len(times) - 1 - step in spread for step in range(len(times))]    # counted from the last step
    return [on and time >= settings.t_edit and max(settings.gamma.at(time), settings.gamma_skips) > 0
            for on, time in zip(chosen, times, strict=True)]


def noise_parts(sigma: float, after: float, eta: float) -> tuple[float, float]:
    """(down, up) of a stochastic step: X' = D + down (X - D) / sigma + up z; equals DDIM's eta. Asyrp (2.4)."""
    up = min(after, eta * math.sqrt(max(0.0, after ** 2 * (sigma ** 2 - after ** 2) / sigma ** 2)))
    return math.sqrt(max(0.0, after ** 2 - up ** 2)), up


def calibrated(x: Tensor, plain: Tensor, injected: Tensor, omega: float) -> Tensor:
    """The latent from which the un-injected network predicts about what the injected one predicts from `x`.

    X + (D'' - D) + omega (D - D'), D'' = D' with the standard deviation of D. Latent calibration (2.5): without the
    normalisation of D'' the move is (1 - omega) (D' - D). plain D and injected D' [B, ...].
    """
    dims = tuple(range(1, x.ndim))
    mean = injected.mean(dims, keepdim=True)
    contrast = plain.std(dims, keepdim=True) / injected.std(dims, keepdim=True).clamp(min=1e-12)
    return x + (mean + (injected - mean) * contrast - plain) + omega * (plain - injected)


def sample_injected(denoise: Denoise, x: Tensor, sigmas: Sequence[float], times: Sequence[float],
                    settings: InjectionSettings, noise: Callable[[int], Tensor]) -> Iterator[Step]:
    """Sample from `x` at sigmas[0] to sigmas[-1]; yields every step.

    Args:
        denoise: the guided prediction, with or without injection.
        sigmas: falling, one more than steps.
        times: timestep of each step.
        noise: unit noise of x's shape for a step, for quality boosting.
    """
    plan = injected_steps(times, settings)
    for step, (sigma, after) in enumerate(zip(sigmas[:-1], sigmas[1:], strict=True)):
        boosted = times[step] <= settings.t_boost and not plan[step]
        down, up = noise_parts(sigma, after, 1.0 if boosted else 0.0)
        plain = denoise(x, step, False)
        unchanged = euler(x, plain, sigma, down)
        prediction, following = plain, unchanged
        if plan[step]:
            prediction, following = injected_step(denoise, x, plain, step, sigma, down, settings, times[step])
        dose = ((following - unchanged).norm() / unchanged.norm().clamp(min=1e-12)).item() if plan[step] else 0.0
        x = following + up * noise(step) if up else following
        yield Step(x, prediction, plan[step], dose)


def injected_step(denoise: Denoise, x: Tensor, plain: Tensor, step: int, sigma: float, after: float,
                  settings: InjectionSettings, time: float) -> tuple[Tensor, Tensor]:
    """(prediction of x_0, next latent) of one deterministic injected step from `x` to noise level `after`."""
    changed = denoise(x, step, True)
    if settings.mode == "symmetric":
        return changed, euler(x, changed, sigma, after)
    if settings.omega:
        moved = calibrated(x, plain, changed, settings.omega)
        prediction = denoise(moved, step, False)
        return prediction, euler(moved, prediction, sigma, after)
    shrink = settings.dt_lambda - 1 if time >= DT_END else 0.0
    return changed, euler(x, plain, sigma, after) + (changed - plain) + shrink * after * (x - plain) / sigma


def euler(x: Tensor, denoised: Tensor, sigma: float, after: float) -> Tensor:
    """D + sigma' (X - D) / sigma, in the form that the host's Euler sampler rounds like."""
    return x + (x - denoised) / sigma * (after - sigma)


def draws(seed: int, like: Tensor) -> Callable[[int], Tensor]:
    """Seeded unit noise for every step, drawn on the CPU."""
    from ..training.order import stream
    return lambda step: torch.randn(like.shape, generator=stream("h-space boost", seed, step)).to(like)
