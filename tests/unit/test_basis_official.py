"""The authors' solver with its defects, against the specification's listing (latent_basis.md 2.4) in float64."""
from __future__ import annotations

import pytest
import torch
from basis_examples import Encoder, latent, normal

from frozen_diffusion.modules.basis.products import Jacobian
from frozen_diffusion.modules.basis.subspace_iteration import subspace_iteration

DTYPE = torch.float64


def linear():
    """f(x) = A x with a spectrum that falls; (f, x)."""
    left, right = (torch.linalg.qr(normal(size, 20, seed=size, dtype=DTYPE)).Q for size in (60, 48))
    A = left * 5 * 0.7 ** torch.arange(20, dtype=DTYPE) @ right.T
    return (lambda x: (A @ x.flatten()).view(1, 60)), normal(1, 3, 4, 4, seed=3, dtype=DTYPE)


def curved():
    """A small network with attention; (f, x)."""
    return Encoder(DTYPE), latent(dtype=DTYPE)


def listing(f, x, k, max_iter, min_iter, atol, seed):
    """(U [k, m], s, V [k, n], iterations) of the released code's loop, with the Jacobian written out.

    V <- QR; repeat: U <- J V, W <- U^T J, (_, s^2, V) <- SVD of W; stop when V hardly changes, after min_iter. U is of
    the V before, and as long as s of then.
    """
    J = torch.func.jacrev(f)(x).reshape(-1, x.numel()).detach()
    noise = torch.randn(x.numel(), k, generator=torch.Generator().manual_seed(seed), dtype=DTYPE)
    V = torch.linalg.qr(noise).Q.T
    for iteration in range(max_iter):
        before = V
        U = before @ J.T
        _, squares, V = torch.linalg.svd(U @ J, full_matrices=False)
        if torch.allclose(before, V, atol=atol) and iteration > min_iter:
            break
    return U, squares.sqrt(), V, iteration + 1


@pytest.mark.parametrize("map_of", [linear, curved])
@pytest.mark.parametrize("rules", [{"max_iter": 1}, {"max_iter": 2}, {"max_iter": 7}, {"max_iter": 11},
                                   {"max_iter": 50, "atol": 3.0}, {"max_iter": 9, "min_iter": 3, "atol": 3.0}],
                         ids=["1", "2", "7", "11", "any V will do", "after 4"])
@pytest.mark.parametrize("k", [1, 4])
def test_the_iteration_is_the_released_one(map_of, rules, k):
    """Up to signs, which are a decomposition's own and, once W is all but diagonal, those of rounding errors."""
    f, x = map_of()
    jacobian = Jacobian(f, x)
    *_, last = subspace_iteration(jacobian, k, official=True, seed=5, **rules)
    U, s, V, iterations = listing(f, x, k, **{"min_iter": 10, "atol": 1e-4, "seed": 5, **rules})
    assert last.products == 2 * k * iterations
    torch.testing.assert_close(last.found.s, s, rtol=1e-9, atol=0)
    for given, wanted in ((last.found.V.flatten(1), V), (last.found.U.flatten(1), U)):
        sign = (given * wanted).sum(1, keepdim=True).sign()
        torch.testing.assert_close(sign * given, wanted, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("map_of", [linear, curved])
def test_twelve_iterations_are_the_least(map_of):
    """However loose its test for the end: 24 k products."""
    *_, last = subspace_iteration(Jacobian(*map_of()), 3, official=True, atol=100.0)
    assert last.converged and last.products == 24 * 3
