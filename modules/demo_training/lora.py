"""Two small style LoRAs of sprite world in kohya format: they stand for the fine-tuned bases of the papers."""
from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from ..demo.pool import draw_pool
from ..demo.styles import STYLES
from ..seeding import batch_indices
from ..training.checkpoint import CheckpointStore
from ..training.loop import train
from ..training.lora import LoRASet, attach
from ..training.settings import TrainSettings
from .parts import follow, publish
from .unet import drawn_captions, eps_loss, unit_latents

SETTINGS = TrainSettings(steps=1600, lr=2e-3, warmup=30, schedule="cosine", betas=(0.9, 0.99), weight_decay=0.0,
                         seed=4, checkpoint_every=250)
RANK, BATCH, PICTURES, CLIP_FRAMES = 16, 8, 1536, 512


def start_like_layers(loras: LoRASet) -> LoRASet:
    """Initial values of `down` as nn.Linear and nn.Conv2d draw them (uniform within 1 / sqrt(fan in)); `up` stays zero.

    The shipped files were trained from these, not from `fresh_factors`. torch draws for `up` too, so that a seed gives
    what it gave then. Uses torch's random state.
    """
    for lora in loras.by_name.values():
        for factor in (lora.down, lora.up):
            nn.init.kaiming_uniform_(factor, a=5 ** 0.5)
        nn.init.zeros_(lora.up)
    return loras


def train_style(style: str, runs: Path) -> Path:
    from ..host.demo import build_clip, caption_context, fresh_unet, lora_names, read_weights

    pool = draw_pool(PICTURES, CLIP_FRAMES, seed=41)
    latents = unit_latents(STYLES[style](pixels / 255) * 2 - 1 for pixels in pool.pixels.split(64))
    clip = build_clip(read_weights("sprite_clip_text"))
    unet = fresh_unet().requires_grad_(False)
    unet.load_state_dict(read_weights("sprite_unet"))
    torch.manual_seed(SETTINGS.seed)
    loras = start_like_layers(attach(unet, lora_names(), RANK))

    def batches(draw: int):
        index = batch_indices(len(latents), BATCH, SETTINGS.seed, draw)
        return latents[index], caption_context(clip, drawn_captions(pool.scenes, index, SETTINGS.seed, draw))

    def loss(batch, generator: torch.Generator):
        x, context = batch
        return eps_loss(lambda x_t, t: unet(x_t, t.float(), context=context), x, generator)

    store = CheckpointStore(runs / f"lora_{style}.safetensors", {"style": style})
    hours = follow(train(loras, loss, batches, SETTINGS, store), SETTINGS.steps)
    return publish(f"loras/sprite_{style}", loras.tensors(), f"Style LoRA of sprite world: {style}.",
                   "python -m frozen_diffusion.cli demo-train lora", SETTINGS, hours, {})


def train_lora(runs: Path) -> Path:
    return [train_style(style, runs) for style in STYLES][-1]
