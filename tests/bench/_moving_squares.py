"""The toy of harivo.md 3 and 8: clips of a moving square, a tiny image model that has learned their frames, and motion
modules trained on them with one part or loss left out in turn, by the pack's own training.
"""
from __future__ import annotations

import random
import re
import statistics
import sys
from collections.abc import Iterator
from dataclasses import replace
from functools import cached_property
from pathlib import Path

import torch
import torch.nn.functional as F
from comfy.model_sampling import V_PREDICTION, ModelSamplingDiscrete
from torch import Tensor, nn
from training_examples import WordClip, run

from frozen_diffusion.modules.data.clips import ClipSettings
from frozen_diffusion.modules.data.encoded import EncodedClips, Text
from frozen_diffusion.modules.host.codec import HostCodec
from frozen_diffusion.modules.host.motion.apply import LoadedMotion
from frozen_diffusion.modules.host.motion.frozen_copy import FrozenCopy
from frozen_diffusion.modules.host.motion.train import MotionSubject
from frozen_diffusion.modules.host.noise_levels import noise_levels
from frozen_diffusion.modules.host.weights import copy_unet
from frozen_diffusion.modules.motion.recipe import MotionRecipe
from frozen_diffusion.modules.seeding import stream
from frozen_diffusion.modules.training.denoising import ddim, denoising_loss
from frozen_diffusion.modules.training.driver import Driver
from frozen_diffusion.modules.training.ema import MovingAverage
from frozen_diffusion.modules.training.loop import train
from frozen_diffusion.modules.training.settings import TrainSettings
from testhost.models import tiny_sd15

FRAMES, PIXELS, SIDE, PACE, CELL = 8, 64, 20, 5, 8         # pixels; PACE a frame, CELL a latent
COLOURS = {"red": (230, 60, 50), "green": (60, 200, 80), "blue": (60, 90, 230), "white": (245, 245, 245)}
DIRECTIONS = {"left": (-1, 0), "right": (1, 0), "up": (0, -1), "down": (0, 1)}
GREY = 90
CLIPS, UNSEEN = 256, 32
NARROW = {"channel_mult": [1, 2], "num_res_blocks": [2, 2], "transformer_depth": [1] * 4,
          "transformer_depth_output": [1] * 6}              # two levels of SD1.5's topology: channels 32 and 64
ENDS = re.compile(r"(out_layers\.3|proj_out|^out\.2)\.")     # what SD's training starts at zero
CAPTIONS = [f"a {colour} square moves {direction}" for colour in COLOURS for direction in DIRECTIONS]
IMAGE = TrainSettings(steps=600, lr=2e-3, warmup=20, schedule="cosine")
IMAGE_BATCH = 16
RECIPE = MotionRecipe(steps=200, learning_rate=2e-3, batch_size=4, temporal_convolution=True, mapping_width=16,
                      frame_tokens=4, trs=1.0, trs_from=20, dc=0.001, beta_schedule="keep", ema=0.98, snr_limit=5.0,
                      noise_shift=2.0, gradient_checkpointing=False, schedule="cosine", warmup=10)
# First a plain module on pairs of frames, which teach motion soonest; every row starts from it.
PAIRS = replace(RECIPE, steps=300, batch_size=16, frames=2, scattered=True, temporal_convolution=False,
                mapping_width=0, frame_tokens=0, trs=0.0, dc=0.0)
ROWS = {"full": RECIPE, "no_mapping": replace(RECIPE, mapping_width=0), "no_tokens": replace(RECIPE, frame_tokens=0),
        "no_trs": replace(RECIPE, trs=0.0), "no_dc": replace(RECIPE, dc=0.0)}
SAMPLE_STEPS, CFG, FROM = 20, 1.5, 600      # FROM: the noise level of a true clip at which sampling begins


class MovingSquares:
    """A source of clips: one square on grey that moves evenly and stays in the picture."""

    settings = ClipSettings(frames=FRAMES, width=PIXELS, height=PIXELS)

    def __init__(self, count: int, seed: int):
        self.seed, self.captions = seed, [CAPTIONS[index % len(CAPTIONS)] for index in range(count)]

    def __len__(self) -> int:
        return len(self.captions)

    def caption(self, index: int) -> str:
        return self.captions[index]

    def pixels(self, index: int) -> Tensor:
        _, colour, *_, direction = self.captions[index].split()
        rng, way, pixels = random.Random(f"{self.seed} {index}"), (FRAMES - 1) * PACE, []
        corner = []
        for sign in DIRECTIONS[direction]:
            low, high = (way if sign < 0 else 0), PIXELS - SIDE - (way if sign > 0 else 0)
            corner.append(rng.randint(low, high))
        for frame in range(FRAMES):
            picture = torch.full((3, PIXELS, PIXELS), GREY, dtype=torch.uint8)
            x, y = (start + frame * PACE * sign for start, sign in zip(corner, DIRECTIONS[direction], strict=True))
            picture[:, y:y + SIDE, x:x + SIDE] = torch.tensor(COLOURS[colour], dtype=torch.uint8)[:, None, None]
            pixels.append(picture)
        return torch.stack(pixels)

    def key(self, index: int) -> str:
        return f"square {self.seed} {index}"

    video = key

    def report(self) -> str:
        return f"{len(self)} clips of moving squares"


class CellVae:
    """Stands for a VAE: a latent is the mean colour of a cell, less the ground's, and the mean of that."""

    SCALE = 16.0                        # so that latents have about unit variance in the model
    GROUND = 2 * GREY / 255 - 1

    def encode(self, pixels: Tensor) -> Tensor:
        colour = F.avg_pool2d(2 * pixels.movedim(-1, 1) - 1, CELL)
        colour = self.SCALE * (colour - self.GROUND)
        return torch.cat((colour, colour.mean(1, keepdim=True)), dim=1)

    def decode(self, latents: Tensor) -> Tensor:
        colour = (latents[:, :3] / self.SCALE + self.GROUND) / 2 + 0.5
        return F.interpolate(colour, scale_factor=CELL).movedim(1, -1).clamp(0, 1)


class Toy:
    """A tiny image model that has learned the frames of moving squares and stays frozen; rows are trained on it.

    Attributes:
        latents [UNSEEN, F, 4, h, w] of the VAE and texts: of clips that no training has seen.
        levels: the model's noise levels.
    """

    def __init__(self, folder: Path):
        self.folder, self.model, self.vae, self.clip = folder, predicting_v(tiny_sd15(**NARROW)), CellVae(), WordClip()
        self.levels = noise_levels(self.model)
        self.learned, self.unseen = (encoded(MovingSquares(count, seed), HostCodec(self.vae, self.clip), folder)
                                     for count, seed in ((CLIPS, 0), (UNSEEN, 1)))
        self.latents = torch.stack([self.unseen.latents(index) for index in range(UNSEEN)])
        self.texts = [self.unseen.text(self.unseen.source.caption(index)) for index in range(UNSEEN)]
        self.trained: dict[MotionRecipe, FrozenCopy] = {}
        self.learn_images()

    def learn_images(self) -> None:
        """Train the U-Net on single frames with their captions."""
        with torch.inference_mode(False):
            unet = copy_unet(self.model).requires_grad_(True)
            for name, weight in unet.named_parameters():
                if ENDS.search(name):
                    nn.init.zeros_(weight)

            def predict(x: Tensor, t: Tensor, text: Text, frame_indices: Tensor | None) -> Tensor:
                return unet(x[:, 0], t.float(), text.tokens)[:, None]

            loss = denoising_loss(predict, self.levels, self.model.model.process_latent_in, torch.device("cpu"),
                                  RECIPE.snr_limit, RECIPE.noise_shift)
            ema = MovingAverage(unet, RECIPE.ema)
            for record in train(unet, loss, lambda draw: self.learned.batch(IMAGE_BATCH, 1, 0.1, 0, draw), IMAGE,
                                ema=ema):
                if record.step % 50 == 0:
                    print(f"image model: step {record.step}, loss {record.loss:.4f}", file=sys.stderr, flush=True)
            with ema.applied(unet):
                self.model.model.diffusion_model.load_state_dict(unet.state_dict())

    def unet(self, row: str) -> FrozenCopy:
        """The frozen U-Net with the row's motion module."""
        return self.trained_by(ROWS[row], row)

    def trained_by(self, recipe: MotionRecipe, name: str) -> FrozenCopy:
        """The frozen U-Net with the module of a recipe, which is trained the first time it is asked for."""
        if recipe not in self.trained:
            module = self.train(name, recipe, self.plain).module.float()
            self.trained[recipe] = FrozenCopy(self.model, module, FRAMES, gradient_checkpointing=False, watch=True)
        return self.trained[recipe]

    @cached_property
    def plain(self) -> LoadedMotion:
        """The module that all rows start from."""
        return self.train("pairs", PAIRS)

    def train(self, name: str, recipe: MotionRecipe, start: LoadedMotion | None = None) -> LoadedMotion:
        training = Driver(MotionSubject(self.model, self.vae, self.clip, self.learned.source, recipe, start,
                                        self.folder))
        losses = run(training)
        print(f"{name}: mean of the last 50 losses {statistics.fmean(losses[-50:]):.4f}", file=sys.stderr, flush=True)
        return training.result()

    @torch.no_grad()
    def clips(self, row: str, count: int) -> Iterator[tuple[Tensor, Tensor]]:
        """For each of the first unseen clips one sampled from it with noise on it, and itself, [F, 3, H, W] in 0..1."""
        unet, empty = self.unet(row), self.learned.text("")
        for number in range(count):
            x0 = unet.latents_in(self.latents[number:number + 1]).to(unet.device)
            eps = torch.randn(x0.shape, generator=stream("toy", number)).to(unet.device)
            start = self.levels.add_noise(x0, eps, torch.tensor([FROM], device=unet.device))
            *_, made = ddim(unet, self.levels, start, self.texts[number], empty, SAMPLE_STEPS, CFG, FROM)
            yield tuple(self.vae.decode(latents).movedim(-1, 1)
                        for latents in (unet.latents_out(made)[0].cpu(), self.latents[number]))


def predicting_v(model):
    """The MODEL as one that predicts v, whose errors stay as they are towards pure noise: learned sooner."""
    kind = type("Sampling", (ModelSamplingDiscrete, V_PREDICTION), {})
    model.add_object_patch("model_sampling", kind(model.model.model_config))
    return model


def encoded(source: MovingSquares, codec: HostCodec, folder: Path) -> EncodedClips:
    """The source's clips and captions as the models see them."""
    clips = EncodedClips(source, codec, folder)
    for _ in clips.encode():
        pass
    return clips
