"""The autoencoder of sprite world: 8x, 4 latent channels, the work done at low resolution."""
from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

SD_SCALE = 0.18215      # SD1.5's latent format multiplies by this; ours arrive there with unit variance


class ResidualConv(nn.Module):
    """x + conv(silu(conv(silu(x)))); the last convolution starts at zero, so a fresh block is the identity."""

    def __init__(self, channels: int):
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1)
        nn.init.zeros_(self.conv2.weight)
        nn.init.zeros_(self.conv2.bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.conv2(F.silu(self.conv1(F.silu(x))))


class SpriteVAE(nn.Module):
    """Deterministic encoder and decoder without normalisation layers.

    `encode` takes pixels in -1..1, [N, 3, H, W] with H and W multiples of 8, and returns [N, 4, H/8, W/8];
    `decode` is the way back. `mean` and `std` [4] hold the statistics of the raw latents over the training set:
    with them the latents carry SD1.5's scale (unit variance after its factor 0.18215).
    """

    def __init__(self, fine: int = 64, coarse: int = 160, blocks: int = 2):
        super().__init__()
        self.encoder = nn.Sequential(                                       # [N, 3, H, W]
            nn.PixelUnshuffle(4),                                           # [N, 48, H/4, W/4]
            nn.Conv2d(48, fine, 3, padding=1),
            *(ResidualConv(fine) for _ in range(blocks)),                   # [N, 64, H/4, W/4]
            nn.PixelUnshuffle(2),                                           # [N, 256, H/8, W/8]
            nn.Conv2d(4 * fine, coarse, 3, padding=1),
            *(ResidualConv(coarse) for _ in range(blocks)),                 # [N, 160, H/8, W/8]
            nn.Conv2d(coarse, 4, 3, padding=1),                             # [N, 4, H/8, W/8]
        )
        self.decoder = nn.Sequential(
            nn.Conv2d(4, coarse, 3, padding=1),
            *(ResidualConv(coarse) for _ in range(blocks)),
            nn.Conv2d(coarse, 4 * fine, 3, padding=1),
            nn.PixelShuffle(2),                                             # [N, 64, H/4, W/4]
            *(ResidualConv(fine) for _ in range(blocks)),
            nn.Conv2d(fine, 48, 3, padding=1),
            nn.PixelShuffle(4),                                             # [N, 3, H, W]
        )
        self.register_buffer("mean", torch.zeros(4))
        self.register_buffer("std", torch.ones(4) / SD_SCALE)

    def encode(self, pixels: torch.Tensor) -> torch.Tensor:
        raw = self.encoder(pixels)
        return (raw - self.mean.view(4, 1, 1)) / (self.std.view(4, 1, 1) * SD_SCALE)

    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        return self.decoder(latents * (self.std.view(4, 1, 1) * SD_SCALE) + self.mean.view(4, 1, 1))


def vae_loss(vae: SpriteVAE, pixels: torch.Tensor, noise: float, generator: torch.Generator) -> torch.Tensor:
    """Reconstruction in value and gradient, through latents disturbed by `noise` standard deviations.

    The noise is the fixed-variance posterior of a KL autoencoder: it makes the decoder forgive the small errors of a
    diffusion model, and the term on the latents' square keeps their scale from running away from it.
    """
    raw = vae.encoder(pixels)
    spread = raw.detach().float().std(dim=(0, 2, 3), keepdim=True)
    disturbed = raw + noise * spread * torch.randn(raw.shape, generator=generator)
    error = vae.decoder(disturbed).float() - pixels
    gradient = error.diff(dim=-1).abs().mean() + error.diff(dim=-2).abs().mean()
    return error.abs().mean() + 0.5 * gradient + 1e-4 * raw.float().square().mean()
