"""DDIM inversion in the host: the levels it records, the way back, and what cannot be inverted."""
from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from comfy.patcher_extension import WrappersMP
from comfy.samplers import calculate_sigmas, sampler_object
from comfy_extras import nodes_custom_sampler as custom
from comfy_extras.nodes_model_advanced import ModelSamplingDiscrete
from h_space_examples import QUICK, injected, record

from frozen_diffusion.modules.host.hspace.inversion import inversion_grid, invert
from frozen_diffusion.modules.hspace.trace import psnr
from frozen_diffusion.modules.seeding import stream
from testhost.models import conditioning

pytestmark = pytest.mark.usefixtures("unloaded")

SIZE = 16


def picture(size=SIZE):
    return 5 * torch.randn(1, 4, size, size, generator=stream("h-space host", "picture"))


def test_inversion_records_every_level_and_finds_the_way_back(comfy, base):
    start, text = picture(), conditioning(1)
    noise, trace, sigmas, again, report = comfy.run(
        "FrozenInvertDDIM", model=base, positive=text, latent={"samples": start}, steps=12, refinements=0,
        deep_skips=3, check=True)
    assert trace.times[0] == 0 and trace.times[-1] == 999 and len(trace.times) == 12
    assert set(trace.features) == {"h", "skip0", "skip1", "skip2"} and "dB" in report
    assert sigmas[-1] == 0 and (sigmas.diff() < 0).all() and sigmas[0] == pytest.approx(14.6146, abs=1e-3)
    errors = {steps: (invert(base, text, start, steps).again - start).norm().item() for steps in (4, 12)}
    assert errors[12] < errors[4]
    back = comfy.run(custom.SamplerCustom, model=base, add_noise=False, noise_seed=0, cfg=1.0, positive=text,
                     negative=text, sampler=sampler_object("euler"), sigmas=sigmas, latent_image=noise)[0]
    torch.testing.assert_close(back["samples"], again["samples"], rtol=1e-4, atol=1e-4)


def with_noise(model, eps):
    """The MODEL with another noise prediction, a function of the network's input; the network runs for the trace."""
    model = model.clone()

    def wrapper(apply, args):
        apply(args["input"], args["timestep"], **args["c"])
        sigma = args["timestep"].view(-1, 1, 1, 1)
        return args["input"] - sigma * eps(args["input"] / (1 + sigma ** 2) ** 0.5)

    model.set_model_unet_function_wrapper(wrapper)
    return model


def test_a_step_is_ddims_in_variance_preserving_form(tiny_sd15):
    """x_j = sqrt(a_j) P(x_i) + sqrt(1 - a_j) eps(x_i, i), x_0 taken as x at t = 0, from the network itself in float64.

    The host's sampler keeps latents in float32, so every step starts from what it really had.
    """
    model, text, seen = tiny_sd15(torch.float64), conditioning(1), []
    found = invert(model, text, picture(), 6, way_back=False, callback=lambda step, denoised, x, total: seen.append(x))
    times = found.trace.times
    abar = (1 - torch.linspace(0.00085 ** 0.5, 0.012 ** 0.5, 1000, dtype=torch.float64) ** 2).cumprod(0)
    vp = [x.double() * abar[t].sqrt() for t, x in zip(times, seen, strict=True)]
    assert times == (0, 199, 399, 599, 799, 999)
    torch.testing.assert_close(vp[0], 0.18215 * picture().double(), rtol=1e-6, atol=1e-6)
    change = []
    for x, following, t, later in zip(vp[:-1], vp[1:], times[:-1], times[1:], strict=True):
        with torch.no_grad():
            eps = model.model.diffusion_model(x, torch.tensor([float(t)]), text[0][0].double(), transformer_options={})
        a, a_next = abar[t], abar[later]
        wanted = a_next.sqrt() * (x - (1 - a).sqrt() * eps) / a.sqrt() + (1 - a_next).sqrt() * eps
        assert (following - wanted).norm() < 1e-6 * wanted.norm()
        change.append(eps / eps.norm())
    assert all((one - other).norm() > 0.1 for one, other in zip(change[:-1], change[1:], strict=True))
    torch.testing.assert_close(found.noise, seen[-1] / 0.18215, rtol=1e-6, atol=1e-6)


def test_inversion_is_exact_for_noise_that_ignores_the_picture(base):
    """With eps independent of x the way back meets the picture, but for the first level's distance from 0."""
    eps = torch.randn(1, 4, SIZE, SIZE, generator=stream("constant eps"))
    found = invert(with_noise(base, lambda x: eps), conditioning(1), picture(), 6)
    first = float(found.sigmas[-2])
    start = 0.18215 * picture() * (1 + first ** 2) ** 0.5
    torch.testing.assert_close(found.again * 0.18215, start - first * eps, rtol=1e-4, atol=1e-4)


@pytest.fixture(scope="module")
def quick(tiny_sd15):
    return tiny_sd15(**QUICK)


FEW = 4                     # latents a side, for runs of many steps
NOISES = {"steep": lambda x: (3 * x).sin(), "against": lambda x: -(4 * x).tanh()}


@pytest.mark.fault("G2")
@pytest.mark.parametrize("eps", NOISES.values(), ids=NOISES)
def test_refinements_never_take_the_way_back_farther(quick, eps):
    """Noise that turns fast over x: there repeating a step, and no more, makes steps that miss by more."""
    model, start = with_noise(quick, eps), picture(FEW)
    worth = [psnr(start, invert(model, conditioning(1), start, 20, refinements=count).again) for count in (0, 1, 2, 4)]
    assert all(later > sooner - 0.3 for sooner, later in zip(worth[:-1], worth[1:], strict=True)), worth
    assert worth[-1] > worth[0] + 20


@pytest.mark.fault("G2")
def test_a_picture_is_refined_as_if_alone_and_at_the_cost_of_an_inversion(quick):
    calls, model = [], with_noise(quick, NOISES["steep"])
    model.add_wrapper_with_key(WrappersMP.DIFFUSION_MODEL, "count",
                               lambda executor, *args, **kwargs: calls.append(1) or executor(*args, **kwargs))
    two = torch.cat([picture(FEW), 0.3 * picture(FEW).flip(3)])
    both, *single = (invert(model, conditioning(1), start, 8, refinements=3, way_back=False)
                     for start in (two, *two.split(1)))
    torch.testing.assert_close(both.noise, torch.cat([each.noise for each in single]), rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(both.trace.features["h"], torch.cat([each.trace.features["h"] for each in single], 1),
                               rtol=1e-2, atol=1e-2)
    assert len(calls) == 3 * 8 * (1 + 3)


@pytest.mark.fault("G1")
@pytest.mark.parametrize("steps", [112, 889, 1000])
def test_the_grid_is_the_released_codes(quick, steps):
    times, sigmas = inversion_grid(quick.get_model_object("model_sampling"), steps)
    assert times == [int(point + 1e-6) for point in np.linspace(0, 1, steps) * 999]
    assert len(set(times)) == steps and (sigmas.diff() > 0).all()


@pytest.mark.fault("G1")
def test_as_many_steps_as_there_are_levels(quick):
    """Zero terminal SNR has some that hold nothing of a picture."""
    zero = ModelSamplingDiscrete().patch(quick, "v_prediction", zsnr=True)[0]
    times, sigmas = inversion_grid(zero.get_model_object("model_sampling"), 1000)
    assert times == list(range(len(times))) and 900 < len(times) < 1000 and (sigmas.diff() > 0).all()


def over(model, sigmas, start=None, **more):
    return invert(model, conditioning(1), picture(FEW) if start is None else start, 50, sigmas=sigmas, **more)


@pytest.mark.fault("G5")
@pytest.mark.parametrize("scheduler", ["normal", "karras", "simple"])
def test_inversion_over_given_sigmas_meets_the_picture_over_the_same(comfy, quick, scheduler):
    """Falling, rising, and as Flip Sigmas makes them; exactly where the noise does not depend on the picture."""
    sigmas = calculate_sigmas(quick.get_model_object("model_sampling"), scheduler, 8)
    eps = torch.randn(1, 4, FEW, FEW, generator=stream("constant eps"))
    model = with_noise(quick, lambda x: eps)
    flipped = comfy.run(custom.FlipSigmas, sigmas=sigmas)[0]
    assert 0 < flipped[0] < 1e-3
    found = [over(model, each, refinements=1) for each in (sigmas, sigmas.flip(0), flipped)]
    for each in found:
        torch.testing.assert_close(each.sigmas, sigmas)
        torch.testing.assert_close(each.again, picture(FEW), rtol=1e-4, atol=1e-4)
        assert torch.equal(each.noise, found[0].noise) and each.trace.times == found[0].trace.times
    assert found[0].trace.times[0] == 0 and found[0].trace.times[-1] == 999
    model = with_noise(quick, torch.sin)
    errors = [(over(model, sigmas, refinements=count).again - picture(FEW)).norm().item() for count in (0, 4)]
    assert errors[1] < 0.1 * errors[0]


@pytest.mark.fault("G5")
def test_two_stages_of_an_inversion_are_the_whole(quick):
    """Levels that do not end with 0 begin from a latent that is at the lowest of them."""
    sigmas = calculate_sigmas(quick.get_model_object("model_sampling"), "normal", 8)
    whole, lower = over(quick, sigmas), over(quick, sigmas[4:])
    upper = over(quick, sigmas[:5], lower.noise)
    torch.testing.assert_close(upper.noise, whole.noise, rtol=1e-4, atol=1e-4)
    assert upper.sigmas[-1] == lower.sigmas[0] > 0
    torch.testing.assert_close(upper.again, over(quick, sigmas[:5], lower.noise, refinements=0).again)


@pytest.mark.fault("G5")
def test_inversion_to_a_partial_depth(comfy, quick):
    """The way back and the injection sampler begin there."""
    text, start = conditioning(1), picture()
    noise, trace, sigmas, again, _ = comfy.run(
        "FrozenInvertDDIM", model=quick, positive=text, latent={"samples": start}, steps=11, refinements=2,
        deep_skips=0, check=True, depth=0.6)
    assert trace.times[-1] == 599 and len(trace.times) == 11 and sigmas[-1] == 0
    sampling = quick.get_model_object("model_sampling")
    assert sigmas[0] == pytest.approx(float(sampling.sigmas[599]), rel=1e-6)
    back, content = (comfy.run(custom.SamplerCustom, model=quick, add_noise=False, noise_seed=0, cfg=1.0, positive=text,
                               negative=text, sampler=sampler, sigmas=sigmas, latent_image=noise)[0]["samples"]
                     for sampler in (sampler_object("euler"), injected(record(comfy, quick, steps=8)[1])))
    torch.testing.assert_close(back, again["samples"], rtol=1e-4, atol=1e-4)
    assert (back - start).norm() < 0.05 * start.norm() and not torch.allclose(content, back, atol=1e-2)
    cut = over(quick, calculate_sigmas(sampling, "normal", 20), depth=0.6)
    assert cut.trace.times[-1] <= 599 and cut.sigmas[0] <= sigmas[0] and cut.sigmas[-1] == 0


@pytest.mark.fault("G5")
@pytest.mark.parametrize(("given", "words"), [
    ({"sigmas": torch.tensor([1.0, 2.0, 1.5])}, "rise or fall"),
    ({"sigmas": torch.tensor([1.0, 1.0, 0.0])}, "rise or fall"),
    ({"sigmas": torch.tensor([math.nan, 1.0])}, "rise or fall"), ({"sigmas": torch.tensor([2.0])}, "needs more"),
    ({"sigmas": torch.tensor([14.0, 12.0]), "depth": 0.5}, "needs more"), ({"depth": 0.0}, "depth is the share"),
    ({"depth": 1e-4}, "no further than timestep 0")])
def test_levels_that_cannot_be_inverted_over(quick, given, words):
    with pytest.raises(ValueError, match=words):
        invert(quick, conditioning(1), picture(FEW), 10, **given)


@pytest.mark.fault("G7")
def test_traces_are_kept_as_precisely_as_asked(comfy, quick):
    """fp32: as the model gives them; fp16, the default: rounded to half precision. Files and merges keep either."""
    half, same, full = (comfy.run(
        "FrozenInvertDDIM", model=quick, positive=conditioning(1), latent={"samples": picture()}, steps=3,
        refinements=0, deep_skips=1, check=False, **precision)[1] for precision in ({}, {"trace_precision": "fp16"},
                                                                     {"trace_precision": "fp32"}))
    for place, wanted in full.features.items():
        assert half.features[place].dtype == torch.float16 and wanted.dtype == torch.float32
        assert torch.equal(half.features[place], same.features[place])
        assert torch.equal(half.features[place], wanted.half()) and not torch.equal(wanted.half().float(), wanted)
    path = comfy.run("FrozenSaveHTrace", trace=full, filename_prefix="h_traces/precise")[0]
    again = comfy.run("FrozenLoadHTrace", file=path)[0]
    assert torch.equal(again.features["h"], full.features["h"]) and again.features["h"].dtype == torch.float32
    for mode in ("mean", "batch"):
        merged = comfy.run("FrozenMergeHSpace", trace_a=half, trace_b=full, mode=mode, weight=0.5)[0]
        assert merged.features["h"].dtype == torch.float32
    recorded = record(comfy, quick, steps=2, trace_precision="fp32")[1]
    assert recorded.features["h"].dtype == torch.float32


def test_latents_that_cannot_be_inverted(base):
    for bad in (torch.zeros(1, 4, SIZE, SIZE), torch.full((1, 4, SIZE, SIZE), math.nan)):
        with pytest.raises(ValueError, match="empty or not finite"):
            invert(base, conditioning(1), bad, 4)
    with pytest.raises(ValueError, match="at least 2 steps"):
        invert(base, conditioning(1), picture(), 1)


def test_a_trace_tells_what_it_was_made_from(base):
    """Prompts begin alike and end differently, so all of a text goes into its name."""
    start = picture()
    one, again, other = (invert(base, conditioning(seed), start, 2, way_back=False).trace.provenance
                         for seed in (1, 1, 2))
    assert one == again and one["prompt"] != other["prompt"] and one["latent"] == other["latent"]
    text = conditioning(1)[0][0].clone()
    text[0, -1, -1] += 1
    late = invert(base, [[text, {}]], 2 * start, 2, way_back=False).trace.provenance
    assert late["prompt"] != one["prompt"] and late["latent"] != one["latent"]
