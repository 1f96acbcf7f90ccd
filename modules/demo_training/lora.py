"""Two small style LoRAs of sprite world in kohya format: they stand for the fine-tuned bases of the papers."""
from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from ..demo.pool import draw_pool
from ..demo.styles import STYLES
from ..seeding import batch_indices
from ..training.checkpoint import CheckpointStore
from ..training.loop import TrainSettings, train
from .parts import follow, publish
from .unet import drawn_captions, eps_loss, unit_latents

SETTINGS = TrainSettings(steps=1600, lr=2e-3, warmup=30, schedule="cosine", betas=(0.9, 0.99), weight_decay=0.0,
                         seed=4, checkpoint_every=250)
RANK, BATCH, PICTURES, CLIP_FRAMES = 16, 8, 1536, 512


class LowRank(nn.Module):
    """up(down(x)) beside a frozen layer; `up` starts at zero."""

    def __init__(self, layer: nn.Linear | nn.Conv2d, rank: int):
        super().__init__()
        if isinstance(layer, nn.Linear):
            self.lora_down = nn.Linear(layer.in_features, rank, bias=False)
            self.lora_up = nn.Linear(rank, layer.out_features, bias=False)
        else:
            self.lora_down = nn.Conv2d(layer.in_channels, rank, layer.kernel_size, layer.stride, layer.padding,
                                       bias=False)
            self.lora_up = nn.Conv2d(rank, layer.out_channels, 1, bias=False)
        nn.init.zeros_(self.lora_up.weight)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.lora_up(self.lora_down(x))


def attach(unet: nn.Module, names: dict[str, str], rank: int) -> nn.ModuleDict:
    """Add a LowRank beside every named layer by forward hooks; `names` maps kohya names to the layers' paths."""
    loras = nn.ModuleDict()
    for kohya, path in names.items():
        layer = unet.get_submodule(path)
        low_rank = loras[kohya] = LowRank(layer, rank)
        layer.register_forward_hook(lambda _, inputs, output, low_rank=low_rank: output + low_rank(inputs[0]))
    return loras


def kohya_tensors(loras: nn.ModuleDict, rank: int) -> dict[str, torch.Tensor]:
    """The LoRA's file: `<name>.lora_up.weight`, `.lora_down.weight` and `.alpha` (= rank: strength 1 is as trained)."""
    return loras.state_dict() | {f"{name}.alpha": torch.tensor(float(rank)) for name in loras}


def train_style(style: str, runs: Path) -> Path:
    from ..host.demo import build_clip, caption_context, fresh_unet, lora_names, read_weights

    pool = draw_pool(PICTURES, CLIP_FRAMES, seed=41)
    latents = unit_latents(STYLES[style](pixels / 255) * 2 - 1 for pixels in pool.pixels.split(64))
    clip = build_clip(read_weights("sprite_clip_text"))
    unet = fresh_unet().requires_grad_(False)
    unet.load_state_dict(read_weights("sprite_unet"))
    torch.manual_seed(SETTINGS.seed)
    loras = attach(unet, lora_names(), RANK)

    def batches(draw: int):
        index = batch_indices(len(latents), BATCH, SETTINGS.seed, draw)
        return latents[index], caption_context(clip, drawn_captions(pool.scenes, index, SETTINGS.seed, draw))

    def loss(batch, generator: torch.Generator):
        x, context = batch
        return eps_loss(lambda x_t, t: unet(x_t, t.float(), context=context), x, generator)

    store = CheckpointStore(runs / f"lora_{style}.safetensors", {"style": style})
    hours = follow(train(loras, loss, batches, SETTINGS, store), SETTINGS.steps)
    return publish(f"loras/sprite_{style}", kohya_tensors(loras, RANK), f"Style LoRA of sprite world: {style}.",
                   "python -m frozen_diffusion.cli demo-train lora", SETTINGS, hours, {})


def train_lora(runs: Path) -> Path:
    return [train_style(style, runs) for style in STYLES][-1]
