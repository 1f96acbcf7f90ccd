"""Small LoRAs of sprite world in kohya format: two styles, which stand for the papers' fine-tuned bases, and "web",
which stands for a base that was trained on badly captioned pictures: there guidance is needed.
"""
from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import nn

from ..demo.pool import draw_pool
from ..demo.styles import STYLES
from ..demo.world import Scene
from ..seeding import batch_indices, seed_for
from ..training.checkpoint import CheckpointStore
from ..training.loop import train
from ..training.lora import LoRASet, attach
from ..training.settings import TrainSettings
from .parts import follow, publish
from .unet import drawn_captions, eps_loss, unit_latents

SETTINGS = TrainSettings(steps=1600, lr=2e-3, warmup=30, schedule="cosine", betas=(0.9, 0.99), weight_decay=0.0,
                         seed=4, checkpoint_every=250)
WEB = replace(SETTINGS, steps=350, seed=14)
WRONG = 0.5             # share of web's captions that are another picture's; a tenth is empty, as ever
RANK, BATCH, PICTURES, CLIP_FRAMES = 16, 8, 1536, 512

Captions = Callable[[Sequence[Scene], Sequence[int], int, int], list[str]]


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


def badly_captioned(scenes: Sequence[Scene], index: Sequence[int], seed: int, draw: int) -> list[str]:
    """Captions as web data has them: half of them are of other pictures."""
    rng = random.Random(seed_for("web", seed, draw))
    mixed = [rng.randrange(len(scenes)) if rng.random() < WRONG else number for number in index]
    return drawn_captions(scenes, mixed, seed, draw)


def train_style(style: str, runs: Path) -> Path:
    """A style's LoRA."""
    return train_on(style, STYLES[style], drawn_captions, SETTINGS, f"Style LoRA of sprite world: {style}.", runs)


def train_on(name: str, look: Callable[[torch.Tensor], torch.Tensor], captions: Captions, settings: TrainSettings,
             what: str, runs: Path) -> Path:
    """Train a LoRA on pictures that `look` changes, with captions drawn by `captions`, and publish it."""
    from ..host.demo import build_clip, caption_context, fresh_unet, lora_names, read_weights

    pool = draw_pool(PICTURES, CLIP_FRAMES, seed=41)
    latents = unit_latents(look(pixels / 255) * 2 - 1 for pixels in pool.pixels.split(64))
    clip = build_clip(read_weights("sprite_clip_text"))
    unet = fresh_unet().requires_grad_(False)
    unet.load_state_dict(read_weights("sprite_unet"))
    torch.manual_seed(settings.seed)
    loras = start_like_layers(attach(unet, lora_names(), RANK))

    def batches(draw: int):
        index = batch_indices(len(latents), BATCH, settings.seed, draw)
        return latents[index], caption_context(clip, captions(pool.scenes, index, settings.seed, draw))

    def loss(batch, generator: torch.Generator):
        x, context = batch
        return eps_loss(lambda x_t, t: unet(x_t, t.float(), context=context), x, generator)

    store = CheckpointStore(runs / f"lora_{name}.safetensors", {"style": name})
    hours = follow(train(loras, loss, batches, settings, store), settings.steps)
    command = "web" if name == "web" else "lora"
    return publish(f"loras/sprite_{name}", loras.tensors(), what, f"python -m frozen_diffusion.cli demo-train "
                                                                  f"{command}",
                   settings, hours, {})


def train_lora(runs: Path) -> Path:
    return [train_style(style, runs) for style in STYLES][-1]


def train_web(runs: Path) -> Path:
    """A LoRA of badly captioned pictures; use it at strength 0.5."""
    return train_on("web", lambda pixels: pixels, badly_captioned, WEB, "LoRA of sprite world that was trained with "
                                                                        "half of "
                    "the captions wrong, as web data has them: at strength 0.5 pictures follow their prompts only with "
                    "guidance.", runs)
