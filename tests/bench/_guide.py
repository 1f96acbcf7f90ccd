"""Guide models on sprite world, for benchmarks: sampled with a guide, with real guidance and with none."""
from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

import comfy.model_management
import comfy.sample
import comfy.sd
import comfy.utils
import torch
from bench._sprite_world import SAMPLER, SCHEDULER, World, condition
from torch import Tensor

from frozen_diffusion.modules.demo.oracle import read_pictures
from frozen_diffusion.modules.demo.world import Scene, caption, random_scene
from frozen_diffusion.modules.guide.rollout import distance_ratio
from frozen_diffusion.modules.host.demo import WEIGHTS
from frozen_diffusion.modules.host.guide.apply import GuideSettings, apply_guide
from frozen_diffusion.modules.host.guide.files import load_guide

STEPS, G, BATCH, SEED = 8, 5.0, 24, 9100
ATTRIBUTES = ("sprite", "colour", "texture", "size", "place")


def scenes(count: int) -> list[Scene]:
    """Pictures to ask for, other than those of any training."""
    rng = random.Random(SEED)
    return [random_scene(rng) for _ in range(count)]


def guide_file(name: str):
    """A guide of weights/guides."""
    return load_guide(WEIGHTS / "guides" / f"{name}.safetensors")


def with_guide(model, loaded, **settings):
    """The MODEL with a guide, as Apply Guide Model does it."""
    return apply_guide(model, loaded, GuideSettings(**settings))


def with_lora(model, name: str, strength: float):
    """The MODEL with a LoRA of the pack, as the host's loader applies it."""
    state = comfy.utils.load_torch_file(str(WEIGHTS / "loras" / f"{name}.safetensors"))
    return comfy.sd.load_lora_for_models(model, None, state, strength, 0.0)[0]


@torch.inference_mode()
def latents(world: World, model, asked: Sequence[Scene], cfg: float, steps: int = STEPS, negative: str = "",
            sigmas: Tensor | None = None, words: Sequence[str] = ()) -> Tensor:
    """Latents [N, 4, 16, 16] of the scenes, or of `words` for them, the same noise for every way of sampling."""
    parts = []
    for start in range(0, len(asked), BATCH):
        said = list(words[start:start + BATCH]) or [caption(scene) for scene in asked[start:start + BATCH]]
        empty = torch.zeros(len(said), 4, 16, 16, device=comfy.model_management.intermediate_device())
        noise = comfy.sample.prepare_noise(empty, SEED + start)
        conds = condition(world.clip, said), condition(world.clip, [negative])
        if sigmas is None:
            parts.append(comfy.sample.sample(model, noise, steps, cfg, SAMPLER, SCHEDULER, *conds, empty,
                                             disable_pbar=True, seed=SEED))
        else:
            parts.append(comfy.sample.sample_custom(model, noise, cfg, comfy.samplers.sampler_object(SAMPLER), sigmas,
                                                    *conds, empty, disable_pbar=True, seed=SEED))
    return torch.cat(parts).cpu()


@dataclass(frozen=True)
class Marks:
    """`all`: share of pictures in which every attribute is what was asked for; the oracle's mean confidence."""
    all: float
    confidence: float
    sprite: float


@torch.inference_mode()
def marks(world: World, made: Tensor, asked: Sequence[Scene], swapped: bool = False) -> Marks:
    """Of latents. `swapped`: red and blue are put back for the oracle."""
    pixels = world.vae.decode(made).movedim(-1, 1).cpu()
    reading = read_pictures(pixels.flip(-3) if swapped else pixels)
    right = [all(getattr(one, name) == getattr(other, name) for name in ATTRIBUTES)
             for one, other in zip(asked, reading.scenes, strict=True)]
    sprites = [one.sprite == other.sprite for one, other in zip(asked, reading.scenes, strict=True)]
    return Marks(sum(right) / len(right), reading.confidence.mean().item(), sum(sprites) / len(sprites))


def ratio(guide: Tensor, plain: Tensor, real: Tensor) -> float:
    """See `distance_ratio`."""
    return distance_ratio(guide, plain, real)
