"""Sampling with injected features in the host: the SAMPLER, the MODEL patch, and latent calibration by itself."""
from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import comfy.model_patcher
import comfy.samplers
import torch
from comfy.patcher_extension import WrappersMP
from torch import Tensor

from ...curve import Curve
from ...files.provenance import same_model
from ...hspace.steps import (
    InjectionSettings,
    T,
    calibrated,
    draws,
    euler,
    injected_steps,
    sample_injected,
    timestep_grid,
)
from ...hspace.trace import INVERSION, HTrace, TraceError
from ..bottleneck import check_bottleneck
from ..calls import know_roles, prompts_of, with_roles
from ..clips import MOTION
from ..progress import warn
from ..weights import model_identity
from .capture import BOTH, MASKED, MODEL, HSpaceTap, Injection, check_model, check_steps, with_first_patch
from .shared_encoder import SharedEncoder

REPORT, LIGHT = "frozen_h_space_report", "frozen_inject_h_space"
FEW_STEPS = 8                     # injected steps below which little can come of it


@dataclass(frozen=True)
class InjectionRequest:
    """What an h-Space Injection Sampler node asks for."""
    trace: HTrace
    settings: InjectionSettings
    apply_to: str = BOTH
    norm_mode: str = MASKED
    check: str = MODEL
    shared_encoder: bool = False


@dataclass
class InjectionReport:
    """What the steps of one run did, for a plot: one row a step."""
    rows: list[dict[str, float]] = field(default_factory=list)


def injection_sampler(request: InjectionRequest) -> comfy.samplers.KSAMPLER:
    """The SAMPLER of a request."""
    return comfy.samplers.KSAMPLER(sample_with_injection, {"request": request})


@torch.no_grad()
def sample_with_injection(model, x: Tensor, sigmas: Tensor, extra_args: dict | None = None, callback=None,
                          disable=None, request: InjectionRequest | None = None) -> Tensor:
    """The host's sampler function; `model` is its denoiser with guidance. Raises ValueError, TraceError."""
    guider, extra_args = model.inner_model, dict(extra_args or {})
    check_bottleneck(guider.model_patcher)
    levels, times = schedule_of(guider, sigmas)
    check_model(request.trace, guider.model_patcher, request.check, prompts_of(guider))
    check_steps(request.trace, times, request.check)
    if request.settings.released:
        check_released_grid(times, request.settings)
        request = replace(request, trace=request.trace.without_last_level())
    denoise = InjectedDenoiser(model, extra_args, levels, times, request)
    report = extra_args["model_options"].get("transformer_options", {}).get(REPORT)
    warn_of_weak_settings(request.trace, denoise.injected, len(x), getattr(guider, "cfg", 1.0))
    steps = sample_injected(denoise, x, levels, times, request.settings, draws(extra_args.get("seed") or 0, x))
    for number, step in enumerate(steps):
        if callback is not None:
            callback({"x": step.x, "i": number, "sigma": sigmas[number], "sigma_hat": sigmas[number],
                      "denoised": step.denoised})
        if report is not None:
            report.rows.append({"t": times[number], "dose": step.dose, **denoise.measures()})
        x = step.x
    return x


def warn_of_weak_settings(trace: HTrace, injected: int, batch: int, cfg: float) -> None:
    """Log what runs, but hardly as somebody wanted it."""
    if 0 < injected < FEW_STEPS:
        warn(f"Only {injected} steps are injected; content hardly comes through. Take more steps or a lower t_edit.")
    if injected and cfg > 1 and trace.provenance.get("from") == INVERSION:
        warn(f"Cfg is {cfg:g} with an inverted picture; inversion is without guidance, so the picture itself does not "
             "come back. Use cfg 1 to keep it.")
    if (most := max(part.batch for part in trace.parts)) > batch:
        warn(f"The trace holds {most} pictures and {batch} are sampled; the others are left out.")


def schedule_of(guider, sigmas: Tensor) -> tuple[list[float], list[float]]:
    """(noise levels, timestep of each step) of a run. Raises ValueError for levels that do not fall."""
    levels = [float(sigma) for sigma in sigmas]
    pairs = list(zip(levels[:-1], levels[1:], strict=True))
    if any(later > sooner for sooner, later in pairs):
        raise ValueError("h-space injection needs sigmas that fall from step to step; these rise, as those of an "
                         "inversion do. Connect the sigmas output of Invert (DDIM), or a scheduler.")
    if (repeated := [sooner for sooner, later in pairs if later == sooner]):
        raise ValueError("h-space injection needs sigmas that fall from step to step; these hold levels twice "
                         f"({', '.join(f'{level:.4g}' for level in repeated[:5])}). Use fewer steps or another "
                         "scheduler.")
    sampling = guider.inner_model.model_sampling
    return levels, [float(sampling.timestep(sigma)) for sigma in sigmas[:-1]]


def check_released_grid(times: Sequence[float], settings: InjectionSettings) -> None:
    """Raises ValueError for steps that hardly meet the grid on which the released script injects."""
    points = [point for point in timestep_grid(settings.replace_steps)
              if settings.t_edit <= point and min(times, default=T) <= point <= max(times, default=0)]
    if (met := sum(injected_steps(times, settings))) < min(FEW_STEPS, len(points)):
        raise ValueError("The official script injects only where the sampled steps meet its grid of replace_steps "
                         f"({settings.replace_steps}) timesteps; these meet it at {met} of {len(points)}. Use the "
                         "sigmas of Invert (DDIM) with 50 or 1000 steps, or choose preset paper or custom, which take "
                         "any steps.")


class InjectedDenoiser:
    """The guided prediction with and without injection, as `sample_injected` asks for it."""

    def __init__(self, model, extra_args: Mapping, sigmas: Sequence[float], times: Sequence[float],
                 request: InjectionRequest):
        self.model, self.extra_args, self.sigmas, self.times, self.request = model, extra_args, sigmas, times, request
        self.plan = injected_steps(times, request.settings)
        self.injected = sum(self.plan)
        self.injection = Injection(request.trace, request.apply_to, request.norm_mode, request.check)
        self.tap = HSpaceTap()
        self.shared = SharedEncoder(self.tap) if request.shared_encoder else None
        self.options = with_first_patch(with_roles(extra_args["model_options"], model.inner_model), self.tap)
        if self.shared is not None:
            self.options = self.shared.add_to(self.options)
        self.prepared = -1              # the step whose injected prediction waits in the shared encoder

    def __call__(self, x: Tensor, step: int, inject: bool) -> Tensor:
        first = self.plan[step] and not inject and self.prepared != step
        self.set(step)
        if self.shared is not None:
            self.shared.mode = self.shared.REPLAY if inject else self.shared.BOTH if first else self.shared.OFF
            if first:
                self.prepared = step
                self.shared.kept.clear()
        acts = first if self.shared is not None else inject
        self.tap.injection = self.injection if acts or inject else None
        sigma, before = x.new_full((len(x),), self.sigmas[step]), self.injection.calls
        denoised = self.model(x, sigma, **{**self.extra_args, "model_options": self.options})
        if acts and self.injection.calls == before:
            raise TraceError("The middle block was not seen in an injected step. A node that skips deep blocks "
                             "(DeepCache and its like) is in the way; remove it.")
        return denoised

    def set(self, step: int) -> None:
        settings, time = self.request.settings, self.times[step]
        self.injection.time = time - settings.lead
        self.injection.gamma = settings.gamma_at(time, max(1, self.injected))
        self.injection.gamma_skips = settings.gamma_skips

    def measures(self) -> dict[str, float]:
        """Means over the calls since the last asking: angle between h and content, |h| / |skip|."""
        seen = {"angle": self.injection.angles, "ratio": self.injection.ratios}
        means = {name: sum(values) / len(values) for name, values in seen.items() if values}
        self.injection.angles, self.injection.ratios = [], []
        return means


def inject_h_space(model, trace: HTrace, gamma: Curve, t_edit: float = 400, apply_to: str = BOTH,
                   norm_mode: str = MASKED, check: str = MODEL, gamma_skips: float = 0.0):
    """A clone of the MODEL that injects in every call down to `t_edit`, under any sampler: the light form.

    Both the predicted x_0 and the direction to x_t change, which nearly cancels: several times weaker than the sampler.
    Raises ValueError, TraceError; once more when a run begins, for what other nodes have changed since.
    """
    check_bottleneck(model)
    check_model(trace, model, check)
    model, light = model.clone(), LightInjection(trace, gamma, t_edit, apply_to, norm_mode, check, gamma_skips)
    model.add_wrapper_with_key(WrappersMP.OUTER_SAMPLE, LIGHT, light.around_sampling)
    model.add_wrapper_with_key(WrappersMP.APPLY_MODEL, LIGHT, light.around_model)
    know_roles(model)
    return model


@dataclass(frozen=True)
class LightInjection:
    """The wrappers of one Inject h-Space node. No state: what was warned of in a run travels with the run."""
    trace: HTrace
    gamma: Curve
    t_edit: float
    apply_to: str
    norm_mode: str
    check: str
    gamma_skips: float

    def around_sampling(self, executor, noise: Tensor, latent_image: Tensor, sampler, sigmas: Tensor, *args, **kwargs):
        """OUTER_SAMPLE: check the trace against the MODEL and the steps as they are now."""
        guider = executor.class_obj
        self.check_run(guider.model_patcher, sigmas, prompts_of(guider))
        guider.model_options["transformer_options"][LIGHT] = set()
        return executor(noise, latent_image, sampler, sigmas, *args, **kwargs)

    def check_run(self, model, sigmas: Tensor, prompts: Sequence[Mapping]) -> None:
        """Raises TraceError if the trace does not belong to a run of the MODEL over these noise levels."""
        check_model(self.trace, model, self.check, prompts)
        sampling = model.get_model_object("model_sampling")
        check_steps(self.trace, [float(sampling.timestep(sigma)) for sigma in sigmas[:-1]], self.check)

    def around_model(self, executor, x: Tensor, sigma: Tensor, c_concat=None, c_crossattn=None, control=None,
                     transformer_options: dict | None = None, **kwargs):
        """APPLY_MODEL: inject in this call, before the patches of other nodes."""
        options = transformer_options or {}
        time = float(executor.class_obj.model_sampling.timestep(sigma.flatten()[0]))
        if time >= self.t_edit:
            injection = Injection(self.trace, self.apply_to, self.norm_mode, self.check, time, self.gamma.at(time),
                                  self.gamma_skips, warned=options.get(LIGHT, set()))
            tap = HSpaceTap(injection=injection)
            options = with_first_patch({"transformer_options": options}, tap, after_run=True)["transformer_options"]
        return executor(x, sigma, c_concat, c_crossattn, control, options, **kwargs)


def calibration_sampler(edited, omega: float, start: float, end: float) -> comfy.samplers.KSAMPLER:
    """A SAMPLER that lets the patches of the MODEL `edited` act through latent calibration (2.5) on the sampled MODEL.

    start, end: timesteps between which it acts, from high to low; elsewhere it is Euler's. Raises ValueError if the
    start comes after the end.
    """
    if start < end:
        raise ValueError(f"start is timestep {start:g} and end {end:g}; sampling goes from high timesteps to low "
                         "ones, so start must not be below end.")
    return comfy.samplers.KSAMPLER(sample_calibrated, {"edited": edited, "omega": omega, "start": start, "end": end})


@torch.no_grad()
def sample_calibrated(model, x: Tensor, sigmas: Tensor, extra_args: dict | None = None, callback=None, disable=None,
                      edited=None, omega: float = 0.3, start: float = 1000, end: float = 0) -> Tensor:
    """Euler's method in which every edited step is calibrated. Raises ValueError for models that do not fit."""
    guider, extra_args = model.inner_model, dict(extra_args or {})
    check_same_weights(guider.model_patcher, edited)
    levels, times = schedule_of(guider, sigmas)
    for light in edited.get_wrappers(WrappersMP.OUTER_SAMPLE, LIGHT):
        light.__self__.check_run(edited, sigmas, prompts_of(guider))
    options = with_roles(options_of_edit(extra_args["model_options"], guider.model_patcher, edited), guider)
    for step, (sigma, after) in enumerate(zip(levels[:-1], levels[1:], strict=True)):
        at = x.new_full((len(x),), sigma)
        denoised = model(x, at, **extra_args)
        if end <= times[step] <= start:
            changed = model(x, at, **{**extra_args, "model_options": options})
            x = calibrated(x, denoised, changed, omega)
            denoised = model(x, at, **extra_args)
        if callback is not None:
            callback({"x": x, "i": step, "sigma": sigmas[step], "sigma_hat": sigmas[step], "denoised": denoised})
        x = euler(x, denoised, sigma, after)
    return x


def check_same_weights(patcher, edited) -> None:
    """Raises ValueError unless `edited` is the sampled MODEL with other patches of its calls only."""
    if not same_model(model_identity(edited), model_identity(patcher)):
        raise ValueError("edited_model is another model than the one that is sampled, or has other LoRAs. Connect a "
                         "MODEL that comes from the same one by nodes that change its calls, e.g. FreeU or Inject "
                         "h-Space.")
    motion, own = (each.get_additional_models_with_key(MOTION) for each in (edited, patcher))
    if set(edited.injections) != set(patcher.injections) or [m.model for m in motion] != [m.model for m in own]:
        raise ValueError("edited_model has layers that the sampled MODEL has not (a motion module on one side only, or "
                         "two different ones). Apply the same to both.")


def options_of_edit(running: Mapping, sampled, edited) -> dict:
    """Options for a call with the patches and wrappers of `edited` instead of those of `sampled`, in a run of it whose
    options are `running`: what prompts and samplers have added stays."""
    options = comfy.model_patcher.create_model_options_clone(edited.model_options)
    own, of_run = options.setdefault("transformer_options", {}), running.get("transformer_options", {})
    own[LIGHT], own["wrappers"] = set(), {}
    for kind in {*of_run.get("wrappers", {}), *edited.wrappers}:
        in_run, gone = of_run.get("wrappers", {}).get(kind, {}), sampled.wrappers.get(kind, {})
        kept = {key: [each for each in calls if each not in gone.get(key, [])] for key, calls in in_run.items()}
        new = edited.wrappers.get(kind, {})
        own["wrappers"][kind] = {key: [*kept.get(key, []), *new.get(key, [])] for key in {**kept, **new}}
    for key, value in of_run.items():
        own.setdefault(key, value)          # what the run added: sample_sigmas, runs of other wrappers
    if "context_handler" in running:        # as a motion module has prepared it
        options["context_handler"] = running["context_handler"]
    return options

