"""The FurryGAN of the emoji world: cut-outs of 64x64, from pictures without a mask."""
from __future__ import annotations

from pathlib import Path

import torch

from ..data.images import ImageSettings
from ..demo.emoji import EmojiPictures
from ..furrygan.files import furry_tensors
from ..furrygan.recipe import FurryRecipe
from ..furrygan.training import FurrySubject, GuardedTraining
from .parts import follow, publish

NAME, PICTURES = "sprite_furry", 11_000
RECIPE = FurryRecipe(steps=14_000, size=64, style=128, cap=48, budget=2048, r1=0.2, phi=0.4, ramp=2000,
                     precision="bf16", checkpoint_every=250, sample_every=1000)


def train_furry(runs: Path) -> Path:
    """It resumes from runs/sprite_furry.safetensors, and leaves its samples beside it."""
    from ..host.train_command import show
    subject = FurrySubject(EmojiPictures(PICTURES, ImageSettings(RECIPE.size, RECIPE.size)), RECIPE)
    driver = GuardedTraining(subject, runs / f"{NAME}.safetensors")
    with torch.inference_mode():
        def shown():
            for record in driver.records():
                yield record
                if record.step % RECIPE.sample_every == 0:
                    show(driver, runs / NAME, record.step)

        hours = follow(shown(), driver.steps)
        tensors, told = furry_tensors(driver.result())
    return publish(NAME, tensors, "FurryGAN of the emoji world: foreground, background and alpha from a seed, trained "
                   "without masks.", "python -m frozen_diffusion.cli demo-train furry", RECIPE.settings(), hours, {},
                   told)
