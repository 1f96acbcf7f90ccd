"""Directions of a generator's own: what its style layers change most, without any training or labels."""
from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from .networks import Generator
from .sampling import ROWS, Styles, latents

SAMPLES = 1024              # of W, for its spread along a direction
ALL = "all"
PARTS = {"foreground": "fg", "background": "bg"}


def directions(network: Generator, layer: str, rows: str) -> Tensor:
    """[D, D]: directions in W by how much they change modulations, the strongest first, of unit length.

    Closed-form factorisation: eigenvectors of A^T A, A the modulation weights of the rows (Shen and Zhou,
    arXiv 2007.06600). layer: of PARTS. rows: of ROWS, or ALL.
    """
    part = PARTS[layer]
    weights = [conv.conv.modulation.weight * conv.conv.modulation.scale for conv in
               (network.get_submodule(f"conv1_{part}"), *network.get_submodule(f"convs_{part}"))]
    last = [network.get_submodule(f"to_{part}").conv, *([network.pre_m.conv, network.refine_m.conv]
                                                        if part == "fg" else [])]
    weights.append(torch.cat([conv.modulation.weight * conv.modulation.scale for conv in last]))
    start, stop = chosen(rows)
    stacked = torch.cat(weights[start:stop]).double().cpu()
    vectors = torch.linalg.eigh(stacked.T @ stacked).eigenvectors.flip(1).T
    signs = vectors.gather(1, vectors.abs().argmax(1, keepdim=True)).sign()         # whichever way the solver turns
    return (vectors * signs).float()


@torch.no_grad()
def moved(network: Generator, styles: Styles, layer: str, rows: str, number: int, amount: float) -> Styles:
    """Styles moved along a direction, `amount` in standard deviations of W along it.

    Raises ValueError for a direction that is not there.
    """
    basis = directions(network, layer, rows)
    if not 0 <= number < len(basis):
        raise ValueError(f"There is no direction {number}; there are {len(basis)}, from 0, the strongest.")
    z = latents(network.shape, 0, range(SAMPLES)).to(network.to_fg.bias.device)
    w = dict(zip(PARTS, network.split(z), strict=True))[layer]
    changed, (start, stop) = getattr(styles, layer).clone(), chosen(rows)
    changed[:, start:stop] += amount * (w.cpu() @ basis[number]).std() * basis[number]
    return replace(styles, **{layer: changed})


def chosen(rows: str) -> tuple[int, int | None]:
    """First and last row of W+ of one of ROWS, or of ALL."""
    return (0, None) if rows == ALL else ROWS[rows]
