"""The layers of StyleGAN2 in plain torch: equalised rates, modulated convolutions, smooth resampling.

Karras et al. 2020 (arXiv 1912.04958). Written from the formulas; attributes are called as in the files of FurryGAN's
official training, so that these load as they are.
"""
from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

SLOPE, GAIN = 0.2, math.sqrt(2)             # of the leaky ReLU, and what keeps its variance
TAPS = (1 / 8, 3 / 8, 3 / 8, 1 / 8)         # of the smoothing filter, along one axis


def lrelu(x: Tensor, bias: Tensor) -> Tensor:
    """sqrt 2 * leaky ReLU of x plus a bias a channel."""
    return GAIN * F.leaky_relu(x + bias.view(1, -1, *[1] * (x.ndim - 2)), SLOPE)


def smooth(x: Tensor, gain: float, pad: tuple[int, int]) -> Tensor:
    """Filter [B, C, H, W] by the taps along both axes, after zero padding (before, after) each."""
    taps = math.sqrt(gain) * torch.tensor(TAPS, device=x.device, dtype=x.dtype)
    channels = x.shape[1]
    x = F.pad(x, (*pad, *pad))
    x = F.conv2d(x, taps.view(1, 1, 1, 4).expand(channels, 1, 1, 4), groups=channels)
    return F.conv2d(x, taps.view(1, 1, 4, 1).expand(channels, 1, 4, 1), groups=channels)


class PixelNorm(nn.Module):
    """x / sqrt(mean x^2) over the features [B, D]."""

    def forward(self, x: Tensor) -> Tensor:
        return x * (x.square().mean(1, keepdim=True) + 1e-8).rsqrt()


class Linear(nn.Module):
    """Equalised: weights ~ N(0, 1) / lr, used times lr / sqrt(inputs)."""

    def __init__(self, inputs: int, outputs: int, bias: float = 0.0, lr: float = 1.0, activate: bool = False):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(outputs, inputs) / lr)
        self.bias = nn.Parameter(torch.full((outputs,), float(bias)))
        self.scale, self.lr, self.activate = lr / math.sqrt(inputs), lr, activate

    def forward(self, x: Tensor) -> Tensor:
        if self.activate:
            return lrelu(F.linear(x, self.weight * self.scale), self.bias * self.lr)
        return F.linear(x, self.weight * self.scale, self.bias * self.lr)


class ModulatedConv(nn.Module):
    """A convolution whose weights are scaled by a style, and brought to unit size if it demodulates.

    By scaling inputs and outputs, which equals a convolution of its own for each picture:
    y = conv(x s, W) d,  s = A w,  d = 1 / sqrt(sum (W s)^2).
    """

    def __init__(self, inputs: int, outputs: int, kernel: int, style: int, demodulate: bool = True, up: bool = False):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(1, outputs, inputs, kernel, kernel))
        self.modulation = Linear(style, inputs, bias=1.0)
        self.scale, self.demodulate, self.up = 1 / math.sqrt(inputs * kernel ** 2), demodulate, up

    def forward(self, x: Tensor, w: Tensor) -> Tensor:
        style, weight = self.modulation(w), self.weight[0] * self.scale                         # [B, I], [O, I, k, k]
        y = x * style[:, :, None, None]
        if self.up:
            y = smooth(F.conv_transpose2d(y, weight.transpose(0, 1), stride=2), 4.0, (1, 1))    # [B, O, 2H, 2W]
        else:
            y = F.conv2d(y, weight, padding=weight.shape[-1] // 2)
        if self.demodulate:
            size = style.square() @ weight.square().sum((2, 3)).T                               # [B, O]
            y = y * (size + 1e-8).rsqrt()[:, :, None, None]
        return y


class Noise(nn.Module):
    """Adds noise [B, 1, H, W] times a learned number."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))

    def forward(self, x: Tensor, noise: Tensor) -> Tensor:
        return x + self.weight * noise


class Activate(nn.Module):
    """`lrelu` with its bias."""

    def __init__(self, channels: int):
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        return lrelu(x, self.bias)


class StyledConv(nn.Module):
    """Modulated convolution, noise, bias and activation."""

    def __init__(self, inputs: int, outputs: int, kernel: int, style: int, up: bool = False):
        super().__init__()
        self.conv = ModulatedConv(inputs, outputs, kernel, style, up=up)
        self.noise, self.activate = Noise(), Activate(outputs)

    def forward(self, x: Tensor, w: Tensor, noise: Tensor) -> Tensor:
        return self.activate(self.noise(self.conv(x, w), noise))


class ToRGB(nn.Module):
    """Features to three channels, modulated and not demodulated."""

    def __init__(self, inputs: int, style: int):
        super().__init__()
        self.conv = ModulatedConv(inputs, 3, 1, style, demodulate=False)
        self.bias = nn.Parameter(torch.zeros(1, 3, 1, 1))

    def forward(self, x: Tensor, w: Tensor) -> Tensor:
        return self.conv(x, w) + self.bias


class Constant(nn.Module):
    """The learned [1, C, 4, 4] that every picture begins as."""

    def __init__(self, channels: int):
        super().__init__()
        self.input = nn.Parameter(torch.randn(1, channels, 4, 4))

    def forward(self, batch: int) -> Tensor:
        return self.input.expand(batch, -1, -1, -1)


class Conv(nn.Module):
    """Equalised convolution without bias."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int = 1):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(outputs, inputs, kernel, kernel))
        self.scale, self.stride = 1 / math.sqrt(inputs * kernel ** 2), stride

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.weight * self.scale, stride=self.stride)


class Smooth(nn.Module):
    """`smooth` as a layer."""

    def __init__(self, pad: tuple[int, int]):
        super().__init__()
        self.pad = pad

    def forward(self, x: Tensor) -> Tensor:
        return smooth(x, 1.0, self.pad)


def conv_layer(inputs: int, outputs: int, kernel: int, down: bool = False, activate: bool = True) -> nn.Sequential:
    """A discriminator's convolution: reflection padding (or smoothing and a stride of 2), convolution, activation.

    Positions are those of the official files: [pad, conv, act], and downwards [smooth, pad, conv, act].
    """
    half = kernel // 2
    if down:
        layers: list[nn.Module] = [Smooth((half + 1, half + 1)), nn.Identity(), Conv(inputs, outputs, kernel, 2)]
    else:
        layers = [nn.ReflectionPad2d(half) if half else nn.Identity(), Conv(inputs, outputs, kernel)]
    return nn.Sequential(*layers, *([Activate(outputs)] if activate else []))


def per_image(u: Tensor) -> Tensor:
    """Each picture of [B, 1, H, W] from 0 to 1 by its own extremes, in float32; a flat one is 0."""
    u = u.float()
    low, high = u.amin((1, 2, 3), keepdim=True), u.amax((1, 2, 3), keepdim=True)
    return (u - low) / (high - low + 1e-10)
