"""A frame of a clip's source, what was done to show it as a player does, and how it fits the size of a clip."""
from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

LATE = 1e-4                         # seconds of rounding forgiven in time stamps
ALPHA = "alpha over black"          # conversions; they are part of a clip's key in the cache
ALPHA_LOST = "alpha not decoded"
GREY = "16-bit grey"
PQ, HLG = "PQ to SDR", "HLG to SDR"
HDR = ("HDR ({}), tone-mapped to SDR: diffuse white (203 nits) is white, what is brighter is clipped. For another look "
       "convert the file to SDR, e.g. with ffmpeg's filters zscale and tonemap")
CONVERSIONS = {                     # what the report says about them
    ALPHA: "transparency, shown over black",
    ALPHA_LOST: "transparency that this PyAV cannot decode (it has no libvpx): the colours under it are used. Convert "
                "the file to one without transparency",
    GREY: "16-bit grey, scaled to 8 bits",
    PQ: HDR.format("PQ"),
    HLG: HDR.format("HLG"),
}


class BrokenVideoError(ValueError):
    """A file cannot be decoded."""


@dataclass(frozen=True)
class Frame:
    """One frame of a source.

    `picture()` gives it in full, `picture(width, height)` scaled: [H, W, 3] uint8, sRGB. It is called only for frames
    that are needed, and adds the conversions that it makes to the set that the source was given.
    """

    time: float                             # seconds, when it appears
    picture: Callable[..., np.ndarray]
    pixel_aspect: float = 1.0               # width of a pixel over its height
    end: float | None = None                # seconds, when it goes; None: when the next one appears


def over_black(pixels: np.ndarray) -> np.ndarray:
    """[H, W, 4] uint8 with straight alpha -> [H, W, 3] uint8 over black."""
    colour, alpha = pixels[..., :3].astype(np.uint16), pixels[..., 3:].astype(np.uint16)
    return ((colour * alpha + 127) // 255).astype(np.uint8)


def fit(picture: np.ndarray, width: int, height: int, pixel_aspect: float = 1.0, whole: bool = False) -> Tensor:
    """[H, W, C] uint8 -> [C, height, width] uint8: scaled until it covers the size, then centre cropped.

    With `whole`: scaled until it fits into the size, the rest is zero. C is 3, or 4 with straight alpha, by which the
    colours are weighted. `pixel_aspect` is the width of one of the picture's pixels over its height.
    """
    pixels = torch.from_numpy(np.array(picture)).permute(2, 0, 1).float()
    shown = pixels.shape[2] * pixel_aspect                                  # the width that its height asks for
    scale = (min if whole else max)(width / shown, height / pixels.shape[1])
    size = [max(1, round(side * scale)) for side in (pixels.shape[1], shown)]
    size = [(min if whole else max)(wanted, side) for wanted, side in zip((height, width), size, strict=True)]
    if len(pixels) == 4:
        pixels[:3] *= pixels[3:] / 255
    scaled = F.interpolate(pixels[None], size, mode="bicubic", antialias=True, align_corners=False)[0]
    if len(pixels) == 4:
        scaled[:3] /= (scaled[3:] / 255).clamp(min=0.5 / 255)
    top, left = (size[0] - height) // 2, (size[1] - width) // 2             # negative where it is padded
    if whole:
        scaled = F.pad(scaled, (-left, width - size[1] + left, -top, height - size[0] + top))
        top = left = 0
    return scaled[:, top:top + height, left:left + width].round().clamp(0, 255).to(torch.uint8)
