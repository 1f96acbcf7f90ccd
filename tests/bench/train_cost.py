"""What a training step costs at SD1.5 size: one clip of 8 frames, 16x16 latents, gradient checkpointing.

Random weights; on a GPU 16 frames of 64x64 latents in bf16. Bench name: train-cost.
"""
from __future__ import annotations

import resource
import time

import comfy.model_management
import comfy.model_patcher
import comfy.supported_models
import torch

from frozen_diffusion.modules.host.private_unet import PrivateUNet, noise_levels
from frozen_diffusion.modules.host.training import build_module
from frozen_diffusion.modules.motion.module import MotionConfig
from frozen_diffusion.modules.training.average import MovingAverage
from frozen_diffusion.modules.training.denoising import denoising_loss
from frozen_diffusion.modules.training.encoded import ClipBatch, Text
from frozen_diffusion.modules.training.loop import TrainSettings, autocast, train
from frozen_diffusion.modules.training.order import stream
from testhost.models import SD15, initialise

STEPS = 3
FULL = SD15 | {"model_channels": 320, "context_dim": 768, "num_heads": 8}


def run() -> dict:
    """Figures: seconds of a step, peak memory of the process (or the GPU), step over plain forward of the base."""
    gpu = comfy.model_management.get_torch_device().type == "cuda"
    frames, side, precision = (16, 64, "bf16") if gpu else (8, 16, "fp32")
    model = full_size_model()
    module, _ = build_module(MotionConfig("sd15", (320, 640, 1280, 1280)), 0, None)
    unet = PrivateUNet(model, module, frames, low_precision=gpu)
    average = MovingAverage(module)
    latents = torch.randn(1, frames, 4, side, side, generator=stream("latents"))
    batch = ClipBatch(latents, Text(torch.randn(1, 77, 768, generator=stream("text")), None))
    loss = denoising_loss(unet, noise_levels(model, "sqrt_linear"), unet.latents_in, unet.device)

    base, step = [], []
    records = train(module, loss, lambda draw: batch, TrainSettings(STEPS + 1, precision=precision),
                    average=average)
    for _ in records:                               # the first warms up; then turn by turn
        base.append(forward_seconds(model, latents, batch.text, precision, unet))
        began = time.perf_counter()
        if next(records, None) is not None:
            synchronise(gpu)
            step.append(time.perf_counter() - began)
    seconds, plain = min(step), min(base)
    peak = torch.cuda.max_memory_allocated() if gpu else 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
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
def forward_seconds(model, latents: torch.Tensor, text: Text, precision: str, unet: PrivateUNet) -> float:
    """One forward pass of the image model alone over the same frames."""
    network = model.model.diffusion_model.to(unet.device)
    x = latents[0].to(unet.device)
    context = text.tokens.to(unet.device).expand(len(x), -1, -1)
    began = time.perf_counter()
    with autocast(unet.device, precision):
        network(x, torch.full((len(x),), 500.0, device=unet.device), context)
    synchronise(unet.device.type == "cuda")
    return time.perf_counter() - began


def synchronise(gpu: bool) -> None:
    """Wait until the device is done."""
    if gpu:
        torch.cuda.synchronize()
