"""What a guide did in a run: passes and time a step, beside classifier-free guidance timed in the same process."""
from __future__ import annotations

import time
from dataclasses import dataclass

import comfy.model_management
import comfy.sample
import comfy.samplers
import torch
from comfy.patcher_extension import WrappersMP
from torch import Tensor

from .apply import KEY, GuideReport

TIMED_STEPS = 2             # of real guidance, the first of which warms up


class ReportingSampler(comfy.samplers.Sampler):
    """Another SAMPLER in whose run the guide reports and steps are timed."""

    def __init__(self, inner: comfy.samplers.Sampler, report: GuideReport):
        self.inner, self.report, self.times = inner, report, []

    def sample(self, model_wrap, sigmas, extra_args, callback, noise, latent_image=None, denoise_mask=None,
               disable_pbar=False):
        """See the host's samplers."""
        run = extra_args["model_options"]["transformer_options"].get(KEY)
        if run is not None:
            run.report = self.report
            self.report.notes += sorted(run.warned)

        def tick(*args):
            self.times.append(now())
            if callback is not None:
                callback(*args)

        self.times.append(now())
        return self.inner.sample(model_wrap, sigmas, extra_args, tick, noise, latent_image, denoise_mask, disable_pbar)

    @property
    def seconds(self) -> float:
        """Of a step, the fastest: the others were disturbed."""
        return min(after - before for before, after in zip(self.times, self.times[1:], strict=False))


def now() -> float:
    """Seconds, when the device has done what it was asked."""
    if comfy.model_management.get_torch_device().type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


@dataclass(frozen=True)
class GuidedRun:
    """The samples of a run, what its guide reported, and seconds of a step with the guide and with real guidance."""
    samples: Tensor
    report: GuideReport
    guided: float
    real: float

    def text(self) -> str:
        """A few lines for a person."""
        rows = self.report.rows
        acted = len({row["sigma"] for row in rows})
        lines = [f"the guide acted at {acted} noise levels; {self.guided:.3g} s a step, real CFG {self.real:.3g} s: "
                 f"{self.guided / self.real:.0%} of its time"]
        if not rows:
            lines.append("it did not act: cfg is 1, or its part of the sampling never came")
        return "\n".join([*lines, *(f"Note: {note}" for note in self.report.notes)])


def guided_run(noise, guider, sampler, sigmas: Tensor, latent: dict, callback=None) -> GuidedRun:
    """Sample as SamplerCustomAdvanced does, with a report. Raises ValueError for a MODEL without a guide."""
    model = guider.model_patcher
    if not model.get_wrappers(WrappersMP.PREDICT_NOISE, KEY):
        raise ValueError("The MODEL of the guider has no guide model. Put Apply Guide Model before it.")
    samples = comfy.sample.fix_empty_latent_channels(model, latent["samples"])
    start, report = noise.generate_noise({**latent, "samples": samples}), GuideReport()
    reporting = ReportingSampler(sampler, report)
    result = guider.sample(start, samples, reporting, sigmas, denoise_mask=latent.get("noise_mask"), callback=callback,
                           disable_pbar=True, seed=noise.seed)
    return GuidedRun(result.to(comfy.model_management.intermediate_device()), report, reporting.seconds,
                     seconds_of_guidance(guider, start, samples, sigmas, noise.seed))


def seconds_of_guidance(guider, noise: Tensor, samples: Tensor, sigmas: Tensor, seed: int) -> float:
    """Seconds of a step of the same guider without the guide: two passes where it has two prompts."""
    plain = guider.model_patcher.clone()
    for kind in (WrappersMP.OUTER_SAMPLE, WrappersMP.PREDICT_NOISE, WrappersMP.DIFFUSION_MODEL):
        plain.remove_wrappers_with_key(kind, KEY)
    plain.additional_models.pop(KEY, None)
    real = comfy.samplers.CFGGuider(plain)
    real.original_conds = {name: [dict(cond) for cond in conds] for name, conds in guider.original_conds.items()}
    real.set_cfg(max(1.5, getattr(guider, "cfg", 1.5)))
    timed = ReportingSampler(comfy.samplers.sampler_object("euler"), GuideReport())
    real.sample(noise, samples, timed, sigmas[:TIMED_STEPS + 1], disable_pbar=True, seed=seed)
    return timed.seconds
