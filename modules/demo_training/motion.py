"""The sprite-world motion module: the pack's own `train motion` command on clips of the world."""
from __future__ import annotations

import argparse
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from safetensors import safe_open

from ..host.motion import train_command
from ..motion.recipe import MotionRecipe
from .parts import publish

Options = Mapping[str, "str | int | float | Path"]         # of `train motion`, without dashes; True = no value follows

# Two frames of sixteen clips, not sixteen of two: at the same cost, the gradients of batches agree far better. The
# layers of a U-Net this narrow want a higher rate than AnimateDiff's 1e-4.
PAIRS: Options = {
    "data": "sprite-world", "checkpoint": "sprite-world", "max-clips": 2048, "keep-still": True, "seed": 6,
    "batch": 16, "frames-at-once": 2, "scattered": True, "pure-noise": 0.3, "noise-shift": 3, "snr-limit": 5,
    "beta-schedule": "keep", "steps": 2400, "lr": 1e-3, "schedule": "cosine", "warmup": 50, "ema": 0.995,
    "no-gradient-checkpointing": True, "checkpoint-every": 100}
# Pairs teach how things move by the word, fours whole paths and what is seen at less noise, eights that all frames of a
# clip show one thing, whole clips the same for sixteen. The second round has other clips. What turns or comes back is
# learned last: a circle may begin anywhere, so that pure noise says nothing of it. The last two stages draw it more.
FOURS = PAIRS | {"batch": 8, "frames-at-once": 4, "pure-noise": 0.2, "noise-shift": 2, "optimizer": "muon",
                 "steps": 2000, "lr": 1.5e-3}
SECOND = {"seed": 7, "optimizer": "muon", "lr": 1e-3}
EIGHTS = FOURS | {"batch": 4, "frames-at-once": 8, "pure-noise": 0.1, "steps": 150, "lr": 4e-4}
WHOLE = FOURS | SECOND | {"batch": 2, "frames-at-once": 16, "steps": 350, "lr": 6e-4}
TURNS = EIGHTS | {"seed": 8, "steps": 700, "lr": 1e-3,
                  "motions": "still,left,right,up,down,grow,shrink" + 4 * ",spin" + 4 * ",circle" + 2 * ",bounce"}
CIRCLES = TURNS | {"seed": 9, "steps": 900,
                   "motions": "still,left,right,up,down,grow,shrink,spin,bounce" + 5 * ",circle"}
STAGES = (PAIRS, FOURS, PAIRS | SECOND | {"steps": 700}, FOURS | SECOND | {"steps": 450}, EIGHTS, WHOLE, TURNS, CIRCLES)


def run_training(options: Options, out: Path, cache: Path) -> tuple[str, MotionRecipe]:
    """`train motion` into the file `out`, unless it is there. Returns the command, without the cache, and the recipe.

    Raises SystemExit if the training fails.
    """
    words = []
    for name, value in (options | {"out": out}).items():
        words += [f"--{name}"] if value is True else [f"--{name}", str(value)]
    parser = argparse.ArgumentParser()
    train_command.add_arguments(parser)
    args = parser.parse_args([*words, "--cache", str(cache)])
    if not out.is_file() and (status := train_command.main(args)):
        raise SystemExit(status)
    return " ".join(("python -m frozen_diffusion.cli train motion", *words)), train_command.recipe_of(args)


def stage_file(runs: Path, name: str, number: int) -> Path:
    """What stage `number`, from 1, of a training writes."""
    return runs / f"{name}_{number}.safetensors"


def run_stages(name: str, stages: Sequence[Options], runs: Path) -> tuple[Path, list[str], MotionRecipe]:
    """Train in stages, each warm-started from the one before. Stages whose file is there are not run again.

    Returns the last stage's file, the commands of all, and the last recipe.
    """
    commands, start = [], {}
    for number, stage in enumerate(stages, 1):
        out = stage_file(runs, name, number)
        done, recipe = run_training(stage | start, out, runs / "sprite_motion_clips")
        commands.append(done)
        start = {"warm-start": out, "warm-start-rate": 1}
    return out, commands, recipe


def publish_motion(name: str, what: str, stages: Sequence[Options], runs: Path) -> Path:
    """Train a motion module in stages and publish it. Returns the file in weights/."""
    began = time.monotonic()
    out, commands, recipe = run_stages(name, stages, runs)
    with safe_open(str(out), framework="pt") as file:
        tensors, metadata = {key: file.get_tensor(key) for key in file.keys()}, file.metadata()
    return publish(name, tensors, what, " && ".join(commands), recipe.settings(), (time.monotonic() - began) / 3600, {},
                   metadata)


def train_motion(runs: Path) -> Path:
    """The "baseline": AnimateDiff's transformer alone, the denoising loss, the frozen U-Net."""
    return publish_motion("sprite_motion", "Motion module of sprite world: AnimateDiff's transformer alone.", STAGES,
                          runs)
