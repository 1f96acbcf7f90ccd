"""Motions learned from one clip of sprite world, judged by the oracle: how alike, how far, what came along."""
from __future__ import annotations

import os
import random
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import comfy.sd
import torch
from bench._sprite_world import World, generate
from torch import Tensor

from frozen_diffusion.modules.customize.absorber import Absorber
from frozen_diffusion.modules.customize.files import KOHYA, state_of
from frozen_diffusion.modules.customize.names import SPATIAL
from frozen_diffusion.modules.customize.recipe import AbsorberRecipe, MotionLoRARecipe
from frozen_diffusion.modules.demo.motion_oracle import read_clips
from frozen_diffusion.modules.demo.paths import GREEN, PathClip, drawn, moving, path_of
from frozen_diffusion.modules.demo.renderer import FRAMES
from frozen_diffusion.modules.demo.world import Scene, random_scene
from frozen_diffusion.modules.host.customize.absorb import AbsorberSubject
from frozen_diffusion.modules.host.customize.files import with_motion_lora
from frozen_diffusion.modules.host.customize.spatial import attention_paths
from frozen_diffusion.modules.host.customize.train import MotionLoRASubject
from frozen_diffusion.modules.host.folders import SHIPPED
from frozen_diffusion.modules.host.motion.apply import apply_motion
from frozen_diffusion.modules.host.motion.files import find_motion_file, load_motion_file
from frozen_diffusion.modules.motion.motion_lora import MotionLoRA
from frozen_diffusion.modules.training.driver import Driver
from frozen_diffusion.modules.training.lora import attach
from frozen_diffusion.modules.training.lora_keys import Factors

STEPS, CFG, ATTRIBUTES = 8, 5.0, ("sprite", "colour", "texture", "size")


def seeds() -> range:
    """FROZEN_BENCH_SEEDS: how many (3), or from one to before another: 1:3."""
    first, _, end = os.environ.get("FROZEN_BENCH_SEEDS", "3").rpartition(":")
    return range(int(first or 0), int(end))


def scenes(count: int) -> list[Scene]:
    """Other sprites, colours and textures than the reference's panda on yellow dots."""
    rng, found = random.Random(900), []
    while len(found) < count:
        scene = random_scene(rng)
        if scene.sprite != "panda" and scene.colour != "yellow":
            found.append(Scene(scene.sprite, scene.size, "middle", scene.colour, scene.texture))
    return found


def module():
    """The shipped baseline module."""
    return load_motion_file(find_motion_file(f"{SHIPPED}sprite_motion.safetensors"))[0]


def learned(world: World, source: PathClip, recipe: MotionLoRARecipe, cache: Path, absorber: Absorber | None = None
            ) -> MotionLoRA:
    """A motion LoRA after a training without looks."""
    subject = MotionLoRASubject(world.model, world.vae, world.clip, module(), source, recipe, absorber=absorber,
                                cache=cache)
    return finished(subject).result()


def absorbed(world: World, source: PathClip, recipe: AbsorberRecipe, caption: str, cache: Path) -> Absorber:
    """An absorber after its training."""
    return finished(AbsorberSubject(world.model, world.vae, world.clip, source, recipe, caption, cache)).result()


def finished(subject) -> Driver:
    """A training run to its end."""
    driver = Driver(subject, None)
    with torch.inference_mode():
        for _ in driver.encode():
            pass
        for record in driver.records():
            if record.step % 50 == 0:
                print(f"step {record.step} loss {record.loss:.3f}", file=sys.stderr, flush=True)
    return driver


@dataclass(frozen=True)
class Marks:
    """Of one way, means over clips: cosine of velocities, correlation of paths, ratio of amplitudes, share of clips in
    which all attributes are as prompted.
    """
    fid: float
    path: float
    gain: float
    right: float


def clips_of(world: World, model, lora: MotionLoRA | None, asked: Sequence[Scene], motion: str, seed: int,
             strength: float = 1.0, fade_after: float = 0.5) -> Tensor:
    """Clips [N, F, 3, 128, 128] of the scenes with the motion's word, with a LoRA or without."""
    loaded = module()
    if lora is not None:
        loaded = with_motion_lora(loaded, lora, strength, fade_after)[0]
    return clips_with(world, apply_motion(model, loaded), [moving(scene, motion) for scene in asked], seed)


def clips_with(world: World, model, captions: Sequence[str], seed: int) -> Tensor:
    """Clips [N, F, 3, 128, 128] of a MODEL that moves, each of its own noise."""
    return torch.cat([generate(world, model, [text], seed + number, STEPS, CFG, FRAMES)
                      for number, text in enumerate(captions)])


class OneStage(MotionLoRASubject):
    """Spatial and temporal LoRA in one stage, as before Customize-A-Video: for comparison."""

    def prepare(self) -> None:
        super().prepare()
        unet = self.predict.unet
        with torch.inference_mode(False):
            self.beside = attach(unet, attention_paths(self.model, unet), self.recipe.rank, seed=self.recipe.seed)
            self.trained["look"] = self.beside.to(self.predict.device)

    @classmethod
    def of(cls, world: World, source: PathClip, recipe: MotionLoRARecipe, cache: Path) -> Learned:
        """What it has learned, in its two parts."""
        subject = cls(world.model, world.vae, world.clip, module(), source, recipe, cache=cache)
        motion = finished(subject).result()
        return Learned(motion, {name: Factors(lora.down.detach(), lora.up.detach(), lora.alpha)
                                for name, lora in subject.beside.by_name.items()})


@dataclass(frozen=True)
class Learned:
    """A motion LoRA and, by diffusers' names, the spatial one beside it."""
    motion: MotionLoRA
    spatial: Mapping[str, Factors]


def with_look(model, spatial: Mapping[str, Factors]):
    """The MODEL with a spatial LoRA, as the host's loader applies it."""
    state = state_of({SPATIAL: spatial}, KOHYA)
    return comfy.sd.load_lora_for_models(model, None, state, 1.0, 0.0)[0]


def leaks(clips: Tensor, asked: Sequence[Scene]) -> tuple[list[float], list[float]]:
    """Of sprite and surroundings of each clip: where it lies between what was prompted (0) and the odd look (1), both
    drawn at the clip's own poses.
    """
    centre = read_clips(clips).centre
    reference = Scene("panda", "large", "middle", "yellow", "dots")
    found: tuple[list[float], list[float]] = [], []
    for clip, scene, path in zip(clips, asked, centre, strict=True):
        wanted, mask = drawn(scene, path)
        there, mask_there = drawn(reference, path, GREEN, checks=True)
        near = torch.maximum(mask, mask_there)
        for weight, values in zip((near, 1 - near), found, strict=True):
            way = weight * (there - wanted)
            values.append(float((way * (clip - wanted)).sum() / way.square().sum()))
    return found


def marks(clips: Tensor, asked: Sequence[Scene], motion: str) -> Marks:
    """By sprite world's oracle."""
    reading, wanted = read_clips(clips), path_of(motion)
    wanted = wanted - wanted.mean(0)
    rows = []
    for number, scene in enumerate(asked):
        path = reading.centre[number] - reading.centre[number].mean(0)
        speed, there = path.diff(dim=0), wanted.diff(dim=0)
        rows.append((cosine(speed, there), cosine(path, wanted), float(path.norm() / wanted.norm()),
                     float(all(getattr(reading.scenes[number], name) == getattr(scene, name) for name in ATTRIBUTES))))
    return Marks(*(sum(values) / len(values) for values in zip(*rows, strict=True)))


def cosine(one: Tensor, other: Tensor) -> float:
    return float((one * other).sum() / (one.norm() * other.norm()).clamp(min=1e-6))
