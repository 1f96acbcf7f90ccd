"""The guide models of sprite world: stage 1, and stage 2 for eight and four steps (guide_model.md 10)."""
from __future__ import annotations

import random
from pathlib import Path

import torch

from ..demo.world import caption, random_scene
from ..guide.recipe import GuideRecipe
from ..training.driver import Driver
from .parts import follow

PROMPTS, SIDE = 648, 128
STAGE_1 = GuideRecipe(steps=3000, learning_rate=4e-3, batch_size=8, trajectories=640, ema=0.99, checkpoint_every=100)


def prompts() -> list[str]:
    """Captions of drawn pictures."""
    rng = random.Random(5)
    return [caption(random_scene(rng)) for _ in range(PROMPTS)]


def trained(name: str, recipe: GuideRecipe, runs: Path, warm=None):
    """(subject, what it made, hours) of a training on the shipped base; it resumes from runs/NAME.safetensors."""
    from ..host.demo import load_sprite_world
    from ..host.guide.train import GuideSubject
    model, clip, vae = load_sprite_world()[:3]
    subject = GuideSubject(model, vae, clip, prompts(), recipe, (SIDE, SIDE), warm, runs / "guide_trajectories")
    driver = Driver(subject, runs / f"{name}.safetensors")
    with torch.inference_mode():
        for done, total in driver.encode():
            if done % 80 == 0:
                print(f"trajectories: {done} of {total}", flush=True)
        hours = follow(driver.records(), driver.steps)
        driver.sample()
        print(subject.measured, flush=True)
        return subject, driver.result(), hours


def train_guide(runs: Path) -> Path:
    """Stage 1."""
    subject, made, hours = trained("sprite_guide", STAGE_1, runs)
    torch.save(made, runs / "sprite_guide.pt")
    return runs / "sprite_guide.pt"
