"""Directions as bases of their own: one that was carried to another latent, one between prompts, those of many latents.

Their signs mean something, so unlike those of a solver they are kept as they are.
"""
from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from ..files.provenance import different_models, merged_provenance
from .basis import GLOBAL, TRANSPORT, LatentBasis, check_blocks
from .global_basis import global_basis
from .transport import Carried, transport, transport_in_x

IN_H, IN_X = "h", "x"
SPACES = (IN_H, IN_X)
SOLVER_FIGURES = ("products", "converged", "angle", "derivative")   # true of a computed basis only


def one_direction(v: Tensor, u: Tensor, t: float, sigma: float, provenance: Mapping[str, str]) -> LatentBasis:
    """A basis of one unit direction v [C, H, W] with its image u [C', H', W'] in h."""
    return LatentBasis(v.float().cpu()[None], u.float().cpu()[None], torch.ones(1), torch.zeros(1), t, sigma,
                       provenance)


def carry(source: LatentBasis, direction: int, target: LatentBasis, space: str = IN_H
          ) -> tuple[LatentBasis, Carried]:
    """Direction number `direction` of `source` at the target's latent, and how much of it is there.

    space: "h" carries what the direction does to h, the papers' way; "x" projects the direction itself, so that bases
    of different blocks go together. Raises ValueError for a direction that is not there, in h for bases of different
    blocks, for shapes that differ, and when nothing is left.
    """
    if not 0 <= direction < len(source.U):
        raise ValueError(f"direction is {direction}; the basis has directions 0 to {len(source.U) - 1}.")
    if space == IN_H:
        check_blocks([source, target])
        found = transport(source.U[direction], target)
    else:
        found = transport_in_x(source.V[direction], target)
    u = (target.V.flatten(1) @ found.v.flatten()) @ target.U.flatten(1)         # v_i and u_i are identified
    provenance = {**without_figures(target.provenance), "solver": TRANSPORT, "space": space,
             "coverage": f"{found.coverage:.3f}"}
    return one_direction(found.v, u.view(target.U.shape[1:]), target.t, target.sigma, provenance), found


def without_figures(provenance: Mapping[str, str]) -> dict[str, str]:
    """`provenance` without what a solver told: for directions that none computed."""
    return {key: told for key, told in provenance.items() if key not in SOLVER_FIGURES}


def mean_basis(bases: Sequence[LatentBasis]) -> LatentBasis:
    """The global basis of many latents: U is the Fréchet mean, V the mean of what each latent makes of it.

    To use a direction, carry it to a latent. Raises ValueError for bases whose shapes, models, blocks or timesteps
    differ.
    """
    first = bases[0]
    check_blocks(bases)
    if len({basis.V.shape[1:] for basis in bases}) > 1:
        raise ValueError("The bases belong to latents of different shapes: " + ", ".join(
            str(list(basis.V.shape[1:])) for basis in bases) + ". Compute them at one size.")
    if different_models([basis.provenance for basis in bases]):
        raise ValueError("The bases belong to different models, or to one with other LoRAs. Compute them on the same.")
    if max(abs(basis.t - first.t) for basis in bases) > 1:
        raise ValueError("The bases belong to different timesteps: " + ", ".join(f"{basis.t:.0f}" for basis in bases) +
                         ". Compute them at the same noise level.")
    if max(abs(basis.network_timestep - first.network_timestep) for basis in bases) > 1:
        raise ValueError("The U-Net was given different timesteps for the bases: " + ", ".join(
            f"{basis.network_timestep:.0f}" for basis in bases) + ". Compute them with the same network_timestep.")
    k = min(len(basis.U) for basis in bases)
    U = global_basis([basis.U[:k] for basis in bases])
    flat = U.flatten(1)
    local = [(flat @ basis.U.flatten(1).T) @ basis.V.flatten(1) for basis in bases]     # of each: [k, n]
    mean = torch.stack(local).mean(0)
    left, _, right = torch.linalg.svd(mean.double(), full_matrices=False)
    V = (left @ right).float().view(k, *first.V.shape[1:])
    s = torch.stack([basis.s[:k] for basis in bases]).mean(0)
    provenance = {**without_figures(merged_provenance([basis.provenance for basis in bases])), "solver": GLOBAL,
             "samples": str(len(bases))}
    return LatentBasis(V, U, s, torch.zeros(k), first.t, first.sigma, provenance)
