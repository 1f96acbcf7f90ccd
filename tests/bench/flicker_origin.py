"""Where flicker comes from: true clips of sprite world with noise on them, denoised in one step and in the last steps.

`own_noise_ROW_SIGMA`: how much of the mean of a frame's own noise the predicted clean frame takes over, as differences
between neighbours show it; 1 = all, 0 = frames know that their background is the same. After the steps that a sampling
of 20 still has from there: `r_ROW_SIGMA`, the flicker, and `jitter_ROW_SIGMA`, how uneven the sprite's path is: the
mean second difference of its centre in pixels, as the oracle sees it. Rows: the image model alone, the baseline
module, HARIVO's. FROZEN_BENCH_PROMPTS sets the clips (4). Name: flicker-origin.
"""
from __future__ import annotations

import statistics
from dataclasses import dataclass

import comfy.sample
import torch
from bench._sprite_world import (
    CFG,
    JUDGE,
    SAMPLER,
    SCHEDULER,
    World,
    condition,
    context,
    load_world,
    prompts,
    with_motion,
)
from bench.harivo_ablation import scenes_for, true_latents
from comfy.samplers import calculate_sigmas, sampler_object
from torch import Tensor

from frozen_diffusion.modules.clips.flicker import clip_figures
from frozen_diffusion.modules.demo.motion_oracle import read_clips
from frozen_diffusion.modules.demo.renderer import FRAMES
from frozen_diffusion.modules.demo.world import caption

ROWS = {"image": None, "baseline": "sprite_motion", "harivo": "sprite_harivo"}
STEPS, LEFT, SEED = 20, (3, 6, 9), 1700         # steps that are left where the true clip gets its noise


def taken_over(error: Tensor, noise: Tensor) -> float:
    """Slope of the predicted frames' mean error [F, C, H, W] against their noise's mean, between neighbours."""
    error, noise = (x.mean((2, 3)).diff(dim=0).flatten() for x in (error, noise))
    return (error @ noise / (noise @ noise)).item()


@dataclass(frozen=True)
class NoisyClips:
    """True clips [F, 4, h, w] of scenes, to be denoised by the host."""

    world: World
    clips: list[Tensor]
    words: list
    empty: list

    def seen(self, latent: Tensor) -> dict[str, float]:
        """r, and the path's jitter in pixels, of a clip."""
        pixels = self.world.vae.decode(latent).movedim(-1, 1).cpu()
        centre = read_clips(pixels[None]).centre[0]                                                 # [F, 2]
        return {"r": clip_figures(pixels).r, "jitter": centre.diff(n=2, dim=0).norm(dim=1).mean().item()}

    def denoised(self, model, number: int, sigmas: Tensor, cfg: float) -> tuple[Tensor, Tensor]:
        """Clip `number` after the steps `sigmas` from its noisy self, and the noise."""
        clip, seed = self.clips[number], SEED + number
        noise = comfy.sample.prepare_noise(clip, seed)
        return comfy.sample.sample_custom(model, noise, cfg, sampler_object(SAMPLER), sigmas, self.words[number],
                                          self.empty, clip, disable_pbar=True, seed=seed).cpu(), noise

    def measure(self, model, sigmas: Tensor) -> dict[str, float]:
        """Means over the clips, from the noise level sigmas[0] on."""
        found = []
        for number, clip in enumerate(self.clips):
            once, noise = self.denoised(model, number, torch.stack([sigmas[0], torch.zeros(())]), 1.0)
            error = self.world.model.model.process_latent_in(once - clip)
            found.append({"own_noise": taken_over(error, sigmas[0] * noise)}
                         | self.seen(self.denoised(model, number, sigmas, CFG)[0]))
        return means(found)


def means(found: list[dict[str, float]]) -> dict[str, float]:
    """Of figures with the same names."""
    return {key: statistics.fmean(each[key] for each in found) for key in found[0]}


@torch.inference_mode()
def run() -> dict:
    """The figures of every row and noise level, and those of the true clips after the VAE."""
    world, scenes = load_world(), scenes_for(prompts(4))
    words = [condition(world.clip, [caption(scene)], FRAMES) for scene in scenes]
    noisy = NoisyClips(world, true_latents(world, scenes), words, condition(world.clip, [""]))
    sigmas = calculate_sigmas(world.model.get_model_object("model_sampling"), SCHEDULER, STEPS)
    figures = {f"{key}_truth": value for key, value in means([*map(noisy.seen, noisy.clips)]).items()}
    for row, name in ROWS.items():
        model = with_motion(world.model, FRAMES, name) if name else world.model
        for left in LEFT:
            rest = sigmas[-left - 1:]
            figures |= {f"{key}_{row}_{rest[0]:.2f}": value for key, value in noisy.measure(model, rest).items()}
    return {"figures": figures, "context": context(judge=JUDGE, seeds=[SEED], steps=STEPS, cfg=CFG,
                                                   clips=len(noisy.clips))}
