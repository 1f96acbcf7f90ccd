"""How well DDIM inversion finds the way back on sprite world: 50 steps, no guidance, the picture's own prompt."""
from __future__ import annotations

import random
import statistics

import torch
from bench._h_space import latents
from bench._sprite_world import condition, context, load_world, prompts

from frozen_diffusion.modules.demo.world import caption, random_scene
from frozen_diffusion.modules.host.inversion import invert
from frozen_diffusion.modules.host.t_edit import vae_pixels
from frozen_diffusion.modules.hspace.trace import psnr

STEPS, SEED = 50, 410


@torch.inference_mode()
def run() -> dict:
    """Medians of `latent_psnr` and `image_psnr`, in dB."""
    world, rng = load_world(), random.Random(SEED)
    scenes = [random_scene(rng) for _ in range(prompts(40))]
    given = latents(world, scenes, SEED)
    again = invert(world.model, condition(world.clip, list(map(caption, scenes))), given, STEPS).again
    before, after = vae_pixels(world.vae, given), vae_pixels(world.vae, again)
    of_latents = [psnr(one, two) for one, two in zip(given, again, strict=True)]
    of_images = [psnr(one, two) for one, two in zip(before, after, strict=True)]
    return {"figures": {"latent_psnr": statistics.median(of_latents), "image_psnr": statistics.median(of_images)},
            "context": context(seeds=[SEED], steps=STEPS, cfg=1.0, pictures=len(scenes),
                               worst={"latent": min(of_latents), "image": min(of_images)})}
