"""Mitigating gradient in figures: its share of a step, and how the predicted clip changes along one fixed trajectory.

The trajectory is that of alpha 0 on sprite world; at each of its points the prediction is smoothed as the node does it.
"""
from __future__ import annotations

import statistics
import time

import comfy.sample
import torch
from bench._sprite_world import CFG, SAMPLER, SCHEDULER, condition, context, load_world, prompts, with_motion

from frozen_diffusion.modules.demo.renderer import FRAMES
from frozen_diffusion.modules.host.motion.mitigating_gradient import Mitigation
from frozen_diffusion.modules.motion.mitigating_gradient import energy

CAPTIONS = ("a large dog in the middle of a blue striped background, moving left",
            "a large fox on the right of a yellow dotted background, bouncing",
            "a small rocket on the left of a purple plain background, spinning",
            "a large cat in the middle of a green plain background, growing")
ALPHAS, STEPS, SEED = (0.0, 40.0, 150.0), 20, 900


@torch.inference_mode()
def run() -> dict:
    """The figures `step_share`, and `energy_ALPHA` and `second_difference_ALPHA` (means over steps and clips)."""
    world, seconds = load_world(), {"step": [], "smoothing": []}
    energies, second = ({alpha: [] for alpha in ALPHAS} for _ in range(2))
    rules = {alpha: Mitigation(alpha, 1, (0.0, 1.0), 0, "") for alpha in ALPHAS}
    model = with_motion(world.model).clone()

    def listen(args: dict) -> torch.Tensor:
        for alpha, rule in rules.items():
            began = time.perf_counter()
            smooth = rule.after_guidance(args)
            if alpha:
                seconds["smoothing"].append(time.perf_counter() - began)
            energies[alpha].append(energy(smooth[None]).item())
            second[alpha].append(torch.diff(smooth, n=2, dim=0).abs().mean().item())
        return args["denoised"]

    model.set_model_sampler_post_cfg_function(listen)
    captions = CAPTIONS[:prompts(len(CAPTIONS))]
    for number, caption in enumerate(captions):
        latent = torch.zeros(FRAMES, 4, 16, 16)
        noise, began = comfy.sample.prepare_noise(latent, SEED + number), time.perf_counter()
        comfy.sample.sample(model, noise, STEPS, CFG, SAMPLER, SCHEDULER, condition(world.clip, [caption], FRAMES),
                            condition(world.clip, [""]), latent, disable_pbar=True, seed=SEED + number)
        seconds["step"].append((time.perf_counter() - began) / STEPS)
    share = statistics.median(seconds["smoothing"]) / statistics.median(seconds["step"])
    return {"figures": {"step_share": share} | {f"{name}_{alpha:.0f}": statistics.fmean(measured[alpha])
                                                for name, measured in (("energy", energies),
                                                                       ("second_difference", second))
                                                for alpha in ALPHAS},
            "context": context(seeds=[SEED], steps=STEPS, cfg=CFG, prompts=len(captions), mode="fast", order=1)}
