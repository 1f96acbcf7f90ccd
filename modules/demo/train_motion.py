"""The sprite-world motion module: the pack's own `train motion` command on clips of the world."""
from __future__ import annotations

import argparse
import time
from pathlib import Path

from safetensors import safe_open

from ..training import command
from .training import publish

ARGUMENTS = ("--data", "sprite-world", "--checkpoint", "sprite-world", "--max-clips", "1024", "--steps", "5000",
             "--batch", "2", "--lr", "5e-4", "--warmup", "100", "--schedule", "cosine", "--beta-schedule", "keep",
             "--ema", "0.998", "--snr-limit", "5",
             "--no-gradient-checkpointing", "--keep-still", "--checkpoint-every", "200", "--seed", "6")


def train_motion(runs: Path) -> Path:
    """The "baseline": AnimateDiff's transformer alone, plain denoising loss, the frozen U-Net."""
    parser = argparse.ArgumentParser()
    command.add_arguments(parser)
    out, began = runs / "sprite_motion.safetensors", time.monotonic()
    args = parser.parse_args([*ARGUMENTS, "--out", str(out)])
    if status := command.main(args):
        raise SystemExit(status)
    with safe_open(str(out), framework="pt") as file:
        tensors, metadata = {key: file.get_tensor(key) for key in file.keys()}, file.metadata()
    return publish("sprite_motion", tensors, "Motion module of sprite world: AnimateDiff's transformer alone.",
                   f"python -m frozen_diffusion.cli train motion {' '.join(ARGUMENTS)} --out FILE",
                   command.recipe_of(args).settings(), (time.monotonic() - began) / 3600, {}, metadata)
