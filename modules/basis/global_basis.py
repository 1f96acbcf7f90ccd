"""One basis for many samples: the mean of their tangent spaces, and the mean of their directions within it.

The authors' builders (`compute_frechet_basis`, `compute_hungarian_basis`) are named in their release but absent. This
is ours, after the Frechet basis of Choi et al., ICLR 2023: first the mean subspace on the Grassmannian, then the mean
basis inside it. All of it is deterministic.

Bases are [N, k, ...] with orthonormal rows; the work is done in float64 in coordinates of their joint span.
"""
from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

KARCHER_STEPS, MATCH_STEPS = 20, 50
SETTLED = 1e-10


def global_basis(bases: Sequence[Tensor]) -> Tensor:
    """The global basis [k, ...] of N local ones [k, ...], orthonormal, in the type of the first.

    Directions keep the order and signs of the first sample's. To use one, carry it by `transport`.

    Raises ValueError for no bases or shapes that differ.
    """
    coordinates, span = joint_coordinates(bases)
    mean = frechet_mean(coordinates)                                            # [d, k]
    basis = span @ mean @ mean_rotation(mean.T @ coordinates)                   # [m, k]
    return basis.T.reshape(bases[0].shape).to(bases[0])


def joint_coordinates(bases: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """(coordinates [N, d, k] with orthonormal columns, span [m, d] with orthonormal columns)."""
    shapes = {tuple(basis.shape) for basis in bases}
    if len(shapes) != 1:
        raise ValueError(f"A global basis is the mean of bases of one shape; {sorted(shapes) or 'none'} were given. "
                         "Use the same model, image size and number of directions.")
    k = len(bases[0])
    columns = torch.cat([basis.flatten(1).cpu().double() for basis in bases]).T             # [m, N k]
    span, coordinates = torch.linalg.qr(columns)
    local = coordinates.unflatten(1, (-1, k)).transpose(0, 1)                               # [N, d, k]
    return polar(local), span


def chordal_mean(subspaces: Tensor) -> Tensor:
    """Top k eigenvectors of the mean projector (1 / N) sum Y Y^T. subspaces [N, d, k] -> [d, k]"""
    count, size, k = subspaces.shape
    stacked = subspaces.transpose(0, 1).reshape(size, count * k) / count ** 0.5
    return torch.linalg.svd(stacked, full_matrices=False).U[:, :k]


def frechet_mean(subspaces: Tensor, steps: int = KARCHER_STEPS) -> Tensor:
    """The subspace with the least sum of squared geodesic distances, from the chordal mean by Karcher's steps.

    subspaces [N, d, k] with orthonormal columns -> [d, k].
    """
    mean = chordal_mean(subspaces)
    for _ in range(steps):
        tangent = torch.stack([log_map(mean, subspace) for subspace in subspaces]).mean(0)
        if float(tangent.norm()) < SETTLED:
            break
        mean = exp_map(mean, tangent)
    return mean


def log_map(at: Tensor, to: Tensor) -> Tensor:
    """The tangent [d, k] at span(at) that leads to span(to) along the geodesic; its norm is their distance."""
    left, cosine, right = torch.linalg.svd(at.T @ to)
    rest = to @ right.T - at @ left * cosine                                    # columns of length sin theta
    sine = rest.norm(dim=0)
    angle = torch.atan2(sine, cosine)
    return (rest * (angle / sine.clamp(min=1e-300))) @ left.T


def exp_map(at: Tensor, tangent: Tensor) -> Tensor:
    """The subspace [d, k] at the end of a tangent [d, k]."""
    across, angle, right = torch.linalg.svd(tangent, full_matrices=False)
    moved = (at @ right.T * angle.cos() + across * angle.sin()) @ right
    return torch.linalg.qr(moved).Q


def mean_rotation(bases: Tensor) -> Tensor:
    """The mean [k, k] of bases [N, k, k] (columns, within one subspace) up to order and sign: every one is matched to
    the mean so far, they are averaged, and the nearest rotation is taken, until nothing changes."""
    mean = polar(bases[0])
    for _ in range(MATCH_STEPS):
        matched = torch.stack([match(basis, mean) for basis in bases])
        before, mean = mean, polar(matched.mean(0))
        if float((mean - before).norm()) < SETTLED:
            break
    return mean


def match(basis: Tensor, reference: Tensor) -> Tensor:
    """The columns of basis [d, k] in the order and with the signs that fit those of reference [d, k] best.

    The assignment is the Hungarian algorithm's on |cos|.
    """
    from scipy.optimize import linear_sum_assignment
    cosine = reference.T @ basis                                                # [k, k]
    row, column = linear_sum_assignment(-cosine.abs().numpy())
    sign = torch.where(cosine[row, column] < 0, -1.0, 1.0).to(basis)
    return basis[:, column] * sign


def polar(matrix: Tensor) -> Tensor:
    """The matrix with orthonormal columns nearest to matrix [..., d, k] (Procrustes)."""
    left, _, right = torch.linalg.svd(matrix, full_matrices=False)
    return left @ right
