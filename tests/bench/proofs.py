"""Do the claims of HARIVO's parts hold here: the identities, as tests of the suite, and the behaviour, by training.

The numbers are those of the list in the method's specification: 1 to 9 numeric, 10 to 13 behavioural. 10 to 12 compare
modules trained without one part or loss, on clips that no training has seen: those of the toy, trained here, and those
of sprite world if the rows of the ablation are there (`demo-train harivo-ablation`). 13 is of sprite world.

`dc_gain` is what the DC loss alone buys on the toy, the worst of three seeds (FROZEN_BENCH_SEEDS). FROZEN_BENCH_QUICK=1
measures that and nothing else, with one seed.
"""
from __future__ import annotations

import os
import shlex
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Protocol

import torch
from bench._moving_squares import RECIPE, Toy
from bench._sprite_world import CFG, JUDGE, context, generate, load_world
from bench.harivo_ablation import RUNS, row_file, sampled_model, scenes_for
from bench.mg import run as measure_mg
from torch import Tensor
from torch.nn import functional

from frozen_diffusion.modules.clips.flicker import clip_figures
from frozen_diffusion.modules.data.clips import ClipSettings
from frozen_diffusion.modules.data.encoded import Text
from frozen_diffusion.modules.demo.clips import SpriteClips
from frozen_diffusion.modules.demo.renderer import FRAMES, render
from frozen_diffusion.modules.demo.world import caption
from frozen_diffusion.modules.demo_training.harivo import ablation_file
from frozen_diffusion.modules.host.boot import PACK
from frozen_diffusion.modules.host.codec import HostCodec
from frozen_diffusion.modules.host.motion.files import load_motion_file
from frozen_diffusion.modules.host.motion.frozen_copy import FrozenCopy
from frozen_diffusion.modules.host.noise_levels import noise_levels
from frozen_diffusion.modules.motion.smoothness import trs_loss
from frozen_diffusion.modules.seeding import stream
from frozen_diffusion.modules.training.denoising import NoiseLevels

NUMERIC = {
    "1 temporal transformer is diffusers'": "tests/unit/test_motion_transformer.py",
    "2 families, names and counts": "tests/unit/test_motion_files.py",
    "3 fresh parts leave the model": "tests/unit/test_mapping.py tests/host/test_harivo_training.py",
    "4 mitigating gradient": "tests/unit/test_mitigating_gradient.py tests/host/test_harivo_sampling.py",
    "5 contrastive loss": "tests/unit/test_smoothness.py -k 'dc or queue or contrast or negatives'",
    "6 attention loss": "tests/unit/test_smoothness.py tests/host/test_harivo_training.py -k trs",
    "7 group norms": "tests/host/test_motion_splice.py",
    "8 noise priors": "tests/unit/test_clip_noise.py",
    "9 host": "tests/host/test_motion_apply.py tests/host/test_motion_splice.py",
}
CLIPS, CLIP_SEED, PROMPTS = 24, 77, 8
TIMES = (150, 350, 550, 750, 950)


class Case(Protocol):
    """Where the behaviour is looked at: a frozen U-Net with the modules of several rows, and clips none has seen."""

    latents: Tensor                     # [N, F, 4, h, w], the VAE's
    texts: list[Text]
    levels: NoiseLevels

    def unet(self, row: str) -> FrozenCopy: ...
    def clips(self, row: str, count: int) -> Iterable[tuple[Tensor, Tensor]]: ...   # sampled and true, [F, 3, H, W]


def rows_are_there() -> bool:
    """Whether the ablation's rows have been trained."""
    return all(ablation_file(RUNS, row).is_file() for row in ("no_mapping", "no_tokens", "no_trs", "no_dc"))


class SpriteWorld:
    """The shipped U-Net and the rows of the ablation."""

    def __init__(self):
        self.world, self.rows = load_world(), {}
        clips = SpriteClips(CLIPS, ClipSettings(frames=FRAMES), seed=CLIP_SEED)
        codec = HostCodec(self.world.vae, self.world.clip)
        self.latents = torch.stack([codec.latents(clips.pixels(index)) for index in range(CLIPS)])
        self.texts = [codec.text(clips.caption(index)) for index in range(CLIPS)]
        self.levels = noise_levels(self.world.model)

    def unet(self, row: str) -> FrozenCopy:
        if row not in self.rows:
            module = load_motion_file(row_file(row))[0].module.float()
            self.rows[row] = FrozenCopy(self.world.model, module, FRAMES, gradient_checkpointing=False, watch=True)
        return self.rows[row]

    def clips(self, row: str, count: int) -> Iterator[tuple[Tensor, Tensor]]:
        scenes, model = scenes_for(count), sampled_model(self.world, row)
        truth = render(scenes, torch.Generator().manual_seed(0), FRAMES)[0]
        for number, (scene, true) in enumerate(zip(scenes, truth, strict=True)):
            yield generate(self.world, model, [caption(scene)], 50 + number, 20, CFG, FRAMES)[0], true


@torch.no_grad()
def passes(case: Case, unet: FrozenCopy, look: Callable[[Tensor], float]) -> float:
    """Mean over the unseen clips, each with its own noise and level, of look(squared error [1, F, 4, h, w])."""
    found = []
    for index, text in enumerate(case.texts):
        x0 = unet.latents_in(case.latents[index:index + 1]).to(unet.device)
        eps = torch.randn(x0.shape, generator=stream("validation", index)).to(unet.device)
        t = torch.tensor([TIMES[index % len(TIMES)]], device=unet.device)
        predicted = unet(case.levels.add_noise(x0, eps, t), t, text)
        found.append(look((predicted - case.levels.target(x0, eps, t)).square()))
    return statistics.fmean(found)


def mapping_brings_flicker_nearer_to_the_truth(case: Case) -> tuple[bool, dict]:
    error = {}
    for row in ("full", "no_mapping"):
        figures = [(clip_figures(made), clip_figures(true)) for made, true in case.clips(row, PROMPTS)]
        error[row] = {name: statistics.fmean(abs(getattr(made, name) - getattr(true, name)) for made, true in figures)
                      for name in ("d1", "r")}
    frames = case.latents.shape[1]
    unet = case.unet("full")
    noise = torch.randn(case.latents[0].shape, generator=stream("mapped noise")).to(unet.device)
    with torch.no_grad():
        mapped = unet.module.map_noise(noise, torch.full((frames,), 999.0, device=unet.device), frames)
    alike = {name: functional.cosine_similarity(x[1:].flatten(1), x[:-1].flatten(1)).mean().item()
             for name, x in (("noise", noise), ("mapped", mapped))}
    return (all(error["full"][name] < error["no_mapping"][name] for name in ("d1", "r")),
            {"error": error, "neighbour_correlation": alike})


def tokens_help_and_know_their_frame(case: Case) -> tuple[bool, dict]:
    full, frames = case.unet("full"), case.latents.shape[1]
    losses = {row: passes(case, case.unet(row), lambda error: error.mean().item()) for row in ("full", "no_tokens")}
    module, plain = full.module, full.module.add_tokens
    order = torch.randperm(frames, generator=stream("frames"))
    module.add_tokens = lambda text, seconds: plain(text, seconds[order])
    losses["shuffled"] = passes(case, full, lambda error: error.mean().item())
    module.add_tokens = plain
    with torch.no_grad():
        text, seconds = (x.to(full.device) for x in (case.texts[0].tokens, torch.arange(frames) / module.config.fps))
        tokens = module.harivo["tok"](text, seconds)[0].flatten(1)
    alike = functional.cosine_similarity(tokens[1:], tokens[:-1]).max().item()
    return (losses["full"] < losses["no_tokens"] and losses["shuffled"] > losses["full"] and alike < 0.999,
            {"loss": losses, "most_alike_tokens": alike})


def looks(case: Case, unet: FrozenCopy) -> dict[str, float]:
    """What the unseen clips show of TRS and DC: the distance of neighbouring frames' attention maps, the cosine of
    neighbouring frames' pooled h (within) and of different clips' mean h (between), and the denoising error (loss).
    """
    distances, pooled = [], []

    def look(error: Tensor) -> float:
        features = unet.features()
        distances.append(trs_loss(features.attention).item())
        pooled.append(functional.normalize(features.h[0], dim=1))
        return error.mean().item()

    loss, count = passes(case, unet, look), len(case.texts)
    within = statistics.fmean((h[:-1] * h[1:]).sum(1).mean().item() for h in pooled)
    means = functional.normalize(torch.stack([h.mean(0) for h in pooled]), dim=1)
    between = ((means @ means.T).sum() - count).item() / (count * (count - 1))
    return {"attention_distance": statistics.fmean(distances), "within": within, "between": between,
            "within_minus_between": within - between, "loss": loss}


def losses_do_what_they_are_for(case: Case) -> tuple[bool, dict]:
    seen = {row: looks(case, case.unet(row)) for row in ("full", "no_trs", "no_dc")}
    nearer = seen["full"]["attention_distance"] < seen["no_trs"]["attention_distance"]
    apart = seen["full"]["within_minus_between"] > seen["no_dc"]["within_minus_between"]
    return nearer and apart, seen


def dc_gain(toy: Toy, seeds: int, rows: Iterable[str] = ("without", "with", "no_head")) -> tuple[float, dict]:
    """What DC alone changes in within less between, in the seed where it is least, and all that was measured.

    TRS is off; the rows are trained without DC, with it, and with it but without its projection head.
    """
    recipe, measured = replace(RECIPE, trs=0.0), {}
    recipes = {"without": replace(recipe, dc=0.0), "with": recipe, "no_head": replace(recipe, dc_head="none")}
    for seed in range(seeds):
        seen = {row: looks(toy, toy.trained_by(replace(recipes[row], seed=seed), f"{row} DC, seed {seed}"))
                for row in rows}
        without = seen["without"]
        for row in seen.keys() - {"without"}:
            seen[row] |= {"gain": seen[row]["within_minus_between"] - without["within_minus_between"],
                          "loss_over_without": seen[row]["loss"] / without["loss"]}
        measured[f"seed {seed}"] = seen
    return min(seen["with"]["gain"] for seen in measured.values()), measured


def smoothing_lowers_the_second_difference() -> tuple[bool, dict]:
    figures = measure_mg()["figures"]
    none, paper, strong = (figures[f"second_difference_{alpha}"] for alpha in (0, 40, 150))
    return none > paper > strong, figures


BEHAVIOUR = {
    "10 mapping": mapping_brings_flicker_nearer_to_the_truth,
    "11 tokens": tokens_help_and_know_their_frame,
    "12 TRS and DC": losses_do_what_they_are_for,
}


def hold(tests: str) -> bool:
    """Whether these tests hold, given as to pytest."""
    tests = [sys.executable, "-m", "pytest", "-q", *shlex.split(tests)]
    return subprocess.run(tests, cwd=PACK, stdout=sys.stderr).returncode == 0


def behaviour(case: Case) -> tuple[dict[str, bool], dict[str, dict]]:
    """Which of the items 10 to 12 hold there, and what was measured."""
    found = {name: measure(case) for name, measure in BEHAVIOUR.items()}
    return {name: holds for name, (holds, _) in found.items()}, {name: figures for name, (_, figures) in found.items()}


def run() -> dict:
    """The figures `numeric_hold` and `behaviour_hold`, fractions of the items, and `dc_gain`."""
    quick = os.environ.get("FROZEN_BENCH_QUICK", "0") != "0"
    seeds = int(os.environ.get("FROZEN_BENCH_SEEDS", 1 if quick else 3))
    with tempfile.TemporaryDirectory() as folder:
        toy = Toy(Path(folder))
        if quick:
            gain, measured = dc_gain(toy, seeds, ("without", "with"))
            return {"figures": {"dc_gain": gain}, "context": context(quick=True, seeds=seeds, measured=measured)}
        holds, measured = behaviour(toy)
        gain, measured["DC alone"] = dc_gain(toy, seeds)
    numeric = {name: hold(tests) for name, tests in NUMERIC.items()}
    holds["13 mitigating gradient"], measured["13 mitigating gradient"] = smoothing_lowers_the_second_difference()
    on_sprites = behaviour(SpriteWorld()) if rows_are_there() else None
    return {"figures": {"numeric_hold": statistics.fmean(numeric.values()),
                        "behaviour_hold": statistics.fmean(holds.values()), "dc_gain": gain},
            "context": context(judge=JUDGE, seeds=seeds, numeric=numeric, behaviour=holds, measured=measured,
                               sprite_world=on_sprites)}
