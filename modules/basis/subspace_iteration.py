"""The authors' solver, Jacobian subspace iteration, to compare with. The product default is lanczos.py.

Source: Park et al., NeurIPS 2023, and its code Diffusion-Pullback, utils.py `local_encoder_pullback_zt`. With
`official` it keeps what we hold for mistakes there:
    sign        U comes from the V before the last decomposition, V from it, with signs that are arbitrary: u_i and
                J v_i may be opposite, and the test for the end may never be passed.
    length      U is returned with columns as long as s_i.
    tolerance   entries of V are compared, which are as small as 1 / sqrt(n), so the end says little about angles.
"""
from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from .lanczos import FLOOR, ZERO_NORM
from .products import Jacobian
from .triplets import Step, Triplets, canonical, check_count, no_signal


def subspace_iteration(jacobian: Jacobian, k: int, official: bool = False, tolerance: float = 1e-3,
                       atol: float = 1e-4, min_iter: int = 10, max_iter: int = 50, seed: int = 0) -> Iterator[Step]:
    """The k largest triplets of J; a record after every iteration of 2 k products, the last one with `found`.

    Args:
        official: stop when no entry of V changes by more than `atol`, and return U as it is. Otherwise stop when all
            residuals are at most `tolerance` times s_1, and compute U and s again from the last V (2 k more products).
        min_iter: the end is looked for after more than so many iterations, counted from 0.

    Raises ValueError for k outside of 1..min(n, m), a zero Jacobian and numbers that are not finite.
    """
    check_count(k, jacobian.n, jacobian.m)
    noise = torch.randn(jacobian.n, k, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    V = torch.linalg.qr(noise).Q.T.to(jacobian.dtype).to(jacobian.x.device)     # [k, n]
    for iteration in range(max_iter):
        before = V
        U = push_all(jacobian, V)                                               # [k, m]
        W = pull_all(jacobian, U)                                               # [k, n], rows of J^T J V
        lengths = U.norm(dim=1)
        if float(lengths.max()) < ZERO_NORM:
            raise no_signal(float(lengths.max()))
        residuals = (W / lengths[:, None].clamp(min=ZERO_NORM) - lengths[:, None] * before).norm(dim=1)
        relative = residuals / lengths.max()
        _, squares, V = torch.linalg.svd(W, full_matrices=False)
        if official:
            settled = torch.allclose(before, V, atol=atol)
        else:
            settled = float(relative.max()) <= tolerance
        converged = bool(settled) and iteration > min_iter
        s = squares.clamp(min=0).sqrt()
        if converged or iteration == max_iter - 1:
            found = as_they_are(jacobian, V, U, s, residuals) if official else rayleigh_ritz(jacobian, V)
            yield Step(jacobian.products, found.s.double(), relative.double(), converged=converged, found=found)
            return
        yield Step(jacobian.products, s.double(), relative.double())


def as_they_are(jacobian: Jacobian, V: Tensor, U: Tensor, s: Tensor, residuals: Tensor) -> Triplets:
    """The official return values: V [k, n] and U [k, m] from different iterations, U not normalised."""
    return Triplets(V.reshape(-1, *jacobian.x.shape[1:]), U.reshape(-1, *jacobian.h.shape[1:]), s, residuals)


def rayleigh_ritz(jacobian: Jacobian, V: Tensor) -> Triplets:
    """The best triplets within the span of V [k, n]: J V^T = U S R^T, so that J v_i = s_i u_i."""
    U, s, Rt = torch.linalg.svd(push_all(jacobian, V).T, full_matrices=False)   # [m, k], [k], [k, k]
    there = s > FLOOR * s[0]
    V, U, s = (Rt @ V)[there], U.T[there], s[there]
    residuals = (pull_all(jacobian, U) - s[:, None] * V).norm(dim=1)
    V, U = canonical(V, U)
    return Triplets(V.reshape(-1, *jacobian.x.shape[1:]), U.reshape(-1, *jacobian.h.shape[1:]), s, residuals)


def push_all(jacobian: Jacobian, V: Tensor) -> Tensor:
    """J v for every row of V [k, n] -> [k, m]."""
    return torch.stack([jacobian.push(v.view(jacobian.x.shape)).flatten() for v in V])


def pull_all(jacobian: Jacobian, U: Tensor) -> Tensor:
    """J^T u for every row of U [k, m] -> [k, n]."""
    return torch.stack([jacobian.pull(u.view(jacobian.h.shape)).flatten() for u in U])
