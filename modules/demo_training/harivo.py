"""The sprite-world HARIVO module and its ablation: the pack's own `train motion` command, parts left out in turn."""
from __future__ import annotations

import os
from pathlib import Path

from .motion import CIRCLES, Options, publish_motion, run_stages, stage_file
from .parts import WEIGHTS

# TRS at 0.05 (harivo.md 2.6) moves nothing in a U-Net this small, DC at its 0.01 is felt: see the weights' card. The
# shipped weights were trained with DC's queue, which does not do what it is for (harivo.md 11); it stays until they are
# trained anew.
PARTS = {"mapping": {"mapping-width": 48}, "tokens": {"frame-tokens": 4}, "convolution": {"temporal-convolution": True},
         "trs": {"trs": 30, "trs-from": 100}, "dc": {"dc": 0.01, "dc-negatives": "queue"}}
ROWS = ("full", *(f"no_{part}" for part in PARTS), "baseline")      # of the ablation: one data, steps and seed


def options(row: str) -> Options:
    """Of the training of one row of the ablation; "full" is what is shipped.

    From the shipped baseline, on the clips of its last stage. Its layers change at a tenth of the new parts' rate
    (harivo.md 3): faster, they forget motions before the new parts have found their place.
    """
    chosen = {**CIRCLES, "steps": 400, "lr": 6e-4, "ema": 0.99, "checkpoint-every": 50,
              "warm-start": os.path.relpath(WEIGHTS / "sprite_motion.safetensors"), "warm-start-rate": 0.1}
    for name, part in PARTS.items():
        if row not in ("baseline", f"no_{name}"):
            chosen |= part
    return chosen


def row_name(row: str) -> str:
    """Of a row's files under `runs`."""
    return "sprite_harivo" if row == "full" else f"harivo_ablation/{row}"


def ablation_file(runs: Path, row: str) -> Path:
    """Where a row's weights are."""
    return stage_file(runs, row_name(row), 1)


def train_harivo(runs: Path) -> Path:
    """HARIVO with all its parts and losses, warm-started from the shipped baseline (harivo.md 3)."""
    return publish_motion(row_name("full"), "HARIVO of sprite world: mapping network, frame tokens, temporal "
                          "convolution, TRS and DC losses. A reconstruction; see the README.", [options("full")], runs)


def train_harivo_ablation(runs: Path) -> Path:
    """Every row of the ablation; stages that are there are not run again. The encoded clips are shared."""
    for row in ROWS:
        path, *_ = run_stages(row_name(row), [options(row)], runs)
    return path
