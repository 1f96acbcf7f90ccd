"""What HARIVO's parts cost at SD1.5 size on random weights: in a sampling step, and in a training step with its losses.

Sampling: latents of 64x64, SD1.5's own size (smaller ones have less attention, so that the parts weigh more), 16 frames
on a GPU, 4 on a processor. Training: 16 frames of 64x64 on a GPU, 8 of 16x16 on a processor. All in one process, turn
by turn. Name: harivo-cost.
"""
from __future__ import annotations

import resource
from dataclasses import replace

import comfy.model_management
import comfy.ops
import torch
from bench.motion_cost import TORCH_ATTENTION, fill, seconds
from bench.train_cost import FULL, full_size_model
from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel
from motion_examples import SD15

from frozen_diffusion.modules.data.encoded import ClipBatch, Text
from frozen_diffusion.modules.host.motion.apply import MotionRun, motion_options, splice, unsplice
from frozen_diffusion.modules.host.motion.frozen_copy import FrozenCopy
from frozen_diffusion.modules.host.motion.schedule import with_schedule
from frozen_diffusion.modules.host.motion.train import build_module
from frozen_diffusion.modules.host.noise_levels import noise_levels
from frozen_diffusion.modules.motion.module import MotionConfig, MotionModule
from frozen_diffusion.modules.motion.smoothness import LEAST_NEGATIVES
from frozen_diffusion.modules.motion.total_loss import LossMemory, TotalLoss, fresh_head
from frozen_diffusion.modules.seeding import stream
from frozen_diffusion.modules.training.denoising import denoising_loss
from frozen_diffusion.modules.training.ema import trainable
from frozen_diffusion.modules.training.loop import train
from frozen_diffusion.modules.training.settings import TrainSettings

SIDE = 64                               # of a latent picture in sampling
ROUNDS, WARM = 5, 1                     # of the sampling step
TURNS, STEPS = 3, 2                     # of training: turns that count, steps of each that count
PLAIN = MotionConfig("sd15", SD15)
HARIVO = replace(PLAIN, temporal_convolution=True, mapping_width=128, frame_tokens=4)


@torch.inference_mode()
def inference(frames: int, device: torch.device, dtype: torch.dtype) -> dict[str, float]:
    """Seconds of the fastest U-Net call with a plain module, and with HARIVO's parts."""
    made = {"device": device, "dtype": dtype}
    unet = fill(UNetModel(**FULL, operations=comfy.ops.disable_weight_init, **made))
    modules = {name: fill(MotionModule(config, comfy.ops.manual_cast, **made))
               for name, config in (("plain", PLAIN), ("harivo", HARIVO))}
    x, t = torch.randn(frames, 4, SIDE, SIDE, **made), torch.full((frames,), 500, device=device)
    text, timestamps = torch.randn(1, 77, 768, **made).expand(frames, -1, -1), torch.arange(frames, device=device) / 8

    def call(module: MotionModule) -> None:
        splice(unet, module)
        unet(module.map_noise(x, t, frames), t, context=module.add_tokens(text, timestamps),
             transformer_options=TORCH_ATTENTION | motion_options(MotionRun(frames)))
        unsplice(unet)

    taken = {name: [] for name in modules}
    for _ in range(WARM + ROUNDS):
        for name, module in modules.items():
            taken[name].append(seconds(lambda module=module: call(module), device))
    return {name: min(times[WARM:]) for name, times in taken.items()}


def training_seconds(model, config: MotionConfig, frames: int, side: int, precision: str, losses: bool) -> float:
    """Seconds of the fastest of some training steps, one clip, gradient checkpointing."""
    module, _ = build_module(config, 0, None)
    unet = FrozenCopy(model, module, frames, low_precision=precision == "bf16", watch=losses)
    loss = denoising_loss(unet, noise_levels(with_schedule(model, "sqrt_linear")), unet.latents_in, unet.device)
    trained, memory = torch.nn.ModuleDict({"motion": module}), None
    if losses:
        memory = LossMemory(SD15[-1]).to(unet.device)
        memory.negatives.push(range(LEAST_NEGATIVES), torch.randn(LEAST_NEGATIVES, SD15[-1]))
        head = trained["head"] = fresh_head(SD15[-1], 0).to(unet.device)
        loss = TotalLoss(loss, unet.features, trainable(module).values(), memory, 0.05, 0, 0.01, head,
                         negatives="queue")        # one clip has no other
    batch = ClipBatch(torch.randn(1, frames, 4, side, side, generator=stream("latents")),
                      Text(torch.randn(1, 77, 768, generator=stream("text")), None), (LEAST_NEGATIVES + 1,))
    settings = TrainSettings(STEPS + 1, precision=precision)
    return min([record.seconds for record in train(trained, loss, lambda draw: batch, settings, memory=memory)][1:])


def run() -> dict:
    """The figures `inference_share`, `train_over_plain` and `train_peak_gib`."""
    device = comfy.model_management.get_torch_device()
    gpu = device.type == "cuda"
    sampled, dtype = (16, torch.float16) if gpu else (4, torch.float32)
    frames, side, precision = (16, 64, "bf16") if gpu else (8, 16, "fp32")
    step = inference(sampled, device, dtype)
    model = full_size_model()
    plain, full = (min(times) for times in zip(*(
        (training_seconds(model, PLAIN, frames, side, precision, losses=False),
         training_seconds(model, HARIVO, frames, side, precision, losses=True)) for _ in range(TURNS)), strict=True))
    rss = 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    peak = torch.cuda.max_memory_allocated() if gpu else rss
    return {"figures": {"inference_share": step["harivo"] / step["plain"] - 1, "train_over_plain": full / plain,
                        "train_peak_gib": peak / 2**30},
            "context": {"sampling": f"{sampled} frames of {SIDE}x{SIDE}, {dtype}, fastest of {ROUNDS}",
                        "training": f"{frames} frames of {side}x{side}, {precision}",
                        "call_seconds": step, "train_seconds": {"plain": plain, "harivo": full}}}
