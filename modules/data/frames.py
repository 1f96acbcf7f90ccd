"""A frame of a clip's source, and what was done to show it as a player does."""
from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

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
