"""Do the claims of HARIVO's parts hold here: the identities, as tests of the suite, and the behaviour, on sprite world.

The numbers are those of the list in the method's specification: 1 to 9 numeric, 10 to 13 behavioural. The behavioural
ones compare rows of the ablation (`demo-train harivo-ablation`) on clips that no training has seen.
"""
from __future__ import annotations

import shlex
import subprocess
import sys
from collections.abc import Callable

import torch
from bench._sprite_world import CFG, JUDGE, context, generate, load_world
from bench.harivo_ablation import row_file, sampled_model, scenes_for
from bench.mg import run as measure_mg
from torch.nn import functional

from frozen_diffusion.modules.demo.clips import SpriteClips
from frozen_diffusion.modules.demo.renderer import FRAMES, render
from frozen_diffusion.modules.demo.world import caption
from frozen_diffusion.modules.host.boot import PACK
from frozen_diffusion.modules.host.motion_files import load_motion_file
from frozen_diffusion.modules.host.private_unet import PrivateUNet, noise_levels
from frozen_diffusion.modules.host.training import HostCodec
from frozen_diffusion.modules.motion.flicker import clip_figures
from frozen_diffusion.modules.motion.module import MotionModule
from frozen_diffusion.modules.motion.smoothness import trs_loss
from frozen_diffusion.modules.training.clips import ClipSettings
from frozen_diffusion.modules.training.encoded import stack_texts
from frozen_diffusion.modules.training.order import stream

NUMERIC = {
    "1 temporal transformer is diffusers'": "tests/unit/test_motion_transformer.py",
    "2 families, names and counts": "tests/unit/test_motion_files.py",
    "3 fresh parts leave the model": "tests/unit/test_mapping.py tests/host/test_harivo_training.py",
    "4 mitigating gradient": "tests/unit/test_mitigating_gradient.py tests/host/test_harivo_sampling.py",
    "5 contrastive loss": "tests/unit/test_smoothness.py -k 'dc or queue or contrast'",
    "6 attention loss": "tests/unit/test_smoothness.py tests/host/test_harivo_training.py -k trs",
    "7 group norms": "tests/host/test_motion_splice.py",
    "8 noise priors": "tests/unit/test_clip_noise.py",
    "9 host": "tests/host/test_motion_apply.py tests/host/test_motion_splice.py",
}
CLIPS, CLIP_SEED, PROMPTS = 24, 77, 6
TIMES = (150, 350, 550, 750, 950)


class Validation:
    """Clips that no training has seen, with fixed noise at fixed levels."""

    def __init__(self, world):
        self.model = world.model
        clips, codec = SpriteClips(CLIPS, ClipSettings(frames=FRAMES), seed=CLIP_SEED), HostCodec(world.vae, world.clip)
        self.latents = torch.stack([codec.latents(clips.pixels(index)) for index in range(CLIPS)])
        self.texts = [codec.text(clips.caption(index)) for index in range(CLIPS)]
        self.levels = noise_levels(world.model, "keep")

    @torch.no_grad()
    def passes(self, unet: PrivateUNet, look: Callable[[torch.Tensor], float]) -> float:
        """Mean over clips and levels of look(squared error [1, F, C, h, w])."""
        found = []
        for index in range(CLIPS):
            x0 = unet.latents_in(self.latents[index:index + 1])
            eps = torch.randn(x0.shape, generator=stream("validation", index))
            t = torch.tensor([TIMES[index % len(TIMES)]])
            predicted = unet(self.levels.add_noise(x0, eps, t), t, stack_texts([self.texts[index]]))
            found.append(look((predicted - eps).square()))
        return sum(found) / CLIPS


def module_of(row: str) -> MotionModule:
    """Weights of one row of the ablation."""
    return load_motion_file(row_file(row))[0].module.float()


def frozen_unet(world, row: str) -> PrivateUNet:
    return PrivateUNet(world.model, module_of(row), FRAMES, gradient_checkpointing=False, watch=True)


def mapping_brings_flicker_nearer_to_the_truth(world, _) -> tuple[bool, dict]:
    scenes = scenes_for(PROMPTS)
    truth = render(scenes, torch.Generator().manual_seed(0), FRAMES)[0]
    error = {}
    for row in ("full", "no_mapping"):
        model = sampled_model(world, row)
        clips = torch.cat([generate(world, model, [caption(scene)], 50 + number, 20, CFG, FRAMES)
                           for number, scene in enumerate(scenes)])
        error[row] = sum(abs(clip_figures(clip).d1 - clip_figures(true).d1)
                         for clip, true in zip(clips, truth, strict=True)) / PROMPTS
    noise = torch.randn(FRAMES, 4, 16, 16, generator=stream("mapped noise"))
    with torch.no_grad():
        mapped = module_of("full").map_noise(noise, torch.full((FRAMES,), 999.0), FRAMES)
    alike = {name: functional.cosine_similarity(x[1:].flatten(1), x[:-1].flatten(1)).mean().item()
             for name, x in (("noise", noise), ("mapped", mapped))}
    return error["full"] < error["no_mapping"], {"d1_error": error, "neighbour_correlation": alike}


def tokens_help_and_know_their_frame(world, validation: Validation) -> tuple[bool, dict]:
    full = frozen_unet(world, "full")
    losses = {row: validation.passes(unet, lambda error: error.mean().item())
              for row, unet in (("full", full), ("no_tokens", frozen_unet(world, "no_tokens")))}
    module, plain = full.module, full.module.add_tokens
    order = torch.randperm(FRAMES, generator=stream("frames"))
    module.add_tokens = lambda text, seconds: plain(text, seconds[order])
    losses["shuffled"] = validation.passes(full, lambda error: error.mean().item())
    with torch.no_grad():
        tokens = module.harivo["tok"](validation.texts[0].tokens, torch.arange(FRAMES) / 8)[0].flatten(1)
    alike = functional.cosine_similarity(tokens[1:], tokens[:-1]).max().item()
    return (losses["full"] < losses["no_tokens"] and losses["shuffled"] > losses["full"] and alike < 0.999,
            {"loss": losses, "most_alike_tokens": alike})


def losses_do_what_they_are_for(world, validation: Validation) -> tuple[bool, dict]:
    distance, contrast = {}, {}
    for row in ("full", "no_trs", "no_dc"):
        unet, pooled = frozen_unet(world, row), []

        def look(_, unet=unet, pooled=pooled) -> float:
            features = unet.features()
            pooled.append(functional.normalize(features.h[0], dim=1))
            return trs_loss(features.attention).item()

        distance[row] = validation.passes(unet, look)
        within = sum((h[:-1] * h[1:]).sum(1).mean().item() for h in pooled) / CLIPS
        means = functional.normalize(torch.stack([h.mean(0) for h in pooled]), dim=1)
        between = ((means @ means.T).sum() - CLIPS).item() / (CLIPS * (CLIPS - 1))
        contrast[row] = within - between
    return (distance["full"] < distance["no_trs"] and contrast["full"] > contrast["no_dc"],
            {"attention_distance": distance, "within_minus_between": contrast})


def smoothing_lowers_the_second_difference(world, _) -> tuple[bool, dict]:
    figures = measure_mg()["figures"]
    none, paper, strong = (figures[f"second_difference_{alpha}"] for alpha in (0, 40, 150))
    return none > paper > strong, figures


BEHAVIOUR = {
    "10 mapping": mapping_brings_flicker_nearer_to_the_truth,
    "11 tokens": tokens_help_and_know_their_frame,
    "12 TRS and DC": losses_do_what_they_are_for,
    "13 mitigating gradient": smoothing_lowers_the_second_difference,
}


def passes(tests: str) -> bool:
    """Whether these tests hold, given as to pytest."""
    tests = [sys.executable, "-m", "pytest", "-q", *shlex.split(tests)]
    return subprocess.run(tests, cwd=PACK, stdout=sys.stderr).returncode == 0


def run() -> dict:
    """The figures `numeric_hold` and `behaviour_hold`, fractions of the items."""
    numeric = {name: passes(tests) for name, tests in NUMERIC.items()}
    world = load_world()
    validation, behaviour, measured = Validation(world), {}, {}
    for name, measure in BEHAVIOUR.items():
        behaviour[name], measured[name] = measure(world, validation)
    return {"figures": {"numeric_hold": sum(numeric.values()) / len(numeric),
                        "behaviour_hold": sum(behaviour.values()) / len(behaviour)},
            "context": context(judge=JUDGE, numeric=numeric, behaviour=behaviour, measured=measured)}
