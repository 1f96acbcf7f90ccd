"""First noise of clips as the host's NOISE, and FreeInit as a SAMPLER around another."""
from __future__ import annotations

from dataclasses import dataclass

import comfy.model_sampling
import comfy.sample
import comfy.samplers
import torch
from torch import Tensor

from ..clips.noise import clip_noise, freeinit_mix, low_pass
from ..seeding import stream
from .clips import clips_of, rows_of
from .progress import warn


@dataclass(frozen=True)
class ClipNoise:
    """What the socket NOISE carries: a seed and `generate_noise`. See `clip_noise` for the settings."""
    seed: int
    kind: str
    alpha: float
    window: int
    frames_per_clip: int

    def generate_noise(self, input_latent: dict) -> Tensor:
        """Noise of the latent's shape. Kind "iid" is the host's own noise of that seed.

        Frames that were taken out of a batch get the noise that they have in it: their `batch_index` tells where they
        were. Raises ValueError.
        """
        samples, taken = input_latent["samples"], input_latent.get("batch_index")
        if self.kind == "iid":
            return comfy.sample.prepare_noise(samples, self.seed, taken)
        if taken is None:
            return self.correlated(samples)
        if len(taken) != len(samples) or min(taken) < 0:
            raise ValueError(f"The latent has {len(samples)} frames, but its batch_index is {list(taken)}: one index "
                             "from 0 on for each frame was expected. Put Latent From Batch last before the sampler.")
        rows = max(taken) + 1
        if samples.ndim == 4 and self.frames_per_clip:
            rows += -rows % self.frames_per_clip            # whole clips
        return self.correlated(samples[:1].expand(rows, *samples.shape[1:]))[list(taken)]

    def correlated(self, samples: Tensor) -> Tensor:
        """Noise of that shape, clip by clip. What comes later in the batch changes nothing of what is before it."""
        own = comfy.sample.prepare_noise(samples, self.seed)
        more = stream("clip noise", self.seed)
        changed = [clip_noise(clip, self.kind, more, self.alpha, self.window)
                   for clip in clips_of(own, self.frames_per_clip)]
        return rows_of(torch.stack(changed), own)


class FreeInit(comfy.samplers.Sampler):
    """Samples several times; each time the first noise keeps the low frequencies of the last result.

    x_T = low(x0 / sigma + eps) + high(fresh noise), with the first eps throughout; flow models scale x0 by 1 - sigma.
    Source: Wu et al., "FreeInit", ECCV 2024, section 4; written from its formula.
    """

    def __init__(self, inner: comfy.samplers.Sampler, iterations: int, kind: str, spatial: float, temporal: float,
                 frames_per_clip: int):
        self.inner, self.iterations, self.frames_per_clip = inner, iterations, frames_per_clip
        self.filter = (kind, spatial, temporal)

    def sample(self, model_wrap, sigmas, extra_args, callback, noise, latent_image=None, denoise_mask=None,
               disable_pbar=False):
        """See the host's samplers; the result is the last iteration's."""
        sigma = float(sigmas[0])
        flow = isinstance(model_wrap.inner_model.model_sampling, comfy.model_sampling.CONST)
        weight = (1 - sigma if flow else 1) / sigma             # of x0 beside unit noise
        if weight == 0:
            warn("A flow model's first noise level holds nothing of a clip, so FreeInit has nothing to keep; it "
                 "samples once. Start a little lower (denoise 0.95).")
        iterations = self.iterations if weight else 1
        first, seed, mean = noise.clone(), extra_args.get("seed") or 0, 0 if latent_image is None else latent_image
        for iteration in range(iterations):
            samples = self.inner.sample(model_wrap, sigmas, dict(extra_args), callback, noise.clone(), latent_image,
                                        denoise_mask, disable_pbar)
            if iteration + 1 < iterations:
                fresh = torch.randn(first.shape, generator=stream("freeinit", seed, iteration)).to(first)
                noise = self.mix((samples - mean) * weight + first, fresh)
        return samples

    def mix(self, noisy: Tensor, fresh: Tensor) -> Tensor:
        """Clip by clip: low frequencies of `noisy`, high ones of `fresh`."""
        low, high = (clips_of(x, self.frames_per_clip) for x in (noisy, fresh))
        response = low_pass(low.shape[1:], *self.filter).to(low.device)
        return rows_of(torch.stack([freeinit_mix(*clip, response) for clip in zip(low, high, strict=True)]), noisy)
