"""Motion modules for tests and benchmarks: random small ones, and the families that users have."""
from __future__ import annotations

from typing import NamedTuple

import torch

from frozen_diffusion.modules.motion.module import MotionConfig, MotionModule, fresh_motion_module

SD15, SDXL = (320, 640, 1280, 1280), (320, 640, 1280)
TINY = MotionConfig("sd15", (32, 64, 128, 128), max_frames=16)      # of the tiny models


class Family(NamedTuple):
    """A kind of motion file and the counts that its published files have (harivo.md 2.9.2)."""
    name: str
    config: MotionConfig
    tensors: int            # positional encoding counted where the files store them
    millions: float         # parameters, positional encoding not counted


FAMILIES = [
    Family("SD1.5 v1", MotionConfig("sd15", SD15, mid=False, max_frames=24, kind="animatediff v1"), 560, 417.1),
    Family("SD1.5 v2", MotionConfig("sd15", SD15, mid=True, kind="animatediff v2"), 588, 453.2),
    Family("SD1.5 v3", MotionConfig("sd15", SD15, mid=False, kind="animatediff v3"), 560, 417.1),
    Family("SDXL beta", MotionConfig("sdxl", SDXL, mid=False, kind="animatediff sdxl"), 420, 236.8),
    Family("HotshotXL", MotionConfig("sdxl", SDXL, mid=False, max_frames=8, kind="hotshotxl"), 420, 236.8),
    Family("HotshotXL with mid", MotionConfig("sdxl", SDXL, mid=True, max_frames=8, kind="hotshotxl"), 448, 272.9),
    Family("AnimateLCM", MotionConfig("sd15", SD15, mid=False, max_frames=64, kind="animatelcm"), 520, 417.1),
    Family("AnimateLCM with mid", MotionConfig("sd15", SD15, mid=True, max_frames=64, kind="animatelcm"), 546, 453.2),
]


def random_motion(config: MotionConfig = TINY, seed: int = 0, scale: float = 0.3) -> MotionModule:
    """A module whose output projections are random instead of zero, so that it moves."""
    module = fresh_motion_module(config, seed)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for layer in module.output_projections():
            layer.weight.normal_(0, scale * layer.weight[0].numel() ** -0.5, generator=generator)
            if layer.bias is not None:
                layer.bias.normal_(0, 0.02, generator=generator)
    return module.requires_grad_(False)


def as_hotshot(state: dict) -> dict:
    """A state under HotshotXL's names."""
    return {key.replace("motion_modules.", "temporal_attentions.").replace("temporal_transformer.", "")
               .replace("pos_encoder.pe", "pos_encoder.positional_encoding"): value for key, value in state.items()}


def without_codes(state: dict) -> dict:
    """A state as AnimateLCM stores it."""
    return {key: value for key, value in state.items() if not key.endswith("pos_encoder.pe")}


def shuffled_frames(frames: int, channels: int, height: int, width: int, seed: int = 0) -> torch.Tensor:
    """[frames, C, H, W]: one picture whose pixels lie differently in every frame.

    Statistics over one frame and over all frames are then the same, so that layers which differ only in that
    can be compared.
    """
    generator = torch.Generator().manual_seed(seed)
    picture = torch.randn(channels, height * width, generator=generator)
    orders = [torch.randperm(height * width, generator=generator) for _ in range(frames)]
    return torch.stack([picture[:, order] for order in orders]).unflatten(2, (height, width))
