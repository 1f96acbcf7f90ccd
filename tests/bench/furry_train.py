"""What a training step of FurryGAN costs: `step_seconds` and `peak_gib` at 64x64 as shipped, on random pictures; with a
GPU also at the official 256x256. The mean of a whole round of lazy penalties. Name: furry-train.
"""
from __future__ import annotations

import resource
import statistics
from dataclasses import replace

import torch
from bench._sprite_world import context

from frozen_diffusion.modules.data.images import ImageSettings
from frozen_diffusion.modules.demo.emoji import SPRITE, EmojiPictures
from frozen_diffusion.modules.demo_training.furry import RECIPE
from frozen_diffusion.modules.furrygan.recipe import LAZY_R1, FurryRecipe
from frozen_diffusion.modules.furrygan.training import FurrySubject
from frozen_diffusion.modules.training.driver import Driver


def measured(recipe: FurryRecipe, device: str) -> tuple[float, float]:
    """(seconds of a step, GiB)."""
    recipe = replace(recipe, steps=LAZY_R1 + 2)
    source = EmojiPictures(256, ImageSettings(recipe.size, recipe.size), world=SPRITE)
    records = list(Driver(FurrySubject(source, recipe, device)).records())
    peak = torch.cuda.max_memory_allocated() if device == "cuda" else 1024 * resource.getrusage(
        resource.RUSAGE_SELF).ru_maxrss
    return statistics.fmean(record.seconds for record in records[2:]), peak / 2 ** 30


def run() -> dict:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    seconds, peak = measured(RECIPE, device)
    figures = {"step_seconds": seconds, "peak_gib": peak}
    if device == "cuda":
        seconds, peak = measured(FurryRecipe(), device)
        figures |= {"step_seconds_256": seconds, "peak_gib_256": peak}
    return {"figures": figures, "context": context(device=device, precision=RECIPE.precision)}
