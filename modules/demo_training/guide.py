"""The guide models of sprite world: stage 1, and stage 2 for eight and four steps (guide_model.md 10)."""
from __future__ import annotations

import random
from pathlib import Path

import torch

from ..demo.world import caption, random_scene
from ..guide.files import to_metadata
from ..guide.recipe import GuideRecipe
from ..training.driver import Driver
from .parts import follow, publish

PROMPTS, SIDE = 648, 128
STAGE_1 = GuideRecipe(steps=3000, learning_rate=4e-3, batch_size=8, trajectories=640, ema=0.99, checkpoint_every=100)
STAGE_2 = GuideRecipe(steps=700, learning_rate=1e-3, batch_size=8, trajectories=320, ema=0.99, checkpoint_every=100,
                      student_steps=8)


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


def published(name: str, recipe: GuideRecipe, what: str, part: str, runs: Path, warm=None) -> Path:
    """Train a guide and write it with its card."""
    subject, made, hours = trained(name, recipe, runs, warm)
    figures = {key.replace("FGU", "guidance unexplained at g ="): value for key, value in subject.measured.items()}
    figures["distance to real guidance, of none, on held-out prompts"] = figures.pop("ratio")
    return publish(f"guides/{name}", made.network.state_dict(), what, f"python -m frozen_diffusion.cli demo-train "
                                                                      f"{part}",
                   recipe.settings(), hours, figures, {**made.metadata, **to_metadata(made.config)})


def train_guide(runs: Path) -> Path:
    """Stage 1: any sampler and number of steps."""
    return published("sprite_guide", STAGE_1, "Guide model of sprite world: guidance in one pass. A reconstruction; "
                                              "see "
                     "the README.", "guide", runs)


def train_guide_8(runs: Path) -> Path:
    """Stage 2: the shipped guide learns to sample in eight steps."""
    from ..host.guide.files import find_guide, load_guide
    first = load_guide(find_guide("frozen-diffusion/sprite_guide.safetensors"))
    return published("sprite_guide_8", STAGE_2, "Guide model of sprite world for eight steps (stage 2). Use it with "
                     "Stage-2 Sigmas and euler.", "guide-8", runs, first)
