"""Seconds for one sprite-world clip from words to pixels, after loading: 16 frames, 20 steps, with guidance."""
from __future__ import annotations

from bench._sprite_world import CFG, context, generate, load_world, median_seconds, with_motion

from frozen_diffusion.modules.demo.renderer import FRAMES
from frozen_diffusion.modules.demo.world import Scene, caption

SEED, STEPS = 900, 20
PROMPT = caption(Scene("cat", "small", "middle", "blue", "plain", "right"))


def run() -> dict:
    """The figure `clip_seconds`: text model, sampler and VAE together, median of three."""
    world = load_world()
    model = with_motion(world.model)
    seconds = median_seconds(lambda: generate(world, model, [PROMPT], SEED, STEPS, frames=FRAMES))
    return {"figures": {"clip_seconds": seconds}, "context": context(seeds=[SEED], steps=STEPS, cfg=CFG)}
