"""Directions carried to another latent, timestep or prompt, aimed at a wish, and kept out of the rest of the image."""
from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .basis import LatentBasis
from .products import Jacobian

WEAK = 0.3              # coverage below which most of a direction does not exist at its target
ZERO_NORM = 1e-6


@dataclass(frozen=True)
class Carried:
    """A direction at its new place.

    Attributes:
        v: [C, H, W] unit direction in x.
        coverage: 0..1; its square is the share of the given direction that the new tangent space has.
    """
    v: Tensor
    coverage: float

    @property
    def weak(self) -> bool:
        """Whether the user should be warned that little of the direction is left."""
        return self.coverage < WEAK


def transport(u: Tensor, target: LatentBasis) -> Carried:
    """v' = V' (U'^T u) of unit length, for a direction u of h's shape.

    Coefficients are carried over as they are: u_i and v_i are identified, without 1 / s_i. Raises ValueError if the
    shapes differ or nothing is left. Source: Park et al., NeurIPS 2023, code edit.py `run_edit_parallel_transport`.
    """
    c = weights(u, target.U, "h")
    return carried(target, c, c, u)


def transport_in_x(v: Tensor, target: LatentBasis) -> Carried:
    """v' = V' V'^T v of unit length: the alternative that projects a direction v [C, H, W] in x. Errors as `transport`.
    """
    c = weights(v, target.V, "x")
    return carried(target, c, c, v)


def prompt_direction(difference: Tensor, basis: LatentBasis) -> Carried:
    """v* = V S^-1 U^T d of unit length: the least change of x that moves h along d as far as the basis can.

    Args:
        difference: d of h's shape, e.g. h(x, wanted prompt) - h(x, prompt).

    Errors as `transport`. Ours; the minimum-norm solution of J v = d within the basis.
    """
    c = weights(difference, basis.U, "h")
    return carried(basis, c / basis.s.cpu().double(), c, difference)


def pull_direction(difference: Tensor, jacobian: Jacobian) -> Tensor:
    """v* = J^T d of unit length, [C, H, W]: the steepest ascent of h along d (of h's shape). One product, no basis.

    With the plus sign: the official `inv_jac_zt` descends. Raises ValueError if the shapes differ or v* is zero.
    """
    check_shapes(difference.shape, jacobian.h.shape[1:], "h")
    v = jacobian.pull(difference[None])[0]
    length = v.norm()
    if length <= ZERO_NORM * difference.norm():
        raise ValueError("No change of the latent moves h in this direction. Choose another prompt or noise level.")
    return v / length


def subtract_complement(V: Tensor, complement: LatentBasis) -> tuple[Tensor, Tensor]:
    """Every v without its part in the directions of the complement's basis, unit again; and the part of its length
    that was left, [k]. Where that is below NOTHING, v is zero.

    Args:
        V: [k, C, H, W], of a Jacobian masked to a region.
        complement: the basis of the Jacobian masked to all but the region. The paper takes 5 directions.

    Raises ValueError if the shapes differ.

    Source: the null-space projection of Chen et al., "Exploring Low-Dimensional Subspaces in Diffusion Models for
    Controllable Image Editing" (LOCO Edit), NeurIPS 2024, for h in the place of x0.
    """
    check_shapes(V.shape[1:], complement.V.shape[1:], "x")
    away, flat = complement.V.flatten(1).to(V.device).double(), V.flatten(1).double()
    kept = flat - (flat @ away.T) @ away
    left = kept.norm(dim=1) / flat.norm(dim=1).clamp(min=1e-30)
    unit = torch.where(left[:, None] > ZERO_NORM, kept / kept.norm(dim=1, keepdim=True).clamp(min=1e-30), 0.0)
    return unit.view(V.shape).to(V), left.to(V)


def weights(direction: Tensor, basis: Tensor, space: str) -> Tensor:
    """<b_i, d> of basis [k, ...] for one direction d, [k] float64 on the CPU."""
    check_shapes(direction.shape, basis.shape[1:], space)
    return basis.flatten(1).cpu().double() @ direction.flatten().cpu().double()


def carried(target: LatentBasis, coefficients: Tensor, found: Tensor, given: Tensor) -> Carried:
    """sum_i c_i v_i of unit length for coefficients c [k], with the coverage || found || / || given ||."""
    coverage = float(found.norm() / given.cpu().double().norm().clamp(min=1e-30))
    if coverage <= ZERO_NORM:
        raise ValueError("The direction has nothing in common with the basis at its target. Use a basis with more "
                         "directions, or a latent, timestep or prompt that is nearer.")
    v = (coefficients / coefficients.norm()) @ target.V.flatten(1).cpu().double()
    return Carried(v.view(target.V.shape[1:]).to(target.V), min(coverage, 1.0))


def check_shapes(given: torch.Size, wanted: torch.Size, space: str) -> None:
    """Raises ValueError naming both shapes if they differ."""
    if given != wanted:
        raise ValueError(f"The direction in {space} has the shape {list(given)}, the basis has {list(wanted)}. Use the "
                         "same model and image size for both.")
