"""Golub-Kahan-Lanczos with full re-orthogonalisation: the largest singular triplets of J from few products.

    for step in lanczos(Jacobian(f, x), k=4):
        show(step.products, step.angle)
    step.found                                  Triplets

With j steps, J V = U B and J^T U = V B^T + beta v_(j+1) e_j^T, where B [j, j] is upper bidiagonal. B = P S Q^T gives
J (V Q) = (U P) S exactly and the residual beta |P_ji| of pair i.

Source: Golub and Kahan, 1965; in the place of the authors' subspace iteration (subspace_iteration.py), which needs 2 to
16 times as many products. Residuals and stopping rule are ours.
"""
from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from .products import Jacobian, work_device
from .triplets import Step, Triplets, canonical, check_count, no_signal

TOLERANCE, ANGLE, MIN_STEPS = 1e-3, 0.5, 12
FLOOR = 1e-5                # relative to s_1: below it, float32 products are noise
ZERO_NORM = 1e-6              # a Jacobian of this size is zero
BLOCK = 32                  # vectors in float64 at once
CHECKS = 16                 # a decomposition of B at least every 16th of the steps so far
WARM = 0.1                  # share of noise in a warm start: a direction that is new must be in it, too


def expected_products(k: int) -> int:
    """About how many products `lanczos` takes for k triplets of a U-Net: the length of a progress bar."""
    return 2 * max(MIN_STEPS, round(2.6 * k + 8))


def lanczos(jacobian: Jacobian, k: int, tolerance: float = TOLERANCE, angle: float = ANGLE,
            min_steps: int = MIN_STEPS, max_steps: int | None = None, seed: int = 0, start: Tensor | None = None
            ) -> Iterator[Step]:
    """The k largest triplets of J; a record after every step of two products, the last one with `found`.

    Stops when all k residuals are at most `tolerance` times s_1 and the subspace is known to `angle` degrees. The angle
    is estimated from residuals and the gap to the next singular value; where the gap is too small to tell, residuals of
    FLOOR are enough. At max_steps (8 k + 40 if not given) it stops with `converged` False. Where s_k and s_(k+1) differ
    by a thousandth, v_k may be taken for settled before v_(k+1) is seen; a tolerance of 1e-4 prevents it.

    Args:
        start: [any, C, H, W] directions to start from, e.g. the V of the timestep before.

    Raises ValueError for k outside of 1..min(n, m), a zero Jacobian and numbers that are not finite; RuntimeError if
    the two products are not of the same J.
    """
    check_count(k, jacobian.n, jacobian.m)
    generator = torch.Generator().manual_seed(seed)
    # If h is smaller than x, one more step than there are u finds what J^T u_m has outside of V.
    most = min(jacobian.n, jacobian.m + 1, 8 * k + 40 if max_steps is None else max(max_steps, k))
    V, U = [first_vector(jacobian, generator, start)], []
    B = torch.zeros(most, most + 1, dtype=torch.float64)
    for j, (alpha, beta, exact) in enumerate(bidiagonalise(jacobian, V, U, generator)):
        B[j, j], B[j, j + 1], steps = alpha, beta, j + 1
        ending = exact or steps == most
        if ending or steps % max(1, steps // CHECKS) == 0:
            P, values, Qt = torch.linalg.svd(B[:steps, :steps])
            left, right, s = P.T[:k], Qt[:k], values[:k]                        # [k, steps], [k, steps], [k]
            residuals = beta * left[:, -1].abs()
            off = subspace_angle(values, residuals, k, exact)
            relative = residuals / s[0]
        worst = float(relative.max()) if len(s) == k else math.inf
        enough = steps >= min(max(min_steps, k + 1), most)
        converged = exact or (enough and worst <= tolerance and (off <= angle or worst <= FLOOR))
        if converged or ending:
            there = s > FLOOR * s[0]
            found = triplets(jacobian, right[there], V, left[there], U, s[there], residuals[there])
            yield Step(jacobian.products, s, relative, off, converged, found)
            return
        yield Step(jacobian.products, s, relative, off)


def bidiagonalise(jacobian: Jacobian, V: list[Tensor], U: list[Tensor], generator: torch.Generator
                  ) -> Iterator[tuple[float, float, bool]]:
    """The next alpha and beta of B, and whether no more are needed; V (which has the start) and U grow by one each.

    Raises ValueError for a zero Jacobian, RuntimeError if the two products are not of the same J.
    """
    scale, fresh, exact = 0.0, True, False
    while not exact:
        p = orthogonalise(with_oom_retry(jacobian.push, V[-1].view(jacobian.x.shape), V, U), U)
        alpha = float(p.norm())
        if alpha <= FLOOR * scale:
            # J v lies in the span of U. If v is random, J vanishes on all that is orthogonal to V.
            exact = fresh
            alpha, beta, u, r = 0.0, 0.0, torch.zeros_like(p), p
        else:
            u = (p / alpha).to(jacobian.dtype)
            r = with_oom_retry(jacobian.pull, u.view(jacobian.h.shape), V, U).flatten()
            r = r.to(V[-1].device).double()
            scale = max(scale, alpha)
            jacobian.compare(alpha, float(r @ V[-1].double()), scale)
            r = orthogonalise(r, V)
            beta = float(r.norm())
            scale = max(scale, beta)
        if scale < ZERO_NORM:
            raise no_signal(scale)
        U.append(u.to(V[0].device, jacobian.dtype))
        fresh = beta <= FLOOR * scale
        if fresh:                               # the pairs so far are exact: others are looked for from anew
            beta, exact = 0.0, exact or len(V) == jacobian.n
        yield alpha, beta, exact
        if fresh:
            r = orthogonalise(noise(jacobian.n, generator), V, V[0])
        V.append((r / r.norm()).to(jacobian.dtype))


def with_oom_retry(product: Callable[[Tensor], Tensor], vector: Tensor, V: list[Tensor], U: list[Tensor]) -> Tensor:
    """A product with J. If the device's memory ends, V and U go to the CPU, and it is tried again."""
    try:
        return product(vector)
    except torch.cuda.OutOfMemoryError:
        V[:], U[:] = ([part.cpu() for part in vectors] for vectors in (V, U))
    return product(vector)


def subspace_angle(values: Tensor, residuals: Tensor, k: int, exact: bool = False) -> float:
    """Estimated largest angle in degrees between span(v_1..v_k) and the true one.

    sin Theta of Davis and Kahan for J^T J, with residuals s_i r_i and the next value for the rest of the spectrum.
    """
    if exact:
        return 0.0
    if len(values) <= k:
        return 90.0
    gaps = (values[:k] ** 2 - values[k] ** 2).clamp(min=1e-30)
    return math.degrees(math.asin(min(1.0, float((values[:k] * residuals / gaps).norm()))))


def first_vector(jacobian: Jacobian, generator: torch.Generator, start: Tensor | None) -> Tensor:
    """Unit start vector [n]: noise, or the sum of the directions in `start` with a tenth of noise."""
    v = noise(jacobian.n, generator)
    if start is not None:
        if start[0].numel() != jacobian.n:
            raise ValueError(f"The start has directions of the shape {list(start.shape[1:])}; the latent's is "
                             f"{list(jacobian.x.shape[1:])}.")
        warm = start.flatten(1).cpu().double().sum(0)
        v = warm / warm.norm().clamp(min=1e-12) + WARM * v
    return (v / v.norm()).to(jacobian.dtype).to(work_device(jacobian.x.device))


def noise(size: int, generator: torch.Generator) -> Tensor:
    """A random unit vector [size], float64 on the CPU."""
    v = torch.randn(size, generator=generator, dtype=torch.float64)
    return v / v.norm()


def orthogonalise(vector: Tensor, basis: list[Tensor], like: Tensor | None = None) -> Tensor:
    """`vector` without its part in the span of `basis` (unit vectors): Gram-Schmidt twice, flat, in float64."""
    like = like if like is not None else basis[0] if basis else vector
    vector = vector.flatten().to(work_device(like.device)).double()
    for _ in range(2):
        for begin in range(0, len(basis), BLOCK):
            block = torch.stack(basis[begin:begin + BLOCK]).double()            # [<= 32, size]
            vector = vector - (block @ vector) @ block
    return vector


def combine(weights: Tensor, basis: list[Tensor]) -> Tensor:
    """weights [k, j] times the first j of basis, vectors [size] -> [k, size], accumulated in float64."""
    total = torch.zeros(len(weights), basis[0].numel(), dtype=torch.float64, device=basis[0].device)
    basis = basis[:weights.shape[1]]
    for begin in range(0, len(basis), BLOCK):
        block = torch.stack(basis[begin:begin + BLOCK]).double()
        total += weights[:, begin:begin + BLOCK].to(total) @ block
    return total.to(basis[0].dtype)


def triplets(jacobian: Jacobian, right: Tensor, V: list[Tensor], left: Tensor, U: list[Tensor], s: Tensor,
             residuals: Tensor) -> Triplets:
    """v_i = V Q_i and u_i = U P_i with canonical signs, in the shapes of x and h."""
    v, u = canonical(combine(right, V), combine(left, U))
    return Triplets(v.view(-1, *jacobian.x.shape[1:]), u.view(-1, *jacobian.h.shape[1:]), s.to(v), residuals.to(v))
