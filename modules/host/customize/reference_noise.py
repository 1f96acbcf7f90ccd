"""First noise that remembers a clip: an inverted clip mixed with fresh noise (customize_a_video.md 4)."""
from __future__ import annotations

from dataclasses import dataclass

import comfy.sample
from torch import Tensor


@dataclass(frozen=True)
class ReferenceNoise:
    """What the socket NOISE carries: a seed and `generate_noise`.

    x_T = sqrt(p) x_inv + sqrt(1 - p) n, so that the variance stays that of noise.

    Attributes:
        inverted: [N, C, h, w], the noise of each frame of the clip, of unit variance.
        share: p; 0 = fresh noise, the host's own of that seed, 1 = the inverted clip alone.
    """
    seed: int
    inverted: Tensor
    share: float

    def generate_noise(self, input_latent: dict) -> Tensor:
        """Noise of the latent's shape. Raises ValueError for latents of another shape than the inverted clip."""
        samples, taken = input_latent["samples"], input_latent.get("batch_index")
        fresh = comfy.sample.prepare_noise(samples, self.seed, taken)
        if self.share == 0:
            return fresh
        inverted = self.inverted if taken is None or max(taken) >= len(self.inverted) else self.inverted[list(taken)]
        if inverted.shape != fresh.shape:
            raise ValueError(f"The inverted clip is of shape {list(inverted.shape)}, and the latent to be sampled of "
                             f"{list(fresh.shape)}. Sample as many frames of the same size as were inverted.")
        return self.share ** 0.5 * inverted.to(fresh) + (1 - self.share) ** 0.5 * fresh


def reference_noise(model, noise_latent: Tensor, share: float, seed: int) -> ReferenceNoise:
    """From the noise_latent of Invert (DDIM), inverted with this MODEL to its highest noise level.

    Raises ValueError for a share outside of 0..1, numbers that are not finite, and latents that were not inverted that
    far.
    """
    if not 0 <= share <= 1:
        raise ValueError(f"share is from 0 (fresh noise) to 1 (the inverted clip alone); {share} was given.")
    if not noise_latent.isfinite().all():
        raise ValueError("The inverted clip has numbers that are not finite. Invert it again, with a VAE in float32.")
    sigma = float(model.get_model_object("model_sampling").sigma_max)
    unit = model.model.process_latent_in(noise_latent) / (1 + sigma ** 2) ** 0.5
    if not 0.5 < (spread := float(unit.std())) < 2:
        raise ValueError(f"The inverted clip's spread is {spread:.2g} of the noise that this MODEL begins with; about "
                         "1 was expected. Invert with the same MODEL (motion module applied) at depth 1.")
    return ReferenceNoise(seed, unit, share)
