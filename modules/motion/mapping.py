"""HARIVO's mapping network: noise of pictures in, noise that suits a clip out (Kwon et al., ECCV 2024, sec. 3.2).

A reconstruction: the paper's depth, width, time input and initial values are not public. Ours are the constants below.
"""
from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

WIDTH, BLOCKS, GROUPS, TIME_ENCODING = 128, 3, 8, 128


def time_code(t: Tensor) -> Tensor:
    """Timesteps [N] -> sinusoidal encoding [N, TIME_CODE], fp32; periods from 2 pi to 10000 * 2 pi."""
    half = TIME_ENCODING // 2
    rates = torch.exp(torch.arange(half, dtype=torch.float32, device=t.device) * (-math.log(10000.0) / half))
    angle = t.float()[:, None] * rates                                          # [N, TIME_CODE / 2]
    return torch.cat((angle.cos(), angle.sin()), dim=1)


def each_frame(norm: nn.Module, x: Tensor) -> Tensor:
    """`norm` on every frame by itself, x [b, C, f, H, W]; statistics of a whole clip would reach over all frames."""
    return norm(x.transpose(1, 2).flatten(0, 1)).unflatten(0, (x.shape[0], -1)).transpose(1, 2)


class ClipConv(nn.Module):
    """A 3x3x3 convolution. Beyond the first and last frame it sees these frames again: zeros would mark the ends."""

    def __init__(self, inputs: int, outputs: int, operations, **factory):
        super().__init__()
        self.conv = operations.Conv3d(inputs, outputs, 3, padding=(0, 1, 1), **factory)

    def forward(self, x: Tensor) -> Tensor:
        """x [b, C, f, H, W]"""
        return self.conv(functional.pad(x, (0, 0, 0, 0, 1, 1), mode="replicate"))


class MappingBlock(nn.Module):
    """Two convolutions with a residual; the timestep scales and shifts the features between them (FiLM)."""

    def __init__(self, width: int, operations, **factory):
        super().__init__()
        self.norm1, self.norm2 = (operations.GroupNorm(GROUPS, width, **factory) for _ in range(2))
        self.conv1, self.conv2 = (ClipConv(width, width, operations, **factory) for _ in range(2))
        self.film = operations.Linear(TIME_ENCODING, 2 * width, **factory)

    def forward(self, x: Tensor, code: Tensor) -> Tensor:
        """x [b, W, f, H, W'], code [b, TIME_CODE]"""
        scale, shift = self.film(code)[..., None, None, None].chunk(2, dim=1)   # [b, W, 1, 1, 1]
        h = self.conv1(functional.silu(each_frame(self.norm1, x)))
        h = h * (1 + scale) + shift
        return x + self.conv2(functional.silu(each_frame(self.norm2, h)))


class MappingNetwork(nn.Module):
    """M(x, t) = x + g(x, t): the identity at initialisation, because the last convolution starts at zero.

    It stands before the frozen U-Net at every step and is trained with it by the denoising loss, whose target stays
    the noise that was drawn. It sees +-8 frames.

    Args:
        channels: of the latents.
        width: inner channels, a multiple of 8.
        operations: where the layers come from: torch.nn, or one of the host's comfy.ops classes.
    """

    def __init__(self, channels: int = 4, width: int = WIDTH, operations=nn, dtype=None, device=None):
        super().__init__()
        self.channels, factory = channels, {"dtype": dtype, "device": device}
        self.time = nn.Sequential(operations.Linear(TIME_ENCODING, TIME_ENCODING, **factory), nn.SiLU(),
                                  operations.Linear(TIME_ENCODING, TIME_ENCODING, **factory), nn.SiLU())
        self.first = ClipConv(channels, width, operations, **factory)
        self.blocks = nn.ModuleList(MappingBlock(width, operations, **factory) for _ in range(BLOCKS))
        self.norm = operations.GroupNorm(GROUPS, width, **factory)
        self.last = ClipConv(width, channels, operations, **factory)
        nn.init.zeros_(self.last.conv.weight)
        nn.init.zeros_(self.last.conv.bias)

    def forward(self, x: Tensor, t: Tensor, frames: int) -> Tensor:
        """x [(b f), C, H, W], variance preserving as the U-Net gets it; t [(b f)], one value a clip. Same shape."""
        clips = x.unflatten(0, (-1, frames)).transpose(1, 2)                    # [b, C, f, H, W]
        code = self.time(time_code(t[::frames]).to(x.dtype))                    # [b, TIME_CODE]
        h = self.first(clips)
        for block in self.blocks:
            h = block(h, code)
        change = self.last(functional.silu(each_frame(self.norm, h)))
        return x + change.transpose(1, 2).flatten(0, 1)
