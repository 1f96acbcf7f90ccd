"""The guide models of sprite world: stage 1, stage 2 for eight and for four steps, one that reads the negative prompt,
and a full guide for comparison (guide_model.md 10).
"""
from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch

from ..demo.world import COLOURS, SPRITES, TEXTURE_WORDS, Scene, caption, random_scene
from ..guide.files import FULL, to_metadata, write_guide
from ..guide.recipe import BY_SCALE, GuideRecipe
from ..training.driver import Driver
from .parts import follow, publish

PROMPTS, SIDE = 648, 128
STAGE_1 = GuideRecipe(steps=9000, learning_rate=1.2e-2, batch_size=4, trajectories=640, fed=True, weighting=BY_SCALE,
                      optimizer="muon-conv", ema=0.999, checkpoint_every=200)
ROUNDS = 2
OWN_STATES = replace(STAGE_1, steps=1600, learning_rate=4e-3, trajectories=240, own_states=True, ema=0.995)
STAGE_2 = GuideRecipe(steps=700, learning_rate=4e-3, batch_size=4, trajectories=320, optimizer="muon-conv", ema=0.99,
                      checkpoint_every=100, student_steps=8)
NEGATIVE = replace(STAGE_1, steps=1400, learning_rate=4e-3, trajectories=224, ema=0.99)
WHOLE_GUIDE = GuideRecipe(steps=1500, learning_rate=1e-3, batch_size=4, kind=FULL, trajectories=640, weighting=BY_SCALE,
                          ema=0.99, checkpoint_every=100)


def prompts() -> list[str]:
    """Captions of drawn pictures."""
    rng = random.Random(5)
    return [caption(random_scene(rng)) for _ in range(PROMPTS)]


def open_prompts() -> list[str]:
    """Captions, two of three of which leave the background to the negative prompt."""
    rng = random.Random(6)
    scenes = [random_scene(rng) for _ in range(PROMPTS)]
    return [without_background(scene) if number % 3 else caption(scene) for number, scene in enumerate(scenes)]


def without_background(scene: Scene) -> str:
    """A caption that says nothing of the background."""
    return caption(scene).partition(f" a {scene.colour} ")[0].removesuffix(" of").removesuffix(" on")


def negatives() -> list[str]:
    """What pictures can be guided away from: phrases of a part, for whole captions break the picture."""
    words = [word for forms in TEXTURE_WORDS.values() for word in forms]
    return [f"a {word} background" for word in (*words, *COLOURS)] + [f"a {sprite}" for sprite in SPRITES]


def trained(name: str, recipe: GuideRecipe, runs: Path, words: Sequence[str], **more):
    """(subject, what it made, hours) of a training on the shipped base; it resumes from runs/NAME.safetensors."""
    from ..host.demo import load_sprite_world
    from ..host.guide.train import GuideSubject
    model, clip, vae = load_sprite_world()[:3]
    subject = GuideSubject(model, vae, clip, words, recipe, (SIDE, SIDE), cache=runs / "guide_trajectories", **more)
    driver = Driver(subject, runs / f"{name}.safetensors")
    with torch.inference_mode():
        for done, total in driver.encode():
            if done % 80 == 0:
                print(f"trajectories: {done} of {total}", flush=True)
        hours = follow(driver.records(), driver.steps)
        driver.sample()
        print(subject.measured, flush=True)
        return subject, driver.result(), hours


def published(name: str, recipe: GuideRecipe, what: str, part: str, runs: Path, words: Sequence[str] = (),
              run: str = "", **more) -> Path:
    """Train a guide and write it with its card. run: of the checkpoint, if not the guide's name."""
    subject, made, hours = trained(run or name, recipe, runs, words or prompts(), **more)
    figures = {key.replace("FGU", "guidance unexplained at g ="): value for key, value in subject.measured.items()}
    figures["distance to real guidance, of none, on held-out prompts"] = figures.pop("ratio")
    return publish(f"guides/{name}", made.network.state_dict(), what,
                   f"python -m frozen_diffusion.cli demo-train {part}", recipe.settings(), hours, figures,
                   {**made.metadata, **to_metadata(made.config)})


def shipped(name: str):
    """A guide of the pack to start from."""
    from ..host.folders import SHIPPED
    from ..host.guide.files import find_guide, load_guide
    return load_guide(find_guide(f"{SHIPPED}{name}.safetensors"))


def train_guide(runs: Path) -> Path:
    """Stage 1: any sampler and number of steps. On states of real guidance, then in rounds on those it comes to."""
    def write(recipe: GuideRecipe, **more) -> Path:
        return published("sprite_guide", recipe, "Guide model of sprite world: guidance in one pass. A reconstruction; "
                         "see the README.", "guide", runs, **more)

    path = write(STAGE_1)
    for number in range(ROUNDS):
        path = write(replace(OWN_STATES, seed=number), run=f"sprite_guide_own_{number}", warm=shipped("sprite_guide"))
    return path


def train_guide_8(runs: Path) -> Path:
    """Stage 2: the shipped guide learns to sample in eight steps."""
    return published("sprite_guide_8", STAGE_2, "Guide model of sprite world for eight steps (stage 2). Use it with "
                     "Stage-2 Sigmas and euler.", "guide-8", runs, warm=shipped("sprite_guide"))


def train_guide_4(runs: Path) -> Path:
    """Stage 2 once more: eight steps become four."""
    return published("sprite_guide_4", replace(STAGE_2, student_steps=4), "Guide model of sprite world for four steps "
                     "(stage 2, twice). Use it with Stage-2 Sigmas and euler.", "guide-4", runs,
                     warm=shipped("sprite_guide_8"))


def train_guide_negative(runs: Path) -> Path:
    """The shipped guide learns to read the negative prompt."""
    return published("sprite_guide_negative", NEGATIVE, "Negative-aware guide model of sprite world: guidance away "
                     "from a negative prompt in one pass.", "guide-negative", runs, open_prompts(),
                     warm=shipped("sprite_guide"), negatives=negatives())


def train_guide_full(runs: Path) -> Path:
    """A full guide, for comparison, with a round on its own states; it stays in `runs`, for it is 4 M parameters."""
    path = runs / "sprite_guide_full.safetensors"

    def write(recipe: GuideRecipe, run: str, **more):
        made = trained(run, recipe, runs, prompts(), **more)[1]
        write_guide(path, made.config, made.network.state_dict(), made.metadata)
        return made

    first = write(WHOLE_GUIDE, "sprite_guide_full_run")
    write(replace(WHOLE_GUIDE, steps=800, learning_rate=5e-4, trajectories=240, own_states=True),
          "sprite_guide_full_own", warm=first)
    return path
