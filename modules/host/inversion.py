"""DDIM inversion in the host, with a trace of h-space; and recording a trace from any sampling run."""
from __future__ import annotations

import logging
from dataclasses import dataclass

import comfy.model_management
import comfy.sample
import comfy.samplers
import comfy.utils
import torch
from torch import Tensor

from ..hspace.steps import euler, timestep_grid
from ..hspace.trace import HTrace, TraceError, places, psnr
from .calls import prompts_of, with_roles
from .h_space import (
    Capture,
    HSpaceTap,
    check_bottleneck,
    check_deep_skips,
    with_first_patch,
)
from .h_space_sampling import REPORT, InjectionReport
from .weights import fingerprint, weights_told

LEAST_SNR = 1e-5            # of the last noise level of an inversion: beyond it nothing of the picture is left


@dataclass(frozen=True)
class Inversion:
    """What Invert (DDIM) found.

    Attributes:
        noise: LATENT samples [B, 4, h, w] at the highest noise level, for a sampler without added noise.
        trace: h over the inversion.
        sigmas: [S + 1] the grid downwards, ending with 0, for the way back.
        again: the latents that the way back gives, None if it was not gone.
    """
    noise: Tensor
    trace: HTrace
    sigmas: Tensor
    again: Tensor | None


def inversion_grid(sampling, steps: int) -> tuple[list[int], Tensor]:
    """(timesteps, noise levels), rising: `steps` points of t from 0 to T - 1, both ends included, rounded down; all
    timesteps if there are no more.

    The grid of the method's released code. Levels at which nothing is left of a picture are dropped, as models with
    zero terminal SNR have them. Raises ValueError for fewer than 2 steps.
    """
    if steps < 2:
        raise ValueError(f"An inversion needs at least 2 steps; {steps} was given.")
    last = len(sampling.sigmas) - 1
    while sampling.sigmas[last] ** -2 < LEAST_SNR:
        last -= 1
    times = timestep_grid(min(steps, last + 1), last)
    return times, sampling.sigmas.cpu()[times].float()


class Recorder:
    """Wraps the model options of a run; gathers what the first steps of the decoder see, call by call."""

    def __init__(self, batch: int, size: tuple[int, int], deep_skips: int):
        self.places = places(deep_skips)
        self.batch, self.size = batch, size
        self.tap = HSpaceTap()
        self.steps: list[dict[str, Tensor]] = []
        self.times: list[float] = []

    def record(self, time: float, call):
        """What `call()` gives; what it shows of h-space is kept as the step of that timestep."""
        self.tap.capture = Capture(self.batch, self.size, self.places)
        try:
            result = call()
        finally:
            capture, self.tap.capture = self.tap.capture, None
        if len(self.times) > 1 and time == self.times[0]:       # sampled once more, as FreeInit does: the last counts
            self.steps, self.times = [], []
        if time not in self.times:          # of several calls a step the first counts
            self.steps.append({place: value.half() for place, value in capture.take().items()})
            self.times.append(time)
        return result

    def trace(self, about: dict[str, str]) -> HTrace:
        """What was recorded. Raises TraceError if no step was."""
        if not self.steps:
            raise TraceError("No step was sampled, so there is nothing to record. Connect sigmas of at least one step.")
        features = {place: torch.stack([step[place] for step in self.steps]) for place in self.places}
        return HTrace(features, tuple(self.times), about)


class DDIMInversion(comfy.samplers.Sampler):
    """A SAMPLER over rising noise levels: from a picture to the noise that DDIM makes it from.

    x_j = D(x_i) + sigma_j (x_i - D(x_i)) / sigma_i, the noise at the level it comes from, and x_0 taken as x at t = 0,
    both as the method's released code has them. A refinement takes the noise at the level it goes to instead, by
    repeating x_j = x_i + (sigma_j - sigma_i) eps(x_j), so that the way back meets x_i.
    """

    def __init__(self, recorder: Recorder, times: list[int], refinements: int):
        self.recorder, self.times, self.refinements = recorder, times, refinements

    @torch.no_grad()
    def sample(self, model_wrap, sigmas, extra_args, callback, noise, latent_image=None, denoise_mask=None,
               disable_pbar=False):
        """See the host's samplers. Returns x at the last noise level."""
        options = with_first_patch(with_roles(extra_args["model_options"], model_wrap), self.recorder.tap)

        def denoise(x, step):
            at = x.new_full((len(x),), float(sigmas[step]))
            return model_wrap(x, at, model_options=options, seed=extra_args.get("seed"))

        x = latent_image * (1 + float(sigmas[0]) ** 2) ** 0.5
        for step, (sigma, after) in enumerate(zip(sigmas[:-1].tolist(), sigmas[1:].tolist(), strict=True)):
            denoised = self.recorder.record(self.times[step], lambda x=x, step=step: denoise(x, step))
            following = euler(x, denoised, sigma, after)
            for _ in range(self.refinements):
                following = x + (following - denoise(following, step + 1)) / after * (after - sigma)
            if callback is not None:
                callback(step, denoised, x, len(sigmas))
            x = following
        last = len(sigmas) - 1              # one more call, so that there is h at the highest level too
        denoised = self.recorder.record(self.times[last], lambda: denoise(x, last))
        if callback is not None:
            callback(last, denoised, x, len(sigmas))
        return x


def invert(model, positive, latent: Tensor, steps: int, deep_skips: int = 0, refinements: int = 0,
           way_back: bool = True, callback=None) -> Inversion:
    """Invert a LATENT's samples [B, 4, h, w] with the prompt `positive`, without guidance.

    callback: the host's, called on the way there and on the way back. Raises ValueError for a model without
    bottleneck, for too few steps or decoder blocks, and for latents that are zero or not finite.
    """
    check_invertible(model, latent)
    check_deep_skips(model, deep_skips)
    latent = comfy.sample.fix_empty_latent_channels(model, latent)
    times, sigmas = inversion_grid(model.get_model_object("model_sampling"), steps)
    recorder = Recorder(len(latent), tuple(latent.shape[-2:]), deep_skips)
    zeros = torch.zeros_like(latent)
    device = comfy.model_management.intermediate_device()
    noise = guider_of(model, positive).sample(zeros, latent, DDIMInversion(recorder, times, refinements), sigmas,
                                              callback=callback, disable_pbar=True, seed=0).to(device)
    down = torch.cat([sigmas.flip(0), torch.zeros(1)])
    again = None
    if way_back:
        again = guider_of(model, positive).sample(zeros, noise, comfy.samplers.sampler_object("euler"), down,
                                                  callback=callback, disable_pbar=True, seed=0).to(device)
    about = {**weights_told(model, [options for _, options in positive]), "from": "inversion", "steps": str(steps),
             "latent": fingerprint(latent), "prompt": fingerprint(*(text for text, _ in positive))}
    return Inversion(noise, recorder.trace(about), down, again)


def check_invertible(model, latent: Tensor) -> None:
    """Raises ValueError for a model without bottleneck, and for latents that are zero or not finite."""
    check_bottleneck(model)
    if not latent.isfinite().all() or not latent.any():
        raise ValueError("The latent to invert is empty or not finite. Connect a picture through VAE Encode.")


def guider_of(model, positive) -> comfy.samplers.CFGGuider:
    """A guider without guidance: the prompt alone.

    A guidance on the MODEL that needs the negative prompt's prediction even at cfg 1 (SAG, NAG) gets the prompt's.
    """
    guider = comfy.samplers.CFGGuider(model)
    guider.inner_set_conds({"positive": positive})
    if model.model_options.get("disable_cfg1_optimization"):
        guider.inner_set_conds({"negative": positive})
        logging.warning("Frozen Diffusion: a guidance node on the MODEL asks for a negative prompt where there is "
                        "none; it gets the prompt itself. Connect the MODEL from before that node to go without it.")
    guider.set_cfg(1.0)
    return guider


def report_text(inversion: Inversion, latent: Tensor, picture: tuple[Tensor, Tensor] | None = None) -> str:
    """How well the way back meets the picture; `picture` (before, after) in 0..1 if there is a VAE."""
    if inversion.again is None:
        return f"{inversion.trace.describe()}; the way back was not gone"
    worth = psnr(latent, inversion.again.to(latent))
    text = f"way back: latents {worth:.1f} dB"
    if picture is not None:
        text += f", picture {psnr(*picture):.1f} dB"
    verdict = ("good" if worth >= 30 else "fair: fine details may change" if worth >= 20 else
               "poor: the inversion, not the injection, will be the problem; take more steps, refinements, or a prompt "
               "that describes the picture")
    return f"{text} ({verdict})\n{inversion.trace.describe()}"


def record_run(noise, guider, sampler, sigmas: Tensor, latent: dict, deep_skips: int,
               callback=None) -> tuple[Tensor, HTrace, InjectionReport]:
    """Sample as SamplerCustomAdvanced does and record h of every step: (samples, trace, report of an injection).

    Raises ValueError, TraceError.
    """
    check_bottleneck(guider.model_patcher)
    check_deep_skips(guider.model_patcher, deep_skips)
    samples = comfy.sample.fix_empty_latent_channels(guider.model_patcher, latent["samples"])
    recorder = Recorder(len(samples), tuple(samples.shape[-2:]), deep_skips)
    report = InjectionReport()
    result = guider.sample(noise.generate_noise({**latent, "samples": samples}), samples,
                           RecordingSampler(sampler, recorder, report), sigmas, denoise_mask=latent.get("noise_mask"),
                           callback=callback, disable_pbar=True, seed=noise.seed)
    prompts = prompts_of(guider)
    about = {**weights_told(guider.model_patcher, prompts), "from": "sampling", "seed": str(noise.seed),
             "steps": str(len(sigmas) - 1), "latent": fingerprint(samples),
             "prompt": fingerprint(*(cond.get("cross_attn") for cond in prompts))}
    return result.to(comfy.model_management.intermediate_device()), recorder.trace(about), report


class RecordingSampler(comfy.samplers.Sampler):
    """Another SAMPLER whose model calls are recorded; the first call of every noise level counts."""

    def __init__(self, inner: comfy.samplers.Sampler, recorder: Recorder, report: InjectionReport):
        self.inner, self.recorder, self.report = inner, recorder, report

    def sample(self, model_wrap, sigmas, extra_args, callback, noise, latent_image=None, denoise_mask=None,
               disable_pbar=False):
        """See the host's samplers."""
        options = with_first_patch(with_roles(extra_args["model_options"], model_wrap), self.recorder.tap)
        options["transformer_options"][REPORT] = self.report
        watched = WatchedModel(model_wrap, self.recorder)
        return self.inner.sample(watched, sigmas, {**extra_args, "model_options": options}, callback, noise,
                                 latent_image, denoise_mask, disable_pbar)


class WatchedModel:
    """The host's guider as a sampler sees it; its calls are recorded."""

    def __init__(self, guider, recorder: Recorder):
        self.guider, self.recorder = guider, recorder

    def __call__(self, x, sigma, *args, **kwargs):
        time = float(self.guider.inner_model.model_sampling.timestep(sigma.flatten()[0]))
        return self.recorder.record(time, lambda: self.guider(x, sigma, *args, **kwargs))

    def __getattr__(self, name):
        return getattr(self.guider, name)
