"""Kernel density estimates of scores on a grid: exact by scipy, or by bins and Fourier transforms.

A Gaussian kernel with Scott's rule: covariance n^(-2/(d+4)) S with the sample covariance S, in two dimensions the full
one. By bins: linear weights on a grid finer than asked for, times the kernel's own Fourier transform.
"""
from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

FLOOR = 0.05                # standard deviation of the kernel where scores do not vary, in HCS
REACH = 6                   # standard deviations of the kernel around the data that the grid covers
NO_VARIANCE = 1e-6          # standard deviation of scores below which they are the same up to rounding
SINGULAR = 1e-3             # 1 - correlation^2 below which one of two scores tells the other
PAIRS_AT_ONCE = 8           # of grids in memory
GONE = 45                   # e to the minus this is nothing, in float64


def scott(count: int, dimensions: int) -> float:
    """Scott's factor."""
    return count ** (-1 / (dimensions + 4))


def exact_1d(values: Tensor, grid: Tensor) -> Tensor:
    """Density [M, n] of scores [N, M] at the grid [n], by scipy's gaussian_kde."""
    from scipy.stats import gaussian_kde, norm
    found = []
    for column in values.T.double().numpy():
        spread = column.std()
        found.append(gaussian_kde(column)(grid.numpy()) if spread > NO_VARIANCE else
                     norm.pdf(grid.numpy(), column.mean(), FLOOR))
    return torch.from_numpy(np.stack(found))


def exact_2d(first: Tensor, second: Tensor, nodes: Tensor) -> Tensor:
    """Density [b, b] of two scores [N] at the nodes [b] of both axes, by scipy's gaussian_kde."""
    from scipy.stats import gaussian_kde
    kde = gaussian_kde(torch.stack([first, second]).double().numpy())
    at = torch.cartesian_prod(nodes, nodes).T.numpy()
    return torch.from_numpy(kde(at)).view(len(nodes), len(nodes))


def binned_1d(values: Tensor, grid: Tensor) -> Tensor:
    """Density [M, n] of scores [N, M] at an even grid [n], by bins at its nodes."""
    deviation = (scott(len(values), 1) * values.double().std(0)).clamp(min=FLOOR)
    left, size = _cover(values, deviation.max(), grid)
    weights = histogram_1d(values, grid, left, size) / len(values)
    return smooth_1d(weights, deviation, grid)[:, left:left + len(grid)]


def histogram_1d(values: Tensor, grid: Tensor, left: int, size: int) -> Tensor:
    """Linear weights [M, size] of scores [N, M] on nodes that begin `left` before the grid's first."""
    step = float(grid[1] - grid[0])
    position = ((values.double() - grid[0]) / step + left).clamp(0, size - 1.001)
    low = position.floor()
    share, offset = position - low, torch.arange(values.shape[1]) * size
    index = (low.long() + offset).flatten()
    found = torch.bincount(index, (1 - share).flatten(), values.shape[1] * size)
    return (found + torch.bincount(index + 1, share.flatten(), values.shape[1] * size)).view(-1, size)


def smooth_1d(weights: Tensor, deviation: Tensor, grid: Tensor) -> Tensor:
    """Weights [..., size] as a density: under Gaussians of standard deviations [...]; same shape."""
    step, size = float(grid[1] - grid[0]), weights.shape[-1]
    frequency = 2 * math.pi * torch.fft.rfftfreq(size, step, dtype=torch.float64)
    kernel = torch.exp(-0.5 * (deviation.double()[..., None] * frequency) ** 2)
    return torch.fft.irfft(torch.fft.rfft(weights) * kernel, size).clamp(min=0) / step


def binned_2d(values: Tensor, pairs: Tensor, nodes: Tensor, finer: int) -> Iterator[Tensor]:
    """Densities [P, b, b] of pairs of scores at the nodes [b] of both axes, some pairs at a time.

    Args: scores [N, M]; pairs [P, 2] of columns; nodes, even; bins `finer` times finer than these.
    """
    step = float(nodes[1] - nodes[0])
    covariance = kernel_covariances(values, pairs)
    left, size = _cover(values, covariance.diagonal(dim1=1, dim2=2).max().clamp(min=FLOOR ** 2).sqrt(), nodes)
    fine = size * finer
    position = ((values.double() - nodes[0]) / step + left).mul(finer).clamp(0, fine - 1.001)
    low = position.floor().long()
    share = position - low
    for start in range(0, len(pairs), PAIRS_AT_ONCE):
        part = slice(start, start + PAIRS_AT_ONCE)
        weights = torch.stack([_histogram_2d(low[:, i], share[:, i], low[:, j], share[:, j], fine)
                               for i, j in pairs[part].tolist()]) / len(values)
        density = smooth_2d(weights, covariance[part], step / finer, finer)
        yield density[:, left:left + len(nodes), left:left + len(nodes)]


def kernel_covariances(values: Tensor, pairs: Tensor) -> Tensor:
    """[P, 2, 2] of the kernels of pairs of scores [N, M]."""
    table = torch.cov(values.double().T).reshape(values.shape[1], -1) * scott(len(values), 2) ** 2
    columns = pairs[:, :, None].expand(-1, -1, 2)
    return table[columns, columns.mT]


def smooth_2d(weights: Tensor, covariance: Tensor, step: float, finer: int) -> Tensor:
    """Weights [P, s, s] as densities under Gaussians of covariances [P, 2, 2], at every `finer`-th node of each axis.

    The kernel leaves nothing of high frequencies, so these are dropped after the first transform; and a signal taken at
    every `finer`-th node has the folded spectrum, so the way back is of the small size.
    """
    size = weights.shape[-1]
    small = size // finer
    across = 2 * math.pi * torch.fft.fftfreq(size, step, dtype=torch.float64)[:, None]
    along = 2 * math.pi * torch.fft.rfftfreq(size, step, dtype=torch.float64)
    a, b, c = (covariance[:, i, j, None, None].double() for i, j in ((0, 0), (0, 1), (1, 1)))
    along = along[:int((along ** 2 * float((c - b ** 2 / a).min()) < 2 * GONE).sum())]
    spectrum = torch.fft.fft(torch.fft.rfft(weights)[..., :len(along)], dim=1)
    spectrum *= torch.exp(-0.5 * (a * across ** 2 + 2 * b * across * along + c * along ** 2))
    spectrum = spectrum.view(-1, finer, small, len(along)).sum(1)               # rows that fold onto each other
    rows = torch.fft.ifft(spectrum, dim=1)
    return torch.fft.irfft(rows, size, dim=2)[..., ::finer].clamp(min=0) / (finer * step * step)


def _histogram_2d(low: Tensor, share: Tensor, other: Tensor, its_share: Tensor, size: int) -> Tensor:
    """Linear weights [size, size] of points given by their lower node and the share of the upper one on each axis."""
    index = low * size + other
    corners = torch.cat([index, index + 1, index + size, index + size + 1])
    weights = torch.cat([(1 - share) * (1 - its_share), (1 - share) * its_share, share * (1 - its_share),
                         share * its_share])
    return torch.bincount(corners, weights, size * size).view(size, size)


def _cover(values: Tensor, deviation: Tensor, grid: Tensor) -> tuple[int, int]:
    """(nodes before the grid, nodes in all) so that data and kernel fit, and a transform is quick and wraps nowhere."""
    step = float(grid[1] - grid[0])
    reach = REACH * float(deviation)
    left = max(0, math.ceil((float(grid[0] - values.min()) + reach) / step), math.ceil(reach / step))
    right = max(0, math.ceil((float(values.max() - grid[-1]) + reach) / step), math.ceil(reach / step))
    return left, _quick_size(left + len(grid) + right)


def _quick_size(least: int) -> int:
    """The next size with no prime factor above 5."""
    size = least
    while True:
        rest = size
        for prime in (2, 3, 5):
            while rest % prime == 0:
                rest //= prime
        if rest == 1:
            return size
        size += 1


def without_variance(values: Tensor) -> Tensor:
    """[M] bool: scores [N, M] that are all the same."""
    return values.double().std(0) < NO_VARIANCE


def singular_pairs(values: Tensor, pairs: Tensor) -> Tensor:
    """[P] bool: pairs of scores of which one tells the other, so that they have no density in two dimensions."""
    correlation = torch.corrcoef(values.double().T).nan_to_num(1.0).reshape(values.shape[1], -1)
    return 1 - correlation[pairs[:, 0], pairs[:, 1]] ** 2 < SINGULAR
