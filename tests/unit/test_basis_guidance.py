"""x-space guidance, direct addition and the first paper's normalisation, latent_basis.md 2.6, 2.7, I7, I13."""
from __future__ import annotations

import pytest
import torch
from basis_examples import normal

from frozen_diffusion.modules.basis.guidance import (
    CONTRAST,
    TOO_FAR,
    direct_addition,
    keep_in_distribution,
    norm_drift,
    normalise,
    official_scale,
    predicted_x0,
    restore_norm,
    spread,
    x_space_guidance,
)

SHAPE = (4, 5, 6)


def unit(seed: int = 1) -> torch.Tensor:
    v = normal(*SHAPE, seed=seed, dtype=torch.float64)
    return v / v.norm()


def latent(batch: int = 1) -> torch.Tensor:
    return normal(batch, *SHAPE, dtype=torch.float64)


def matrix(size: int = 120) -> torch.Tensor:
    return normal(size, size, seed=5, dtype=torch.float64) / size ** 0.5


def linear(x: torch.Tensor) -> torch.Tensor:
    return (x.flatten(1) @ matrix().T).view(x.shape)


def curved(x: torch.Tensor) -> torch.Tensor:
    return torch.tanh(linear(x))


def guided(x, v, eps, gamma, steps, eta=1.0):
    """The last state; x for no steps."""
    return [x, *x_space_guidance(x, v, eps, gamma, steps, eta)][-1]


def test_a_linear_network_moves_x_exactly():
    """I7: x + N gamma B v."""
    x, v = latent(), unit()
    expected = x + 16 * 0.5 * linear(v[None])
    torch.testing.assert_close(guided(x, v, linear, 0.5, 16), expected, atol=1e-12, rtol=0)
    states = list(x_space_guidance(x, v, linear, 0.5, 16))
    assert len(states) == 16
    torch.testing.assert_close(states[3], x + 4 * 0.5 * linear(v[None]), atol=1e-12, rtol=0)
    torch.testing.assert_close(guided(x, v, linear, 0.5, 1, eta=2.0), x + linear(v[None]), atol=1e-12, rtol=0)


@pytest.mark.parametrize(("gamma", "steps"), [(0.0, 5), (1.0, 0), (0.0, 0)])
def test_zero_is_the_identity_bit_for_bit(gamma, steps):
    """I7, even where the network gives NaN, and without asking it."""
    def never(x):
        raise AssertionError("the network was evaluated")

    x = latent().float()
    x[0, 0, 0, 0] = -0.0
    out = guided(x, unit(), never, gamma, steps)
    assert torch.equal(out, x) and torch.equal(out.signbit(), x.signbit())
    assert torch.equal(direct_addition(x, unit(), 0.0).signbit(), x.signbit())


def test_there_and_back_is_of_second_order():
    """I7: +v, then -v."""
    x, v = latent(), unit()
    away = [guided(guided(x, v, curved, size, 1), v, curved, -size, 1) - x for size in (1e-2, 1e-3)]
    step = (guided(x, v, curved, 1e-2, 1) - x).norm()
    # The step itself is of first order in gamma; what is left over is curvature times eta, and falls with gamma.
    assert 0 < away[0].norm() < 0.2 * step and away[1].norm() < 0.11 * away[0].norm()
    small = [guided(guided(x, v, curved, 1, 1, eta), v, curved, -1, 1, eta) - x for eta in (1e-2, 1e-3)]
    assert 0.005 < small[1].norm() / small[0].norm() < 0.02


def test_the_step_follows_the_paper():
    """One step with both evaluations written out; x is updated between steps and v is not."""
    x, v = latent(), unit()
    expected = x
    for _ in range(3):
        expected = expected + 0.7 * (curved(expected + v) - curved(expected))
    torch.testing.assert_close(guided(x, v, curved, 0.7, 3), expected, atol=1e-12, rtol=0)
    negative = x + 0.7 * (curved(x - v) - curved(x))
    torch.testing.assert_close(guided(x, v, curved, -0.7, 1), negative, atol=1e-12, rtol=0)


def test_strengths_and_signs_in_one_batch():
    sizes, x, v = [], latent(), unit()

    def eps(batch):
        sizes.append(len(batch))
        return curved(batch)

    gammas = [-1.0, -0.5, 0.0, 0.5, 1.0]
    out = guided(x, v, eps, gammas, 4)
    assert sizes == [8] * 4                                                     # four rows that move, twice each
    for row, gamma in zip(out, gammas, strict=True):
        torch.testing.assert_close(row[None], guided(x, v, curved, gamma, 4), atol=1e-12, rtol=0)
    assert torch.equal(out[2:3], x)


def test_one_latent_or_direction_a_row():
    x, v = latent(2), torch.stack((unit(1), unit(2)))
    out = guided(x, v, curved, 0.5, 2)
    for row in range(2):
        torch.testing.assert_close(out[row:row + 1], guided(x[row:row + 1], v[row], curved, 0.5, 2), atol=1e-12, rtol=0)
    with pytest.raises(ValueError, match="2 latents, 1 directions and 3 scales"):
        guided(x, unit(), curved, [1.0, 2.0, 3.0], 1)
    with pytest.raises(ValueError, match=r"\[4, 5, 5\]"):
        guided(x, unit()[..., :5], curved, 1.0, 1)
    with pytest.raises(ValueError, match="-1"):
        guided(x, unit(), curved, 1.0, -1)


def test_the_input_is_not_changed():
    x = latent()
    before = x.clone()
    list(x_space_guidance(x, unit(), curved, [0.5, 0.0], 3))
    assert torch.equal(x, before)


def test_direct_addition():
    x, v = latent(), unit()
    torch.testing.assert_close(direct_addition(x, v, [2.0, -1.0]), torch.cat((x + 2 * v, x - v)))


def test_official_scales():
    """Spec 4.1 at the timesteps of the official grid, and halfway between them our choice."""
    sd = {999.0: 0.5, 898.1: 0.5, 797.2: 1.0, 696.3: 1.0, 595.4: 2.0, 100.0: 2.0, 0.0: 2.0}
    assert {t: official_scale(t) for t in sd} == sd
    with pytest.raises(ValueError, match="1200"):
        official_scale(1200)


@pytest.mark.parametrize("alpha_bar", [0.0047, 0.3, 0.97])
def test_normalise_without_a_move_is_the_identity(alpha_bar):
    """I13, bit for bit."""
    x = latent(2).float()
    assert torch.equal(normalise(x, x, curved_float, alpha_bar), x)


def curved_float(x: torch.Tensor) -> torch.Tensor:
    return torch.tanh(x) * 0.9


@pytest.mark.parametrize("alpha_bar", [0.0047, 0.3, 0.97])
def test_normalise_reaches_its_target(alpha_bar):
    """I13: if eps(x) = kappa x, x0 of the result is x0 of the move with the old contrast and its own mean."""
    x, kappa = latent(2), 0.99

    def eps(x):
        return kappa * x

    moved = x + 3 * unit()
    out = predicted_x0(normalise(x, moved, eps, alpha_bar), eps(normalise(x, moved, eps, alpha_bar)), alpha_bar)
    before, after = (predicted_x0(a, eps(a), alpha_bar) for a in (x, moved))
    whole = (1, 2, 3)
    torch.testing.assert_close(out.mean(whole), after.mean(whole), atol=1e-9, rtol=1e-9)
    torch.testing.assert_close(out.std(whole), before.std(whole), atol=1e-9, rtol=1e-9)
    assert not torch.allclose(after.std(whole), before.std(whole), rtol=1e-3)
    centred = after - after.mean(whole, keepdim=True)
    cosine = torch.nn.functional.cosine_similarity((out - out.mean(whole, keepdim=True)).flatten(1),
                                                   centred.flatten(1), dim=1)
    torch.testing.assert_close(cosine, torch.ones_like(cosine))


@pytest.mark.parametrize(("t", "factor"), [
    (999, 5.55), (898, 7.00), (797, 6.73), (696, 5.50), (595, 4.25), (494, 3.28)])
def test_the_factor_of_the_normalisation(t, factor):
    """Spec 2.7: sqrt(abar) / (1 - kappa sqrt(1 - abar)) of Stable Diffusion 1.5."""
    betas = torch.linspace(0.00085 ** 0.5, 0.012 ** 0.5, 1000, dtype=torch.float64) ** 2
    alpha_bar, x = float((1 - betas).cumprod(0)[t]), latent()
    moved = x.flip(1)
    shift = normalise(x, moved, torch.zeros_like, alpha_bar) - x
    target = (moved - x) / alpha_bar ** 0.5                         # mean and contrast of a whole sample are the same
    assert float((shift / target).mean()) == pytest.approx(factor, abs=0.01)


@pytest.mark.fault("G3")
@pytest.mark.parametrize("alpha_bar", [0.0047, 0.3, 0.97])
def test_normalised_moves_stay_in_distribution(alpha_bar):
    """A network that takes half of x for picture: the formula alone goes many times too far at high noise."""
    x, most = latent().float(), torch.tensor([0.0, 0.5, 3.0, 12.0])

    def eps(x):
        return 0.5 * torch.tanh(x)

    moved = normalise(x.expand(4, -1, -1, -1), x + most.view(-1, 1, 1, 1) * unit().float(), eps, alpha_bar)
    kept = keep_in_distribution(x, moved, eps, alpha_bar, most)
    travel = (kept - x).flatten(1).norm(dim=1)
    assert torch.equal(kept[:1], x) and (travel <= most * 1.001).all() and (travel[1:] > 0.02).all()
    assert (norm_drift(x, kept).abs() <= TOO_FAR).all()
    ratio = spread(predicted_x0(kept, eps(kept), alpha_bar)) / spread(predicted_x0(x, eps(x), alpha_bar))
    assert ((ratio - 1).abs() <= CONTRAST).all()
    for row in range(1, 4):                                         # the way is the formula's
        cosine = torch.nn.functional.cosine_similarity((kept - x)[row].flatten(), (moved - x)[row].flatten(), dim=0)
        assert cosine > 0.999


def test_norm_drift_and_its_cure():
    """Spec 7.12."""
    x = latent().float()
    after = torch.cat((1.2 * x, 0.9 * x, x))
    torch.testing.assert_close(norm_drift(x, after), torch.tensor([0.2, -0.1, 0.0]), atol=1e-6, rtol=0)
    torch.testing.assert_close(restore_norm(x, after), x.expand(3, -1, -1, -1))
