"""Text to video on sprite world in figures: does the clip show the sprite and the motion that were asked for.

Of 200 prompts (FROZEN_BENCH_PROMPTS) a half names pairs of sprite and motion that training may draw and a quarter
pairs held out of it. The last quarter repeats prompts and seeds of the first half with a style LoRA (red and
blue swapped) that the motion module has never met; the style is undone before the oracle looks.

The motion module is HARIVO's; FROZEN_BENCH_MOTION=sprite_motion measures the baseline.
"""
from __future__ import annotations

import os
import random

import torch
from bench._sprite_world import (
    CFG,
    JUDGE,
    STYLE_FILE,
    accuracy,
    context,
    generate_all,
    load_world,
    prompts,
    with_motion,
    with_style,
)

from frozen_diffusion.modules.demo.motion_oracle import read_clips
from frozen_diffusion.modules.demo.renderer import FRAMES
from frozen_diffusion.modules.demo.styles import STYLES
from frozen_diffusion.modules.demo.world import HELD_OUT, MOTIONS, Scene, random_scene

SEED, STEPS, CLIPS_AT_ONCE = 700, 20, 1
MOTION = os.environ.get("FROZEN_BENCH_MOTION", "sprite_harivo")


def draw(trained: int, held_out: int) -> tuple[list[Scene], list[Scene]]:
    """Scenes with pairs of the training, all motions equally often, and scenes that go through all held-out pairs."""
    rng = random.Random(SEED)
    seen, new, pairs = [], [], sorted(HELD_OUT)
    while len(seen) < trained:
        scene = random_scene(rng, clip=True)
        if scene.motion == MOTIONS[len(seen) % len(MOTIONS)]:
            seen.append(scene)
    while len(new) < held_out:
        scene = random_scene(rng, clip=True, held_out=True)
        if (scene.sprite, scene.motion) == pairs[len(new) % len(pairs)]:
            new.append(scene)
    return seen, new


def by_motion(asked: list[Scene], seen: tuple[Scene, ...]) -> dict[str, dict[str, int]]:
    """How often the oracle saw which motion, for each motion asked for."""
    counts = {}
    for want, got in zip(asked, seen, strict=True):
        counts.setdefault(want.motion, {}).setdefault(got.motion, 0)
        counts[want.motion][got.motion] += 1
    return counts


def run() -> dict:
    """Motion right on trained pairs, held-out pairs and under a style LoRA; sprite right, and the same throughout."""
    count = prompts(200)
    trained, new = draw(count // 2, count // 4)
    world = load_world()
    model = with_motion(world.model, FRAMES, MOTION)
    seen = {}
    for name, scenes, used in (("trained", trained, model), ("held out", new, model),
                               ("style", trained[:len(new)], with_style(model))):
        clips = generate_all(world, used, scenes, SEED, STEPS, CLIPS_AT_ONCE, CFG, FRAMES)
        seen[name] = read_clips(STYLES["swapped"](clips) if name == "style" else clips)
    asked, scenes = trained + new, seen["trained"].scenes + seen["held out"].scenes
    constant = torch.cat([seen["trained"].sprite_constant, seen["held out"].sprite_constant])
    figures = {
        "motion_trained": accuracy(trained, seen["trained"].scenes, "motion"),
        "motion_heldout": accuracy(new, seen["held out"].scenes, "motion"),
        "sprite": accuracy(asked, scenes, "sprite"),
        "sprite_constant": constant.float().mean().item(),
        "motion_style_lora": accuracy(trained[:len(new)], seen["style"].scenes, "motion"),
    }
    return {"figures": figures, "context": context(
        judge=JUDGE, seeds=[SEED], steps=STEPS, cfg=CFG, motion=MOTION, style=STYLE_FILE.name,
        prompts={"trained": len(trained), "held out": len(new), "style": len(new)},
        seen_by_motion_asked=by_motion(asked, scenes))}
