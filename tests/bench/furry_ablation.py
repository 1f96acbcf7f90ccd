"""What each ingredient of FurryGAN does: runs of 2000 steps at 32x32, the same seed, each without one (furrygan.md 8).

Of each: what furry-masks measures on 500 samples with psi 1, and `complete`, the whole run's discriminator's mean logit
on the run's bare foregrounds less that on real pictures: lower is less of a whole picture. FROZEN_BENCH_STEPS sets the
steps, FROZEN_BENCH_ROWS the rows by their names, parted by commas. About twelve minutes a run on one core; runs that
ended are kept in runs/furry_ablation. Wants the font fonts-noto-color-emoji. Name: furry-ablation.
"""
from __future__ import annotations

import os
import sys
from dataclasses import replace

import torch
from bench._furry import Networks, held_out, hint_miou, mask_figures, teacher
from bench._sprite_world import context
from torch import Tensor

from frozen_diffusion.modules.data.images import ImageSettings
from frozen_diffusion.modules.demo.emoji import EmojiPictures
from frozen_diffusion.modules.files.atomic_write import write_atomically
from frozen_diffusion.modules.furrygan.files import furry_tensors, read_furry_file
from frozen_diffusion.modules.furrygan.recipe import FurryRecipe
from frozen_diffusion.modules.furrygan.training import FurrySubject
from frozen_diffusion.modules.host.boot import PACK
from frozen_diffusion.modules.training.driver import Driver

STEPS, PICTURES, SAMPLES = int(os.environ.get("FROZEN_BENCH_STEPS", 2000)), 11_000, 500
WHOLE = FurryRecipe(steps=STEPS, size=32, style=128, cap=48, budget=1024, r1=0.1, phi=0.4, ramp=STEPS * 3 // 4)
ROWS = {"whole": WHOLE, "no dual fakes": replace(WHOLE, dual_fakes=False),
        "no mask prediction": replace(WHOLE, prediction=False), "no participation": replace(WHOLE, participation=False),
        "no area": replace(WHOLE, area=False), "no fine": replace(WHOLE, fine=False)}


def trained(name: str, recipe: FurryRecipe) -> Networks:
    """A run's networks; it goes on where it was, and is kept."""
    folder = PACK / "runs" / "furry_ablation"
    path = folder / f"{name.replace(' ', '_')}_{recipe.steps}.safetensors"
    if not path.is_file():
        source = EmojiPictures(PICTURES, ImageSettings(recipe.size, recipe.size))
        subject = FurrySubject(source, recipe)
        subject.guarded = ()            # masks that show the surroundings are a result here
        driver = Driver(subject, path.with_suffix(".training.safetensors"))
        for record in driver.records():
            if record.step % 250 == 0:
                print(name, record.step, record.extras, file=sys.stderr, flush=True)
        write_atomically(path, *furry_tensors(driver.result()), "The FurryGAN")
    return Networks.of(read_furry_file(path))


@torch.no_grad()
def logit(judge: Networks, pictures: Tensor) -> float:
    return float(torch.cat([judge.discriminator(part)[0] for part in pictures.split(100)]).mean())


def run() -> dict:
    names = os.environ.get("FROZEN_BENCH_ROWS", ",".join(ROWS)).split(",")
    judge, own = teacher(WHOLE.size)
    whole, rows = trained("whole", WHOLE), {}
    real = logit(whole, held_out(WHOLE.size)[0])
    for name in names:
        networks = trained(name, ROWS[name])
        rows[name], cutouts = mask_figures(networks, judge, SAMPLES, 1.0)
        rows[name]["complete"] = logit(whole, 2 * cutouts.foreground.movedim(-1, 1) - 1) - real
        if ROWS[name].prediction:
            rows[name]["daux_real"] = hint_miou(networks)
        print(name, rows[name], file=sys.stderr, flush=True)
    figures = {f"{figure} {name}": value for name, row in rows.items() for figure, value in row.items()}
    return {"figures": figures, "context": context(teacher=own, phi=WHOLE.phi, steps=STEPS, samples=SAMPLES)}
