"""The calibration pass: for which timesteps a checkpoint decides content (h-space injection, 2.8)."""
from __future__ import annotations

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import comfy.utils
import torch
from torch import Tensor

from ...hspace.timesteps import lpips_reached, shares_reached, ssim_distance
from ..guiders import guider_of
from ..vae import vae_pixels
from .inversion import DDIMInversion, Recorder, check_invertible, inversion_grid

SSIM, LPIPS = "ssim", "lpips"
DISTANCES = (SSIM, LPIPS)
ALEXNET = "alexnet-owt-7be5be79.pth"        # the file that torchvision keeps and LPIPS builds on


@dataclass(frozen=True)
class TimestepCalibration:
    """Distances to the picture along an inversion, means over the pictures.

    Attributes:
        times: [S] rising timesteps.
        predicted: [S] of the predicted picture P_t.
        noisy: [S] of the noisy one x_t.
    """
    times: tuple[float, ...]
    predicted: Tensor
    noisy: Tensor
    t_edit: float
    t_boost: float


def calibrate(model, positive, vae, latent: Tensor, steps: int, distance: str = SSIM) -> TimestepCalibration:
    """Invert the pictures and find t_edit and t_boost.

    Raises ValueError for what cannot be inverted, and if LPIPS is asked for and not installed.
    """
    check_invertible(model, positive, latent)
    measure, judge = (lpips_distance(), lpips_reached) if distance == LPIPS else (ssim_distance, shares_reached)
    times, sigmas = inversion_grid(model.get_model_object("model_sampling"), steps)
    pixels = decoder(model, vae)
    distances = torch.zeros(2, len(times))                      # of the predicted and the noisy picture
    bar = comfy.utils.ProgressBar(len(latent) * len(times))
    for picture in latent.split(1):                             # one at a time: the papers take 100
        seen, recorder = [], Recorder(1, tuple(latent.shape[-2:]), 0)

        def look(step: int, denoised: Tensor, x: Tensor, _, seen=seen) -> None:
            signal = (1 + float(sigmas[step]) ** 2) ** -0.5
            seen.append((denoised.cpu(), (signal * x).cpu()))   # decoded later: the VAE may push the U-Net out
            bar.update(1)

        guider_of(model, positive).sample(torch.zeros_like(picture), picture, DDIMInversion(recorder, times, 0),
                                          sigmas, callback=look, disable_pbar=True, seed=0)
        clean = vae_pixels(vae, picture)
        distances += torch.stack([torch.cat([measure(pixels(x), clean) for x in both]) for both in seen], 1)
    curves = distances / len(latent)
    return TimestepCalibration(tuple(map(float, times)), *curves, *judge(times, *curves))


def decoder(model, vae) -> Callable[[Tensor], Tensor]:
    """Latents as the sampler has them -> pictures [B, 3, H, W] in 0..1."""
    return lambda x: vae_pixels(vae, model.model.process_latent_out(x.float().cpu()))


def lpips_distance() -> Callable[[Tensor, Tensor], Tensor]:
    """LPIPS with AlexNet on pictures in 0..1. Raises ValueError if the package is not there."""
    weights = Path(torch.hub.get_dir(), "checkpoints", ALEXNET)
    if importlib.util.find_spec("lpips") is None or not weights.is_file():
        raise ValueError(f"Distance lpips needs the package of that name (pip install lpips) and torchvision's "
                         f"AlexNet as {weights}; nothing is downloaded here. Or choose ssim, which needs neither.")
    import lpips
    network = lpips.LPIPS(net="alex", verbose=False).eval()
    return lambda a, b: network(2 * a - 1, 2 * b - 1).flatten()
