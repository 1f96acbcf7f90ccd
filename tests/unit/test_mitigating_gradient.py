"""Mitigating-gradient sampling, harivo.md 8.4."""
from __future__ import annotations

import math

import pytest
import torch

from frozen_diffusion.modules.motion.mitigating_gradient import (
    energy,
    is_limited,
    mitigate,
    smoothing_gradient,
    step_size,
)


def clip(frames: int = 9, seed: int = 0) -> torch.Tensor:
    return torch.randn(2, frames, 4, 3, 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).float()


@pytest.mark.parametrize("order", [1, 2])
def test_the_gradient_is_that_of_the_energy(order):
    x = clip().double().requires_grad_()
    mean = x[0, 0].numel()
    d = torch.diff(x, n=order, dim=1)
    (d.square().sum() / 2 / mean).backward()
    torch.testing.assert_close(smoothing_gradient(x.detach(), order) / mean, x.grad)
    torch.testing.assert_close(energy(x.detach(), order).double().sum(), d.square().sum().detach() / 2 / mean)


def test_alpha_zero_is_off_bit_for_bit():
    x = clip()
    assert torch.equal(mitigate(x, step_size(0.0, 3.0)), x)


def test_constant_clips_stay_and_even_motion_stays_at_order_two():
    still = clip(1).expand(-1, 6, -1, -1, -1)
    assert torch.equal(mitigate(still, 0.2), still)
    even = clip(1) + clip(1, seed=1) * torch.arange(6).view(1, 6, 1, 1, 1)
    torch.testing.assert_close(mitigate(even, 0.05, order=2), even)
    assert (mitigate(even, 0.05, order=1) - even).abs().max() > 1e-3


@pytest.mark.parametrize("order", [1, 2])
def test_the_sum_over_frames_is_kept(order):
    x = clip()
    torch.testing.assert_close(mitigate(x, 0.06, order).sum(1), x.sum(1), atol=2e-6, rtol=0)


@pytest.mark.parametrize("order", [1, 2])
def test_before_and_after_guidance_are_the_same(order):
    """Fast mode is linear in the predicted clip, and so is classifier-free guidance."""
    cond, uncond = clip(), clip(seed=1)

    def guide(cond, uncond):
        return uncond + 7.5 * (cond - uncond)

    after = mitigate(guide(cond, uncond), 0.03, order)
    torch.testing.assert_close(guide(mitigate(cond, 0.03, order), mitigate(uncond, 0.03, order)), after,
                               atol=1e-4, rtol=0)


@pytest.mark.parametrize("order", [1, 2])
def test_time_may_run_backwards(order):
    x = clip()
    torch.testing.assert_close(mitigate(x.flip(1), 0.06, order), mitigate(x, 0.06, order).flip(1))


def test_every_cosine_mode_is_scaled_by_its_own_factor():
    frames, k = 10, 0.17
    for mode in range(frames):
        wave = torch.cos(math.pi * (torch.arange(frames, dtype=torch.float64) + 0.5) * mode / frames)
        x = wave.view(1, frames, 1, 1, 1).float()
        factor = 1 - k * (2 - 2 * math.cos(math.pi * mode / frames))
        torch.testing.assert_close(mitigate(x, k), factor * x, atol=1e-6, rtol=0)


@pytest.mark.parametrize("sigma", [0.1, 1.0, 14.6])
@pytest.mark.parametrize("order", [1, 2])
def test_fast_is_exact_for_the_gaussian_denoiser(sigma, order):
    """x0 = x / (1 + sigma^2): the posterior variance is sigma^2 J exactly."""
    alpha, x = 40.0, clip().requires_grad_()
    x0 = x / (1 + sigma ** 2)
    gradient, = torch.autograd.grad(torch.diff(x0, n=order, dim=1).square().sum() / 2 / 4096, x)
    exact = x0 - alpha * sigma ** 2 * gradient
    torch.testing.assert_close(mitigate(x0, step_size(alpha, sigma, order), order), exact, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("order", [1, 2])
def test_energy_never_rises_within_the_limits_of_k(order):
    x = clip(16)
    for alpha in (1.0, 40.0, 150.0, 1e6):
        assert (energy(mitigate(x, step_size(alpha, 10.0, order), order), order) <= energy(x, order)).all()


def test_step_size_is_that_of_the_paper_defaults_and_is_limited():
    assert step_size(40.0, 1e6) == pytest.approx(40 / 4096)
    assert step_size(40.0, 1.0) == pytest.approx(20 / 4096)
    assert step_size(1e9, 1.0) == 0.25 and step_size(1e9, 1.0, order=2) == 0.0625 and step_size(-1e9, 1.0) == -0.05
    assert not is_limited(150.0) and is_limited(1025.0) and is_limited(-206.0) and is_limited(300.0, order=2)


def test_locked_frames_keep_their_values_and_pull_their_neighbours():
    x, locked = clip(5), torch.tensor([True, False, False, False, True])
    out = mitigate(x, 0.2, locked=locked)
    assert torch.equal(out[:, 0], x[:, 0]) and torch.equal(out[:, 4], x[:, 4])
    torch.testing.assert_close(out[:, 1], x[:, 1] - 0.2 * (2 * x[:, 1] - x[:, 0] - x[:, 2]))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_smoothed_in_full(dtype):
    """Differences of neighbours overflow in fp16 here, and lose most of their digits in bf16."""
    x = (30000 * torch.tensor([1.0, -1.0, 1.001, -0.999, 1.0])).view(1, 5, 1, 1, 1).to(dtype)
    change = (mitigate(x, 0.05) - x).double()
    expected = -0.05 * smoothing_gradient(x.double())
    torch.testing.assert_close(change, expected, rtol=0, atol=30000 * torch.finfo(dtype).eps)


def test_a_single_frame_stays():
    assert torch.equal(mitigate(clip(1), 0.2), clip(1))
