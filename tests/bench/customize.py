"""Motions that the motion module has never seen, each learned from one clip whose look its caption tells.

For zigzag, sway and diagonal, trained with FROZEN_BENCH_SEEDS seeds (3) of the default recipe, 8 prompts of other
sprites, colours and textures in 8 steps at cfg 5, faded out after half: `path` (correlation of paths), `fid` (cosine of
velocities), `gain` (ratio of amplitudes), `right` (share of clips with all attributes as prompted): means over motions
and seeds, and the least; `train_seconds` of the slowest training, without looks. FROZEN_BENCH_PROMPTS sets the prompts
(8).
"""
from __future__ import annotations

import sys
import tempfile
import time
from dataclasses import asdict, replace
from pathlib import Path

from bench._customize import clips_of, learned, marks, scenes, seeds
from bench._sprite_world import JUDGE, context, load_world, prompts

from frozen_diffusion.modules.customize.recipe import MotionLoRARecipe
from frozen_diffusion.modules.demo.paths import plain_look

MOTIONS, NOISE = ("zigzag", "sway", "diagonal"), 40
RECIPE = MotionLoRARecipe(sample_every=0)


def run() -> dict:
    world, asked, rows, seconds = load_world(), scenes(prompts(8)), {}, []
    with tempfile.TemporaryDirectory() as folder:
        for motion in MOTIONS:
            before = clips_of(world, world.model, None, asked, motion, NOISE)
            rows[f"{motion} without"] = asdict(marks(before, asked, motion))
            for seed in seeds():
                began = time.perf_counter()
                lora = learned(world, plain_look(motion), replace(RECIPE, seed=seed), Path(folder))
                seconds.append(time.perf_counter() - began)
                clips = clips_of(world, world.model, lora, asked, motion, NOISE)
                rows[f"{motion} {seed}"] = asdict(marks(clips, asked, motion))
                print(motion, seed, rows[f"{motion} {seed}"], file=sys.stderr, flush=True)
    trained = [row for name, row in rows.items() if "without" not in name]
    means = {name: sum(row[name] for row in trained) / len(trained) for name in trained[0]}
    figures = {**means, "train_seconds": max(seconds),
               **{f"least_{name}": min(row[name] for row in trained) for name in ("path", "fid", "right")}}
    return {"figures": figures, "context": context(judge=JUDGE, seeds=list(seeds()), prompts=len(asked),
                                                   rows=rows)}
