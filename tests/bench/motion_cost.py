"""What motion costs: one call of the U-Net at SD1.5 size on random weights, alone, with motion, and in diffusers.

All models are in one process and take turns; a figure is the ratio of medians. 8 frames of 16x16 latents on a
processor, 16 frames of 64x64 latents in fp16 where there is a GPU. All use torch's attention, as diffusers does by
itself and ComfyUI with --use-pytorch-cross-attention (which `make demo` sets).
"""
from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import comfy.ops
import torch
from comfy.ldm.modules.attention import attention_pytorch
from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel
from diffusers import UNetMotionModel
from motion_examples import SD15

from frozen_diffusion.modules.host.motion.apply import MotionRun, motion_options, splice, unsplice
from frozen_diffusion.modules.motion.module import MotionConfig, MotionModule
from testhost.models import SD15 as UNET

ROUNDS, WARM = 5, 2
TORCH_ATTENTION = {"optimized_attention_override": lambda _, *args, **kwargs: attention_pytorch(*args, **kwargs)}


def fill(module: torch.nn.Module) -> torch.nn.Module:
    """Random weights; the host's layers start as uninitialised memory."""
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter, std=0.02)
    return module.eval().requires_grad_(False)


def seconds(call: Callable[[], object], device: torch.device) -> float:
    """Wall time of one call."""
    began = time.perf_counter()
    call()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - began


@torch.inference_mode()
def measure(frames: int, size: int, device: torch.device, dtype: torch.dtype,
            channels: tuple[int, ...] = SD15) -> dict[str, list[float]]:
    """Seconds of every round for "unet", "motion" and "diffusers"."""
    made = {"device": device, "dtype": dtype}
    settings = UNET | {"model_channels": channels[0], "context_dim": 768, "num_heads": 8}
    unet = fill(UNetModel(**settings, operations=comfy.ops.disable_weight_init, **made))
    module = fill(MotionModule(MotionConfig("sd15", channels), comfy.ops.manual_cast, **made))
    with torch.device(device):
        peer = fill(UNetMotionModel(cross_attention_dim=768, num_attention_heads=8,
                                    block_out_channels=channels).to(dtype))
    x, t = torch.randn(frames, 4, size, size, **made), torch.full((frames,), 500, device=device)
    text = torch.randn(frames, 77, 768, **made)
    clip = x.transpose(0, 1)[None]                                              # [1, C, f, H, W]

    def with_motion():
        splice(unet, module)
        unet(x, t, context=text, transformer_options=TORCH_ATTENTION | motion_options(MotionRun(frames)))
        unsplice(unet)

    calls = {"unet": lambda: unet(x, t, context=text, transformer_options=dict(TORCH_ATTENTION)),
             "motion": with_motion,
             "diffusers": lambda: peer(clip, t[:1], encoder_hidden_states=text)}
    taken = {name: [] for name in calls}
    for _ in range(WARM + ROUNDS):
        for name, call in calls.items():
            taken[name].append(seconds(call, device))
    return {name: times[WARM:] for name, times in taken.items()}


def run() -> dict:
    """The figures `over_unet` and `over_diffusers`."""
    if torch.cuda.is_available():
        frames, size, device, dtype = 16, 64, torch.device("cuda"), torch.float16
    else:
        frames, size, device, dtype = 8, 16, torch.device("cpu"), torch.float32
    times = measure(frames, size, device, dtype)
    middle = {name: statistics.median(values) for name, values in times.items()}
    return {"figures": {"over_unet": middle["motion"] / middle["unet"],
                        "over_diffusers": middle["motion"] / middle["diffusers"]},
            "context": {"frames": frames, "latent_size": size, "dtype": str(dtype), "rounds": ROUNDS,
                        "median_seconds": middle, "spread_seconds": {k: [min(v), max(v)] for k, v in times.items()}}}
