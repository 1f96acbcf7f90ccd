"""The sprite-world HARIVO module and its ablation: the pack's own `train motion` command, parts left out in turn."""
from __future__ import annotations

import os
from pathlib import Path

from .train_motion import COMMON, publish_motion, run_training
from .training import WEIGHTS

WHOLE_CLIPS = (*COMMON, "--max-clips", "1024", "--steps", "1200", "--batch", "2", "--lr", "5e-4", "--warmup", "100",
               "--ema", "0.998", "--checkpoint-every", "200")
PARTS = {"mapping": ("--mapping-width", "48"), "tokens": ("--frame-tokens", "4"),
         "convolution": ("--temporal-convolution",), "trs": ("--trs", "0.05", "--trs-from", "300"),
         "dc": ("--dc", "0.01")}
ROWS = ("full", *(f"no_{part}" for part in PARTS), "baseline")      # of the ablation: the same data, steps and seed
ABLATION_STEPS = ("--steps", "800")
FROM_BASELINE = ("--steps", "600", "--warmup", "50", "--noise-shift", "3", "--warm-start-rate", "1", "--warm-start")


def arguments(row: str) -> tuple[str, ...]:
    """Options of one row of the ablation, or of the shipped module ("full")."""
    left_out = set(PARTS) if row == "baseline" else {row.removeprefix("no_")}
    return WHOLE_CLIPS + tuple(word for part, words in PARTS.items() if part not in left_out for word in words)


def ablation_file(runs: Path, row: str) -> Path:
    """Where a row's weights are."""
    return runs / "harivo_ablation" / f"{row}.safetensors"


def train_harivo(runs: Path) -> Path:
    """HARIVO with all its parts and losses, warm-started from the shipped baseline (harivo.md 3)."""
    baseline = os.path.relpath(WEIGHTS / "sprite_motion.safetensors")
    return publish_motion("sprite_harivo", "HARIVO of sprite world: mapping network, frame tokens, temporal "
                          "convolution, TRS and DC losses. A reconstruction; see the README.",
                          (*arguments("full"), *FROM_BASELINE, baseline), runs)


def train_harivo_ablation(runs: Path) -> Path:
    """Every row of the ablation; rows that are there are left alone. The encoded clips are shared."""
    for row in ROWS:
        path = ablation_file(runs, row)
        if not path.is_file():
            run_training((*arguments(row), *ABLATION_STEPS, "--cache", str(runs / "sprite_motion_clips")), path)
    return path
