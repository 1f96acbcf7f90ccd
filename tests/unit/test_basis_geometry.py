"""Transport, global directions and distances, latent_basis.md 2.8, 2.9, 2.11, I8, I9, I10."""
from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from basis_examples import Encoder, dense, latent, normal

from frozen_diffusion.modules.basis.basis import TENSORS, LatentBasis, latent_basis
from frozen_diffusion.modules.basis.geometry import (
    curvedness,
    distance_matrix,
    geodesic_distance,
    largest_distance,
    lerp,
    low_frequency_share,
    power_spectrum,
    preview,
    random_distance,
    slerp,
    white_share,
)
from frozen_diffusion.modules.basis.global_basis import chordal_mean, exp_map, frechet_mean, global_basis, log_map
from frozen_diffusion.modules.basis.lanczos import lanczos
from frozen_diffusion.modules.basis.products import Jacobian
from frozen_diffusion.modules.basis.transport import (
    prompt_direction,
    pull_direction,
    subtract_complement,
    transport,
    transport_in_x,
)


def rotation(k: int, seed: int = 0) -> torch.Tensor:
    return torch.linalg.qr(normal(k, k, seed=seed, dtype=torch.float64)).Q


def span(k: int, size: int = 60, seed: int = 0) -> torch.Tensor:
    """Orthonormal rows [k, size]."""
    return torch.linalg.qr(normal(size, k, seed=seed, dtype=torch.float64)).Q.T


def basis_of(f, k: int = 4, x: torch.Tensor | None = None) -> LatentBasis:
    *_, last = lanczos(Jacobian(f, latent() if x is None else x), k, tolerance=1e-6)
    return latent_basis(last.found, 700, 3.4)


def turned(f, turn: torch.Tensor):
    return lambda x: (f(x).flatten() @ turn.to(x).T).view(1, 8, 4, 4)


def test_distances_that_are_known():
    """I8."""
    one, k = span(5), 5
    assert geodesic_distance(one, rotation(5) @ one) < 1e-6
    both = span(10)
    assert geodesic_distance(both[:5], both[5:]) == pytest.approx(largest_distance(k)) == pytest.approx(
        math.sqrt(5) * math.pi / 2)
    tilted = both[:5] * math.cos(0.3) + both[5:] * math.sin(0.3)
    assert geodesic_distance(both[:5], tilted) == pytest.approx(0.3 * math.sqrt(5))
    assert geodesic_distance(both[:5].float(), 3 * both[:5].float()) < 1e-3 / 50


def test_distance_is_a_metric():
    a, b, c = (span(3, 12, seed=seed) for seed in range(3))
    matrix = distance_matrix([a, b, c])
    assert matrix[0, 1] == geodesic_distance(a, b) == pytest.approx(geodesic_distance(b, a))
    assert torch.equal(matrix, matrix.T) and (matrix.diagonal() == 0).all() and (matrix.sum(1) > 0).all()
    assert matrix[0, 2] <= matrix[0, 1] + matrix[1, 2]
    with pytest.raises(ValueError, match=r"\[3, 12\] and \[2, 12\]"):
        geodesic_distance(a, b[:2])


def test_the_random_baseline():
    """Spec 2.11: 3.50 of 3.51 for five directions of Stable Diffusion's h."""
    assert random_distance(5, 81920, draws=1) == pytest.approx(3.50, abs=0.005)
    direct = [geodesic_distance(span(3, 20, seed=2 * seed), span(3, 20, seed=2 * seed + 1)) for seed in range(200)]
    assert random_distance(3, 20, draws=200) == pytest.approx(sum(direct) / 200, rel=0.02)


def test_path_length():
    """On a bent encoder, segments add up, and a path that stays is of length 0."""
    a, b = normal(1, 4, 3, 3), 2 * normal(1, 4, 3, 3, seed=1)
    for path in (lerp(a, b, 10), slerp(a, b, 10)):
        assert len(path) == 11
        torch.testing.assert_close(path[0], a)
        torch.testing.assert_close(path[-1], b)
    unit = [p / p.norm() for p in (a, b)]
    torch.testing.assert_close(torch.stack([p.norm() for p in slerp(*unit)]), torch.ones(31))
    assert float(lerp(*unit)[15].norm()) < 0.95
    torch.testing.assert_close(slerp(a, 3 * a, 4)[2], 2 * a)

    def tangent(x):
        """A plane that turns by the angle x[0]."""
        turn = float(x.flatten()[0])
        return torch.tensor([[math.cos(turn), math.sin(turn), 0, 0], [0, 0, 1, 0]])

    start, end = torch.zeros(1, 1, 2, 2), torch.ones(1, 1, 2, 2)
    parts = list(curvedness(lerp(start, end, 5), tangent))
    assert parts == pytest.approx([0.2] * 5, abs=1e-6)
    assert sum(curvedness(lerp(start, end), tangent)) == pytest.approx(1.0, abs=1e-5)
    assert sum(curvedness([start] * 4, tangent)) < 1e-6


def test_spectra():
    height, width = 16, 16
    assert white_share(height, width) == pytest.approx(13 / 256)                # spec 8: 0.05
    noise = normal(200, 4, height, width)
    assert low_frequency_share(noise) == pytest.approx(13 / 256, rel=0.03)
    wave = torch.cos(2 * math.pi * 5 * torch.arange(width) / width).expand(1, 4, height, width)
    shares = power_spectrum(wave)
    assert shares[5] == pytest.approx(1.0) and low_frequency_share(wave) < 1e-9
    assert power_spectrum(noise).sum() == pytest.approx(1.0)
    flat = torch.ones(1, 4, 12, 8)
    assert power_spectrum(flat)[0] == pytest.approx(1.0) and low_frequency_share(flat) == pytest.approx(1.0)


@pytest.mark.parametrize("channels", [1, 3, 4, 16])
def test_previews(channels):
    picture = preview(normal(2, channels, 6, 5))
    assert picture.shape == (2, 6, 5, 3) and picture.dtype == torch.float32
    assert (picture.amin((1, 2, 3)) == 0).all() and (picture.amax((1, 2, 3)) == 1).all()
    if channels == 3:
        v = normal(2, 3, 6, 5)
        shown = preview(v).permute(0, 3, 1, 2)
        torch.testing.assert_close(shown[0] * (v[0].max() - v[0].min()) + v[0].min(), v[0])
    assert torch.equal(preview(torch.zeros(1, channels, 4, 4)), torch.zeros(1, 4, 4, 3))


def test_transport_to_itself_is_the_identity():
    """I9."""
    basis = basis_of(Encoder())
    for i in range(4):
        for carried in (transport(basis.U[i], basis), transport_in_x(basis.V[i], basis)):
            torch.testing.assert_close(carried.v, basis.V[i], atol=1e-5, rtol=0)
            assert carried.coverage == pytest.approx(1.0, abs=1e-5) and not carried.weak


def test_transport_into_a_turned_encoder():
    """I9: f -> Q f has U -> Q U and the same V; the coefficients carry no 1 / s."""
    f, turn = Encoder(), rotation(128)
    here, there = basis_of(f), basis_of(turned(f, turn))
    u = (0.6 * here.U[0] - 0.8 * here.U[2]).flatten().double()
    carried = transport((turn @ u).view(8, 4, 4).float(), there)
    torch.testing.assert_close(carried.v, 0.6 * here.V[0] - 0.8 * here.V[2], atol=1e-3, rtol=0)
    assert carried.coverage == pytest.approx(1.0, abs=1e-4)


def test_coverage_is_the_share_that_exists():
    basis = basis_of(Encoder())
    apart = normal(8, 4, 4, seed=4)
    flat = basis.U.flatten(1)
    apart = (apart.flatten() - flat.T @ (flat @ apart.flatten())).view(8, 4, 4)
    apart = apart / apart.norm()
    carried = transport(0.28 * basis.U[1] + 0.96 * apart, basis)
    assert carried.coverage == pytest.approx(0.28, abs=1e-4) and carried.weak
    torch.testing.assert_close(carried.v, basis.V[1], atol=1e-3, rtol=0)
    assert transport(7 * basis.U[1], basis).coverage == pytest.approx(1.0, abs=1e-4)
    with pytest.raises(ValueError, match="nothing in common"):
        transport(torch.zeros(8, 4, 4), basis)


@pytest.mark.parametrize("carry", [transport, transport_in_x, prompt_direction])
def test_other_shapes_are_named(carry):
    with pytest.raises(ValueError, match=r"\[8, 4, 5\].*\[\d, \d, \d\]"):
        carry(torch.ones(8, 4, 5), basis_of(Encoder(), k=2))


def test_a_wished_change_is_reached():
    """Spec 9.4: with v* = V S^-1 U^T d, J v* is along the part of d that the basis can make."""
    jacobian = Jacobian(Encoder(), latent())
    basis = basis_of(Encoder(), k=5)
    wish = normal(8, 4, 4, seed=3)
    carried = prompt_direction(wish, basis)
    reached = jacobian.push(carried.v[None]).flatten().double()
    U = basis.U.flatten(1).double()
    possible = U.T @ (U @ wish.flatten().double())
    cosine = reached @ possible / reached.norm() / possible.norm()
    assert cosine > 0.9999 and float(carried.v.norm()) == pytest.approx(1.0)
    assert carried.coverage == pytest.approx(float(possible.norm() / wish.norm()), abs=1e-4)


def test_the_steepest_direction_ascends():
    """Spec 2.12: +J^T d, where the official code has the descent."""
    jacobian, wish = Jacobian(Encoder(), latent()), normal(8, 4, 4, seed=3)
    v = pull_direction(wish, jacobian)
    expected = dense(jacobian).T @ wish.flatten()
    torch.testing.assert_close(v.flatten(), expected / expected.norm(), atol=1e-5, rtol=0)
    best = (jacobian.push(v[None]).flatten() * wish.flatten()).sum()
    other = normal(1, 3, 8, 8, seed=8)
    assert best > (jacobian.push(other / other.norm()).flatten() * wish.flatten()).sum().abs()
    with pytest.raises(ValueError, match="No change"):
        pull_direction(wish, Jacobian(lambda x: 0 * Encoder()(x), latent()))


def test_the_complement_is_left_alone():
    """Spec 9.3: after the subtraction, the region's directions move the rest less, and nothing of the complement's."""
    mask = torch.zeros(8, 8)
    mask[:, :4] = 1
    region, complement = (
        latent_basis(list(lanczos(Jacobian(Encoder(), latent(), h_mask=m), 4))[-1].found, 0, 0)
        for m in (mask[::2, ::2], 1 - mask[::2, ::2]))
    complement = replace(complement, **{name: getattr(complement, name)[:3] for name in TENSORS})
    kept, left = subtract_complement(region.V, complement)
    away = complement.V.flatten(1)
    assert ((kept.flatten(1) @ away.T).abs() < 1e-5).all()
    torch.testing.assert_close(kept.flatten(1).norm(dim=1), torch.ones(4))
    before = region.V.flatten(1) @ away.T
    torch.testing.assert_close(left, (1 - before.square().sum(1)).sqrt())
    assert left.min() < 0.999
    outside = Jacobian(Encoder(), latent(), h_mask=1 - mask[::2, ::2])
    for v, w in zip(region.V, kept, strict=True):
        assert outside.push(w[None]).norm() < outside.push(v[None]).norm()
    none, left = subtract_complement(complement.V[:2], complement)
    assert left.max() < 1e-5 and none.isfinite().all()


def test_global_basis_of_one_subspace():
    """I10: copies that are turned give the subspace; copies in another order and with other signs give the basis."""
    basis = span(4).view(4, 4, 5, 3)
    turned_copies = [(rotation(4, seed) @ basis.flatten(1)).view(basis.shape) for seed in range(5)]
    assert geodesic_distance(global_basis(turned_copies), basis) < 1e-6
    order = [[0, 1, 2, 3], [2, 0, 3, 1], [3, 2, 1, 0]]
    signs = torch.tensor([[1, 1, 1, 1], [-1, 1, -1, 1], [1, -1, -1, -1]]).view(3, 4, 1, 1, 1)
    shuffled = [sign * basis[rank] for rank, sign in zip(order, signs, strict=True)]
    torch.testing.assert_close(global_basis(shuffled), basis, atol=1e-9, rtol=0)
    with pytest.raises(ValueError, match="one shape"):
        global_basis([basis, basis[:2]])


def test_global_basis_averages():
    """Directions that are tilted both ways meet in the middle, and rows stay orthonormal."""
    both = span(6)
    tilts = [both[:3] * math.cos(a) + both[3:] * math.sin(a) for a in (0.4, -0.4)]
    torch.testing.assert_close(global_basis([tilts[0], -tilts[1][[1, 2, 0]]]), both[:3], atol=1e-6, rtol=0)
    mean = global_basis([span(3, seed=seed).float() for seed in range(4)])
    assert mean.dtype == torch.float32
    torch.testing.assert_close(mean @ mean.T, torch.eye(3), atol=1e-5, rtol=0)


def test_the_frechet_mean_is_the_least_sum_of_squares():
    base = span(3, 20)
    near = torch.stack([torch.linalg.qr((base + 0.15 * normal(3, 20, seed=seed, dtype=torch.float64)).T).Q
                        for seed in range(1, 7)])                               # [6, 20, 3]

    def cost(mean):
        return sum(geodesic_distance(mean.T, one.T) ** 2 for one in near)

    mean = frechet_mean(near)
    assert torch.stack([log_map(mean, one) for one in near]).mean(0).norm() < 1e-9      # the condition for a mean
    assert cost(mean) < cost(chordal_mean(near)) and cost(mean) < min(cost(one) for one in near)


def test_log_and_exp_are_inverse():
    a, b = span(3, 20).T, span(3, 20, seed=1).T
    tangent = log_map(a, b)
    assert float(tangent.norm()) == pytest.approx(geodesic_distance(a.T, b.T))
    assert (a.T @ tangent).abs().max() < 1e-12
    assert geodesic_distance(exp_map(a, tangent).T, b.T) < 1e-6
    half = exp_map(a, tangent / 2)
    assert geodesic_distance(a.T, half.T) == pytest.approx(geodesic_distance(half.T, b.T))
    assert torch.linalg.norm(log_map(a, a @ rotation(3))) < 1e-7
