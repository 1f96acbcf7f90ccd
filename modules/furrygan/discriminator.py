"""FurryGAN's discriminator, which also predicts the mask of what it sees.

A residual StyleGAN2 discriminator with reflection padding, and on its 16x16 features a head that gives a mask: real
pictures get one too, although no loss asks for it.
"""
from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from .layers import Linear, conv_layer, per_image
from .networks import Shape

GROUP = 4               # pictures whose spread is a feature
HINT = 16               # side of the predicted mask
HINT_CHANNELS = 32


class Block(nn.Module):
    """Two convolutions and a skip, at half the size unless `kernel` is 1."""

    def __init__(self, inputs: int, outputs: int, kernel: int = 3):
        super().__init__()
        down = kernel > 1
        self.conv1 = conv_layer(inputs, inputs, kernel)
        self.conv2 = conv_layer(inputs, outputs, kernel, down=down)
        self.skip = conv_layer(inputs, outputs, 1, down=down, activate=False)

    def forward(self, x: Tensor) -> Tensor:
        return (self.conv2(self.conv1(x)) + self.skip(x)) / math.sqrt(2)


class Discriminator(nn.Module):
    """Pictures [B, 3, S, S] in -1..1 -> logits. Attributes are called as in the official files."""

    def __init__(self, shape: Shape):
        super().__init__()
        self.shape = shape
        sides = shape.resolutions[::-1]
        widths = [shape.channels(side) for side in sides]
        blocks = [Block(inputs, outputs) for inputs, outputs in zip(widths, widths[1:], strict=False)]
        self.convs = nn.Sequential(conv_layer(3, widths[0], 1), *blocks)
        self.final_conv = conv_layer(widths[-1] + 1, widths[-1], 3)
        self.final_linear = nn.Sequential(Linear(widths[-1] * 16, widths[-1], activate=True), Linear(widths[-1], 1))
        self.conv_m = Block(shape.channels(HINT), HINT_CHANNELS, 1)
        self.conv_m.conv1 = conv_layer(shape.channels(HINT), shape.channels(HINT), 1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(logits [B, 1], masks [B, 1, 16, 16])."""
        features = self.features(x)
        return self.judge(features[-1]), self.mask_of(features)

    def features(self, x: Tensor) -> list[Tensor]:
        """After the first convolution and each block, from side S down to 4."""
        found = []
        for layer in self.convs:
            x = layer(x)
            found.append(x)
        return found

    def judge(self, x: Tensor) -> Tensor:
        """Logits from the features at 4x4."""
        x = self.final_conv(torch.cat([x, group_spread(x)], 1))
        return self.final_linear(x.flatten(1))

    def mask_of(self, features: list[Tensor]) -> Tensor:
        """D_aux: the mask [B, 1, 16, 16] that the features at 16x16 tell."""
        x = next(part for part in features if part.shape[-1] == HINT)
        return per_image(self.conv_m(x).relu().mean(1, keepdim=True))


def group_spread(x: Tensor) -> Tensor:
    """[B, 1, H, W]: how much the pictures of a group differ; members are B / group apart.

    Raises ValueError for a batch that does not part into groups.
    """
    batch, group = len(x), min(len(x), GROUP)
    if batch % group:
        raise ValueError(f"The batch has {batch} pictures; the discriminator compares groups of {GROUP}, so it must be "
                         f"a multiple of {GROUP}, or fewer.")
    parted = x.view(group, batch // group, *x.shape[1:])
    spread = (parted.var(0, unbiased=False) + 1e-8).sqrt().mean((1, 2, 3))      # [B / group]
    return spread.repeat(group)[:, None, None, None].expand(-1, 1, *x.shape[2:])
