"""Sampling with injected features: Asyrp's asymmetric step, latent calibration and quality boosting.

Variance-exploding form, as the host samples: X = x / sqrt(abar), sigma = sqrt((1 - abar) / abar), and the network is
known by its denoised prediction D(X, sigma). Source: InjectFusion and Asyrp; specification: h-space injection, 2.4,
2.5, 2.7 to 2.9.

The paper leaves open which of many steps are injected and boosted, and the released script (InjectFusion_official,
diffusion_latent.py) settles it in its own way; see `InjectionSettings.released` for where the two differ here.
"""
from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor

from ..curve import Curve

T = 1000                    # timesteps of the model
PAPER_STEPS = 30            # injected steps of the paper's setting, by which `auto_gamma` scales
SCRIPT_ARGUMENTS = ("dt_lambda", "dt_end", "replace_steps")     # of the released script, beside those a preset sets
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
        dt_lambda: factor on the direction to x_t on injected steps with t >= dt_end; of the released code only.
        replace_steps: of more steps than that only so many may be injected, evenly spread over them.
        auto_gamma: scale gamma by 30 (the paper's setting) over the number of injected steps, up to 0.6.
        gamma_skips: weight of the content's deep skips, where the trace has them. Ours; 0 = the paper's.
        lead: the content's features are those of so many timesteps further on, where less noise is in them. Ours.
        dt_end: the timestep down to which dt_lambda acts.
        released: keep to the released script's conventions instead of ours, which are the following.
            Injected: the steps whose timestep is a point of the grid of `replace_steps` timesteps; ours: every step, or
            evenly spread ones of more than `replace_steps`.
            Stochastic: steps on that grid, injected ones too where t_edit < t_boost; ours: every step that is not
            injected.
            dt_lambda: on that grid with or without injection, and it takes the step's noise away; ours: injected steps.
            Content: never the features that an inversion records at its last level; ours: those too.
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
    dt_end: float = 950
    released: bool = False

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
    "official script": InjectionSettings(omega=0.0, released=True),
    "painting": InjectionSettings(gamma=Curve(((0.0, 0.4),)), t_boost=0, omega=0.0),
    "face part": InjectionSettings(omega=0.0),
}


def with_preset(name: str, settings: Mapping[str, Any]) -> InjectionSettings:
    """A preset with the other settings as given.

    gamma, t_edit, t_boost and omega are the preset's; of "official script" all are but for the script's own arguments.
    """
    known = PRESETS[name]
    if known.released:
        return replace(known, **{key: settings[key] for key in SCRIPT_ARGUMENTS if key in settings})
    return InjectionSettings(**{**settings, "gamma": known.gamma, "t_edit": known.t_edit, "t_boost": known.t_boost,
                                "omega": known.omega})


@dataclass(frozen=True)
class StepPlan:
    """How one step is sampled.

    eta: DDIM's, the share of new noise. dt_lambda: factor on the direction to x_t.
    """

    injected: bool
    eta: float = 0.0
    dt_lambda: float = 1.0


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
    if settings.released:
        chosen = on_released_grid(times, settings)
    else:
        spread = set(timestep_grid(min(settings.replace_steps, len(times)), len(times) - 1))
        chosen = [len(times) - 1 - step in spread for step in range(len(times))]    # counted from the last step
    return [on and time >= settings.t_edit and max(settings.gamma.at(time), settings.gamma_skips) > 0
            for on, time in zip(chosen, times, strict=True)]


def on_released_grid(times: Sequence[float], settings: InjectionSettings) -> list[bool]:
    """Which steps the released script may treat otherwise than plain DDIM: those at a point of its grid."""
    grid = set(timestep_grid(settings.replace_steps))
    return [time in grid for time in times]


def plan_steps(times: Sequence[float], settings: InjectionSettings) -> list[StepPlan]:
    """The plan of a run over these timesteps, falling; see `InjectionSettings.released`."""
    plans, scaled = [], settings.dt_lambda != 1 and settings.mode == "asymmetric" and not settings.omega
    steps = zip(times, injected_steps(times, settings), on_released_grid(times, settings), strict=True)
    for time, injected, on_grid in steps:
        if settings.released:
            near_noise = scaled and on_grid and time >= settings.dt_end
            boosted = on_grid and time <= settings.t_boost and not near_noise
        else:
            near_noise = scaled and injected and time >= settings.dt_end
            boosted = not injected and time <= settings.t_boost
        plans.append(StepPlan(injected, 1.0 if boosted else 0.0, settings.dt_lambda if near_noise else 1.0))
    return plans


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
    for step, (plan, sigma, after) in enumerate(zip(plan_steps(times, settings), sigmas[:-1], sigmas[1:], strict=True)):
        down, up = noise_parts(sigma, after, plan.eta)
        plain = denoise(x, step, False)
        unchanged = plain_step(x, plain, sigma, down, plan.dt_lambda)
        prediction, following, dose = plain, unchanged, 0.0
        if plan.injected:
            prediction, following = injected_step(denoise, x, plain, step, sigma, down, settings, times[step])
            dose = ((following - unchanged).norm() / unchanged.norm().clamp(min=1e-12)).item()
        x = following + up * noise(step) if up else following
        yield Step(x, prediction, plan.injected, dose)


def injected_step(denoise: Denoise, x: Tensor, plain: Tensor, step: int, sigma: float, after: float,
                  settings: InjectionSettings, time: float) -> tuple[Tensor, Tensor]:
    """(prediction of x_0, next latent) of one injected step from `x` to noise level `after`, before new noise."""
    changed = denoise(x, step, True)
    if settings.mode == "symmetric":
        return changed, euler(x, changed, sigma, after)
    if settings.omega:
        moved = calibrated(x, plain, changed, settings.omega)
        prediction = denoise(moved, step, False)
        return prediction, euler(moved, prediction, sigma, after)
    dt_lambda = settings.dt_lambda if time >= settings.dt_end else 1.0
    return changed, plain_step(x, plain, sigma, after, dt_lambda) + (changed - plain)


def plain_step(x: Tensor, denoised: Tensor, sigma: float, after: float, dt_lambda: float = 1.0) -> Tensor:
    """Euler's step, with a factor on the direction to x_t."""
    following = euler(x, denoised, sigma, after)
    return following if dt_lambda == 1 else following + (dt_lambda - 1) * after * (x - denoised) / sigma


def euler(x: Tensor, denoised: Tensor, sigma: float, after: float) -> Tensor:
    """D + sigma' (X - D) / sigma, in the form that the host's Euler sampler rounds like."""
    return x + (x - denoised) / sigma * (after - sigma)


def draws(seed: int, like: Tensor) -> Callable[[int], Tensor]:
    """Seeded unit noise for every step, drawn on the CPU."""
    from ..seeding import stream
    return lambda step: torch.randn(like.shape, generator=stream("h-space boost", seed, step)).to(like)
