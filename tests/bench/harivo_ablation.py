"""What each part of HARIVO buys on sprite world: flicker and motion at the same prompts and noise, row by row.

Needs the weights of all rows but `full`: `python -m frozen_diffusion.cli demo-train harivo-ablation` trains them, on
the same data, steps and seed. FROZEN_BENCH_PROMPTS sets the prompts of a seed (10), FROZEN_BENCH_SEEDS the seeds (3).
"""
from __future__ import annotations

import os
import random
import statistics
from collections.abc import Iterable
from pathlib import Path

import torch
from bench._sprite_world import CFG, JUDGE, accuracy, context, generate, load_world, prompts

from frozen_diffusion.modules.clips.flicker import clip_figures
from frozen_diffusion.modules.demo.motion_oracle import read_clips
from frozen_diffusion.modules.demo.renderer import FRAMES, render
from frozen_diffusion.modules.demo.world import MOTIONS, Scene, caption, random_scene
from frozen_diffusion.modules.demo_training.harivo import ROWS, ablation_file
from frozen_diffusion.modules.host.boot import PACK
from frozen_diffusion.modules.host.demo import WEIGHTS
from frozen_diffusion.modules.host.motion.apply import apply_motion
from frozen_diffusion.modules.host.motion.files import load_motion_file
from frozen_diffusion.modules.host.motion.mitigating_gradient import mitigate_gradient
from frozen_diffusion.modules.motion.mitigating_gradient import DEFAULT_ALPHA

RUNS, STEPS, SEED = PACK / "runs", 20, 1100
NO_GUIDANCE = "no_mg"                   # the full module without mitigating gradient
NOISY = {"pyoco": "full", "baseline_pyoco": "baseline"}     # these rows from PYoCo's mixed noise; not the paper's
SHARED = 2.0                            # its a
KEYS = ("r", "d1", "span")


def scenes_for(count: int) -> list[Scene]:
    """Scenes of trained pairs that move, every motion in turn."""
    rng, scenes, moving = random.Random(SEED), [], [motion for motion in MOTIONS if motion != "still"]
    while len(scenes) < count:
        scene = random_scene(rng, clip=True)
        if scene.motion == moving[len(scenes) % len(moving)]:
            scenes.append(scene)
    return scenes


def row_file(row: str) -> Path:
    """Where a row's weights are; those of `full` are shipped. Raises FileNotFoundError."""
    path = WEIGHTS / "sprite_harivo.safetensors" if row == "full" else ablation_file(Path(RUNS), row)
    if not path.is_file():
        raise FileNotFoundError(f"There is no {path}. Train the rows first: python -m frozen_diffusion.cli demo-train "
                                "harivo-ablation")
    return path


def sampled_model(world, row: str):
    """The MODEL of one row: full guidance but for `no_mg` and `baseline`. Raises FileNotFoundError."""
    model = apply_motion(world.model, load_motion_file(row_file("full" if row == NO_GUIDANCE else row))[0])
    return model if row in (NO_GUIDANCE, "baseline") else mitigate_gradient(model, DEFAULT_ALPHA)


def measure(world, row: str, scenes: list[Scene], seed: int) -> dict[str, float]:
    """Means over the scenes of r, d1 and span, and the fraction whose motion the oracle recognises."""
    model = sampled_model(world, NOISY.get(row, row))
    shared = SHARED if row in NOISY else 0.0
    clips = torch.cat([generate(world, model, [caption(scene)], seed + number, STEPS, CFG, FRAMES, shared)
                       for number, scene in enumerate(scenes)])
    return flicker(clips) | {"motion": accuracy(scenes, read_clips(clips).scenes, "motion")}


def flicker(clips: Iterable[torch.Tensor]) -> dict[str, float]:
    """Means of r, d1 and span over clips [F, 3, H, W]."""
    figures = [clip_figures(clip) for clip in clips]
    return {key: statistics.fmean(getattr(figure, key) for figure in figures) for key in KEYS}


@torch.inference_mode()
def true_latents(world, scenes: list[Scene]) -> list[torch.Tensor]:
    """True clips of the scenes as the VAE encodes them, each [F, 4, h, w]."""
    clips = render(scenes, torch.Generator().manual_seed(0), FRAMES)[0]
    return [world.vae.encode(clip.movedim(1, -1)).cpu() for clip in clips]


@torch.inference_mode()
def truth(world, scenes: list[Scene]) -> dict[str, float]:
    """What true clips of the scenes have after the VAE: the best that any row can reach."""
    return flicker(world.vae.decode(latent).movedim(-1, 1).cpu() for latent in true_latents(world, scenes))


def run() -> dict:
    """Figures of all rows (means over seeds), and those of full against baseline."""
    world, scenes = load_world(), scenes_for(prompts(10))
    seeds = [SEED + 1000 * number for number in range(int(os.environ.get("FROZEN_BENCH_SEEDS", 3)))]
    rows = {row: [measure(world, row, scenes, seed) for seed in seeds] for row in (*ROWS, NO_GUIDANCE, *NOISY)}
    figures, spread = {}, {}
    for row, found in rows.items():
        for key in (*KEYS, "motion"):
            values = [seed[key] for seed in found]
            figures[f"{row}_{key}"], spread[f"{row}_{key}"] = statistics.fmean(values), [min(values), max(values)]
    for name, row in (("", "full"), ("pyoco_", "pyoco")):
        figures |= {f"{name}r_over_baseline": figures[f"{row}_r"] / figures["baseline_r"],
                    f"{name}span_over_baseline": figures[f"{row}_span"] / figures["baseline_span"],
                    f"{name}motion_minus_baseline": figures[f"{row}_motion"] - figures["baseline_motion"]}
    return {"figures": figures, "context": context(judge=JUDGE, seeds=seeds, prompts=len(scenes), steps=STEPS, cfg=CFG,
                                                   alpha=DEFAULT_ALPHA, spread_over_seeds=spread,
                                                   truth=truth(world, scenes))}
