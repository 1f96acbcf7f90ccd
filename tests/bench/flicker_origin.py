"""Where flicker comes from: true clips of sprite world with noise on them, denoised in one step and in the last steps.

`own_noise_ROW_SIGMA`: how much of the mean of a frame's own noise the predicted clean frame takes over, as differences
between neighbours show it; 1 = all, 0 = frames know that their background is the same. `r_ROW_SIGMA`: flicker after the
steps that a sampling of 20 still has from there. Rows: the image model alone, the baseline module, HARIVO's.
FROZEN_BENCH_PROMPTS sets the clips (4). Name: flicker-origin.
"""
from __future__ import annotations

import statistics

import comfy.sample
import torch
from bench._sprite_world import CFG, SAMPLER, SCHEDULER, condition, context, load_world, prompts, with_motion
from bench.harivo_ablation import scenes_for, true_latents
from comfy.samplers import calculate_sigmas, sampler_object
from torch import Tensor

from frozen_diffusion.modules.demo.renderer import FRAMES
from frozen_diffusion.modules.demo.world import caption
from frozen_diffusion.modules.motion.flicker import clip_figures

ROWS = {"image": None, "baseline": "sprite_motion", "harivo": "sprite_harivo"}
STEPS, LEFT, SEED = 20, (3, 6, 9), 1700         # steps that are left where the true clip gets its noise


def taken_over(error: Tensor, noise: Tensor) -> float:
    """Slope of the predicted frames' mean error [F, C, H, W] against their noise's mean, between neighbours."""
    error, noise = (x.mean((2, 3)).diff(dim=0).flatten() for x in (error, noise))
    return (error @ noise / (noise @ noise)).item()


@torch.inference_mode()
def run() -> dict:
    """The figures of every row and noise level, means over the clips, and `r_truth` of the true clips after the VAE."""
    world, scenes = load_world(), scenes_for(prompts(4))
    clips = true_latents(world, scenes)
    empty, words = condition(world.clip, [""]), [condition(world.clip, [caption(scene)], FRAMES) for scene in scenes]
    sigmas = calculate_sigmas(world.model.get_model_object("model_sampling"), SCHEDULER, STEPS)

    def flicker(latent: Tensor) -> float:
        return clip_figures(world.vae.decode(latent).movedim(-1, 1).cpu()).r

    figures = {"r_truth": statistics.fmean(map(flicker, clips))}
    for row, name in ROWS.items():
        model = with_motion(world.model, FRAMES, name) if name else world.model
        for left in LEFT:
            found = []
            for number, clip in enumerate(clips):
                noise, ends = comfy.sample.prepare_noise(clip, SEED + number), {}
                sigma = sigmas[-left - 1].item()
                for key, rest in {"once": torch.tensor([sigma, 0.0]), "steps": sigmas[-left - 1:]}.items():
                    ends[key] = comfy.sample.sample_custom(
                        model, noise, 1.0 if key == "once" else CFG, sampler_object(SAMPLER), rest, words[number],
                        empty, clip, disable_pbar=True, seed=SEED + number).cpu()
                error = world.model.model.process_latent_in(ends["once"] - clip)
                found.append((taken_over(error, sigma * noise), flicker(ends["steps"])))
            for key, values in zip(("own_noise", "r"), zip(*found, strict=True), strict=True):
                figures[f"{key}_{row}_{sigma:.2f}"] = statistics.fmean(values)
    return {"figures": figures, "context": context(seeds=[SEED], steps=STEPS, cfg=CFG, clips=len(clips))}
