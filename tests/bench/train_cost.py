"""What a training step costs at SD1.5 size: one clip of 8 frames, 16x16 latents, gradient checkpointing.

Random weights; on a GPU 16 frames of 64x64 latents in bf16. Bench name: train-cost.
"""
from __future__ import annotations

import resource
import time
from dataclasses import replace

import comfy.model_management
import comfy.model_patcher
import comfy.supported_models
import torch

from frozen_diffusion.modules.data.encoded import ClipBatch, Text
from frozen_diffusion.modules.host.motion.frozen_copy import FrozenCopy
from frozen_diffusion.modules.host.motion.schedule import with_schedule
from frozen_diffusion.modules.host.motion.train import build_module
from frozen_diffusion.modules.host.noise_levels import noise_levels
from frozen_diffusion.modules.motion.module import MotionConfig
from frozen_diffusion.modules.seeding import stream
from frozen_diffusion.modules.training.denoising import denoising_loss
from frozen_diffusion.modules.training.ema import MovingAverage
from frozen_diffusion.modules.training.loop import autocast, train
from frozen_diffusion.modules.training.settings import TrainSettings
from testhost.models import SD15, initialise

STEPS = 2
FULL = SD15 | {"model_channels": 320, "context_dim": 768, "num_heads": 8}


def run() -> dict:
    """Figures: seconds of a step, peak memory of the process (or the GPU), step over plain forward of the base."""
    gpu = comfy.model_management.get_torch_device().type == "cuda"
    frames, side, precision = (16, 64, "bf16") if gpu else (8, 16, "fp32")
    model = full_size_model()
    module, _ = build_module(MotionConfig("sd15", (320, 640, 1280, 1280)), 0, None)
    unet = FrozenCopy(model, module, frames, low_precision=gpu)
    ema = MovingAverage(module)
    latents = torch.randn(1, frames, 4, side, side, generator=stream("latents"))
    batch = ClipBatch(latents, Text(torch.randn(1, 77, 768, generator=stream("text")), None))
    loss = denoising_loss(unet, noise_levels(with_schedule(model, "sqrt_linear")), unet.latents_in, unet.device)

    model.model.diffusion_model = None              # the copy is all that a training keeps
    base, steps = [], []
    for record in train(module, loss, lambda draw: batch, TrainSettings(STEPS + 1, precision=precision),
                        ema=ema):           # turn by turn with the plain forward pass
        steps.append(record.seconds)
        base.append(forward_seconds(unet, latents, batch.text, precision))
    seconds, plain = min(steps[1:]), min(base[1:])  # the first of each warms up
    rss = 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    peak = torch.cuda.max_memory_allocated() if gpu else rss
    return {
        "figures": {"step_seconds": round(seconds, 3), "peak_gib": round(peak / 2**30, 2),
                    "over_base_forward": round(seconds / plain, 2)},
        "context": {"frames": frames, "latents": f"{side}x{side}", "precision": precision, "seeds": [0],
                    "base_forward_seconds": round(plain, 3), "checkpointing": True,
                    "trained_parameters": sum(weight.numel() for weight in module.parameters())}}


def full_size_model():
    """A MODEL of SD1.5's size with random weights."""
    config = comfy.supported_models.SD15(FULL)
    config.set_inference_dtype(torch.float32, None)
    model = config.get_model({}, "", device=torch.device("cpu")).eval()
    initialise(model.diffusion_model, seed=0)
    return comfy.model_patcher.ModelPatcher(model, comfy.model_management.get_torch_device(),
                                            comfy.model_management.unet_offload_device())


@torch.no_grad()
def forward_seconds(unet: FrozenCopy, latents: torch.Tensor, text: Text, precision: str) -> float:
    """One forward pass of the image model over the same frames, its motion layers skipped."""
    run, unet.run = unet.run, replace(unet.run, strength=0.0)
    began = time.perf_counter()
    with autocast(unet.device, precision):
        result = unet(latents.to(unet.device), torch.tensor([500], device=unet.device), text)
        result.sum().item()                         # waits for a GPU
    unet.run = run
    return time.perf_counter() - began
