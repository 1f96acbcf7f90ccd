"""What each part of a guide does (guide_model.md 8.4): small trainings on sprite world that differ in one thing.

Rows of FROZEN_BENCH_STEPS steps (400) from the same trajectories: the tiny guide (not fed, so that it sees only what it
is given), without text, without g (always 5.5), without the latents, into the middle only, into the skips only, trained
on noised pictures in place of guided states; and the full guide from the base's weights and from random ones (a quarter
of the steps). Of each the FGU on states of guided sampling at g = 2 and 5, in the middle half of the noise levels
(`middle`), on noised pictures (`noised`), and `ratio`, the distance to real guidance over that of none (8 steps, g = 5,
16 prompts that no training saw). FROZEN_BENCH_SEEDS seeds (3) for the two rows closest to the whole guide by ratio.
About 20 minutes. Name: guide-ablation.
"""
from __future__ import annotations

import os
import random
import statistics
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from bench._sprite_world import context, load_world
from PIL import Image

from frozen_diffusion.modules.data.encoded import stack_texts
from frozen_diffusion.modules.demo.pool import draw_pool
from frozen_diffusion.modules.demo.world import caption, random_scene
from frozen_diffusion.modules.demo_training.guide import SIDE, prompts
from frozen_diffusion.modules.guide.distillation import guided
from frozen_diffusion.modules.guide.networks import Walk
from frozen_diffusion.modules.guide.recipe import BY_SCALE, GuideRecipe
from frozen_diffusion.modules.guide.rollout import distance_ratio, rollout
from frozen_diffusion.modules.guide.trajectories import States, grid
from frozen_diffusion.modules.host.guide.train import GuideSubject
from frozen_diffusion.modules.seeding import stream
from frozen_diffusion.modules.training.driver import Driver

STEPS, WHOLE, PICTURES, LOOKED = int(os.environ.get("FROZEN_BENCH_STEPS", 400)), "whole", 256, 16
RECIPE = GuideRecipe(steps=STEPS, learning_rate=4e-3, batch_size=4, trajectories=256, weighting=BY_SCALE, ema=0.99)
FULL = replace(RECIPE, kind="full", steps=max(2, STEPS // 4), learning_rate=1e-3)
FIXED_G = 5.5


class Masked:
    """A walk of which some residuals are left out."""

    def __init__(self, walk: Walk, skips: bool):
        self.walk, self.skips = walk, skips

    def skip(self, number: int, feature=None) -> torch.Tensor:
        residual = self.walk.skip(number, feature)
        return residual if self.skips else 0 * residual

    def middle(self) -> torch.Tensor:
        return 0 * self.walk.middle() if self.skips else self.walk.middle()


class Row(GuideSubject):
    """A guide that lacks one thing.

    Attributes:
        lacks: "text", "g", "latents", "skips", "middle", "start" (of a full guide: the base's weights) or "".
    """
    lacks = ""

    def predict(self, x, t, g, text, guide=None, negative=None):
        guide = guide or self.guide
        tokens = torch.zeros_like(text.tokens) if self.lacks == "text" else text.tokens
        walk = guide.walk(0 * x if self.lacks == "latents" else x, t,
                          torch.full_like(g, FIXED_G) if self.lacks == "g" else g, guide.read_text(tokens.to(x)))
        if self.lacks in ("skips", "middle"):
            walk = Masked(walk, skips=self.lacks == "middle")
        return self.base(x, t, text, walk)

    def build(self):
        guide = super().build()
        if self.lacks == "start":
            torch.manual_seed(self.recipe.seed)
            for module in [*guide.input_blocks.modules(), *guide.middle_block.modules(), *guide.time_embed.modules()]:
                if hasattr(module, "reset_parameters") and getattr(module, "weight", None) is not None:
                    for initial in (torch.nn.Linear, torch.nn.Conv2d, torch.nn.GroupNorm, torch.nn.LayerNorm):
                        if isinstance(module, initial):
                            initial.reset_parameters(module)
        return guide


@dataclass(frozen=True)
class Look:
    """What every row is measured on: states of guided sampling, noised pictures, and yardsticks of the ratio."""
    guided: list[States]
    noised: list[States]
    noise: torch.Tensor
    words: object
    plain: torch.Tensor
    real: torch.Tensor


@torch.no_grad()
def look_of(subject: GuideSubject, world) -> Look:
    """Made once, with real guidance."""
    base, levels, rng = subject.base, subject.levels, random.Random(77)
    scenes = [random_scene(rng) for _ in range(LOOKED)]
    words = stack_texts([subject.text(caption(scene)) for scene in scenes])
    empty = stack_texts([subject.text("")] * LOOKED)
    noise, g = torch.randn(LOOKED, *subject.size, generator=stream("look")), torch.full((LOOKED,), 5.0)
    found: list[States] = []

    def both(x, t):
        found.append(States(x.clone(), t.clone(), g, words, base(x, t, words), base(x, t, empty)))
        return found[-1]

    def follow(x, t):
        state = both(x, t)
        return guided(state.conditional, state.unconditional, g)

    real = rollout(follow, levels, noise, grid(8))
    plain = rollout(lambda x, t: base(x, t, words), levels, noise, grid(8))
    states, found[:] = list(found), []
    pictures = draw_pool(LOOKED, 0, seed=78)
    x0 = subject.model.model.process_latent_in(world.vae.encode(pictures.pixels.movedim(1, -1).float() / 255).cpu())
    words = stack_texts([subject.text(caption(scene)) for scene in pictures.scenes])
    for time in grid(8):
        t = torch.full((LOOKED,), time)
        both(levels.add_noise(x0, noise, t), t)
    return Look(states, list(found), noise, words=states[0].text, plain=plain, real=real)


@torch.no_grad()
def unexplained(row: GuideSubject, states: list[States], g: float) -> float:
    """FGU at a scale, over all of these states."""
    error = whole = 0.0
    for state in states:
        scale = torch.full((len(state.x),), g)
        made = row.predict(state.x, state.t, scale, state.text)
        error += float((made - guided(state.conditional, state.unconditional, scale)).square().sum())
        whole += float((g - 1) ** 2 * (state.conditional - state.unconditional).square().sum())
    return error / whole


def trained(world, row: str, recipe: GuideRecipe, cache: Path, lacks: str = "", pictures: Path | None = None
            ) -> GuideSubject:
    """A row after its training, with averaged weights."""
    subject = Row(world.model, world.vae, world.clip, prompts(), recipe, (SIDE, SIDE), cache=cache, pictures=pictures)
    subject.lacks = lacks
    driver = Driver(subject, None)
    with torch.inference_mode():
        for _ in driver.encode():
            pass
        for record in driver.records():
            if record.step % 100 == 0:
                print(f"{row} {record.step} {record.loss:.4f}", file=sys.stderr, flush=True)
    return subject


def measure(row: GuideSubject, look: Look) -> dict[str, float]:
    """The figures of a trained row."""
    with torch.inference_mode(False), torch.no_grad(), row.ema.applied(row.trained):
        g = torch.full((LOOKED,), 5.0)
        made = rollout(lambda x, t: row.predict(x, t, g, look.words), row.levels, look.noise, grid(8))
        return {"ratio": distance_ratio(made, look.plain, look.real), "fgu_2": unexplained(row, look.guided, 2.0),
                "fgu_5": unexplained(row, look.guided, 5.0), "middle": unexplained(row, look.guided[2:6], 5.0),
                "noised": unexplained(row, look.noised, 5.0)}


def picture_folder(path: Path) -> Path:
    """Drawn pictures with their captions."""
    pool = draw_pool(PICTURES, 0, seed=79)
    for number, (pixels, scene) in enumerate(zip(pool.pixels, pool.scenes, strict=True)):
        Image.fromarray(pixels.movedim(0, -1).numpy()).save(path / f"{number}.png")
        (path / f"{number}.txt").write_text(caption(scene), encoding="utf-8")
    return path


def run() -> dict:
    world, rows, look = load_world(), {}, None
    with tempfile.TemporaryDirectory() as folder:
        cache, pictures = Path(folder, "trajectories"), Path(folder, "pictures")
        pictures.mkdir()
        noised = replace(RECIPE, picture_share=1.0)
        kinds: dict[str, Callable[[int], GuideSubject]] = {
            WHOLE: lambda seed: trained(world, WHOLE, replace(RECIPE, seed=seed), cache),
            **{f"no {part}": lambda seed, part=part: trained(world, part, replace(RECIPE, seed=seed), cache, part)
               for part in ("text", "g", "latents", "skips", "middle")},
            "noised pictures": lambda seed: trained(world, "noised", replace(noised, seed=seed), cache,
                                                    pictures=picture_folder(pictures)),
            "full": lambda seed: trained(world, "full", replace(FULL, seed=seed), cache),
            "full from random": lambda seed: trained(world, "random", replace(FULL, seed=seed), cache, "start")}
        for name, make in kinds.items():
            subject = make(0)
            if look is None:
                with torch.inference_mode(False):
                    look = look_of(subject, world)
            rows[name] = measure(subject, look)
            print(name, rows[name], file=sys.stderr, flush=True)
        closest = sorted((name for name in kinds if name not in (WHOLE, "full", "full from random")),
                         key=lambda name: abs(rows[name]["ratio"] - rows[WHOLE]["ratio"]))[:2]
        seeds = range(int(os.environ.get("FROZEN_BENCH_SEEDS", 3)))
        spread = {name: [rows[name]["ratio"], *(measure(kinds[name](seed), look)["ratio"] for seed in seeds[1:])]
                  for name in (WHOLE, *closest)}
    figures = {f"{name.replace(' ', '_')}_ratio": row["ratio"] for name, row in rows.items()}
    whole = rows[WHOLE]
    figures |= {
        "no_text_worse": rows["no text"]["fgu_5"] > whole["fgu_5"],
        "no_g_worse_at_2": rows["no g"]["fgu_2"] > 1 > whole["fgu_2"],
        "no_latents_worse_in_the_middle": rows["no latents"]["middle"] > whole["middle"],
        "middle_only_worse": rows["no skips"]["fgu_5"] > whole["fgu_5"],
        "skips_only_worse": rows["no middle"]["fgu_5"] > whole["fgu_5"],
        "noised_worse_rollout": rows["noised pictures"]["ratio"] > whole["ratio"],
        "random_start_slower": rows["full from random"]["fgu_5"] > rows["full"]["fgu_5"]}
    return {"figures": figures, "context": context(steps=STEPS, rows=rows, spread={
        name: {"mean": statistics.mean(values), "values": values} for name, values in spread.items()})}
