"""What a step of Customize-A-Video's two stages costs at SD1.5's size: 8 frames of 32x32 latents, with checkpointing.

Random weights, LoRAs of rank 4; on a GPU bf16. `stage_1` learns an S-LoRA of the image model, `stage_2` a motion LoRA
beside it. `over_base`: a step over forward and backward of the frozen image model alone, on the same frames and with
checkpointing too, turn by turn. `peak_gib` is of the process (or of the GPU), with the frozen weights in it. Name:
customize-cost.
"""
from __future__ import annotations

import resource
import statistics
import time
from dataclasses import replace

import comfy.model_management
import torch
from bench.train_cost import full_size_model

from frozen_diffusion.modules.data.encoded import ClipBatch, Text
from frozen_diffusion.modules.host.customize.spatial import attention_paths
from frozen_diffusion.modules.host.motion.frozen_copy import FrozenCopy
from frozen_diffusion.modules.host.motion.schedule import with_schedule
from frozen_diffusion.modules.host.motion.train import build_module
from frozen_diffusion.modules.host.noise_levels import noise_levels
from frozen_diffusion.modules.motion.module import MotionConfig
from frozen_diffusion.modules.motion.temporal_lora import attention_projections
from frozen_diffusion.modules.seeding import stream
from frozen_diffusion.modules.training.denoising import denoising_loss
from frozen_diffusion.modules.training.loop import autocast
from frozen_diffusion.modules.training.lora import attach

FRAMES, SIDE, RANK, ROUNDS = 8, 32, 4, 2


def run() -> dict:
    gpu = comfy.model_management.get_torch_device().type == "cuda"
    precision = "bf16" if gpu else "fp32"
    model = full_size_model()
    module = build_module(MotionConfig("sd15", (320, 640, 1280, 1280)), 0, None)[0].requires_grad_(False)
    copy = FrozenCopy(model, module, FRAMES, low_precision=gpu)
    levels = {kind: noise_levels(with_schedule(model, kind)) for kind in ("linear", "sqrt_linear")}
    look = attach(copy.unet, attention_paths(model, copy.unet), RANK, seed=0).to(copy.device)
    motion = attach(module, {path: path for path in attention_projections(module)}, RANK, seed=0).to(copy.device)
    model.model.diffusion_model = None                  # the copy is all that a training keeps
    batch = ClipBatch(torch.randn(1, FRAMES, 4, SIDE, SIDE, generator=stream("latents")),
                      Text(torch.randn(1, 77, 768, generator=stream("text")), None))

    def base() -> torch.Tensor:
        x = batch.latents.to(copy.device).requires_grad_()
        return copy(x, torch.tensor([500], device=copy.device), batch.text).square().mean()

    def step(beside, other, schedule: str) -> torch.Tensor:
        beside.requires_grad_(True)
        other.requires_grad_(False)
        loss = denoising_loss(copy, levels[schedule], copy.latents_in, copy.device)
        return loss(batch, stream("draw"))

    with_motion, without = copy.run, replace(copy.run, strength=0.0)
    ways = {"base": (without, base, None),
            "stage_1": (without, lambda: step(look, motion, "linear"), torch.optim.AdamW(look.parameters())),
            "stage_2": (with_motion, lambda: step(motion, look, "sqrt_linear"), torch.optim.AdamW(motion.parameters()))}
    seconds, peaks = {name: [] for name in ways}, {}
    for _ in range(ROUNDS + 1):
        for name, (setting, made, optimizer) in ways.items():
            copy.run, began = setting, time.perf_counter()
            if gpu:
                torch.cuda.reset_peak_memory_stats()
            scale = 0.0 if optimizer is None else 1.0
            with look.scaled(scale), motion.scaled(scale):      # the backward pass calls the layers again
                with autocast(copy.device, precision):
                    loss = made()
                loss.backward()
            if optimizer is not None:
                optimizer.step()
                optimizer.zero_grad()
            loss.item()                                 # waits for a GPU
            seconds[name].append(time.perf_counter() - began)
            peaks[name] = torch.cuda.max_memory_allocated() if gpu else 1024 * resource.getrusage(
                resource.RUSAGE_SELF).ru_maxrss
    median = {name: statistics.median(times[1:]) for name, times in seconds.items()}
    figures = {"peak_gib": round(max(peaks.values()) / 2**30, 2)}
    for name in ("stage_1", "stage_2"):
        figures |= {f"{name}_seconds": round(median[name], 2),
                    f"{name}_over_base": round(median[name] / median["base"], 3)}
    figures["over_base"] = max(figures["stage_1_over_base"], figures["stage_2_over_base"])
    return {"figures": figures, "context": {
        "frames": FRAMES, "latents": f"{SIDE}x{SIDE}", "precision": precision, "checkpointing": True, "rounds": ROUNDS,
        "median_seconds": median, "peak_bytes": peaks,
        "parameters": {name: sum(weight.numel() for weight in beside.parameters())
                       for name, beside in (("stage_1", look), ("stage_2", motion))}}}
