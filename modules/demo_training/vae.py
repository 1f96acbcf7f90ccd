"""The sprite-world autoencoder, trained on rendered pictures and clip frames."""
from __future__ import annotations

import math
from pathlib import Path

import torch

from ..demo.pool import Pool, draw_pool, signed
from ..demo.vae import SpriteVAE, vae_loss
from ..seeding import batch_indices
from ..training.checkpoint import CheckpointStore
from ..training.ema import MovingAverage
from ..training.loop import train
from ..training.settings import TrainSettings
from .parts import follow, publish

SETTINGS = TrainSettings(steps=3000, lr=1.2e-3, warmup=100, schedule="cosine", betas=(0.9, 0.99),
                             weight_decay=1e-3, seed=1, precision="bf16", checkpoint_every=500)
LATENT_NOISE = 0.12     # standard deviations


@torch.no_grad()
def measure_vae(vae: SpriteVAE, pool: Pool) -> dict[str, float]:
    error, count = 0.0, 0
    for pixels in pool.pixels.split(64):
        x = signed(pixels)
        error += (vae.decode(vae.encode(x)).clamp(-1, 1) - x).div(2).square().sum().item()
        count += x.numel()
    return {"psnr_held_out": -10 * math.log10(error / count)}


@torch.no_grad()
def fold_statistics(vae: SpriteVAE, pool: Pool) -> None:
    """Give the latents unit variance per channel after SD1.5's factor."""
    raw = torch.cat([vae.encoder(signed(pixels)) for pixels in pool.pixels[:2048].split(64)])
    vae.mean.copy_(raw.mean(dim=(0, 2, 3)))
    vae.std.copy_(raw.std(dim=(0, 2, 3)))


def train_vae(runs: Path) -> Path:
    pool, held_out = draw_pool(6144, 3072, seed=11), draw_pool(256, 256, seed=12)
    torch.manual_seed(SETTINGS.seed)
    vae = SpriteVAE().to(memory_format=torch.channels_last)
    ema = MovingAverage(vae, 0.995)

    def batches(draw: int) -> torch.Tensor:
        return signed(pool.pixels[batch_indices(len(pool), 16, SETTINGS.seed, draw)])

    def loss(pixels: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        return vae_loss(vae, pixels.contiguous(memory_format=torch.channels_last), LATENT_NOISE, generator)

    hours = follow(train(vae, loss, batches, SETTINGS, CheckpointStore(runs / "vae.safetensors"), ema),
                   SETTINGS.steps)
    with ema.applied(vae):
        fold_statistics(vae, pool)
        figures = measure_vae(vae, held_out)
        return publish("sprite_vae", vae.state_dict(), "Autoencoder of sprite world: 8x, 4 latent channels.",
                       "python -m frozen_diffusion.cli demo-train vae", SETTINGS, hours, figures)
