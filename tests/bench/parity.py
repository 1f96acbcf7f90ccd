"""Faithfulness in figures: our temporal transformer against diffusers', and the sizes of all file families.

diffusers takes the statistics of the first GroupNorm over all frames of a clip, AnimateDiff's own code and ours
frame by frame. The input has frames with equal statistics, where both rules are the same and all else must agree.
"""
from __future__ import annotations

import torch
from diffusers import MotionAdapter
from motion_examples import FAMILIES, random_motion, shuffled_frames

from frozen_diffusion.modules.motion.keys import adapter_settings, to_diffusers
from frozen_diffusion.modules.motion.module import MotionConfig, MotionModule

CONFIG = MotionConfig("sd15", (32, 64), max_frames=32)
FRAMES, SEEDS = 12, (0, 1)


@torch.no_grad()
def diffusers_max_abs(seed: int, config: MotionConfig = CONFIG) -> float:
    """Largest difference over all layers of one random module, fp32."""
    module = random_motion(config, seed)
    adapter = MotionAdapter(**adapter_settings(config.channels, config.mid, config.max_frames))
    adapter.load_state_dict(to_diffusers(module.state_dict()))
    theirs = [layer for block in (*adapter.down_blocks, adapter.mid_block, *adapter.up_blocks)
              for layer in block.motion_modules]
    ours = [layer for part in ("down", "mid", "up") for layer in module.layers(part)]
    worst = 0.0
    for number, (layer, other) in enumerate(zip(ours, theirs, strict=True)):
        x = shuffled_frames(FRAMES, layer.transformer.norm.num_channels, 6, 4, seed=number)
        worst = max(worst, (layer(x, FRAMES) - other(x, num_frames=FRAMES)).abs().max().item())
    return worst


def counts(config: MotionConfig) -> tuple[int, float]:
    """(tensors in a file, millions of parameters), built without memory; AnimateLCM's files store no codes."""
    module = MotionModule(config, device="meta")
    stored = [key for key in module.state_dict()
              if config.kind != "animatelcm" or not key.endswith("pos_encoder.pe")]
    return len(stored), round(sum(p.numel() for p in module.parameters()) / 1e6, 1)


def run() -> dict:
    """The figures `diffusers_max_abs` and `families_exact`."""
    exact = [counts(family.config) == (family.tensors, family.millions) for family in FAMILIES]
    return {"figures": {"diffusers_max_abs": max(diffusers_max_abs(seed) for seed in SEEDS),
                        "families_exact": sum(exact) / len(exact)},
            "context": {"seeds": SEEDS, "frames": FRAMES, "channels": CONFIG.channels,
                        "families": [family.name for family in FAMILIES]}}
