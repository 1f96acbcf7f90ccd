"""The host's VAE: latents to pictures."""
from __future__ import annotations

from torch import Tensor


def vae_pixels(vae, latent: Tensor) -> Tensor:
    """A LATENT's samples -> [B, 3, H, W] in 0..1."""
    return vae.decode(latent)[..., :3].movedim(-1, 1).float().clamp(0, 1).cpu()
