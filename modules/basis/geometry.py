"""How far tangent spaces are apart, how curved a path is, and what directions look like."""
from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

import torch
from torch import Tensor

Point = TypeVar("Point")
SEGMENTS = 30           # of a path, the first paper's
QUARTER = 0.125         # a quarter of Nyquist, in cycles per pixel


def geodesic_distance(a: Tensor, b: Tensor) -> float:
    """D_geo = sqrt(sum theta_i^2) between the spans of a and b, both [k, ...]; 0 to sqrt(k) pi / 2.

    theta_i are the principal angles. In float64: arccos of float32 puts a span 2e-3 away from itself. Raises ValueError
    if the shapes differ. Source: arXiv 2302.12469, section 2; computed in H, where inner products are Euclidean.
    """
    return float(principal_angles(a, b).norm())


def principal_angles(a: Tensor, b: Tensor) -> Tensor:
    """[k] angles in radians between the spans of a and b, both [k, ...], ascending."""
    if a.shape != b.shape:
        raise ValueError(f"Tangent spaces can be compared if their shapes agree; {list(a.shape)} and {list(b.shape)} "
                         "were given. Use the same model, image size and number of directions.")
    return torch.linalg.svdvals(orthonormal(a).T @ orthonormal(b)).clamp(max=1).acos()


def orthonormal(basis: Tensor) -> Tensor:
    """Orthonormal columns [m, k] of the span of basis [k, ...], float64 on the CPU."""
    return torch.linalg.qr(basis.flatten(1).cpu().double().T).Q


def largest_distance(k: int) -> float:
    """sqrt(k) pi / 2, the distance of orthogonal spans."""
    return math.sqrt(k) * math.pi / 2


def random_distance(k: int, size: int, seed: int = 0, draws: int = 3) -> float:
    """Mean distance of two random k-dimensional subspaces of R^size: the baseline of every distance that is shown."""
    generator = torch.Generator().manual_seed(seed)
    distances = []
    for _ in range(draws):
        drawn = torch.linalg.qr(torch.randn(size, k, generator=generator, dtype=torch.float64)).Q
        # Against the span of the first k axes: both may be rotated together.
        distances.append(float(torch.linalg.svdvals(drawn[:k]).clamp(max=1).acos().norm()))
    return sum(distances) / draws


def distance_matrix(bases: Sequence[Tensor]) -> Tensor:
    """[N, N] geodesic distances of N bases [k, ...], symmetric with zeros on the diagonal."""
    matrix = torch.zeros(len(bases), len(bases), dtype=torch.float64)
    for i, a in enumerate(bases):
        for j in range(i):
            matrix[i, j] = matrix[j, i] = geodesic_distance(a, bases[j])
    return matrix


def lerp(a: Tensor, b: Tensor, segments: int = SEGMENTS) -> list[Tensor]:
    """segments + 1 points from a to b on the straight line."""
    return [a + (b - a) * (i / segments) for i in range(segments + 1)]


def slerp(a: Tensor, b: Tensor, segments: int = SEGMENTS) -> list[Tensor]:
    """segments + 1 points from a to b on the great circle; on the line where a and b are parallel."""
    cosine = float((a.flatten() / a.norm()) @ (b.flatten() / b.norm()))
    angle = math.acos(max(-1.0, min(1.0, cosine)))
    if math.sin(angle) < 1e-6:
        return lerp(a, b, segments)
    return [(a * math.sin((1 - i / segments) * angle) + b * math.sin(i / segments * angle)) / math.sin(angle)
            for i in range(segments + 1)]


def curvedness(points: Sequence[Point], tangent: Callable[[Point], Tensor]) -> Iterator[float]:
    """D_geo of the tangent spaces at the ends of every segment, one after the other; their sum is the semantic path
    length. The paper's table 1: shorter for slerp than for lerp.

    Args:
        points: along the path, e.g. latents from `lerp` or `slerp`.
        tangent: point -> U [k, ...], the basis in H there.

    Source: arXiv 2302.12469, curvedness and semantic path length.
    """
    before = None
    for point in points:
        here = tangent(point)
        if before is not None:
            yield geodesic_distance(before, here)
        before = here


def power(V: Tensor) -> tuple[Tensor, Tensor]:
    """(mean power over directions and channels [H, W], frequency in cycles per pixel [H, W]) of V [k, C, H, W]."""
    spectrum = torch.fft.fft2(V.cpu().double()).abs().square().mean((0, 1))
    height, width = V.shape[-2:]
    down, across = (torch.fft.fftfreq(length, dtype=torch.float64) for length in (height, width))
    return spectrum, (down[:, None] ** 2 + across ** 2).sqrt()


def power_spectrum(V: Tensor) -> Tensor:
    """Share of the power of V [k, C, H, W] at every integer radius, [bins], sum 1; the constant part is bin 0.

    A radius of 1 is one cycle along the shorter side. The paper's binning is unknown; this one is ours.
    """
    spectrum, frequency = power(V)
    radius = (frequency * min(V.shape[-2:])).round().long().flatten()
    return torch.bincount(radius, weights=spectrum.flatten()) / spectrum.sum()


def low_frequency_share(V: Tensor) -> float:
    """Share of the power of V [k, C, H, W] at up to a quarter of Nyquist. White noise has `white_share`."""
    spectrum, frequency = power(V)
    return float(spectrum[frequency <= QUARTER + 1e-9].sum() / spectrum.sum())


def white_share(height: int, width: int) -> float:
    """`low_frequency_share` that white noise of this size has on average."""
    return low_frequency_share(torch.eye(1, height * width).view(1, 1, height, width))


def preview(V: Tensor) -> Tensor:
    """Pictures of directions V [k, C, H, W], [k, H, W, 3] in 0..1: the three main components of the channels, each
    picture from its least to its most. Up to three channels are shown as they are."""
    pixels = V.cpu().double().permute(0, 2, 3, 1)                               # [k, H, W, C]
    channels = pixels.shape[-1]
    if channels > 3:
        flat = pixels.reshape(-1, channels)
        axes = torch.linalg.svd(flat - flat.mean(0), full_matrices=False).Vh[:3]
        largest = axes.gather(1, axes.abs().argmax(1, keepdim=True))
        pixels = pixels @ (axes * largest.sign()).T                             # the same colours every time
    elif channels < 3:
        pixels = pixels[..., :1].expand(*pixels.shape[:-1], 3)
    least, most = pixels.amin((1, 2, 3), keepdim=True), pixels.amax((1, 2, 3), keepdim=True)
    return ((pixels - least) / (most - least).clamp(min=1e-12)).float()
