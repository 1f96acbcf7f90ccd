"""What a picture of FurryGAN's official size costs, and whether the form of its convolutions is the cheaper one.

`seconds` of one code at 256x256; `over_grouped`: the modulated convolution by scaling inputs and outputs over the one
with a weight for each picture, at 64x64 with 384 channels and 4 pictures, turn by turn. Name: furry-cost.
"""
from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from frozen_diffusion.modules.furrygan.layers import ModulatedConv
from frozen_diffusion.modules.furrygan.networks import Generator, NoiseMaps, Shape
from frozen_diffusion.modules.seeding import stream

TURNS, CHANNELS, SIDE, PICTURES = 5, 384, 64, 4


def grouped(conv: ModulatedConv, x: Tensor, w: Tensor) -> Tensor:
    """The same with a weight for each picture."""
    weight = conv.weight * conv.scale * conv.modulation(w)[:, None, :, None, None]
    weight = weight * (weight.square().sum((2, 3, 4), keepdim=True) + 1e-8).rsqrt()
    batch, channels, height, width = x.shape
    found = F.conv2d(x.reshape(1, -1, height, width), weight.flatten(0, 1), padding=1, groups=batch)
    return found.view(batch, -1, height, width)


def seconds(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


@torch.inference_mode()
def run() -> dict:
    generator = Generator(Shape()).eval()
    z = torch.randn(1, generator.shape.foreground, generator=stream("z"))
    noise = NoiseMaps.random(generator.shape, 1, stream("noise"))
    whole = [seconds(lambda: generator(*generator.split(z), noise)) for _ in range(TURNS)]
    conv = ModulatedConv(CHANNELS, CHANNELS, 3, CHANNELS).eval()
    x = torch.randn(PICTURES, CHANNELS, SIDE, SIDE, generator=stream("x"))
    w = torch.randn(PICTURES, CHANNELS, generator=stream("w"))
    ways = [lambda: conv(x, w), lambda: grouped(conv, x, w)]
    turns = [[seconds(way) for way in ways] for _ in range(TURNS + 1)][1:]
    ours, theirs = (statistics.median(turn[way] for turn in turns) for way in (0, 1))
    return {"figures": {"seconds": statistics.median(whole[1:]), "over_grouped": ours / theirs},
            "context": {"convolution_seconds": [ours, theirs]}}
