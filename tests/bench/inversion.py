"""How well DDIM inversion finds the way back on sprite world: 50 steps, no guidance, the picture's own prompt.

And what refinements add to it, with the picture's own prompt, the empty one and another picture's.
"""
from __future__ import annotations

import random
import statistics
from itertools import pairwise

import torch
from bench._h_space import latents
from bench._sprite_world import World, condition, context, load_world, prompts

from frozen_diffusion.modules.demo.world import caption, random_scene
from frozen_diffusion.modules.host.hspace.inversion import invert
from frozen_diffusion.modules.host.vae import vae_pixels
from frozen_diffusion.modules.hspace.trace import psnr

STEPS, SEED = 50, 410
REFINEMENTS, REFINED = (0, 1, 2, 4), 3      # counts; pictures, with each prompt


@torch.inference_mode()
def run() -> dict:
    """Medians of `latent_psnr` and `image_psnr`, in dB; `least_gain`: the least by which more refinements raise the
    latent PSNR of a picture."""
    world, rng = load_world(), random.Random(SEED)
    scenes = [random_scene(rng) for _ in range(prompts(40))]
    given = latents(world, scenes, SEED)
    again = invert(world.model, condition(world.clip, list(map(caption, scenes))), given, STEPS).again
    before, after = vae_pixels(world.vae, given), vae_pixels(world.vae, again)
    of_latents = [psnr(one, two) for one, two in zip(given, again, strict=True)]
    of_images = [psnr(one, two) for one, two in zip(before, after, strict=True)]
    refined = refinements(world, given[:REFINED], list(map(caption, scenes[:REFINED])))
    least = min(later - sooner for rows in refined.values() for picture in zip(*rows.values(), strict=True)
                for sooner, later in pairwise(picture))
    return {"figures": {"latent_psnr": statistics.median(of_latents), "image_psnr": statistics.median(of_images),
                        "least_gain": least},
            "context": context(seeds=[SEED], steps=STEPS, cfg=1.0, pictures=len(scenes), refined=refined,
                               worst={"latent": min(of_latents), "image": min(of_images)})}


def refinements(world: World, given: torch.Tensor, captions: list[str]) -> dict[str, dict[int, list[float]]]:
    """Latent PSNR of each picture, by prompt and number of refinements."""
    found = {}
    for prompt, texts in {"own": captions, "empty": [""] * len(captions),
                          "another's": captions[1:] + captions[:1]}.items():
        text = condition(world.clip, texts)
        found[prompt] = {count: [psnr(one, two) for one, two in zip(
            given, invert(world.model, text, given, STEPS, refinements=count).again, strict=True)]
            for count in REFINEMENTS}
    return found
