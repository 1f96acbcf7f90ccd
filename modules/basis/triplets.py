"""What the solvers give: singular triplets of the Jacobian, and a record of every step on the way to them."""
from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

UNKNOWN_ANGLE = 90.0        # degrees


@dataclass(frozen=True)
class Triplets:
    """The largest singular triplets of J, J v_i = s_i u_i.

    Attributes:
        V: [k, C, H, W] unit directions in X. There are fewer than asked for if J has no more.
        U: [k, ...] unit directions in H.
        s: [k] descending.
        residuals: [k], || J^T u_i - s_i v_i ||.
    """
    V: Tensor
    U: Tensor
    s: Tensor
    residuals: Tensor


@dataclass(frozen=True)
class Step:
    """One step of a solver.

    Attributes:
        products: products with J and J^T so far.
        s: [<= k] estimates of the singular values, descending.
        residuals: [<= k] of these estimates relative to the first of them.
        angle: degrees by which the estimated subspace may still be off; UNKNOWN_ANGLE while nothing is known.
        converged: whether the solver's gate is passed.
        found: the triplets, in the last record only.
    """
    products: int
    s: Tensor
    residuals: Tensor
    angle: float = UNKNOWN_ANGLE
    converged: bool = False
    found: Triplets | None = None


def canonical(V: Tensor, U: Tensor) -> tuple[Tensor, Tensor]:
    """V [k, n] and U [k, m] with signs such that the largest entry of every v_i is positive; u_i goes with v_i."""
    largest = V.gather(1, V.abs().argmax(1, keepdim=True))                      # [k, 1]
    sign = torch.where(largest < 0, -1.0, 1.0).to(V.dtype)
    return V * sign, U * sign


def check_count(k: int, n: int, m: int) -> None:
    """Raises ValueError unless there can be k triplets of an m x n Jacobian."""
    if not 1 <= k <= min(n, m):
        raise ValueError(f"{k} directions were asked for; there are 1 to {min(n, m)} for a latent of {n} numbers and "
                         f"an h of {m}.")


def no_signal(size: float) -> ValueError:
    """What is wrong when the Jacobian vanishes."""
    return ValueError(
        f"The Jacobian is zero (its size is {size:.0e}): h does not depend on the latent. Either gradients are switched"
        " off inside the U-Net (inference mode, a detached or compiled block), or the mask leaves nothing, or the "
        "latent carries no signal.")
