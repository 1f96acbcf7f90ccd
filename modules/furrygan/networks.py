"""FurryGAN's generator: a foreground, a background, and a mask from the foreground's own features.

Bae, Kwon, Uh, "FurryGAN" (ECCV 2022, arXiv 2208.10422), equations 1 to 3, and where the paper leaves it open its
official code. Pictures are in -1..1 inside. S: side in pixels.
"""
from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from .layers import Constant, Linear, PixelNorm, StyledConv, ToRGB, per_image

MAPPING_LR, MAPPING_LAYERS = 0.01, 2
BAND = 1 / 512                  # of 1, within which a mask is 1: saved pictures are cut off, not rounded


@dataclass(frozen=True)
class Shape:
    """Sizes of both networks. The defaults are the paper's."""

    size: int = 256
    style: int = 512            # of both latents together
    cap: int = 512              # channels at low resolutions, of foreground and background together
    budget: int = 32768         # channels times side at most, at high ones
    mask_channels: int = 32

    def __post_init__(self):
        if self.size < 16 or self.size & (self.size - 1):
            raise ValueError(f"The size is {self.size}; expected a power of two from 16, e.g. 64 or 256.")
        if self.style % 4 or min(self.cap, self.budget // self.size) < 4:
            raise ValueError(f"style {self.style}, cap {self.cap} and budget {self.budget} leave no channels: style "
                             "and channels are parted 3 to 1.")

    @property
    def resolutions(self) -> list[int]:
        return [2 ** level for level in range(2, int(math.log2(self.size)) + 1)]

    def channels(self, resolution: int) -> int:
        """Of foreground and background together, and of the discriminator."""
        return min(self.cap, self.budget // resolution)

    @property
    def foreground(self) -> int:
        """Numbers of a foreground latent; the background has the first third of them."""
        return self.style // 4 * 3

    @property
    def background(self) -> int:
        return self.style // 4

    @property
    def rows(self) -> int:
        """Of a latent in W+: one for each convolution, the last for colours and masks."""
        return 2 * int(math.log2(self.size)) - 2

    @property
    def noise_sides(self) -> list[int]:
        """Of the noise of each convolution of one network."""
        return [resolution for number, resolution in enumerate(self.resolutions) for _ in range(2 if number else 1)]


@dataclass(frozen=True)
class Layers:
    """What a generator gives for B codes.

    Attributes:
        foreground, background, composite: [B, 3, S, S] in -1..1.
        coarse: [B, 1, S, S] the coarse mask, 0 and 1 in every picture.
        mask: [B, 1, S, S] with the fine one, 1 = foreground.
    """
    foreground: Tensor
    background: Tensor
    coarse: Tensor
    mask: Tensor

    @property
    def composite(self) -> Tensor:
        """Equation 1."""
        return self.mask * self.foreground + (1 - self.mask) * self.background

    @property
    def fine(self) -> Tensor:
        """What the fine mask really adds."""
        return (self.mask - self.coarse).clamp(0, 1)


@dataclass(frozen=True)
class NoiseMaps:
    """[B, 1, R, R] for each convolution of both networks and for both mask heads: the same noise, the same picture."""

    foreground: Sequence[Tensor]
    background: Sequence[Tensor]
    coarse: Tensor
    fine: Tensor

    @classmethod
    def drawn(cls, shape: Shape, generators: Sequence[torch.Generator], device: torch.device | str = "cpu"
              ) -> NoiseMaps:
        """From a CPU generator for each picture, so that a picture does not depend on the batch."""
        maps = [cls.random(shape, 1, generator, device).in_a_row() for generator in generators]
        return cls.of(shape, [torch.cat(part) for part in zip(*maps, strict=True)])

    @classmethod
    def random(cls, shape: Shape, count: int, generator: torch.Generator, device: torch.device | str = "cpu"
               ) -> NoiseMaps:
        """For a batch, from one CPU generator."""
        sides = [*shape.noise_sides, *shape.noise_sides, shape.size, shape.size]
        return cls.of(shape, [torch.randn(count, 1, side, side, generator=generator).to(device) for side in sides])

    @classmethod
    def of(cls, shape: Shape, maps: Sequence[Tensor]) -> NoiseMaps:
        """From all maps in a row."""
        count = len(shape.noise_sides)
        return cls(maps[:count], maps[count:2 * count], *maps[2 * count:])

    def in_a_row(self) -> list[Tensor]:
        return [*self.foreground, *self.background, self.coarse, self.fine]


class Generator(nn.Module):
    """Latents to layers. Attributes are called as in the official files."""

    def __init__(self, shape: Shape):
        super().__init__()
        self.shape = shape
        for name, part, width in (("fg", 3, shape.foreground), ("bg", 1, shape.background)):
            def channels(resolution: int, part: int = part) -> int:
                return shape.channels(resolution) // 4 * part

            convs, inputs = nn.ModuleList(), channels(4)
            for resolution in shape.resolutions[1:]:
                outputs = channels(resolution)
                convs += [StyledConv(inputs, outputs, 3, width, up=True), StyledConv(outputs, outputs, 3, width)]
                inputs = outputs
            self.add_module(f"style_{name}", nn.Sequential(PixelNorm(), *[
                Linear(width, width, lr=MAPPING_LR, activate=True) for _ in range(MAPPING_LAYERS)]))
            self.add_module(f"input_{name}", Constant(channels(4)))
            self.add_module(f"conv1_{name}", StyledConv(channels(4), channels(4), 3, width))
            self.add_module(f"convs_{name}", convs)
            self.add_module(f"to_{name}", ToRGB(inputs, width))
        last = shape.channels(shape.size) // 4 * 3
        self.pre_m = StyledConv(last, shape.mask_channels, 1, shape.foreground)        # coarse
        self.refine_m = StyledConv(last, shape.mask_channels, 1, shape.foreground)     # fine

    def split(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Latents z_fg [B, D_fg] -> (w_fg, w_bg), the background's from the first of its numbers."""
        return self.style_fg(z), self.style_bg(z[:, :self.shape.background])

    def forward(self, w: Tensor, w_bg: Tensor, noise: NoiseMaps, gamma: float = 1.0) -> Layers:
        """w [B, D_fg] or W+ [B, rows, D_fg], w_bg likewise; gamma: how much the fine mask counts (equations 1 to 3)."""
        w, w_bg = (self._rows(part) for part in (w, w_bg))
        f = self._synthesis("fg", w, noise.foreground)                          # [B, C, S, S]
        b = self._synthesis("bg", w_bg, noise.background)
        last, last_bg = w[:, -1], w_bg[:, -1]
        coarse = per_image(self.pre_m(f, last, noise.coarse).relu().mean(1, keepdim=True))
        fine = per_image(self.refine_m(f, last, noise.fine).relu().mean(1, keepdim=True))
        return Layers(self.to_fg(f, last).tanh(), self.to_bg(b, last_bg).tanh(), coarse,
                      (coarse + gamma * fine).clamp(0, 1))

    def _rows(self, w: Tensor) -> Tensor:
        return w if w.ndim == 3 else w[:, None].expand(-1, self.shape.rows, -1)

    def _synthesis(self, name: str, w: Tensor, noise: Sequence[Tensor]) -> Tensor:
        """W+ [B, rows, D] -> features [B, C, S, S]."""
        x = self.get_submodule(f"input_{name}")(len(w))
        convs = [self.get_submodule(f"conv1_{name}"), *self.get_submodule(f"convs_{name}")]
        for row, (conv, added) in enumerate(zip(convs, noise, strict=True)):
            x = conv(x, w[:, row], added)
        return x


def truncated(w: Tensor, mean: Tensor, psi: float) -> Tensor:
    """w drawn towards the mean of all, psi of the way left. Raises ValueError for a negative psi."""
    if psi < 0:
        raise ValueError(f"psi is {psi}; expected 0 (the mean picture) to 1 (as trained), at most 1.2 or so.")
    return mean + psi * (w - mean)
