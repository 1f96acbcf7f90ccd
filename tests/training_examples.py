"""Trainings for tests: clips of squares, a text model of random words, and how a node runs a training."""
from __future__ import annotations

import contextlib
from pathlib import Path

import comfy.sd
import comfy.taesd.taesd
import torch
from motion_examples import random_motion

from frozen_diffusion.modules.data.clips import ClipSettings
from frozen_diffusion.modules.data.encoded import Text
from frozen_diffusion.modules.host.motion.apply import LoadedMotion, hold_motion
from frozen_diffusion.modules.host.motion.train import MotionSubject
from frozen_diffusion.modules.motion.module import MotionConfig
from frozen_diffusion.modules.motion.recipe import MotionRecipe
from frozen_diffusion.modules.seeding import stream
from frozen_diffusion.modules.training.driver import Driver
from testhost.models import CONTEXT, initialise

RECIPE = MotionRecipe(steps=4, learning_rate=1e-3, batch_size=2, ema=0.5, checkpoint_every=2)


class Squares:
    """Three clips of four frames in which a white square moves over grey."""

    settings = ClipSettings(frames=4, width=64, height=64)

    def __len__(self):
        return 3

    def caption(self, index):
        return f"square {index}"

    def pixels(self, index):
        pixels = torch.full((4, 3, 64, 64), 90, dtype=torch.uint8)
        for frame in range(4):
            pixels[frame, :, 16 * index:16 * index + 16, 12 * frame:12 * frame + 16] = 255
        return pixels

    def key(self, index):
        return str(index)

    video = key

    def report(self):
        return "3 clips of squares\nnothing else"


class Slides(Squares):
    """Clips of eight frames, enough for a motion, in which a square slides over grey."""

    settings = ClipSettings(frames=8, width=64, height=64)

    def pixels(self, index):
        pixels = torch.full((8, 3, 64, 64), 90, dtype=torch.uint8)
        for frame in range(8):
            pixels[frame, :, 16 * index:16 * index + 16, 6 * frame:6 * frame + 16] = 255
        return pixels


class WordClip:
    """Stands for a CLIP: every caption has random tokens of its own."""

    def __init__(self, width=CONTEXT, pooled=1280):
        self.width, self.pooled = width, pooled

    def tokenize(self, text):
        return text

    def encode_from_tokens(self, text, return_pooled):
        def draw(*shape):
            return torch.randn(1, *shape, generator=stream("text", text))

        return draw(77, self.width), draw(self.pooled)


def preview_vae():
    """A real VAE of the host, of the class that draws previews: small and fast."""
    vae = comfy.sd.VAE(sd=comfy.taesd.taesd.TAESD(latent_channels=4).state_dict())
    initialise(vae.first_stage_model, seed=0)
    return vae


def prepared(folder: Path, model, vae, recipe: MotionRecipe = RECIPE, name="run", clip=None, warm=None,
             resume=True) -> Driver:
    """A training on the squares that keeps its checkpoint and its encoded clips in `folder`."""
    subject = MotionSubject(model, vae, clip or WordClip(), Squares(), recipe, warm, folder / "cache")
    return Driver(subject, folder / f"{name}.safetensors", resume)


def trained(config: MotionConfig, seed: int = 1) -> LoadedMotion:
    """A module to start from."""
    return hold_motion(config, random_motion(config, seed).state_dict(), "given.safetensors")


def run(training, stop_after=None, looks=()):
    """As a node does it: in inference mode, with samples after the steps `looks`. Returns the losses."""
    with torch.inference_mode():
        for _ in training.encode():
            pass
        with contextlib.closing(training.records()) as records:
            losses = []
            for record in records:
                losses.append(record.loss)
                if record.step in looks:
                    training.sample()
                if record.step == stop_after:
                    break
    return losses


def state(loaded: LoadedMotion):
    return loaded.module.state_dict()


def same(a, b) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


def inputs(batch=1, frames=4):
    generator = stream("inputs")
    x = torch.randn(batch, frames, 4, 8, 8, generator=generator)
    return x, torch.full((batch,), 300), Text(torch.randn(batch, 77, CONTEXT, generator=generator), None)
