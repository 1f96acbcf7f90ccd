"""HDR video in SDR: PQ and HLG (ITU-R BT.2100-2) with diffuse white, 203 nits (ITU-R BT.2408), as SDR's white."""
from __future__ import annotations

from functools import cache

import numpy as np

PQ_TRANSFER, HLG_TRANSFER = 16, 18      # ITU-T H.273, TransferCharacteristics
BT709_PRIMARIES = 1                     # ITU-T H.273, ColourPrimaries
WHITE = 203.0                           # nits, BT.2408
HLG_PEAK, HLG_GAMMA = 1000.0, 1.2       # nits and system gamma of the display that BT.2408's levels are for
LUMINANCE = np.array([0.2627, 0.6780, 0.0593], np.float32)                          # of BT.2020's primaries
TO_BT709 = np.array([[1.6605, -0.5876, -0.0728], [-0.1246, 1.1329, -0.0083], [-0.0182, -0.1006, 1.1187]],
                    np.float32)                                                     # BT.2087, linear light


def to_sdr(code: np.ndarray, transfer: int, primaries: int) -> np.ndarray:
    """[H, W, 3] uint16, full-range R'G'B' of an HDR video -> [H, W, 3] uint8 sRGB.

    Light above diffuse white is clipped; so is what is outside of BT.709's colours.
    """
    if transfer == PQ_TRANSFER:
        light = _pq_nits()[code]
    else:
        scene = _hlg_scene()[code]
        light = HLG_PEAK * scene * (scene @ LUMINANCE)[..., None] ** (HLG_GAMMA - 1)        # BT.2100's OOTF
    light = light / WHITE
    if primaries != BT709_PRIMARIES:
        light = light @ TO_BT709.T
    return _srgb()[(light.clip(0, 1) * 0xFFFF + 0.5).astype(np.uint16)]


@cache
def _pq_nits() -> np.ndarray:
    """BT.2100's PQ EOTF for every 16-bit level."""
    m1, m2 = 2610 / 16384, 2523 / 4096 * 128
    c1, c2, c3 = 3424 / 4096, 2413 / 4096 * 32, 2392 / 4096 * 32
    root = np.linspace(0, 1, 1 << 16) ** (1 / m2)
    return (10000 * ((root - c1).clip(0) / (c2 - c3 * root)) ** (1 / m1)).astype(np.float32)


@cache
def _hlg_scene() -> np.ndarray:
    """BT.2100's inverse HLG OETF for every 16-bit level."""
    a, b, c = 0.17883277, 0.28466892, 0.55991073
    level = np.linspace(0, 1, 1 << 16)
    return np.where(level <= 0.5, level ** 2 / 3, (np.exp((level - c) / a) + b) / 12).astype(np.float32)


@cache
def _srgb() -> np.ndarray:
    """IEC 61966-2-1: 16-bit linear light -> 8-bit sRGB."""
    light = np.linspace(0, 1, 1 << 16)
    level = np.where(light <= 0.0031308, 12.92 * light, 1.055 * light ** (1 / 2.4) - 0.055)
    return (255 * level).round().astype(np.uint8)
