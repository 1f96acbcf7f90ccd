"""DDIM inversion in the host, with a trace of h-space; and recording a trace from any sampling run."""
from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import comfy.model_management
import comfy.sample
import comfy.samplers
import comfy.utils
import torch
from torch import Tensor

from ...hspace.fixed_point import FixedPoint
from ...hspace.steps import euler, timestep_grid
from ...hspace.trace import INVERSION, HTrace, TraceError, feature_names, psnr
from ..bottleneck import check_bottleneck
from ..calls import prompts_of, with_roles
from ..guiders import check_keyframes, guider_of, options_of
from ..weights import fingerprint, weights_told
from .capture import Capture, HSpaceTap, check_deep_skips, with_first_patch
from .sampling import REPORT, InjectionReport

DENOISED = "denoised"       # beside the features of h-space
CLOSE = 1e-3                # of a noise level, by which schedulers round
LEAST_SNR = 1e-5            # of the last noise level of an inversion: beyond it nothing of the picture is left


@dataclass(frozen=True)
class Inversion:
    """What Invert (DDIM) found.

    Attributes:
        noise: LATENT samples [B, 4, h, w] at the highest noise level, for a sampler without added noise.
        trace: h over the inversion.
        sigmas: the levels downwards, for the way back; they end with 0 unless those given did not.
        again: the latents that the way back gives, None if it was not gone.
    """
    noise: Tensor
    trace: HTrace
    sigmas: Tensor
    again: Tensor | None


@dataclass(frozen=True)
class Levels:
    """The noise levels of an inversion.

    Attributes:
        times: timestep of each level.
        sigmas: [S] rising, above 0.
        from_picture: the latent is a picture, not at the first level already.
    """
    times: list[int]
    sigmas: Tensor
    from_picture: bool = True

    @property
    def down(self) -> Tensor:
        """The way back, falling."""
        return torch.cat([self.sigmas.flip(0), torch.zeros(int(self.from_picture))])


def inversion_grid(sampling, steps: int, depth: float = 1.0) -> tuple[list[int], Tensor]:
    """(timesteps, noise levels), rising: `steps` points of t from 0 to the share `depth` of T - 1, both ends included,
    rounded down; all timesteps of that range if there are no more.

    The grid of the method's released code. Levels at which nothing is left of a picture are dropped, as models with
    zero terminal SNR have them. Raises ValueError for fewer than 2 steps and for a depth that leaves no second one.
    """
    if steps < 2:
        raise ValueError(f"An inversion needs at least 2 steps; {steps} was given.")
    last = deepest(sampling, depth)
    times = timestep_grid(min(steps, last + 1), last)
    return times, sampling.sigmas.cpu()[times].float()


def deepest(sampling, depth: float) -> int:
    """The last timestep of an inversion to a depth in 0..1. Raises ValueError."""
    if not 0 < depth <= 1:
        raise ValueError(f"depth is the share of the timesteps to invert, above 0 and up to 1; {depth} was given.")
    last = round(depth * (len(sampling.sigmas) - 1))
    while last > 0 and sampling.sigmas[last] ** -2 < LEAST_SNR:
        last -= 1
    if last < 1:
        raise ValueError(f"depth {depth:g} reaches no further than timestep {last}. Give a larger one.")
    return last


def inversion_levels(sampling, steps: int, depth: float = 1.0, given: Tensor | None = None) -> Levels:
    """The levels of `inversion_grid`, or those of a SIGMAS in either direction, cut off at `depth`.

    A SIGMAS that ends with 0 (or with less than the model's lowest level, as Flip Sigmas makes it) starts from a
    picture; one that does not from a latent that is at its lowest level. Raises ValueError.
    """
    if given is None:
        return Levels(*inversion_grid(sampling, steps, depth))
    rising = given.detach().float().flatten().cpu()
    if len(rising) and rising[0] > rising[-1]:
        rising = rising.flip(0)
    if not rising.isfinite().all() or (rising < 0).any() or (rising.diff() <= 0).any():
        raise ValueError("The sigmas of an inversion rise or fall from step to step and are not negative; given: "
                         f"{', '.join(f'{sigma:.4g}' for sigma in given.flatten().tolist())}. Connect those of a "
                         "scheduler, as they are or flipped.")
    last, lowest = deepest(sampling, depth), float(sampling.sigma_min) * (1 - CLOSE)
    top = float(sampling.sigmas[last]) * (1 + CLOSE) if depth < 1 else LEAST_SNR ** -0.5
    kept = rising[(rising >= lowest) & (rising <= top)]
    from_picture = bool((rising < lowest).any())
    if len(kept) + from_picture < 2:
        raise ValueError(f"Of the given sigmas {len(kept)} lie between {lowest:.4g} and {top:.4g} (those of the model, "
                         f"to depth {depth:g}); an inversion needs more. Give more steps or a larger depth.")
    return Levels([int(sampling.timestep(sigma)) for sigma in kept], kept, from_picture)


class Recorder:
    """Wraps the model options of a run; gathers what the first steps of the decoder see, call by call."""

    def __init__(self, batch: int, size: tuple[int, int], deep_skips: int, dtype: torch.dtype = torch.float16):
        self.feature_names = feature_names(deep_skips)
        self.batch, self.size, self.dtype = batch, size, dtype
        self.tap = HSpaceTap()
        self.steps: list[dict[str, Tensor]] = []
        self.times: list[float] = []

    def record(self, time: float, call):
        """What `call()` gives; what it shows of h-space is kept as the step of that timestep."""
        result, capture = self.look(call)
        if len(self.times) > 1 and time == self.times[0]:       # sampled once more, as FreeInit does: the last counts
            self.steps, self.times = [], []
        if time not in self.times:          # of several calls a step the first counts
            self.keep(time, capture.take())
        return result

    def look(self, call):
        """(what `call()` gives, the Capture of what it shows of h-space)."""
        self.tap.capture = Capture(self.batch, self.size, self.feature_names)
        try:
            result = call()
        finally:
            capture, self.tap.capture = self.tap.capture, None
        return result, capture

    def keep(self, time: float, features: Mapping[str, Tensor]) -> None:
        """Features [B, C, H, W] by place as the step of a timestep."""
        self.steps.append({feature_name: value.to(self.dtype) for feature_name, value in features.items()})
        self.times.append(time)

    def trace(self, provenance: dict[str, str]) -> HTrace:
        """What was recorded. Raises TraceError if no step was."""
        if not self.steps:
            raise TraceError("No step was sampled, so there is nothing to record. Connect sigmas of at least one step.")
        features = {name: torch.stack([step[name] for step in self.steps]) for name in self.feature_names}
        return HTrace(features, tuple(self.times), provenance)


class DDIMInversion(comfy.samplers.Sampler):
    """A SAMPLER over rising noise levels: from a picture to the noise that DDIM makes it from.

    x_j = D(x_i) + sigma_j (x_i - D(x_i)) / sigma_i, the noise at the level it comes from, and x_0 taken as x at t = 0,
    both as the method's released code has them. Refinements take the noise at the level it goes to instead, so that the
    way back meets x_i, and the picture at its end: see modules.hspace.fixed_point. Every level is evaluated once and
    once more for each refinement; the evaluation by which an x_j is chosen is the source of the next step.

    from_picture: see Levels. joint: the rows are frames of clips, which the network mixes.
    """

    def __init__(self, recorder: Recorder, times: list[int], refinements: int, from_picture: bool = True,
                 joint: bool = False):
        self.recorder, self.times, self.refinements = recorder, times, refinements
        self.from_picture, self.joint = from_picture, joint

    @torch.no_grad()
    def sample(self, model_wrap, sigmas, extra_args, callback, noise, latent_image=None, denoise_mask=None,
               disable_pbar=False):
        """See the host's samplers. Returns x at the last noise level."""
        options = with_first_patch(with_roles(extra_args["model_options"], model_wrap), self.recorder.tap)

        def look(x: Tensor, sigma: float) -> dict[str, Tensor]:
            """What the network shows at x: D, and the features by place."""
            at = x.new_full((len(x),), sigma)
            denoised, capture = self.recorder.look(
                lambda: model_wrap(x, at, model_options=options, seed=extra_args.get("seed")))
            return {DENOISED: denoised, **capture.take()}

        def step(x: Tensor, y: Tensor, sigma: float, after: float, length: Tensor | None) -> FixedPoint:
            """From x at sigma to `after`, with y as the first guess."""
            solver = FixedPoint(self.joint, length)
            for repetition in range(self.refinements + 1):
                y = solver.following() if repetition else y
                seen = look(y, after)
                solver.take(y, x + (y - seen[DENOISED]) / after * (after - sigma), seen)
            return solver

        x, levels = latent_image, sigmas.tolist()
        lowest = float(model_wrap.inner_model.model_sampling.sigma_min)
        if not self.from_picture:
            found = FixedPoint()
            found.take(x, x, look(x, levels[0]))
        elif self.times[0] == 0:                # x_0 is taken as x at t = 0
            found = step(x, at_level(x, levels[0]), 0.0, levels[0], None)
        else:                                   # the levels begin above it: the noise that it shows at t = 0
            seen = look(at_level(x, lowest), lowest)
            self.recorder.keep(0, without_denoised(seen))
            noise_found = (at_level(x, lowest) - seen[DENOISED]) / lowest
            found = step(x, x + noise_found * levels[0], 0.0, levels[0], None)
        self.level_done(0, found, callback, len(levels))
        for number, (sigma, after) in enumerate(zip(levels[:-1], levels[1:], strict=True), 1):
            x, length = found.y, found.next_length()
            found = step(x, euler(x, found.seen[DENOISED], sigma, after), sigma, after, length)
            self.level_done(number, found, callback, len(levels))
        return found.y

    def level_done(self, number: int, found: FixedPoint, callback, total: int) -> None:
        """Record a level, the first of those that are one timestep, and report it to the host."""
        if self.times[number] not in self.recorder.times:
            self.recorder.keep(self.times[number], without_denoised(found.seen))
        if callback is not None:
            callback(number, found.seen[DENOISED], found.y, total)


def at_level(picture: Tensor, sigma: float) -> Tensor:
    """A picture taken as the variance-preserving x of a noise level, in the host's scale."""
    return picture * (1 + sigma ** 2) ** 0.5


def without_denoised(seen: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The features alone of what the network showed."""
    return {feature_name: value for feature_name, value in seen.items() if feature_name != DENOISED}


def check_invertible(model, positive, latent: Tensor) -> None:
    """Raises ValueError for a model without bottleneck, hooks with keyframes, and latents that are zero or not finite.
    """
    check_bottleneck(model)
    check_keyframes(positive)
    if not latent.isfinite().all() or not latent.any():
        raise ValueError("The latent to invert is empty or not finite. Connect a picture through VAE Encode.")


def invert(model, positive, latent: Tensor, steps: int, deep_skips: int = 0, refinements: int = 0,
           way_back: bool = True, callback=None, depth: float = 1.0, sigmas: Tensor | None = None,
           dtype: torch.dtype = torch.float16) -> Inversion:
    """Invert a LATENT's samples [B, 4, h, w] with the prompt `positive`, without guidance.

    callback: the host's, called on the way there and on the way back. depth, sigmas: see `inversion_levels`. dtype: of
    the trace. Raises ValueError for a model without bottleneck, for levels that do not serve, for too many decoder
    blocks, and for latents that are zero or not finite.
    """
    check_invertible(model, positive, latent)
    check_deep_skips(model, deep_skips)
    latent = comfy.sample.fix_empty_latent_channels(model, latent)
    levels = inversion_levels(model.get_model_object("model_sampling"), steps, depth, sigmas)
    recorder = Recorder(len(latent), tuple(latent.shape[-2:]), deep_skips, dtype)
    zeros = torch.zeros_like(latent)
    device = comfy.model_management.intermediate_device()
    sampler = DDIMInversion(recorder, levels.times, refinements, levels.from_picture, joint=bool(model.injections))
    noise = guider_of(model, positive).sample(zeros, latent, sampler, levels.sigmas, callback=callback,
                                              disable_pbar=True, seed=0).to(device)
    again = None
    if way_back:
        again = guider_of(model, positive).sample(zeros, noise, comfy.samplers.sampler_object("euler"), levels.down,
                                                  callback=callback, disable_pbar=True, seed=0).to(device)
    provenance = {**weights_told(model, options_of(positive)), "from": INVERSION,
             "steps": str(len(levels.times)), "latent": fingerprint(latent),
             "prompt": fingerprint(*(text for text, _ in positive))}
    return Inversion(noise, recorder.trace(provenance), levels.down, again)


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


def record_run(noise, guider, sampler, sigmas: Tensor, latent: dict, deep_skips: int, callback=None,
               dtype: torch.dtype = torch.float16) -> tuple[Tensor, HTrace, InjectionReport]:
    """Sample as SamplerCustomAdvanced does and record h of every step: (samples, trace, report of an injection).

    dtype: of the trace. Raises ValueError, TraceError.
    """
    check_bottleneck(guider.model_patcher)
    check_deep_skips(guider.model_patcher, deep_skips)
    samples = comfy.sample.fix_empty_latent_channels(guider.model_patcher, latent["samples"])
    recorder = Recorder(len(samples), tuple(samples.shape[-2:]), deep_skips, dtype)
    report = InjectionReport()
    result = guider.sample(noise.generate_noise({**latent, "samples": samples}), samples,
                           RecordingSampler(sampler, recorder, report), sigmas, denoise_mask=latent.get("noise_mask"),
                           callback=callback, disable_pbar=True, seed=noise.seed)
    prompts = prompts_of(guider)
    provenance = {**weights_told(guider.model_patcher, prompts), "from": "sampling", "seed": str(noise.seed),
             "steps": str(len(sigmas) - 1), "latent": fingerprint(samples),
             "prompt": fingerprint(*(cond.get("cross_attn") for cond in prompts))}
    return result.to(comfy.model_management.intermediate_device()), recorder.trace(provenance), report


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
