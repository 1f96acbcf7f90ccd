"""The sprite-world HARIVO module and its ablation: the pack's own `train motion` command, parts left out in turn."""
from __future__ import annotations

import os
from pathlib import Path

from .train_motion import CIRCLES, Options, publish_motion, run_stages, stage_file
from .training import WEIGHTS

PARTS = {"mapping": {"mapping-width": 48}, "tokens": {"frame-tokens": 4}, "convolution": {"temporal-convolution": True},
         "dc": {"dc": 0.01}}
# TRS compares neighbours in time, so it waits for whole clips.
LOSSES = {"trs": {"trs": 0.05, "trs-from": 50}, "dc": PARTS["dc"]}
ROWS = ("full", *(f"no_{part}" for part in PARTS | LOSSES), "baseline")     # of the ablation: one data, steps and seed


def stages(row: str) -> tuple[Options, Options]:
    """Options of one row of the ablation; "full" is what is shipped.

    From the shipped baseline, on the clips of its last stage: eights until the new parts have found their place in it,
    while what is there already changes slowly (harivo.md 3), then whole clips.
    """
    left_out = {*PARTS, *LOSSES} if row == "baseline" else {row.removeprefix("no_")}

    def kept(parts: dict[str, Options]) -> Options:
        return {name: value for part, options in parts.items() if part not in left_out
                for name, value in options.items()}

    baseline = os.path.relpath(WEIGHTS / "sprite_motion.safetensors")
    return (CIRCLES | {"steps": 300, "lr": 6e-4, "warm-start": baseline, "warm-start-rate": 0.2} | kept(PARTS),
            CIRCLES | {"steps": 100, "lr": 2e-4, "batch": 2, "frames-at-once": 16} | kept(LOSSES))


def row_name(row: str) -> str:
    """Of a row's files under `runs`."""
    return "sprite_harivo" if row == "full" else f"harivo_ablation/{row}"


def ablation_file(runs: Path, row: str) -> Path:
    """Where a row's weights are."""
    return stage_file(runs, row_name(row), len(stages(row)))


def train_harivo(runs: Path) -> Path:
    """HARIVO with all its parts and losses, warm-started from the shipped baseline (harivo.md 3)."""
    return publish_motion(row_name("full"), "HARIVO of sprite world: mapping network, frame tokens, temporal "
                          "convolution, TRS and DC losses. A reconstruction; see the README.", stages("full"), runs)


def train_harivo_ablation(runs: Path) -> Path:
    """Every row of the ablation; stages that are there are not run again. The encoded clips are shared."""
    for row in ROWS:
        path, *_ = run_stages(row_name(row), stages(row), runs)
    return path
