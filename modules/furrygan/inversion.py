"""From a picture back to styles: its mask comes with them.

Neither the paper nor its code has a projector; this is a reconstruction (specification, section 4). A foreground is
trained to be a whole picture, so the foreground alone can become the given one.
"""
from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ..training.settings import TrainSettings, learning_rate
from .discriminator import Discriminator
from .losses import as_hint
from .networks import Generator
from .sampling import Means, Styles, noise_of

RATE, PULL, GUIDE = 0.05, 1e-3, 0.1         # of Adam; towards the mean; of the discriminator's mask
BACKGROUND_STEPS = 100
SIDES = (8, 64)                             # of the features that are compared
UNLIKE, DISAGREES = 0.05, 0.6               # residual above, agreement below: no good answer


@dataclass(frozen=True)
class Inverted:
    """What was found for B pictures.

    Attributes:
        styles: of the layers.
        residual: [B] multi-scale mean squared error of the foreground, colours in -1..1.
        agreement: [B] intersection over union of the mask and the discriminator's, both at 16x16.
    """
    styles: Styles
    residual: Tensor
    agreement: Tensor


def pyramid_error(made: Tensor, wanted: Tensor) -> Tensor:
    """[B]: mean over scales, from S down to 8, of the mean squared error."""
    errors = []
    while made.shape[-1] >= SIDES[0]:
        errors.append((made - wanted).square().mean((1, 2, 3)))
        made, wanted = F.avg_pool2d(made, 2), F.avg_pool2d(wanted, 2)
    return torch.stack(errors).mean(0)


def compared(features: Sequence[Tensor]) -> list[Tensor]:
    return [part for part in features if SIDES[0] <= part.shape[-1] <= SIDES[1]]


def invert(network: Generator, discriminator: Discriminator, means: Means, pictures: Tensor, steps: int = 300,
           seed: int = 0, guide: float = GUIDE) -> Iterator[tuple[int, Inverted | None]]:
    """Search the styles of pictures [B, 3, S, S] in -1..1; yields (steps done, None), and at last what was found.

    First W+ of the foreground until it is the picture, then the background's until the composite is, with the mask as
    it stands. Networks are frozen, in float32, and on the pictures' device.
    """
    device, count = pictures.device, len(pictures)
    with torch.no_grad():
        seen = discriminator.features(pictures)
        features, hint = compared(seen), discriminator.mask_of(seen)
    mean, mean_bg = (part.to(device).float()[None, None].expand(count, network.shape.rows, -1) for part in means)
    w, w_bg = mean.clone().requires_grad_(), mean_bg.clone().requires_grad_()
    styles = Styles(w, w_bg, [(seed, 0)] * count)
    noise = noise_of(network.shape, styles, device)

    def unlike(made: Tensor) -> Tensor:
        seen = compared(discriminator.features(made))
        of_features = sum(F.mse_loss(part, wanted) / wanted.square().mean()
                          for part, wanted in zip(seen, features, strict=True)) / len(features)
        return pyramid_error(made, pictures).mean() + of_features

    def search(variable: Tensor, steps: int, loss) -> Iterator[int]:
        settings = TrainSettings(steps=steps, lr=RATE, schedule="cosine")
        adam = torch.optim.Adam([variable], lr=RATE)
        for step in range(steps):
            adam.param_groups[0]["lr"] = learning_rate(settings, step)
            adam.zero_grad()
            loss().backward()
            adam.step()
            yield step + 1

    def foreground_loss() -> Tensor:
        layers = network(w, mean_bg, noise)
        found = unlike(layers.foreground) + PULL * (w - mean).square().sum(-1).mean()
        return found + guide * F.mse_loss(as_hint(layers.mask), hint) if guide else found

    for done in search(w, steps, foreground_loss):
        yield done, None
    with torch.no_grad():
        layers = network(w, mean_bg, noise)
        residual, mask = pyramid_error(layers.foreground, pictures), layers.mask

    def background_loss() -> Tensor:
        behind = network(w.detach(), w_bg, noise).background
        made = mask * layers.foreground + (1 - mask) * behind
        return unlike(made) + PULL * (w_bg - mean_bg).square().sum(-1).mean()

    for done in search(w_bg, BACKGROUND_STEPS, background_loss):
        yield steps + done, None
    inside, seen = as_hint(mask) > 0.5, hint > 0.5
    agreement = (inside & seen).sum((1, 2, 3)) / (inside | seen).sum((1, 2, 3)).clamp(min=1)
    found = Styles(w.detach().cpu(), w_bg.detach().cpu(), styles.noise)
    yield steps + BACKGROUND_STEPS, Inverted(found, residual.cpu(), agreement.cpu())


def joined(parts: Sequence[Inverted]) -> Inverted:
    """One after another."""
    styles = [part.styles for part in parts]
    whole = Styles(torch.cat([each.foreground for each in styles]), torch.cat([each.background for each in styles]),
                  [noise for each in styles for noise in each.noise])
    return Inverted(whole, torch.cat([part.residual for part in parts]), torch.cat([part.agreement for part in parts]))


def doubts(inverted: Inverted, index: int) -> list[str]:
    """What speaks against an answer, in words."""
    residual, agreement, found = float(inverted.residual[index]), float(inverted.agreement[index]), []
    if residual > UNLIKE:
        found.append(f"the foreground is not the picture (error {residual:.3f}, expected below {UNLIKE}): this model "
                     "does not know such things, or more steps are needed")
    if agreement < DISAGREES:
        found.append(f"mask and mask predictor disagree (overlap {agreement:.2f}, expected above {DISAGREES})")
    return found
