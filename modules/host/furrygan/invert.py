"""From a picture of the user's to its foreground and alpha."""
from __future__ import annotations

from dataclasses import dataclass

import comfy.model_management
import torch
from comfy.utils import ProgressBar
from torch import Tensor

from ...furrygan.inversion import BACKGROUND_STEPS, Inverted, doubts, invert, joined
from ...furrygan.sampling import Cutouts, Styles
from .apply import cut_outs, resized
from .files import LoadedFurry

AT_ONCE = 8         # pictures; each is searched by itself


@dataclass(frozen=True)
class FromImage:
    """What a picture gave.

    Attributes:
        cutout: [B, s, s, 4] the square middle of the pictures, their own pixels, with alpha.
        mask: [B, s, s].
        layers: as the model drew them.
        styles: of these layers.
        text: residuals, agreements, warnings.
    """
    cutout: Tensor
    mask: Tensor
    layers: Cutouts
    styles: Styles
    text: str


def from_images(loaded: LoadedFurry, images: Tensor, steps: int, seed: int, guide: float,
                node_id: str | None = None) -> FromImage:
    """Invert pictures [B, H, W, 3 or 4] in 0..1. Raises ValueError without discriminator, and the host's interrupt."""
    squares = middle_square(images[..., :3])
    size, judge = loaded.file.shape.size, loaded.discriminator
    device, total = loaded.on_device(), steps + BACKGROUND_STEPS
    bar, found = ProgressBar(-(-len(images) // AT_ONCE) * total, node_id), []
    with torch.inference_mode(False), torch.enable_grad():
        wanted = 2 * resized(squares.clone().movedim(-1, 1), (size, size)).clamp(0, 1).to(device) - 1
        for number, part in enumerate(wanted.split(AT_ONCE)):
            for done, made in invert(loaded.generator, judge, loaded.means, part, steps, seed, guide):
                comfy.model_management.throw_exception_if_processing_interrupted()
                bar.update_absolute(number * total + done)
                if made is not None:
                    found.append(made)
    inverted = joined(found)
    layers = cut_outs(loaded, inverted.styles)
    mask = resized(layers.mask[:, None], tuple(squares.shape[1:3]))[:, 0].clamp(0, 1)
    return FromImage(torch.cat([squares, mask[..., None].to(squares)], -1), mask, layers, inverted.styles,
                     _text(inverted))


def middle_square(images: Tensor) -> Tensor:
    """[B, H, W, C] -> the middle [B, s, s, C]."""
    height, width = images.shape[1:3]
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    return images[:, top:top + side, left:left + side]


def _text(inverted: Inverted) -> str:
    lines = []
    for number in range(len(inverted.residual)):
        line = (f"picture {number}: error {float(inverted.residual[number]):.4f}, overlap with the mask predictor "
                f"{float(inverted.agreement[number]):.2f}")
        against = doubts(inverted, number)
        lines.append(line + (f"\n  Do not trust this mask: {'; '.join(against)}." if against else ""))
    return "\n".join(lines)
