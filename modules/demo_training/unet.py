"""The sprite-world U-Net: SD1.5's objective and schedule on latents of rendered pictures and clip frames."""
from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn import functional

from ..demo import world
from ..demo.pool import draw_pool, signed
from ..demo.vae import SD_SCALE, SpriteVAE
from ..seeding import batch_indices, seed_for
from ..training.checkpoint import CheckpointStore
from ..training.denoising import snr_weight
from ..training.ema import MovingAverage, copy_weights, trainable
from ..training.loop import train
from ..training.settings import TrainSettings
from .parts import follow, publish

SETTINGS = TrainSettings(steps=6000, lr=8e-4, warmup=300, schedule="cosine", betas=(0.9, 0.99), weight_decay=1e-2,
                         seed=3, checkpoint_every=500)
WORDS = TrainSettings(steps=700, lr=2e-4, warmup=50, schedule="cosine", betas=(0.9, 0.99), weight_decay=1e-2, seed=8,
                      checkpoint_every=200)
WORDS_WEIGHT = 0.1      # of the cross entropy of `MotionWords`
BATCH, PICTURES, CLIP_FRAMES = 32, 20480, 9600
DROPPED = 0.1           # share of captions replaced by the empty one
SHORT, SHORT_SHARE = 24, 0.7    # context tokens in the first 70 % of the steps: padding costs a fifth of a step
SNR_LIMIT = 5.0         # of the loss's weights


def alphas_cumprod() -> torch.Tensor:
    """SD1.5's scaled-linear schedule, [1000]."""
    betas = torch.linspace(0.00085 ** 0.5, 0.012 ** 0.5, 1000, dtype=torch.float64) ** 2
    return (1 - betas).cumprod(0).float()


@torch.no_grad()
def unit_latents(parts: Iterable[torch.Tensor]) -> torch.Tensor:
    """Pixels in -1..1, [n, 3, H, W] a part, to latents of unit variance, [N, 4, H/8, W/8]."""
    from ..host.demo import read_weights
    vae = SpriteVAE()
    vae.load_state_dict(read_weights("sprite_vae"))
    return torch.cat([vae.encode(pixels) * SD_SCALE for pixels in parts])


def drawn_captions(scenes: Sequence[world.Scene], index: Sequence[int], seed: int, draw: int) -> list[str]:
    """Captions of batch number `draw` with synonyms drawn; some are replaced by the empty one."""
    rng = random.Random(seed_for("captions", seed, draw))
    return ["" if rng.random() < DROPPED else world.caption(scenes[i], rng) for i in index]


def training_latents(cache: Path) -> tuple[torch.Tensor, list[world.Scene]]:
    """Unit-variance latents [N, 4, 16, 16] and scenes of the training pictures; latents are kept in `cache`."""
    if cache.is_file():
        stored = load_file(str(cache))
        scenes = [world.parse(text) for text in bytes(stored["captions"].tolist()).decode().split("\n")]
        return stored["latents"], scenes
    pool = draw_pool(PICTURES, CLIP_FRAMES, seed=31)
    latents = unit_latents(signed(pixels) for pixels in pool.pixels.split(64))
    captions = "\n".join(world.caption(scene) for scene in pool.scenes)
    cache.parent.mkdir(parents=True, exist_ok=True)
    save_file({"latents": latents, "captions": torch.tensor(list(captions.encode()), dtype=torch.uint8)}, str(cache))
    return latents, list(pool.scenes)


def eps_loss(predict, latents: torch.Tensor, generator: torch.Generator):
    """E w(t) || eps - eps_hat ||^2 at random t; `predict(x_t, t)` is the network. Returns (loss, report).

    The colour of a flat background is one number of a whole picture: without the weight w, which lifts the high noise
    levels, it is left to chance.
    """
    schedule = alphas_cumprod()
    t = torch.randint(0, 1000, (len(latents),), generator=generator)
    eps = torch.randn(latents.shape, generator=generator)
    signal = schedule[t].view(-1, 1, 1, 1)
    error = (predict(signal.sqrt() * latents + (1 - signal).sqrt() * eps, t) - eps).square().mean(dim=(1, 2, 3))
    weight = snr_weight(schedule[t] / (1 - schedule[t]), SNR_LIMIT, "eps")
    return (weight * error).mean(), {"plain": error.mean().item()}


class MotionWords(nn.Module):
    """Reads the motion that a caption names out of the U-Net's bottleneck.

    A single frame of sprite world hardly shows how its sprite moves, so denoising alone teaches a U-Net to pass these
    words over, and a motion module, which sees nothing but the U-Net's features, could not follow them. Photographs are
    different: a running dog looks unlike a standing one. This probe puts the difference in.
    """

    def __init__(self, unet: nn.Module, channels: int):
        super().__init__()
        self.unet, self.read = unet, nn.Linear(channels, len(world.MOTIONS))
        unet.middle_block[-1].register_forward_hook(lambda _, inputs, output: setattr(self, "captured", output))

    def loss(self, motions: Sequence[str | None]) -> torch.Tensor:
        """Cross entropy over the rows of the last pass that name a motion."""
        rows = [row for row, motion in enumerate(motions) if motion]
        if not rows:
            return self.captured.new_zeros(())
        wanted = torch.tensor([world.MOTIONS.index(motions[row]) for row in rows])
        return functional.cross_entropy(self.read(self.captured.mean((2, 3))[rows]), wanted)


def train_unet(runs: Path) -> Path:
    """Denoising first, then some more of it with the probe for the words of motion."""
    from ..host.demo import build_clip, caption_context, fresh_unet, read_weights

    latents, scenes = training_latents(runs / "sprite_latents.safetensors")
    clip = build_clip(read_weights("sprite_clip_text"))
    torch.manual_seed(SETTINGS.seed)
    unet = fresh_unet()

    def batches_of(settings: TrainSettings, short: float):
        def batches(draw: int):
            index = batch_indices(len(latents), BATCH, settings.seed, draw)
            captions = drawn_captions(scenes, index, settings.seed, draw)
            tokens = SHORT if draw < short * settings.steps else 77
            named = [scenes[i].motion if text else None for i, text in zip(index, captions, strict=True)]
            return latents[index], caption_context(clip, captions, tokens), named
        return batches

    def loss(batch, generator: torch.Generator):
        x, context, _ = batch
        return eps_loss(lambda x_t, t: unet(x_t, t.float(), context=context), x, generator)

    ema = MovingAverage(unet, 0.999)
    hours = follow(train(unet, loss, batches_of(SETTINGS, SHORT_SHARE), SETTINGS,
                         CheckpointStore(runs / "unet.safetensors"), ema), SETTINGS.steps)
    copy_weights(ema.weights, trainable(unet))
    words = MotionWords(unet, unet.middle_block[-1].out_channels)

    def loss_with_words(batch, generator: torch.Generator):
        denoising, report = loss(batch, generator)
        probe = words.loss(batch[2])
        return denoising + WORDS_WEIGHT * probe, report | {"words": probe.item()}

    ema = MovingAverage(words, 0.99)
    hours += follow(train(words, loss_with_words, batches_of(WORDS, 0.0), WORDS,
                          CheckpointStore(runs / "unet_words.safetensors"), ema,
                          lambda name: 10.0 if name.startswith("read.") else 1.0), WORDS.steps)
    with ema.applied(words):
        return publish("sprite_unet", unet.state_dict(), "U-Net of sprite world: SD1.5's topology, narrow, eps; "
                       f"{WORDS.steps} more steps with a probe for the words of motion.",
                       "python -m frozen_diffusion.cli demo-train unet", SETTINGS, hours, {})
