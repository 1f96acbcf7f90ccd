"""Every content in every picture: runs of the h-Space Injection Sampler as one batch."""
from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import comfy.model_management
import comfy.sample
import torch
from torch import Tensor

from .sampling import InjectionRequest, injection_sampler


def contents_of(sampler) -> list:
    """One SAMPLER for each picture of an injection sampler's trace.

    Raises ValueError for another SAMPLER, TraceError for traces beside the first one that hold other numbers of
    pictures.
    """
    request = getattr(sampler, "extra_options", {}).get("request")
    if not isinstance(request, InjectionRequest):
        raise ValueError("h-Space Grid takes the SAMPLER of h-Space Injection Sampler, which holds the contents; "
                         f"another one was given ({type(sampler).__name__}). Connect that node.")
    return [injection_sampler(replace(request, trace=content)) for content in request.trace.contents()]


def sample_grid(noise, guider, sampler, sigmas: Tensor, latent: dict, progress: Callable | None = None) -> Tensor:
    """Each content of an injection sampler's trace in each picture of a LATENT [M, 4, h, w], as SamplerCustomAdvanced
    samples: [N M, 4, h, w], all pictures with the first content first.

    progress: the host's callback for N times the steps. Raises ValueError, TraceError.
    """
    samplers, steps = contents_of(sampler), len(sigmas) - 1
    samples = comfy.sample.fix_empty_latent_channels(guider.model_patcher, latent["samples"])
    drawn = noise.generate_noise({**latent, "samples": samples})    # the same for every content
    rows = []
    for number, each in enumerate(samplers):
        def callback(step: int, denoised: Tensor, x: Tensor, _, before: int = number * steps) -> None:
            if progress is not None:
                progress(before + step, denoised, x, len(samplers) * steps)

        rows.append(guider.sample(drawn, samples, each, sigmas, denoise_mask=latent.get("noise_mask"),
                                  callback=callback, disable_pbar=True, seed=noise.seed))
    return torch.cat(rows).to(comfy.model_management.intermediate_device())
