"""HARIVO's mitigating-gradient sampling: the predicted clip is smoothed along time at every step.

A reconstruction: the paper gives the guidance scale alpha (40 by default, 0 and 150 shown), not its energy. Ours:

    E(x0) = 1/2 sum_f mean_{c,h,w} (D x0)^2        D = difference of neighbouring frames (order 1) or of those (order 2)
    x0'   = x0 - alpha sigma^2 J^T grad E          J = d x0 / d x, classifier guidance on the denoised prediction

`fast` puts the posterior variance of a unit Gaussian, sigma^2 / (1 + sigma^2), in the place of sigma^2 J.
"""
from __future__ import annotations

import torch
from torch import Tensor

DEFAULT_ALPHA = 40.0            # the authors' project page
REFERENCE = 4 * 32 * 32         # numbers in a frame of 256 x 256 pixels: alpha means the same at every size
LARGEST_STEP, SMALLEST_STEP = 0.25, -0.05       # of k at order 1: explicit diffusion is stable up to 0.5


def differences(x: Tensor, order: int) -> Tensor:
    """D x: differences of neighbouring frames, `order` times. x [B, F, ...] -> [B, F - order, ...]"""
    return torch.diff(x, n=order, dim=1)


def energy(x0: Tensor, order: int = 1) -> Tensor:
    """E of each clip, [B]. x0 [B, F, C, H, W]"""
    return differences(x0.float(), order).square().flatten(2).mean(2).sum(1) / 2


def smoothing_gradient(x: Tensor, order: int = 1) -> Tensor:
    """D^T D x with free ends, of x's shape [B, F, ...]; zero for a clip that does not change (order 1) or that
    changes evenly (order 2), and for one that is too short."""
    if x.shape[1] <= order:
        return torch.zeros_like(x)
    d = differences(x, order)
    for _ in range(order):                                                      # D^T: minus a difference, zero ends
        edge = torch.zeros_like(d[:, :1])
        d = -torch.diff(torch.cat((edge, d, edge), dim=1), dim=1)
    return d


def limits(order: int) -> tuple[float, float]:
    """Least and most of k: the largest eigenvalue of D^T D is 4 at order 1 and 16 at order 2."""
    return SMALLEST_STEP / 4 ** (order - 1), LARGEST_STEP / 4 ** (order - 1)


def is_limited(alpha: float, order: int = 1) -> bool:
    """Whether this alpha asks for more than the limits of k allow at the highest noise levels."""
    least, most = limits(order)
    return not least <= alpha / REFERENCE <= most


def step_size(alpha: float, sigma: float, order: int = 1) -> float:
    """k of `fast`: alpha / 4096 * sigma^2 / (1 + sigma^2), within the limits of the order."""
    least, most = limits(order)
    return min(max(alpha / REFERENCE * sigma ** 2 / (1 + sigma ** 2), least), most)


def limited_alpha(alpha: float, sigma: float, order: int = 1) -> float:
    """The alpha of which `step_size` makes the same k without its limits; for `exact`, whose gradients have the same
    limits at most: J of a unit Gaussian is 1 / (1 + sigma^2). 0 at sigma 0."""
    return step_size(alpha, sigma, order) * REFERENCE * (1 + sigma ** 2) / sigma ** 2 if sigma else 0.0


def mitigate(x0: Tensor, k: float, order: int = 1, locked: Tensor | None = None) -> Tensor:
    """x0' = x0 - k D^T D x0, in fp32. x0 [B, F, C, H, W]; returns the same shape and type.

    Args:
        locked: [F] bool; these frames keep their values exactly, their neighbours still feel them.
    """
    if k == 0:
        return x0
    return keep_locked(x0, x0 - (k * smoothing_gradient(x0.float(), order)).to(x0.dtype), locked)


def keep_locked(before: Tensor, after: Tensor, locked: Tensor | None) -> Tensor:
    """`after` [B, F, ...] but for the locked [F] frames, which are those of `before`."""
    return after if locked is None else torch.where(locked.view(1, -1, *[1] * (after.ndim - 2)), before, after)
