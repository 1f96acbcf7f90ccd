"""The guide on fine-tunes that it never saw: the style LoRA sprite_swapped, and sprite_web at strength .5.

`gap_closed`: of the gap between no guidance and the fine-tune's own real guidance in pictures that are right in every
attribute, the share that the guide closes. As a control the same guide's residuals on another random base: there they
should bring nothing, `control_ratio` is the distance to that base's own guidance over that of no guidance.
FROZEN_BENCH_PROMPTS sets the prompts (96). Name: guide-plug.
"""
from __future__ import annotations

from dataclasses import asdict

import torch
from bench._guide import SEED, STEPS, G, guide_file, latents, marks, ratio, scenes, with_guide, with_lora
from bench._sprite_world import JUDGE, context, load_world, prompts

ARENAS = {"swapped": ("sprite_swapped", 1.0, True), "web": ("sprite_web", 0.5, False)}
CONTROL = 24                # prompts on the random base


def run() -> dict:
    world, asked, loaded = load_world(), scenes(prompts(96)), guide_file("sprite_guide")
    figures, rows = {}, {}
    for name, (lora, strength, swapped) in ARENAS.items():
        model = with_lora(world.model, lora, strength)
        ways = {"plain": latents(world, model, asked, 1.0), "cfg": latents(world, model, asked, G),
                "guide": latents(world, with_guide(model, loaded), asked, G)}
        found = {way: marks(world, made, asked, swapped) for way, made in ways.items()}
        gap = found["cfg"].all - found["plain"].all
        figures[f"gap_closed_{name}"] = (found["guide"].all - found["plain"].all) / gap if gap else float("nan")
        figures[f"ratio_{name}"] = ratio(ways["guide"], ways["plain"], ways["cfg"])
        rows[name] = {way: asdict(each) for way, each in found.items()}
    control = world.model.clone()
    generator = torch.Generator().manual_seed(3)
    weights = dict(world.model.model.diffusion_model.named_parameters())
    # Another base of the same shape: every weight's numbers in another order.
    patches = {f"diffusion_model.{name}": ("set", (weight.detach().flatten()[torch.randperm(
        weight.numel(), generator=generator)].view_as(weight),)) for name, weight in weights.items()}
    control.add_patches(patches, 1.0, 0.0)
    few = asked[:CONTROL]
    plain, real = latents(world, control, few, 1.0), latents(world, control, few, G)
    figures["control_ratio"] = ratio(latents(world, with_guide(control, loaded), few, G), plain, real)
    return {"figures": figures, "context": context(judge=JUDGE, seeds=[SEED], steps=STEPS, g=G, prompts=len(asked),
                                                   marks=rows)}
