"""FurryGAN's losses (equations 4 to 12; where paper and official code differ, the code). Means over the batch.

Half of the fakes are composites and half are bare foregrounds: so a foreground is a whole picture, and the background
cannot take the object.
"""
from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from .discriminator import HINT
from .networks import Layers

FINE_AREA = 0.01            # share of the picture that the fine mask may add
BINARY = (5.0, 0.5)         # weight of binarisation at the start and after the ramp


@dataclass(frozen=True)
class MaskWeights:
    """Of the losses on masks; the defaults are the official ones."""

    area: float = 5.0
    fine: float = 5.0
    phi: float = 0.35       # share of the picture that the coarse mask has at least


def dual_fakes(layers: Layers) -> Tensor:
    """[B, 3, S, S]: composites of the first half of the codes, foregrounds of the second, in this order."""
    half = len(layers.mask) // 2
    return torch.cat([layers.composite[:half], layers.foreground[half:]])


def discriminator_loss(real: Tensor, fake: Tensor) -> Tensor:
    """Of logits: softplus(-D(real)) + softplus(D(fake))."""
    return F.softplus(-real).mean() + F.softplus(fake).mean()


def generator_loss(fake: Tensor) -> Tensor:
    """Of logits: softplus(-D(fake))."""
    return F.softplus(-fake).mean()


def gradient_penalty(logits: Tensor, real: Tensor) -> Tensor:
    """R1: mean squared norm of the gradient at real pictures, which require one."""
    gradient, = torch.autograd.grad(logits.sum(), real, create_graph=True)
    return gradient.square().sum((1, 2, 3)).mean()


def as_hint(mask: Tensor) -> Tensor:
    """A mask [B, 1, S, S] at the size of the discriminator's, bilinear as the code has it."""
    return F.interpolate(mask, HINT, mode="bilinear")


def prediction_loss(mask: Tensor, of_composite: Tensor, of_foreground: Tensor | None = None) -> Tensor:
    """Equation 4: the discriminator's masks of a composite, and of its foreground if given, are the generator's."""
    wanted = as_hint(mask)
    if of_foreground is None:
        return F.mse_loss(of_composite, wanted)
    return (F.mse_loss(of_composite, wanted) + F.mse_loss(of_foreground, wanted)) / 2


def consistency_loss(of_foreground: Tensor, of_composite: Tensor) -> Tensor:
    """Equation 5: a composite shows the object that its foreground shows. The first is no variable."""
    return F.mse_loss(of_composite, of_foreground.detach())


def coarse_loss(coarse: Tensor, weights: MaskWeights, binary: float) -> Tensor:
    """Equations 6 and 7: masks are near 0 or 1 (weight `binary`), and at least phi of a picture is foreground."""
    unsure = torch.minimum(coarse, 1 - coarse).mean()
    small = (weights.phi - coarse.mean((1, 2, 3))).relu().mean()
    return binary * unsure + weights.area * small


def fine_loss(fine: Tensor, weights: MaskWeights) -> Tensor:
    """Equation 9: the fine mask adds little."""
    return weights.fine * (fine.mean((1, 2, 3)) - FINE_AREA).relu().mean()


def participation_loss(layers: Layers, stop: bool = True) -> Tensor:
    """Equation 10: the background is like the composite, so it takes part, and the mask falls where both differ.

    stop: no gradient through the colours of the composite, as in the code.
    """
    if not stop:
        return F.mse_loss(layers.composite, layers.background)
    composite = layers.mask * layers.foreground.detach() + (1 - layers.mask) * layers.background.detach()
    return F.mse_loss(composite, layers.background)


def ramped(step: int, steps: int, start: float, end: float) -> float:
    """From start to end over some steps, then end."""
    return start + (end - start) * min(1.0, step / max(1, steps))
