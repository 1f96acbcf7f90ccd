"""How much of a clip's look comes along with its motion, and what keeps it out.

The reference is a panda on yellow dots by its caption, and a green one on an orange chequer in truth: a look that the
caption does not tell. Ways, each trained with FROZEN_BENCH_SEEDS seeds (3): none (no absorber), S, TI, both, one-stage
(spatial and temporal LoRA in one), all on to the end of the sampling, and none and S faded out after half. `leak` of a
clip: how far it lies on the way from what was prompted to the reference's look, at its own poses, minus the base's;
the worse of sprite and surroundings. Figures: leak of each way (mean over seeds and 8 prompts), and of the default,
which is none + fade: `leak`, `right`, `path`, `gain`. About 20 minutes a seed. FROZEN_BENCH_PROMPTS sets the prompts
(8). Name: customize-leak.
"""
from __future__ import annotations

import statistics
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path

from bench._customize import OneStage, absorbed, clips_of, leaks, learned, marks, scenes, seeds, with_look
from bench._sprite_world import JUDGE, context, load_world, prompts

from frozen_diffusion.modules.customize.absorber import PLACEHOLDER, Absorber
from frozen_diffusion.modules.customize.recipe import S_LORA, TEXT_INVERSION, AbsorberRecipe, MotionLoRARecipe
from frozen_diffusion.modules.demo.paths import WORDS, odd_look

MOTION, NOISE, DEFAULT = "zigzag", 60, "none + fade"
RECIPE = MotionLoRARecipe(sample_every=0)


def trained(world, seed: int, cache: Path) -> Iterator[tuple[str, tuple]]:
    """(way, (MODEL, motion LoRA, fade_after)), each as soon as it is trained."""
    source, recipe = odd_look(MOTION), replace(RECIPE, seed=seed)
    look = source.text.removesuffix(f", {WORDS[MOTION]}")
    called = replace(source, text=f"{look} {PLACEHOLDER}, {WORDS[MOTION]}")
    none = learned(world, source, recipe, cache)
    yield "none", (world.model, none, 1.0)
    yield DEFAULT, (world.model, none, 0.5)
    s_lora = absorbed(world, source, AbsorberRecipe(kind=S_LORA, seed=seed), look, cache)
    with_s = learned(world, source, recipe, cache, s_lora)
    yield "S", (world.model, with_s, 1.0)
    yield "S + fade", (world.model, with_s, 0.5)
    one = OneStage.of(world, source, recipe, cache)
    yield "one-stage", (with_look(world.model, one.spatial), one.motion, 1.0)
    words = absorbed(world, source, AbsorberRecipe(kind=TEXT_INVERSION, seed=seed), look, cache)
    yield "TI", (world.model, learned(world, called, recipe, cache, words), 1.0)
    both = Absorber(s_lora.factors, words.vectors, look)
    yield "both", (world.model, learned(world, called, recipe, cache, both), 1.0)


def run() -> dict:
    world, asked = load_world(), scenes(prompts(8))
    before = clips_of(world, world.model, None, asked, MOTION, NOISE)
    base, rows = leaks(before, asked), {"base": [asdict(marks(before, asked, MOTION))]}
    with tempfile.TemporaryDirectory() as folder:
        for seed in seeds():
            for name, (model, lora, fade_after) in trained(world, seed, Path(folder)):
                clips = clips_of(world, model, lora, asked, MOTION, NOISE, fade_after=fade_after)
                near, around = (statistics.mean(after - own for after, own in zip(found, plain, strict=True))
                                for found, plain in zip(leaks(clips, asked), base, strict=True))
                row = {**asdict(marks(clips, asked, MOTION)), "sprite": near, "around": around,
                       "leak": max(near, around)}
                rows.setdefault(name, []).append(row)
                print(seed, name, row, file=sys.stderr, flush=True)
    means = {name: {key: statistics.mean(row[key] for row in found) for key in found[0]}
             for name, found in rows.items()}
    figures = {key: means[DEFAULT][key] for key in ("leak", "right", "path", "gain")}
    figures |= {f"leak {name}": row["leak"] for name, row in means.items() if name != "base"}
    figures |= {"one_stage_over_none": figures["leak one-stage"] > figures["leak none"],
                "none_over_single": figures["leak none"] > max(figures["leak S"], figures["leak TI"]),
                "single_over_both": max(figures["leak S"], figures["leak TI"]) >= figures["leak both"],
                "fid_over_base": means["none"]["fid"] > means["base"]["fid"]}
    return {"figures": figures, "context": context(judge=JUDGE, prompts=len(asked), means=means, rows=rows)}
