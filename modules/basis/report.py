"""What a basis looks like: spectrum, frequencies, pictures of its directions, distances to others."""
from __future__ import annotations

from collections.abc import Sequence

import torch
from PIL import Image
from torch import Tensor

from ..files.provenance import different_models
from ..pictures.frame_sheet import frame_sheet, to_image
from ..pictures.plot import as_image, line_plot, matrix_plot, stacked
from .basis import MIDDLE, LatentBasis, check_blocks
from .geometry import (
    curvedness,
    distance_matrix,
    largest_distance,
    low_frequency_share,
    power_spectrum,
    preview,
    random_distance,
    white_share,
)
from .transport import Carried
from .triplets import UNKNOWN_ANGLE

SIDE = 128          # pixels of a direction's picture at least
COLUMNS = 8
GREEN = 0.6         # coverage from which a transport is good


def basis_text(bases: Sequence[LatentBasis]) -> str:
    """Figures in lines, each with what it means. Raises ValueError for bases of different blocks or shapes."""
    check_blocks(bases)
    first = bases[0]
    where = "" if first.block == MIDDLE else f", h at {first.block}"
    lines = [f"{len(first.U)} directions at t {first.t:.0f} (sigma {first.sigma:.3g}){where}, "
             f"solver {first.provenance.get('solver', '?')}"]
    lines += solver_lines(first) if first.solved else ["s, gaps and residuals: not computed; no solver ran for these"]
    lines.append(f"low-frequency share {low_frequency_share(first.V):.2f} (white noise "
                 f"{white_share(*first.V.shape[2:]):.2f})")
    if abs(first.network_timestep - first.t) > 1:
        lines.append(f"the U-Net was given timestep {first.network_timestep:.0f}, not the latent's own")
    if len(bases) > 1:
        lines += distance_lines(bases)
    return "\n".join(lines)


def solver_lines(basis: LatentBasis) -> list[str]:
    """What a solver found, and how well."""
    provenance = basis.provenance
    groups = ["-".join(map(str, (run[0], run[-1]))) for run in basis.groups if len(run) > 1]
    lines = [f"{provenance.get('products', '?')} products, converged {provenance.get('converged', '?')}",
             "s: " + ", ".join(f"{value:.4g}" for value in basis.s.tolist()),
             "gap from each s to the next: " + (", ".join(f"{gap:.1%}" for gap in basis.gaps.tolist()) or "none, k 1"),
             f"largest residual {basis.residuals.max() / basis.s[0]:.1e} of s_0"]
    if provenance.get("derivative") == "central differences":
        lines.append("forward derivatives by central differences: some node's layers have none of their own")
    if groups:
        lines.append(f"nearly equal s, only their span means something: {', '.join(groups)}")
    return lines


def distance_lines(bases: Sequence[LatentBasis]) -> list[str]:
    """How to read the distances of several bases, and the path from the first to the last through the others."""
    least, size = min(len(basis.U) for basis in bases), bases[0].U[0].numel()
    steps = list(curvedness(bases, lambda basis: basis.U[:least]))
    return [f"distances of the first {least} directions: 0 is the same tangent space, random ones are at "
            f"{random_distance(least, size):.2f}, the most is {largest_distance(least):.2f}",
            f"semantic path length {sum(steps):.2f}, from each basis to the next: "
            + ", ".join(f"{step:.2f}" for step in steps)]


def basis_picture(bases: Sequence[LatentBasis], edits: Tensor | None = None) -> Tensor:
    """Plots and pictures of the directions as one IMAGE [1, H, W, 3].

    edits [N, H, W, 3]: pictures edited along the first basis, those of a direction together; a row each if they are as
    many for each direction.
    """
    first = bases[0]
    spectra = {f"basis {number}": list(enumerate(basis.s.tolist())) for number, basis in enumerate(bases)
               if basis.solved}
    parts = [line_plot(spectra, "singular values s: how much h moves along each direction", "direction", height=260)
             ] if spectra else []
    parts += [line_plot({f"basis {number}": list(enumerate(power_spectrum(basis.V).tolist()))
                         for number, basis in enumerate(bases)},
                        "share of the directions' power by frequency", "cycles per side", height=260)]
    if len(bases) > 1:
        least = min(len(basis.U) for basis in bases)
        matrix = distance_matrix([basis.U[:least] for basis in bases])
        parts.append(matrix_plot(matrix.tolist(), list(map(str, range(len(bases)))),
                                 f"geodesic distance of tangent spaces, random ones "
                                 f"{random_distance(least, first.U[0].numel()):.2f}"))
    parts.append(direction_sheet(first))
    if edits is not None:
        columns, rest = divmod(len(edits), len(first.V))
        parts.append(to_image(frame_sheet(edits[..., :3], COLUMNS if rest else columns)[0]))
    return as_image(stacked(parts))


def direction_sheet(basis: LatentBasis) -> Image.Image:
    """The directions as pictures: their channels' main components as colours."""
    pictures = preview(basis.V)                                                 # [k, H, W, 3]
    times = max(1, SIDE // pictures.shape[1])
    large = pictures.repeat_interleave(times, 1).repeat_interleave(times, 2)
    return to_image(frame_sheet(large, COLUMNS)[0])


def transport_text(source: LatentBasis, target: LatentBasis, found: Carried) -> str:
    """How much of a direction exists at the target, as a traffic light."""
    light = "red: little of it exists there" if found.weak else "green" if found.coverage > GREEN else "amber"
    text = f"coverage {found.coverage:.2f} ({light})"
    if different_models([source.provenance, target.provenance]):
        text += "\nNote: the two bases were computed on different models, or with other LoRAs."
    return text


def angle_in_words(angle: float, residuals: Tensor, converged: bool) -> str:
    """How sure the solver is."""
    worst = residuals.max().item() if len(residuals) else torch.nan
    sure = "converged" if converged else "NOT converged: take the directions with care, or fewer of them"
    known = f"subspace within about {angle:.2g} degrees, " if angle < UNKNOWN_ANGLE else ""
    return f"{sure}; {known}residuals up to {worst:.1e} of s_0"
