"""The edit: x-space guidance along a direction, and direct addition with the first paper's normalisation.

    x <- x + gamma (eps(x + eta v) - eps(x)), N times with the same v

eps(x [B, C, H, W]) -> [B, C, H, W] is the U-Net's noise prediction at one timestep and one conditioning, without
classifier-free guidance; x is in the variance-preserving scale that the U-Net sees.

Sources: Park et al., NeurIPS 2023, code edit.py `x_space_guidance`. Park et al., "Unsupervised Discovery of Semantic
Latent Directions in Diffusion Models", arXiv 2302.12469, for direct addition.
"""
from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

Eps = Callable[[Tensor], Tensor]
KAPPA = 0.99                # of the normalisation, the paper's
CONTRAST = 0.1              # change of the predicted picture's contrast that an edit "normalised" may make
HALVINGS = 8                # of such an edit, until it keeps to CONTRAST and TOO_FAR
TOO_FAR = 0.05              # change of || x || beyond which the latent has left the shell where noise lives
# gamma from this t / T on, for Stable Diffusion. The code gives it at tenths; halfway is ours.
GAMMA = ((0.85, 0.5), (0.65, 1.0), (0.0, 2.0))


def official_scale(t: float, last: float = 999.0) -> float:
    """gamma of the official table for timestep t of 0..last.

    It grows as noise falls: || J_eps v || falls with it. Raises ValueError for a t that is outside.
    """
    if not 0 <= t <= last:
        raise ValueError(f"The timestep is 0 to {last:g}; {t} was given.")
    return next(gamma for start, gamma in GAMMA if t / last >= start)


def x_space_guidance(x: Tensor, v: Tensor, eps: Eps, gamma: float | Sequence[float], steps: int, eta: float = 1.0
                     ) -> Iterator[Tensor]:
    """The edited latents after every one of `steps` steps, [R, C, H, W]; nothing for 0 steps.

    Args:
        x: [1, C, H, W], or one latent a row.
        v: [C, H, W] unit direction, or one a row.
        gamma: scale, or one a row. A negative one takes -v as its direction; 0 keeps x bit for bit.

    All rows and both evaluations are one batch of eps; rows with gamma 0 are not evaluated. Travel is about
    gamma * steps. Raises ValueError for rows that do not fit and a negative number of steps.
    """
    if steps < 0:
        raise ValueError(f"The number of guidance steps is 0 or more; {steps} was given.")
    x, v, gamma = rows(x, v, gamma)
    active = gamma.flatten() != 0
    size, direction = gamma[active].abs(), v[active] * gamma[active].sign()
    for _ in range(steps):
        if bool(active.any()):
            moving = x[active]
            moved, still = eps(torch.cat((moving + eta * direction, moving))).to(x).chunk(2)
            x = x.clone()
            x[active] = moving + size * (moved - still)
        yield x


def direct_addition(x: Tensor, v: Tensor, gamma: float | Sequence[float]) -> Tensor:
    """x + gamma v of the first paper, [R, C, H, W]; gamma is signed, 0 keeps x bit for bit."""
    x, v, gamma = rows(x, v, gamma)
    return torch.where(gamma == 0, x, x + gamma * v)


def rows(x: Tensor, v: Tensor, gamma: float | Sequence[float]) -> tuple[Tensor, Tensor, Tensor]:
    """x and v [R, C, H, W] and gamma [R, 1, 1, 1] in the type of x, all with the same R. ValueError if they differ."""
    v = v if v.ndim == 4 else v[None]
    if x.ndim != 4 or x.shape[1:] != v.shape[1:]:
        raise ValueError(f"The direction {list(v.shape[1:])} does not fit the latent {list(x.shape)}. Find the latent "
                         "basis for a latent of this size.")
    gamma = torch.as_tensor(gamma, dtype=x.dtype, device=x.device).reshape(-1, 1, 1, 1)
    count = max(len(x), len(v), len(gamma))
    if {len(x), len(v), len(gamma)} - {1, count}:
        raise ValueError(f"{len(x)} latents, {len(v)} directions and {len(gamma)} scales do not go together: of each "
                         "there is one, or one for every row.")
    return x.expand(count, -1, -1, -1), v.to(x).expand(count, -1, -1, -1), gamma.expand(count, -1, -1, -1)


def predicted_x0(x: Tensor, eps: Tensor, alpha_bar: float) -> Tensor:
    """x0 = (x - sqrt(1 - abar) eps) / sqrt(abar), of x's shape."""
    return (x - (1 - alpha_bar) ** 0.5 * eps) / alpha_bar ** 0.5


def normalise(x: Tensor, moved: Tensor, eps: Eps, alpha_bar: float, kappa: float = KAPPA) -> Tensor:
    """The first paper's cure of distortion: x0 of `moved` gets back the contrast of x0 of x.

    x_t' = x_t + sqrt(abar) / (1 - kappa sqrt(1 - abar)) (x0' - x0(x_t)), where x0' is x0(moved) with its own mean and
    with the standard deviation of x0(x_t), both of a whole sample. x, moved [B, C, H, W].

    kappa I stands for the derivative of eps. Along the directions of a latent basis this is far from true: there the
    network takes much of x for picture, and the formula overshoots. See `keep_in_distribution`.

    Source: arXiv 2302.12469, "Normalizing distortion"; it stands commented out in InjectFusion's released code
    (utils/diffusion_utils.py), from which the standard deviation over channels and pixels together is taken.
    """
    before, after = (predicted_x0(a, e, alpha_bar) for a, e in
                     zip((x, moved), eps(torch.cat((x, moved))).to(x).chunk(2), strict=True))
    ratio = spread(before) / spread(after).clamp(min=1e-12)
    centred = after - after.mean((1, 2, 3), keepdim=True)
    x0 = after + (ratio - 1) * centred                                          # exactly `after` for equal spreads
    return x + alpha_bar ** 0.5 / (1 - kappa * (1 - alpha_bar) ** 0.5) * (x0 - before)


def keep_in_distribution(x: Tensor, moved: Tensor, eps: Eps, alpha_bar: float, most: Tensor) -> Tensor:
    """x + tau (moved - x), [B, C, H, W], with a tau for every row of which the result is still a noisy picture.

    x [B or 1, C, H, W]. tau makes the move `most` [B] long at most; then it is halved, up to HALVINGS times, until the
    predicted x0 has the contrast of x0(x) to CONTRAST and the length of x changes by no more than TOO_FAR. Ours, not in
    the papers.
    """
    before = spread(predicted_x0(x, eps(x).to(x), alpha_bar))
    shift = moved - x
    shift = shift * (most / lengths(shift).clamp(min=1e-12)).clamp(max=1).view(-1, 1, 1, 1).to(shift)
    for _ in range(HALVINGS):
        there = x + shift
        ratio = spread(predicted_x0(there, eps(there).to(x), alpha_bar)) / before.clamp(min=1e-12)
        far = (ratio - 1).abs().flatten() > CONTRAST
        far |= norm_drift(x, there).abs() > TOO_FAR
        if not bool(far.any()):
            break
        shift = torch.where(far.view(-1, 1, 1, 1), shift / 2, shift)
    return x + shift


def spread(x: Tensor) -> Tensor:
    """Standard deviation of every sample of [B, C, H, W], [B, 1, 1, 1]."""
    return x.std((1, 2, 3), keepdim=True, correction=0)


def norm_drift(before: Tensor, after: Tensor) -> Tensor:
    """|| x' || / || x || - 1 of every row, [B]. Beyond TOO_FAR the edit is too strong for this noise level."""
    return lengths(after) / lengths(before).clamp(min=1e-12) - 1


def restore_norm(before: Tensor, after: Tensor) -> Tensor:
    """`after` [B, C, H, W] with the length that `before` [B or 1, C, H, W] has. Ours, not in the papers."""
    ratio = lengths(before) / lengths(after).clamp(min=1e-12)
    return (after * ratio.view(-1, 1, 1, 1)).to(after.dtype)


def lengths(x: Tensor) -> Tensor:
    """|| x || of every row, [B]."""
    return x.flatten(1).float().norm(dim=1)
