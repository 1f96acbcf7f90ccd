"""First noise of a clip: independent frames, PYoCo's and FreeNoise's correlated ones, and FreeInit's filter.

Every kind keeps the marginals: each frame is N(0, I). All functions take and give [F, C, H, W].
"""
from __future__ import annotations

import math

import torch
from torch import Tensor

KINDS = ("iid", "pyoco mixed", "pyoco progressive", "freenoise")


def pyoco_mixed(shared: Tensor, own: Tensor, alpha: float) -> Tensor:
    """shared [1, C, H, W] and own [F, C, H, W], both N(0, I); neighbours correlate by a^2 / (1 + a^2).

    Source: Ge et al., "Preserve Your Own Correlation", ICCV 2023, section 4.1.
    """
    scale = math.sqrt(1 + alpha ** 2)
    return (alpha * shared + own) / scale


def pyoco_progressive(own: Tensor, alpha: float) -> Tensor:
    """own [F, C, H, W] N(0, I); each frame goes on from the one before, correlated with it by a / sqrt(1 + a^2).

    Source: Ge et al., ICCV 2023, section 4.2.
    """
    scale = math.sqrt(1 + alpha ** 2)
    frames = [own[0]]
    for fresh in own[1:]:
        frames.append((alpha * frames[-1] + fresh) / scale)
    return torch.stack(frames)


def freenoise(own: Tensor, window: int, generator: torch.Generator) -> Tensor:
    """The first `window` frames of own, then again and again the same ones in shuffled order.

    Source: Qiu et al., "FreeNoise", ICLR 2024, section 3.2 (local noise shuffling), with windows that do not overlap.
    """
    frames, length = [], len(own)
    while len(frames) < length:
        order = torch.randperm(window, generator=generator) if frames else torch.arange(window)
        frames.extend(own[:window][order[:length - len(frames)]])
    return torch.stack(frames)


def clip_noise(own: Tensor, kind: str, generator: torch.Generator, alpha: float = 1.0, window: int = 16) -> Tensor:
    """Noise of one of KINDS from independent noise own [F, C, H, W]; `generator` draws what more is needed.

    Raises ValueError for an unknown kind, a negative alpha, or a window outside of 1..F.
    """
    if kind == "iid":
        return own
    if kind == "freenoise":
        if window < 1:
            raise ValueError(f"FreeNoise repeats a window of at least 1 frame; {window} was given.")
        return freenoise(own, min(window, len(own)), generator)
    if alpha < 0:
        raise ValueError(f"PYoCo's alpha is 0 (independent) or positive; {alpha} was given.")
    if kind == "pyoco progressive":
        return pyoco_progressive(own, alpha)
    if kind == "pyoco mixed":
        shared = torch.randn(1, *own.shape[1:], generator=generator).to(own)
        return pyoco_mixed(shared, own, alpha)
    raise ValueError(f"The kind of noise is one of {', '.join(KINDS)}; {kind!r} was given.")


def low_pass(shape: torch.Size, kind: str, spatial: float, temporal: float, order: int = 4) -> Tensor:
    """FreeInit's filter over the centred spectrum of [F, C, H, W], as [F, 1, H, W] in 0..1.

    Args:
        kind: "butterworth", "gaussian" or "ideal".
        spatial, temporal: cut-off frequencies d_s and d_t as fractions of the highest one.

    Source: Wu et al., "FreeInit: Bridging Initialization Gap in Video Diffusion Models", ECCV 2024, section 4.2.
    """
    def axis(length: int, cut: float) -> Tensor:
        along = 2 * torch.fft.fftshift(torch.fft.fftfreq(length))               # -1..1
        return (along / max(cut, 1e-6)) ** 2

    frames, _, height, width = shape
    distance = (axis(frames, temporal)[:, None, None] + axis(height, spatial)[:, None]
                + axis(width, spatial))                                         # squared, 1 at the cut-off
    response = {"butterworth": lambda d: 1 / (1 + d ** order), "gaussian": lambda d: torch.exp(-d / 2),
                "ideal": lambda d: (d <= 1).float()}[kind](distance)
    return response[:, None]


def freeinit_mix(noisy: Tensor, fresh: Tensor, response: Tensor) -> Tensor:
    """Low frequencies of `noisy` (the last sample diffused to the first noise level), high ones of `fresh`.

    noisy, fresh [F, C, H, W], response [F, 1, H, W] from `low_pass`.
    """
    axes = (0, 2, 3)

    def spectrum(x: Tensor) -> Tensor:
        return torch.fft.fftshift(torch.fft.fftn(x.float(), dim=axes), dim=axes)

    mixed = spectrum(noisy) * response + spectrum(fresh) * (1 - response)
    return torch.fft.ifftn(torch.fft.ifftshift(mixed, dim=axes), dim=axes).real.to(fresh)
