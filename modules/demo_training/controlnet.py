"""A small edge ControlNet of sprite world, in the host's Control-LoRA format.

The format suits a narrow U-Net: the host builds the control network from the MODEL at hand and adds what the file
holds: hint encoder and zero convolutions in full, a low-rank change for the copied encoder.
"""
from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from ..demo.pool import draw_pool, signed
from ..seeding import batch_indices
from ..training.checkpoint import CheckpointStore
from ..training.loop import train
from ..training.lora import attach
from ..training.settings import TrainSettings
from .lora import start_like_layers
from .parts import follow, publish
from .unet import drawn_captions, eps_loss, unit_latents

SETTINGS = TrainSettings(steps=500, lr=3e-3, warmup=30, schedule="cosine", betas=(0.9, 0.99), weight_decay=0.0, seed=5,
                         checkpoint_every=250)
RANK, BATCH, PICTURES, CLIP_FRAMES = 8, 16, 1536, 512
CANNY = (0.1, 0.3)      # thresholds, low enough for the soft pictures that the autoencoder gives
IN_FULL = ("input_hint_block.", "zero_convs.", "middle_block_out.")


def edges(pixels: torch.Tensor) -> torch.Tensor:
    """[N, 3, H, W] in 0..1 -> the same shape, white edges on black, as the host's Canny node draws them."""
    from kornia.filters import canny
    return canny(pixels, *CANNY)[1].repeat(1, 3, 1, 1)


class ControlBranch(nn.Module):
    """The control network over a frozen copy of the U-Net's encoder."""

    def __init__(self, control: nn.Module):
        super().__init__()
        self.control = control.requires_grad_(False)
        for name, parameter in control.named_parameters():
            parameter.requires_grad_(name.startswith(IN_FULL))
        encoder = [path for path, layer in control.named_modules()
                   if isinstance(layer, nn.Linear | nn.Conv2d) and path.startswith(("input_blocks.", "middle_block."))]
        self.loras = start_like_layers(attach(control, {path: path for path in encoder}, RANK))

    def file(self) -> dict[str, torch.Tensor]:
        """Control-LoRA names: `<layer>.up` [out, rank], `<layer>.down` [rank, in * k * k], and what is kept in full."""
        tensors = {"lora_controlnet": torch.zeros(0)}
        for path, lora in self.loras.by_name.items():
            tensors[f"{path}.up"], tensors[f"{path}.down"] = lora.up.flatten(1), lora.down
        return tensors | {k: v for k, v in self.control.state_dict().items() if k.startswith(IN_FULL)}


def train_controlnet(runs: Path) -> Path:
    from ..host.demo import build_clip, caption_context, fresh_control, fresh_unet, read_weights

    pool = draw_pool(PICTURES, CLIP_FRAMES, seed=51)
    latents = unit_latents(signed(part) for part in pool.pixels.split(64))
    hints = torch.cat([(edges(part / 255)[:, :1] * 255).byte() for part in pool.pixels.split(64)])
    clip = build_clip(read_weights("sprite_clip_text"))
    unet = fresh_unet().requires_grad_(False)
    unet.load_state_dict(read_weights("sprite_unet"))
    torch.manual_seed(SETTINGS.seed)
    branch = ControlBranch(fresh_control(unet))

    def batches(draw: int):
        index = batch_indices(len(latents), BATCH, SETTINGS.seed, draw)
        context = caption_context(clip, drawn_captions(pool.scenes, index, SETTINGS.seed, draw))
        return latents[index], context, hints[index].float().div(255).repeat(1, 3, 1, 1)

    def loss(batch, generator: torch.Generator):
        x, context, hint = batch

        def predict(x_t: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
            outputs = branch.control(x_t, hint, t.float(), context)
            return unet(x_t, t.float(), context=context, control=outputs)
        return eps_loss(predict, x, generator)

    hours = follow(train(branch, loss, batches, SETTINGS, CheckpointStore(runs / "controlnet.safetensors")),
                   SETTINGS.steps)
    return publish("controlnet/sprite_edges", branch.file(), "Edge ControlNet of sprite world (Control-LoRA format).",
                   "python -m frozen_diffusion.cli demo-train controlnet", SETTINGS, hours, {})
