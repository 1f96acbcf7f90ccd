"""Content injection on sprite world, for benchmarks: pairs of pictures, their inversions, and the oracle's marks."""
from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from bench._sprite_world import World, condition

from frozen_diffusion.modules.curve import Curve
from frozen_diffusion.modules.demo.oracle import Reading, read_pictures
from frozen_diffusion.modules.demo.renderer import render
from frozen_diffusion.modules.demo.world import TEXTURE_WORDS, Scene, caption, random_scene
from frozen_diffusion.modules.host.guiders import guider_of
from frozen_diffusion.modules.host.hspace.inversion import invert
from frozen_diffusion.modules.host.hspace.sampling import InjectionRequest, injection_sampler
from frozen_diffusion.modules.host.vae import vae_pixels
from frozen_diffusion.modules.hspace.steps import InjectionSettings
from frozen_diffusion.modules.hspace.trace import HTrace, feature_names
from frozen_diffusion.modules.seeding import stream

CONTENT, STYLE = ("sprite", "size", "place"), ("colour", "texture")
# Of the 12 skips of sprite world's decoder: with 6 and fewer little of a content comes over. The last three are at full
# size and hold the noise itself; another picture's in their place leave nothing of either.
DEEP = 9
BATCH = 20          # pairs at once


@dataclass(frozen=True)
class Pairs:
    """Inverted pictures that have nothing in common: contents, and originals in which to inject them."""

    contents: list[Scene]
    originals: list[Scene]
    trace: HTrace
    kept: list                      # conditioning for sampling: what is to stay of the originals, in words
    noise: torch.Tensor             # [N, 4, 16, 16]
    sigmas: torch.Tensor


def draw(count: int, seed: int) -> tuple[list[Scene], list[Scene]]:
    """Scenes (contents, originals) that differ pairwise in every attribute."""
    rng = random.Random(seed)
    contents, originals = [], []
    while len(contents) < count:
        one, two = random_scene(rng), random_scene(rng)
        if all(getattr(one, name) != getattr(two, name) for name in CONTENT + STYLE):
            contents.append(one)
            originals.append(two)
    return contents, originals


def latents(world: World, scenes: list[Scene], seed: int) -> torch.Tensor:
    """LATENT samples of true pictures of the scenes."""
    pixels = render(scenes, stream("h-space bench", seed), 1)[0][:, 0]
    return world.vae.encode(pixels.movedim(1, -1))


def empty(world: World, count: int) -> list:
    """The empty prompt for so many pictures."""
    return condition(world.clip, [""] * count)


def background(scene: Scene) -> str:
    """What an original is to keep, in words: nothing of its sprite, whose place the content's is to take."""
    return f"a {scene.colour} {TEXTURE_WORDS[scene.texture][0]} background"


def pairs(world: World, count: int, seed: int, steps: int) -> Iterator[Pairs]:
    """`count` pairs in batches, inverted with their captions: what the words say need not be in the noise."""
    contents, originals = draw(count, seed)
    for start in range(0, count, BATCH):
        one, two = contents[start:start + BATCH], originals[start:start + BATCH]
        content, original = (
            invert(world.model, condition(world.clip, [caption(scene) for scene in scenes]),
                   latents(world, scenes, seed + start + number), steps, deep_skips=skips, way_back=False)
            for number, (scenes, skips) in enumerate(((one, DEEP), (two, 0))))
        kept = condition(world.clip, [background(scene) for scene in two])
        yield Pairs(one, two, content.trace, kept, original.noise, original.sigmas)


def settings(gamma: float, **changes) -> InjectionSettings:
    """Deterministic settings without calibration unless `changes` say otherwise."""
    return InjectionSettings(**{"gamma": Curve(((0.0, gamma),)), "t_boost": -1, "omega": 0.0} | changes)


def h_alone(trace: HTrace) -> HTrace:
    """The trace without its deep skips."""
    return replace(trace, features={place: trace.features[place] for place in feature_names(0)})


def injected(world: World, given: Pairs, wanted: InjectionSettings, gamma_skips: float = 0.0,
             trace: HTrace | None = None, **request) -> torch.Tensor:
    """LATENT samples of the originals with the contents injected."""
    sampler = injection_sampler(InjectionRequest(trace or given.trace, replace(wanted, gamma_skips=gamma_skips),
                                                 **{"shared_encoder": True} | request))
    return guider_of(world.model, given.kept).sample(
        torch.zeros_like(given.noise), given.noise, sampler, given.sigmas, disable_pbar=True, seed=0)


def pictures(world: World, samples: torch.Tensor) -> torch.Tensor:
    """[N, 3, 128, 128] in 0..1."""
    return vae_pixels(world.vae, samples)


def share(asked: list[Scene], seen: Reading, names: tuple[str, ...]) -> float:
    """Mean over the attributes of the fraction of pictures that have the asked one's."""
    matches = [getattr(a, name) == getattr(b, name) for a, b in zip(asked, seen.scenes, strict=True) for name in names]
    return sum(matches) / len(matches)


def read(world: World, samples: torch.Tensor) -> Reading:
    """What the oracle sees in sampled latents."""
    return read_pictures(pictures(world, samples))
