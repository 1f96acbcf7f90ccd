"""A negative prompt at one pass: how well the negative-aware guide keeps away from it, beside real guidance.

Captions that say nothing of the background, once with the empty negative prompt and once with each texture
as the negative one, at g = 5 in 8 steps. `avoided`: of the pictures that show the texture without it, the share that do
not with it; `obeyed` is the guide's over real guidance's. `sprite_change`: the guide's share of right sprites with the
negative prompt less that without. FROZEN_BENCH_PROMPTS sets the prompts (48). Name: guide-negative.
"""
from __future__ import annotations

import torch
from bench._guide import BATCH, SEED, STEPS, G, guide_file, latents, scenes, with_guide
from bench._sprite_world import JUDGE, context, load_world, prompts

from frozen_diffusion.modules.demo.oracle import read_pictures
from frozen_diffusion.modules.demo.world import TEXTURE_WORDS
from frozen_diffusion.modules.demo_training.guide import without_background


@torch.inference_mode()
def read(world, model, asked, words, negative: str) -> tuple[list[str], list[bool]]:
    """(textures, whether the sprite is the one asked for) of the pictures."""
    made = latents(world, model, asked, G, STEPS, negative, words=words)
    found = [scene for start in range(0, len(made), BATCH) for scene in read_pictures(
        world.vae.decode(made[start:start + BATCH]).movedim(-1, 1).cpu()).scenes]
    return ([scene.texture for scene in found],
            [one.sprite == other.sprite for one, other in zip(asked, found, strict=True)])


def run() -> dict:
    world, asked, loaded = load_world(), scenes(prompts(48)), guide_file("sprite_guide_negative")
    words = [without_background(scene) for scene in asked]
    rows = {}
    for way, model in (("cfg", world.model), ("guide", with_guide(world.model, loaded))):
        before, sprites = read(world, model, asked, words, "")
        shown, avoided, kept = 0, 0, []
        for texture, forms in TEXTURE_WORDS.items():
            after, right = read(world, model, asked, words, f"a {forms[0]} background")
            shown += before.count(texture)
            avoided += sum(one == texture and other != texture for one, other in zip(before, after, strict=True))
            kept += right
        rows[way] = {"shown": shown, "avoided": avoided / shown, "sprites": sum(sprites) / len(sprites),
                     "sprites_with_negative": sum(kept) / len(kept),
                     "textures": {texture: before.count(texture) for texture in TEXTURE_WORDS}}
    guide = rows["guide"]
    return {"figures": {"obeyed": guide["avoided"] / rows["cfg"]["avoided"],
                        "sprite_change": guide["sprites_with_negative"] - guide["sprites"]},
            "context": context(judge=JUDGE, seeds=[SEED], g=G, steps=STEPS, prompts=len(asked), rows=rows)}
