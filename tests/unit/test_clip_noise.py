"""First noise of clips: marginals, correlations (harivo.md 8.8), repeated windows, FreeInit's filter."""
from __future__ import annotations

import math

import pytest
import torch

from frozen_diffusion.modules.clips.noise import clip_noise, freeinit_mix, low_pass

FRAMES, SHAPE = 12, (4, 48, 48)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def own() -> torch.Tensor:
    return torch.randn(FRAMES, *SHAPE, generator=generator(3))


def sigmas_from(expected: float, x: torch.Tensor, apart: int) -> float:
    """How far the correlation of frames so far apart is from `expected`, in its standard errors over the pixels."""
    products = (x[apart:] * x[:-apart]).mean(0).flatten()
    return abs(products.mean().item() - expected) / (products.std().item() / math.sqrt(len(products)))


@pytest.mark.parametrize("kind", ["iid", "pyoco mixed", "pyoco progressive", "freenoise"])
def test_every_frame_is_standard_normal(kind):
    x = clip_noise(own(), kind, generator(), alpha=2.0, window=4).flatten(1)
    spread = 1 / math.sqrt(x.shape[1])
    assert (x.mean(1).abs() < 3 * spread).all() and ((x.var(1) - 1).abs() < 3 * spread * math.sqrt(2)).all()


@pytest.mark.parametrize("alpha", [0.0, 1.0, 2.0])
def test_pyoco_correlations(alpha):
    mixed = clip_noise(own(), "pyoco mixed", generator(), alpha)
    along = clip_noise(own(), "pyoco progressive", generator(), alpha)
    rho, step = alpha ** 2 / (1 + alpha ** 2), alpha / math.sqrt(1 + alpha ** 2)
    assert sigmas_from(rho, mixed, 1) < 3 and sigmas_from(rho, mixed, 5) < 3
    assert sigmas_from(step, along, 1) < 3 and sigmas_from(step ** 3, along, 3) < 3


def test_freenoise_repeats_the_frames_of_its_window_in_another_order():
    x, first = clip_noise(own(), "freenoise", generator(), window=4), own()[:4]
    assert torch.equal(x[:4], first)
    for start in (4, 8):
        found = [next(i for i in range(4) if torch.equal(frame, first[i])) for frame in x[start:start + 4]]
        assert sorted(found) == [0, 1, 2, 3]


def test_iid_is_the_noise_itself():
    x = own()
    assert clip_noise(x, "iid", generator()) is x


@pytest.mark.parametrize(("settings", "text"), [
    ({"kind": "brown"}, "iid, pyoco mixed"), ({"kind": "pyoco mixed", "alpha": -1.0}, "positive"),
    ({"kind": "freenoise", "window": 0}, "at least 1")])
def test_wrong_settings_are_refused(settings, text):
    with pytest.raises(ValueError, match=text):
        clip_noise(own(), generator=generator(), **settings)


@pytest.mark.parametrize("kind", ["butterworth", "gaussian", "ideal"])
def test_freeinit_keeps_a_real_clip_when_both_are_the_same(kind):
    x = own()
    response = low_pass(x.shape, kind, 0.25, 0.25)
    assert response.min() >= 0 and response.max() <= 1
    assert response[FRAMES // 2, 0, 24, 24] == pytest.approx(1)         # the mean is always kept
    torch.testing.assert_close(freeinit_mix(x, x, response), x, atol=1e-5, rtol=0)


@pytest.mark.parametrize(("kind", "responses"), [
    ("butterworth", (0.5, 1 / 257)), ("gaussian", (math.exp(-1 / 2), math.exp(-2))), ("ideal", (1, 0))])
def test_freeinit_s_filters_at_their_cut_off_and_at_twice_that(kind, responses):
    """In space and in time, whose cut-offs differ; Butterworth of order 4 (FreeInit, section 4.2)."""
    response = low_pass(torch.Size((16, 4, 32, 32)), kind, 0.25, 0.5)[:, 0]
    for steps, expected in zip((1, 2), responses, strict=True):
        for place in ((8, 16 + 4 * steps, 16), (8, 16, 16 - 4 * steps), (8 - 4 * steps, 16, 16)):
            assert response[place].item() == pytest.approx(expected, abs=1e-6)


def test_freeinit_takes_low_frequencies_from_one_and_high_from_the_other():
    still = torch.ones(FRAMES, *SHAPE)
    fine = (torch.arange(48) % 2 * 2.0 - 1).expand(FRAMES, *SHAPE)
    response = low_pass(still.shape, "ideal", 0.25, 0.25)
    torch.testing.assert_close(freeinit_mix(still, fine, response), still + fine, atol=1e-5, rtol=0)
    torch.testing.assert_close(freeinit_mix(fine, still, response), torch.zeros_like(still), atol=1e-5, rtol=0)
