"""What the sprite-world benchmarks share: prompts, sampling through the host, counting what the oracle sees."""
from __future__ import annotations

import os
import random
import time
from collections.abc import Iterable

import comfy.sample
import torch

from frozen_diffusion.modules.demo.world import Scene, caption, random_scene
from frozen_diffusion.modules.host.demo import caption_context, load_sprite_world

STILL = ("sprite", "size", "place", "colour", "texture")


def count(default: int) -> int:
    """How many samples to measure on: `default`, unless FROZEN_BENCH_COUNT asks for fewer. Reported in context."""
    return int(os.environ.get("FROZEN_BENCH_COUNT", default))


def scenes(number: int, seed: int, clip: bool = False, held_out: bool = False) -> list[Scene]:
    rng = random.Random(seed)
    return [random_scene(rng, clip, held_out) for _ in range(number)]


class World:
    """The embedded default, ready to sample."""

    def __init__(self):
        self.model, self.clip, self.vae, self.vision = load_sprite_world()

    @torch.inference_mode()
    def sample(self, prompts: list[Scene], steps: int, cfg: float, seed: int, model=None, frames: int = 1,
               batch: int = 50) -> torch.Tensor:
        """[N * frames, 3, 128, 128] in 0..1, by euler; the prompts of one batch are sampled together."""
        pictures = []
        for start in range(0, len(prompts), batch):
            part = [scene for scene in prompts[start:start + batch] for _ in range(frames)]
            context = caption_context(self.clip, [caption(scene) for scene in part])
            empty = caption_context(self.clip, [""] * len(part))
            latent = torch.zeros(len(part), 4, 16, 16)
            noise = comfy.sample.prepare_noise(latent, seed + start)
            result = comfy.sample.sample(model or self.model, noise, steps, cfg, "euler", "normal", [[context, {}]],
                                         [[empty, {}]], latent, disable_pbar=True, seed=seed + start)
            pictures.append(self.vae.decode(result).movedim(-1, 1).float())
        return torch.cat(pictures).clone()


def shares(seen: Iterable[Scene], asked: Iterable[Scene], names: Iterable[str], suffix: str = "") -> dict[str, float]:
    """Fraction of samples in which each attribute is the one that was asked for."""
    pairs = list(zip(seen, asked, strict=True))
    return {name + suffix: sum(getattr(a, name) == getattr(b, name) for a, b in pairs) / len(pairs) for name in names}


def seconds(function) -> float:
    """Wall-clock time of the second call of two."""
    function()
    began = time.perf_counter()
    function()
    return time.perf_counter() - began
