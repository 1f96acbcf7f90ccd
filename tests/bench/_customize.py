"""Motions learned from one clip of sprite world, judged by the oracle: how alike, how far, what came along."""
from __future__ import annotations

import random
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from bench._sprite_world import World, generate
from torch import Tensor

from frozen_diffusion.modules.customize.absorber import Absorber
from frozen_diffusion.modules.customize.recipe import AbsorberRecipe, MotionLoRARecipe
from frozen_diffusion.modules.demo.motion_oracle import read_clips
from frozen_diffusion.modules.demo.paths import PathClip, moving, path_of
from frozen_diffusion.modules.demo.renderer import FRAMES
from frozen_diffusion.modules.demo.world import Scene, random_scene
from frozen_diffusion.modules.host.customize.absorb import AbsorberSubject
from frozen_diffusion.modules.host.customize.files import with_motion_lora
from frozen_diffusion.modules.host.customize.train import MotionLoRASubject
from frozen_diffusion.modules.host.motion.apply import apply_motion
from frozen_diffusion.modules.host.motion.files import SHIPPED, find_motion_file, load_motion_file
from frozen_diffusion.modules.motion.motion_lora import MotionLoRA
from frozen_diffusion.modules.training.driver import Driver

STEPS, CFG, ATTRIBUTES = 8, 5.0, ("sprite", "colour", "texture", "size")


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


def clips_of(world: World, lora: MotionLoRA | None, asked: Sequence[Scene], motion: str, seed: int,
             strength: float = 1.0, fade_after: float = 0.5) -> Tensor:
    """Clips [N, F, 3, 128, 128] of the scenes with the motion's word, with a LoRA or without."""
    loaded = module()
    if lora is not None:
        loaded = with_motion_lora(loaded, lora, strength, fade_after)[0]
    model = apply_motion(world.model, loaded)
    return torch.cat([generate(world, model, [moving(scene, motion)], seed + number, STEPS, CFG, FRAMES)
                      for number, scene in enumerate(asked)])


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


