"""Latent calibration against the specification's identities (h_space_injection.md 8, item 4), in float64."""
import pytest
import torch

from frozen_diffusion.modules.hspace.steps import InjectionSettings, calibrated, injected_step
from frozen_diffusion.modules.seeding import stream

DIMS = (1, 2, 3)
ABAR = (1 - torch.linspace(0.00085 ** 0.5, 0.012 ** 0.5, 1000, dtype=torch.float64) ** 2).cumprod(0)
T, LATER = 700, 680


def random(name: str) -> torch.Tensor:
    return torch.randn(2, 4, 6, 6, generator=stream("calibration", name), dtype=torch.float64)


def sigma_of(t: int) -> float:
    return ((1 - ABAR[t]) / ABAR[t]).sqrt().item()


def constant_net(eps, eps_changed):
    """A network whose noise depends on whether something is injected, and on nothing else."""
    return lambda x, step, inject: x - sigma_of(T) * (eps_changed if inject else eps)


def step(denoise, x, omega):
    settings = InjectionSettings(t_edit=0, t_boost=-1, omega=omega)
    return injected_step(denoise, x, denoise(x, 0, False), 0, sigma_of(T), sigma_of(LATER), settings, T)


def papers_asyrp(x, predicted, eps):
    """sqrt(a') P + sqrt(1 - a') eps in the paper's scale, from a latent x and a prediction in the host's; the host's
    scale again."""
    return (ABAR[LATER].sqrt() * predicted + (1 - ABAR[LATER]).sqrt() * eps) / ABAR[LATER].sqrt()


def test_the_contrast_is_matched_and_the_mean_is_kept():
    """std(P'') = std(P) and mean(P'') = mean(P'), of each sample over all of its channels and pixels at once."""
    x, plain, changed = random("x"), random("plain"), 3 * random("changed") + torch.tensor([1.0, -2.0]).view(2, 1, 1, 1)
    matched = calibrated(x, plain, changed, 0.0) - x + plain
    torch.testing.assert_close(matched.std(DIMS), plain.std(DIMS), rtol=1e-12, atol=0)
    torch.testing.assert_close(matched.mean(DIMS), changed.mean(DIMS), rtol=1e-12, atol=1e-12)
    assert (matched.mean(DIMS) - plain.mean(DIMS)).abs().min() > 0.5
    back = (matched - matched.mean(DIMS, keepdim=True)) / plain.std(DIMS, keepdim=True)
    torch.testing.assert_close(back, (changed - changed.mean(DIMS, keepdim=True)) / changed.std(DIMS, keepdim=True))
    channel = changed.mean((2, 3)) - matched.mean((2, 3))
    assert channel.abs().max() > 1e-3               # it is no mean of each channel


def test_omega_towards_nought_is_asyrps_step_if_noise_ignores_the_latent():
    """With the contrast of P as it is; else Asyrp's step with the matched P'' for P'."""
    x, eps, other = random("x"), random("eps"), random("other")
    net = constant_net(eps, other)
    plain, changed = net(x, 0, False), net(x, 0, True)
    matched = calibrated(x, plain, changed, 0.0) - x + plain
    prediction, following = step(net, x, 1e-12)
    torch.testing.assert_close(prediction, matched, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(following, papers_asyrp(x, matched, eps), rtol=1e-9, atol=1e-9)
    assert not torch.allclose(matched, changed, atol=1e-3)
    wanted = changed.mean(DIMS, keepdim=True) + (changed - changed.mean(DIMS, keepdim=True)) * (
        plain.std(DIMS, keepdim=True) / changed.std(DIMS, keepdim=True))
    same = constant_net(eps, (x - wanted) / sigma_of(T))        # its P' has the contrast of P
    near, asyrp = step(same, x, 1e-12), step(same, x, 0.0)
    for given, exact in zip(near, asyrp, strict=True):
        torch.testing.assert_close(given, exact, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(asyrp[1], papers_asyrp(x, wanted, eps), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("omega", [0.3, 1.0])
def test_omega_one_is_the_plain_step_but_for_the_contrast(omega):
    """The move is (1 - omega) of the whole one, so at 1 nothing of the content is left."""
    x, eps, other = random("x"), random("eps"), random("other")
    plain = constant_net(eps, other)(x, 0, False)
    wanted = random("content")
    wanted = wanted / wanted.std(DIMS, keepdim=True) * plain.std(DIMS, keepdim=True)
    net = constant_net(eps, (x - wanted) / sigma_of(T))
    prediction, following = step(net, x, omega)
    torch.testing.assert_close(prediction, plain + (1 - omega) * (wanted - plain), rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(following, papers_asyrp(x, prediction, eps), rtol=1e-9, atol=1e-9)
