"""Sprite world through the host, for benchmarks: prompts in, pixels out, and the oracle's marks."""
from __future__ import annotations

import os
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import comfy.model_management
import comfy.sample
import comfy.utils
import torch

from frozen_diffusion.modules.demo.renderer import FRAMES
from frozen_diffusion.modules.demo.world import Scene, caption
from frozen_diffusion.modules.host.clip_noise import ClipNoise
from frozen_diffusion.modules.host.demo import WEIGHTS, load_sprite_world
from frozen_diffusion.modules.host.motion.apply import apply_motion
from frozen_diffusion.modules.host.motion.files import load_motion_file

JUDGE = "sprite world's oracle (modules/demo/oracle.py, motion_oracle.py)"
SAMPLER, SCHEDULER, CFG = "euler", "normal", 5.0
MOTION = "sprite_motion"
STYLE_FILE = WEIGHTS / "loras" / "sprite_swapped.safetensors"


@dataclass(frozen=True)
class World:
    """The embedded default as the node Load Sprite World hands it out."""

    model: Any
    clip: Any
    vae: Any
    vision: Any


def load_world() -> World:
    """The host's objects, without the host's progress bars."""
    comfy.utils.set_progress_bar_enabled(False)
    return World(*load_sprite_world())


def with_motion(model, frames_per_clip: int = 0, name: str = MOTION):
    """The MODEL with a motion module of weights/, as Load and Apply Motion Module do it."""
    return apply_motion(model, load_motion_file(WEIGHTS / f"{name}.safetensors")[0], frames_per_clip=frames_per_clip)


def with_style(model):
    """The MODEL with the shipped style LoRA, as the host's loader applies it."""
    import comfy.sd
    return comfy.sd.load_lora_for_models(model, None, comfy.utils.load_torch_file(str(STYLE_FILE)), 1.0, 0.0)[0]


def condition(clip, captions: list[str], frames: int = 1) -> list:
    """CONDITIONING with one row for every frame of every caption."""
    rows = [clip.encode_from_tokens_scheduled(clip.tokenize(text))[0][0] for text in captions]
    return [[torch.cat(rows).repeat_interleave(frames, 0), {}]]


@torch.inference_mode()
def generate(world: World, model, captions: list[str], seed: int, steps: int, cfg: float = CFG,
             frames: int = 1, shared_noise: float = 0.0) -> torch.Tensor:
    """Captions to pixels [N, frames, 3, 128, 128] by the host's text model, sampler and VAE.

    shared_noise: a of PYoCo's mixed noise, 0 = independent frames.
    """
    rows = len(captions) * frames
    latent = torch.zeros(rows, 4, 16, 16, device=comfy.model_management.intermediate_device())
    noise = ClipNoise(seed, "pyoco mixed" if shared_noise else "iid", shared_noise, frames, frames)
    latent = comfy.sample.sample(
        model, noise.generate_noise({"samples": latent}), steps, cfg, SAMPLER, SCHEDULER,
        condition(world.clip, captions, frames), condition(world.clip, [""]), latent, disable_pbar=True, seed=seed)
    return world.vae.decode(latent).movedim(-1, 1).unflatten(0, (-1, frames)).cpu()


def generate_all(world: World, model, scenes: list[Scene], seed: int, steps: int, batch: int, cfg: float = CFG,
                 frames: int = 1) -> torch.Tensor:
    """All scenes in plain words, `batch` at a time, each batch with its own seed. Tells stderr how far it is."""
    parts = []
    for start in range(0, len(scenes), batch):
        captions = [caption(scene) for scene in scenes[start:start + batch]]
        parts.append(generate(world, model, captions, seed + start, steps, cfg, frames))
        print(f"{start + len(captions)} of {len(scenes)} prompts", file=sys.stderr, flush=True)
    return torch.cat(parts)


def accuracy(asked: list[Scene], seen: tuple[Scene, ...], attribute: str) -> float:
    """The fraction of scenes in which the oracle sees what was asked for."""
    pairs = zip(asked, seen, strict=True)
    return sum(getattr(a, attribute) == getattr(b, attribute) for a, b in pairs) / len(asked)


def median_seconds(work: Callable[[], object], repeats: int = 3) -> float:
    """Median wall time of `work`, after one run that does not count."""
    work()
    times = []
    for _ in range(repeats):
        began = time.perf_counter()
        work()
        times.append(time.perf_counter() - began)
    return statistics.median(times)


def prompts(default: int) -> int:
    """How many prompts to run: FROZEN_BENCH_PROMPTS, else `default`."""
    return int(os.environ.get("FROZEN_BENCH_PROMPTS", default))


def context(**more) -> dict:
    """What every figure of sprite world depends on."""
    files = sorted(Path(WEIGHTS).rglob("sprite_*.safetensors"))
    return {"sampler": SAMPLER, "scheduler": SCHEDULER, "frames": FRAMES,
            "weights": {file.stem: file.stat().st_size for file in files}, **more}
