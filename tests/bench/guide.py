"""Guidance in one pass: the shipped tiny guide at g = 5 in 8 steps, beside real guidance and none.

`all` is the share of pictures in which the oracle finds all that was asked for, `confidence_over_cfg` its
confidence over that in real guidance's pictures, `ratio` the squared distance of latents to real guidance's over that
of samples without guidance, `fgu` the fraction of guidance unexplained on states of guided sampling (1 = no guide),
`fgu_g2_minus_g5` what it is higher at g = 2. `full_ratio` is that of the full guide, which is no part of the pack: it
is measured where `demo-train guide-full` (25 minutes) has left it in runs/. FROZEN_BENCH_PROMPTS sets the prompts (96).
"""
from __future__ import annotations

from dataclasses import asdict

import torch
from bench._guide import SEED, STEPS, G, guide_file, latents, marks, ratio, scenes, with_guide
from bench._sprite_world import JUDGE, context, load_world, prompts

from frozen_diffusion.modules.data.encoded import stack_texts
from frozen_diffusion.modules.demo.world import caption
from frozen_diffusion.modules.guide.distillation import guided
from frozen_diffusion.modules.guide.trajectories import grid
from frozen_diffusion.modules.host.boot import PACK
from frozen_diffusion.modules.host.codec import HostText
from frozen_diffusion.modules.host.guide.base import FrozenBase
from frozen_diffusion.modules.host.guide.files import load_guide
from frozen_diffusion.modules.host.noise_levels import noise_levels
from frozen_diffusion.modules.seeding import stream

FULL_GUIDE = PACK / "runs" / "sprite_guide_full.safetensors"
SCALES, STATES = (2.0, 3.0, 5.0, 9.0), 32       # prompts from whose guided sampling states are taken


@torch.no_grad()
def unexplained(world, network) -> dict[float, float]:
    """FGU by scale: summed over the states of guided sampling in eight steps of prompts that no training saw."""
    base, levels, text = FrozenBase(world.model), noise_levels(world.model), HostText(world.clip)
    asked = [caption(scene) for scene in scenes(STATES)]
    words, empty = stack_texts([text.text(prompt) for prompt in asked]), stack_texts([text.text("")] * STATES)
    x = torch.randn(STATES, 4, 16, 16, generator=stream("fgu", SEED))
    errors, whole = dict.fromkeys(SCALES, 0.0), dict.fromkeys(SCALES, 0.0)
    times = grid(STEPS)
    for step, time in enumerate(times):
        t = torch.full((STATES,), time)
        conditional, unconditional = base(x, t, words), base(x, t, empty)
        for g in SCALES:
            scale = torch.full((STATES,), g)
            made = base(x, t, words, network.walk(x, t, scale, network.read_text(words.tokens)))
            errors[g] += float((made - guided(conditional, unconditional, scale)).square().sum())
            whole[g] += float((g - 1) ** 2 * (conditional - unconditional).square().sum())
        if step + 1 < len(times):
            x0, eps = levels.split(x, guided(conditional, unconditional, torch.full((STATES,), G)), t)
            x = levels.add_noise(x0, eps, torch.full_like(t, times[step + 1]))
    return {g: errors[g] / whole[g] for g in SCALES}


def run() -> dict:
    world, asked, loaded = load_world(), scenes(prompts(96)), guide_file("sprite_guide")
    plain, real = latents(world, world.model, asked, 1.0), latents(world, world.model, asked, G)
    made = latents(world, with_guide(world.model, loaded), asked, G)
    judged = {"plain": marks(world, plain, asked), "cfg": marks(world, real, asked), "guide": marks(world, made, asked)}
    fgu = unexplained(world, loaded.network.float())
    figures = {"all": judged["guide"].all, "confidence_over_cfg": judged["guide"].confidence / judged["cfg"].confidence,
               "ratio": ratio(made, plain, real), "fgu": sum(fgu.values()) / len(fgu),
               "fgu_g2_minus_g5": fgu[2.0] - fgu[5.0]}
    if FULL_GUIDE.is_file():
        whole = latents(world, with_guide(world.model, load_guide(FULL_GUIDE)), asked, G)
        figures["full_ratio"], judged["full guide"] = ratio(whole, plain, real), marks(world, whole, asked)
    parameters = [sum(weight.numel() for weight in network.parameters())
                  for network in (loaded.network, world.model.model.diffusion_model)]
    return {"figures": figures, "context": context(
        judge=JUDGE, seeds=[SEED], steps=STEPS, g=G, prompts=len(asked), fgu_by_g=fgu,
        marks={name: asdict(found) for name, found in judged.items()}, parameters=parameters)}
