"""Where to inject: t_edit and t_boost of a checkpoint, from how fast pictures get lost in noise (2.8)."""
from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor

LPIPS_EDIT, LPIPS_BOOST = 0.33, 1.2         # thresholds of Asyrp's criterion, for LPIPS with AlexNet
SSIM_EDIT, SSIM_BOOST = 0.5, 0.85           # ours, as shares of the largest distance on the way
WINDOW = 8                                  # pixels
BRIGHT = (0.01 ** 2, 0.03 ** 2)             # SSIM's constants for pictures in 0..1


def ssim_distance(a: Tensor, b: Tensor) -> Tensor:
    """1 - SSIM of pictures [B, 3, H, W] in 0..1, over windows of 8 pixels; [B]. Wang et al. 2004, uniform windows."""
    window = min(WINDOW, *a.shape[-2:])

    def mean(x: Tensor) -> Tensor:
        return F.avg_pool2d(x, window, stride=max(1, window // 2))

    mean_a, mean_b = mean(a), mean(b)
    var_a, var_b = mean(a * a) - mean_a ** 2, mean(b * b) - mean_b ** 2
    both = mean(a * b) - mean_a * mean_b
    light = (2 * mean_a * mean_b + BRIGHT[0]) / (mean_a ** 2 + mean_b ** 2 + BRIGHT[0])
    form = (2 * both + BRIGHT[1]) / (var_a + var_b + BRIGHT[1])
    return 1 - (light * form).mean((1, 2, 3))


def first_reached(times: Sequence[float], distances: Sequence[float], threshold: float) -> float:
    """The smallest timestep from which on the distance stays at or above the threshold; the last one if none."""
    for start in range(len(times)):
        if all(distance >= threshold for distance in distances[start:]):
            return times[start]
    return times[-1]


def shares_reached(times: Sequence[float], predicted: Tensor, noisy: Tensor) -> tuple[float, float]:
    """(t_edit, t_boost) from distances [S] of the predicted and of the noisy picture to the picture, by our shares."""
    return (first_reached(times, predicted.tolist(), SSIM_EDIT * predicted.max().item()),
            first_reached(times, noisy.tolist(), SSIM_BOOST * noisy.max().item()))


def lpips_reached(times: Sequence[float], predicted: Tensor, noisy: Tensor) -> tuple[float, float]:
    """The same by Asyrp's thresholds, for distances that are LPIPS."""
    return (first_reached(times, predicted.tolist(), LPIPS_EDIT), first_reached(times, noisy.tolist(), LPIPS_BOOST))
