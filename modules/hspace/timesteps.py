"""Where to inject: t_edit and t_boost of a checkpoint, from how fast pictures get lost in noise (2.8)."""
from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

LPIPS_EDIT, LPIPS_BOOST = 0.33, 1.2         # thresholds of Asyrp's criterion, for LPIPS with AlexNet
SSIM_EDIT, SSIM_BOOST = 0.5, 0.85           # ours, as shares of the largest distance on the way
WINDOW = 11                                 # pixels, of SSIM


def ssim_distance(a: Tensor, b: Tensor) -> Tensor:
    """1 - SSIM of pictures [B, 3, H, W] in 0..1, over Gaussian windows of 11 pixels; [B]. Wang et al. 2004."""
    from kornia.metrics import ssim
    return 1 - ssim(a, b, WINDOW).mean((1, 2, 3))


def first_reached(times: Sequence[float], distances: Sequence[float], threshold: float, name: str = "t_edit") -> float:
    """The smallest timestep from which on the distance stays at or above the threshold.

    Raises ValueError, with the curve's highest value, if there is none.
    """
    for start in range(len(times)):
        if all(distance >= threshold for distance in distances[start:]):
            return times[start]
    highest = max(range(len(times)), key=lambda step: distances[step])
    raise ValueError(f"There is no {name}: the distance to the picture has to stay at {threshold:.3g} or above up to "
                     f"the last timestep. Its highest value is {distances[highest]:.3g} (timestep {times[highest]:g}), "
                     f"the last one {distances[-1]:.3g} (timestep {times[-1]:g}). Calibrate with other pictures or the "
                     f"other distance, or set {name} by hand; the defaults are 400 for t_edit and 200 for t_boost.")


def shares_reached(times: Sequence[float], predicted: Tensor, noisy: Tensor) -> tuple[float, float]:
    """(t_edit, t_boost) from distances [S] of the predicted and of the noisy picture to the picture, by our shares.

    Raises ValueError as `first_reached`.
    """
    return (first_reached(times, predicted.tolist(), SSIM_EDIT * predicted.max().item()),
            first_reached(times, noisy.tolist(), SSIM_BOOST * noisy.max().item(), "t_boost"))


def lpips_reached(times: Sequence[float], predicted: Tensor, noisy: Tensor) -> tuple[float, float]:
    """The same by Asyrp's thresholds, for distances that are LPIPS."""
    return (first_reached(times, predicted.tolist(), LPIPS_EDIT),
            first_reached(times, noisy.tolist(), LPIPS_BOOST, "t_boost"))
