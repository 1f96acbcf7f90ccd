"""Guides of stage 2 in 8 and in 4 steps: how much closer than the guide of stage 1 they come to their teacher.

`teacher_8` and `teacher_4`: squared distance of their latents to those of the stage-1 guide in 25 steps (euler, from
the same noise), over that of the stage-1 guide itself in as few steps; `teacher_16_over_8` is the larger of the two.
`all_web_4`: of the badly captioned fine-tune sprite_web at strength .5, the share of pictures that are right in every
attribute in 4 steps. g = 5. FROZEN_BENCH_PROMPTS sets the prompts (96). Name: guide-steps.
"""
from __future__ import annotations

from dataclasses import asdict

import torch
from bench._guide import SEED, G, guide_file, latents, marks, scenes, with_guide, with_lora
from bench._sprite_world import JUDGE, context, load_world, prompts

TEACHER_STEPS, STUDENTS = 25, {8: "sprite_guide_8", 4: "sprite_guide_4"}


def run() -> dict:
    world, asked = load_world(), scenes(prompts(96))
    first = with_guide(world.model, guide_file("sprite_guide"))
    teacher = latents(world, first, asked, G, TEACHER_STEPS)
    figures, rows = {}, {"teacher": asdict(marks(world, teacher, asked))}
    for steps, name in STUDENTS.items():
        loaded = guide_file(name)
        sigmas = torch.tensor(loaded.config.sigmas)
        student = latents(world, with_guide(world.model, loaded), asked, G, sigmas=sigmas)
        before = latents(world, first, asked, G, sigmas=sigmas)
        far, near = (float((made - teacher).square().mean()) for made in (before, student))
        figures[f"teacher_{steps}"] = near / far
        rows |= {f"stage 2, {steps} steps": asdict(marks(world, student, asked)),
                 f"stage 1, {steps} steps": asdict(marks(world, before, asked))}
    figures["teacher_16_over_8"] = max(figures.values())
    web, last = with_lora(world.model, "sprite_web", 0.5), guide_file(STUDENTS[4])
    made = latents(world, with_guide(web, last), asked, G, sigmas=torch.tensor(last.config.sigmas))
    figures["all_web_4"] = marks(world, made, asked).all
    return {"figures": figures, "context": context(judge=JUDGE, seeds=[SEED], g=G, prompts=len(asked),
                                                   teacher_steps=TEACHER_STEPS, marks=rows)}
