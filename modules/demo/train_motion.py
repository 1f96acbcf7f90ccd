"""The sprite-world motion module: the pack's own `train motion` command on clips of the world."""
from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from pathlib import Path

from safetensors import safe_open

from ..training import command
from ..training.motion import MotionRecipe
from .training import publish

COMMON = ("--data", "sprite-world", "--checkpoint", "sprite-world", "--schedule", "cosine", "--beta-schedule", "keep",
          "--snr-limit", "5", "--no-gradient-checkpointing", "--keep-still", "--seed", "6")
# Two frames of sixteen clips, not sixteen of two: at the same cost, the gradients of batches agree far better. The
# layers of a U-Net this narrow want a higher rate than AnimateDiff's 1e-4.
ARGUMENTS = (*COMMON, "--max-clips", "2048", "--batch", "16", "--frames-at-once", "2", "--scattered",
             "--pure-noise", "0.3", "--noise-shift", "3", "--lr", "1e-3", "--warmup", "50", "--ema", "0.995",
             "--checkpoint-every", "100", "--steps", "2400")
# Pairs teach how things move by the word; that all frames of a clip show one thing, more frames at once do.
THEN = (*ARGUMENTS, "--batch", "4", "--frames-at-once", "8", "--lr", "5e-4", "--steps", "650", "--warm-start-rate", "1")


def run_training(arguments: Sequence[str], out: Path) -> MotionRecipe:
    """`train motion` with these options into the file `out`; raises SystemExit if it fails. Returns the recipe."""
    parser = argparse.ArgumentParser()
    command.add_arguments(parser)
    args = parser.parse_args([*arguments, "--out", str(out)])
    if status := command.main(args):
        raise SystemExit(status)
    return command.recipe_of(args)


def publish_motion(name: str, what: str, arguments: Sequence[str], runs: Path) -> Path:
    """Train and publish a motion module. Returns the file in weights/."""
    out, began = runs / f"{name}.safetensors", time.monotonic()
    recipe = run_training((*arguments, "--cache", str(runs / "sprite_motion_clips")), out)
    with safe_open(str(out), framework="pt") as file:
        tensors, metadata = {key: file.get_tensor(key) for key in file.keys()}, file.metadata()
    return publish(name, tensors, what, f"python -m frozen_diffusion.cli train motion {' '.join(arguments)} --out FILE",
                   recipe.settings(), (time.monotonic() - began) / 3600, {}, metadata)


def train_motion(runs: Path) -> Path:
    """The "baseline": AnimateDiff's transformer alone, the denoising loss, the frozen U-Net."""
    first = runs / "sprite_motion_first.safetensors"
    if not first.is_file():
        run_training((*ARGUMENTS, "--cache", str(runs / "sprite_motion_clips")), first)
    return publish_motion("sprite_motion", "Motion module of sprite world: AnimateDiff's transformer alone.",
                          (*THEN, "--warm-start", str(first)), runs)
