"""The sprite-world image model in figures: autoencoder, text to image with and without guidance, CLIP pair.

FROZEN_BENCH_PROMPTS sets the number of captions (500). The oracle judges every picture.
"""
from __future__ import annotations

import math
import random

import torch
from bench._sprite_world import (
    CFG,
    JUDGE,
    World,
    accuracy,
    context,
    generate,
    generate_all,
    load_world,
    median_seconds,
    prompts,
)

from frozen_diffusion.modules.demo.motion_oracle import read_clips
from frozen_diffusion.modules.demo.oracle import read_pictures
from frozen_diffusion.modules.demo.renderer import FRAMES, render
from frozen_diffusion.modules.demo.world import Scene, caption, random_scene
from frozen_diffusion.modules.host.demo import caption_tokens

SEED, STEPS, BATCH, AMONG, CLIPS = 500, 25, 20, 100, 100
ATTRIBUTES = ("sprite", "colour", "size", "texture", "place")


def draw(count: int, seed: int) -> tuple[list[Scene], torch.Tensor]:
    """Different scenes and their true pictures [N, 3, 128, 128]."""
    rng, scenes = random.Random(seed), {}
    while len(scenes) < count:
        scenes[random_scene(rng)] = None
    return list(scenes), render(list(scenes), torch.Generator().manual_seed(seed))[0][:, 0]


def prove_oracle(scenes: list[Scene], pixels: torch.Tensor) -> dict[str, float]:
    """What the oracle reads rightly of true pictures, in the worst attribute, and the motion of true clips."""
    rng, seen = random.Random(SEED), read_pictures(pixels).scenes
    moving = [random_scene(rng, clip=True) for _ in range(CLIPS)]
    motions = [read_clips(render([scene], torch.Generator().manual_seed(SEED + number), FRAMES)[0]).scenes[0]
               for number, scene in enumerate(moving)]
    return {"oracle": min(accuracy(scenes, seen, name) for name in ATTRIBUTES),
            "oracle_motion": accuracy(moving, tuple(motions), "motion")}


@torch.inference_mode()
def measure_vae(world: World, scenes: list[Scene], pixels: torch.Tensor) -> dict[str, float]:
    """PSNR over all pixels in dB, and the sprites that the oracle still recognises."""
    back = torch.cat([world.vae.decode(world.vae.encode(part.movedim(1, -1))).movedim(-1, 1).cpu()
                      for part in pixels.split(BATCH)])
    psnr = -10 * math.log10((back - pixels).square().mean().item())
    return {"vae_psnr": psnr, "vae_oracle_sprite": accuracy(scenes, read_pictures(back).scenes, "sprite")}


@torch.inference_mode()
def clip_retrieval(world: World, groups: int = 5) -> float:
    """Accuracy of finding the partner among 100, in the worse of the two directions."""
    right = torch.zeros(2)
    for group in range(groups):
        scenes, pixels = draw(AMONG, SEED + 1 + group)
        image = world.vision.encode_image(pixels.movedim(1, -1), crop=False).image_embeds.float()
        tokens = caption_tokens([caption(scene) for scene in scenes])
        text = world.clip.cond_stage_model.clip_l.transformer(tokens)[2]    # projected; SD1's pooled text is not
        alike = torch.nn.functional.normalize(image, dim=1) @ torch.nn.functional.normalize(text, dim=1).T
        partner = torch.arange(AMONG)
        right += torch.stack([(alike.argmax(way) == partner).float().mean() for way in (0, 1)]) / groups
    return right.min().item()


def run() -> dict:
    """The figures of sprite_world.md's bars for the base."""
    world, count = load_world(), prompts(500)
    scenes, pixels = draw(count, SEED)
    figures = prove_oracle(scenes, pixels) | measure_vae(world, scenes, pixels)
    for cfg, suffix in ((CFG, ""), (1.0, "_cfg1")):
        made = generate_all(world, world.model, scenes, SEED, STEPS, BATCH, cfg)[:, 0]
        seen = read_pictures(made).scenes
        figures |= {f"{name}{suffix}": accuracy(scenes, seen, name) for name in ATTRIBUTES}
    figures["clip_retrieval"] = clip_retrieval(world)
    one = [caption(scenes[0])]
    figures["image_seconds"] = median_seconds(lambda: generate(world, world.model, one, SEED, steps=20))
    return {"figures": figures, "context": context(
        judge=JUDGE, seeds=[SEED], captions=count, steps=STEPS, cfg=CFG)}
