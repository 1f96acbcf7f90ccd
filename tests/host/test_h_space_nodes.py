"""h-space through its nodes: cancelling at any step, grids that are far apart, and the wrong inputs."""
from __future__ import annotations

import sys

import pytest
import torch
from comfy import model_management
from comfy.patcher_extension import WrappersMP
from comfy_extras import nodes_custom_sampler as custom
from h_space_examples import SIZE, comfy_sampler, guider, injected, levels, record, run
from motion_examples import TINY, random_motion
from training_examples import preview_vae

from frozen_diffusion.modules.host.motion.apply import apply_motion, hold_motion
from frozen_diffusion.modules.hspace.trace import HTrace, TraceError
from frozen_diffusion.modules.seeding import stream
from testhost.models import conditioning, tiny_flux

pytestmark = pytest.mark.usefixtures("unloaded")

CLOSE = "steps are up to"
SAMPLER = {"preset": "custom", "gamma": "0.3", "t_edit": 400.0, "t_boost": 0.0, "omega": 0.3, "mode": "asymmetric",
           "apply_to": "both", "norm_mode": "masked", "check": "model", "gamma_skips": 0.0, "dt_lambda": 1.0,
           "replace_steps": 50, "auto_gamma": False, "shared_encoder": False}
LIGHT = {"gamma": "0.3", "t_edit": 400.0, "apply_to": "both", "norm_mode": "masked", "check": "model",
         "gamma_skips": 0.0}
INVERT = {"steps": 3, "refinements": 0, "deep_skips": 1, "check": True}


@pytest.fixture(scope="module")
def other(comfy, base):
    return record(comfy, base, start="other", steps=3)[1]


def picture():
    return 5 * torch.randn(1, 4, SIZE, SIZE, generator=stream("h-space nodes", "picture"))


def sampler_of(comfy, trace, **changes):
    return comfy.run("FrozenHSpaceInjectionSampler", trace=trace, **{**SAMPLER, **changes})[0]


def sampled(comfy, model, sampler, steps=3, seed=5):
    """SamplerCustom, as in the templates."""
    return comfy.run(custom.SamplerCustom, model=model, add_noise=True, noise_seed=seed, cfg=1.0,
                     positive=conditioning(1), negative=conditioning(2), sampler=sampler,
                     sigmas=levels(model, steps), latent_image={"samples": torch.zeros(1, 4, SIZE, SIZE)})[0]["samples"]


class Cancelled:
    """The MODEL of a user who presses the button of the host in the U-Net's call number `at`."""

    def __init__(self, model, at=None):
        self.at, self.calls = at, 0
        self.model = model.clone()
        self.model.add_wrapper_with_key(WrappersMP.DIFFUSION_MODEL, "cancel", self.call)

    def call(self, executor, *args, **kwargs):
        self.calls += 1
        if self.calls == self.at:
            model_management.interrupt_current_processing()
        return executor(*args, **kwargs)


def invert_node(comfy, model, _):
    noise, trace, _, again, _ = comfy.run("FrozenInvertDDIM", model=model, positive=conditioning(1),
                                          latent={"samples": picture()}, **INVERT)
    return [noise["samples"], again["samples"], *trace.features.values()]


def record_node(comfy, model, _):
    samples, trace = record(comfy, model, steps=3, deep_skips=1)
    return [samples, *trace.features.values()]


def injection_node(comfy, model, sampler):
    return [sampled(comfy, model, sampler)]


@pytest.mark.parametrize(("node", "shared"), [(invert_node, False), (record_node, False), (injection_node, False),
                                              (injection_node, True)],
                         ids=["invert", "record", "inject", "inject, shared encoder"])
def test_cancelling_at_any_call_leaves_everything_clean(comfy, base, other, node, shared):
    """The next run, of the same MODEL, SAMPLER and trace, is that of an untouched one bit for bit.

    A call that hands out what the shared encoder has kept computes nothing, and so does not notice.
    """
    sampler, layers = sampler_of(comfy, other, shared_encoder=shared), dict(base.model.diffusion_model.named_modules())
    untouched = Cancelled(base)
    expected = node(comfy, untouched.model, sampler)
    assert untouched.calls >= 3
    for at in sorted({1, 2, untouched.calls // 2, untouched.calls}):
        cancelled = Cancelled(base, at)
        with pytest.raises(model_management.InterruptProcessingException):
            node(comfy, cancelled.model, sampler)
        assert cancelled.calls <= at + shared and not model_management.processing_interrupted()
        for got, wanted in zip(node(comfy, cancelled.model, sampler), expected, strict=True):
            assert torch.equal(got, wanted)
    assert dict(base.model.diffusion_model.named_modules()) == layers
    assert not any(layer._forward_hooks or layer._forward_pre_hooks for layer in layers.values())
    assert not base.wrappers and not base.model_options["transformer_options"]
    assert not base.patches and base.model.current_weight_patches_uuid in (None, base.patches_uuid)


def test_grids_that_are_far_apart_are_told_once(comfy, base, other, caplog):
    """A trace of 3 steps under 8: more than 5 % of the schedule away, sampled all the same."""
    light = comfy.run("FrozenInjectHSpace", model=base, trace=other, **LIGHT)[0]
    for samples in (sampled(comfy, base, sampler_of(comfy, other)),
                    sampled(comfy, light, comfy_sampler("euler"))):
        assert samples.isfinite().all() and CLOSE not in caplog.text
    for model, sampler in ((base, sampler_of(comfy, other)), (light, comfy_sampler("euler"))):
        caplog.clear()
        assert sampled(comfy, model, sampler, steps=8).isfinite().all()
        assert caplog.text.count(CLOSE) == 1 and "record with more steps" in caplog.text
        assert "Use the sigmas of Invert (DDIM)" in caplog.text
    near = HTrace(other.features, tuple(time - 40 for time in other.times), other.provenance)
    far = HTrace(other.features, tuple(time - 60 for time in other.times), other.provenance)
    for trace, told in ((near, False), (far, True)):
        caplog.clear()
        sampled(comfy, base, sampler_of(comfy, trace))
        assert (CLOSE in caplog.text) == told


def test_networks_without_bottleneck_are_refused_by_every_node(comfy, other):
    flux = tiny_flux()
    latent = {"samples": torch.randn(1, 16, SIZE, SIZE, generator=stream("h-space nodes", "flux"))}
    calls = {
        "FrozenInvertDDIM": {"model": flux, "positive": conditioning(1), "latent": latent, **INVERT},
        "FrozenRecordHSpace": {"noise": custom.Noise_RandomNoise(1), "guider": guider(flux), "deep_skips": 0,
                               "sampler": comfy_sampler("euler"), "sigmas": torch.tensor([1.0, 0.5, 0.0]),
                               "latent_image": latent},
        "FrozenInjectHSpace": {"model": flux, "trace": other, **LIGHT},
        "FrozenCalibrateTimesteps": {"model": flux, "positive": conditioning(1), "vae": None, "latent": latent,
                                     "steps": 3, "distance": "ssim"},
        custom.SamplerCustom: {"model": flux, "add_noise": True, "noise_seed": 1, "cfg": 1.0,
                               "positive": conditioning(1), "negative": conditioning(1), "latent_image": latent,
                               "sampler": sampler_of(comfy, other), "sigmas": torch.tensor([1.0, 0.5, 0.0])}}
    for node, inputs in calls.items():
        with pytest.raises(ValueError, match="this MODEL is a Flux, which has no bottleneck here"):
            comfy.run(node, **inputs)


def test_traces_that_do_not_fit_are_refused_when_sampled(comfy, base, tiny_sd15, tiny_sdxl, other):
    """The sampler node has no model yet; what it makes is refused where the model is known."""
    for stranger in (tiny_sd15(seed=3), tiny_sdxl()):
        with pytest.raises(TraceError, match="another model.*shapes only"):
            sampled(comfy, stranger, sampler_of(comfy, other))
    narrow = HTrace({"h": torch.zeros(1, 1, 64, 2, 2).half()}, (500.0,), {})
    with pytest.raises(TraceError, match="64 channels.*128|128.*64"):
        sampled(comfy, base, sampler_of(comfy, narrow))
    with pytest.raises(TraceError, match="deep_skips"):
        sampled(comfy, base, sampler_of(comfy, other, gamma_skips=0.3))
    small = HTrace({"h": other.features["h"][..., :1, :]}, other.times, other.provenance)
    with pytest.raises(TraceError, match="different sizes"):
        sampled(comfy, base, sampler_of(comfy, small, check="strict"))
    for wrong, words in (({"omega": 1.5}, "omega is from 0"), ({"mode": "both"}, "mode is asymmetric or symmetric"),
                         ({"gamma": "2"}, "gamma is"), ({"lead": -1.0}, "lead is from 0")):
        with pytest.raises(ValueError, match=words):
            sampler_of(comfy, other, **wrong)


def test_a_motion_module_does_not_make_another_model(comfy, base, other):
    """A trace of a still picture goes into a clip."""
    model = apply_motion(base, hold_motion(TINY, random_motion().state_dict(), "random"))
    samples = [run(model, sampler, steps=3, batch=2) for sampler in (comfy_sampler("euler"), injected(other))]
    assert not torch.allclose(*samples, atol=1e-2)


@pytest.mark.parametrize("missing", ["package", "weights"])
def test_lpips_that_is_not_there_is_named(comfy, base, missing, monkeypatch, tmp_path):
    """Nothing is downloaded: the package and AlexNet's file are both asked for, before anything is sampled."""
    if missing == "package":
        monkeypatch.setitem(sys.modules, "lpips", None)         # as Python knows what cannot be imported
    else:
        (tmp_path / "lpips.py").write_text("raise AssertionError('imported')")
        monkeypatch.delitem(sys.modules, "lpips", raising=False)
        monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    model = Cancelled(base, 1).model
    with pytest.raises(ValueError, match=r"pip install lpips.*alexnet-owt.*nothing is downloaded.*choose ssim"):
        comfy.run("FrozenCalibrateTimesteps", model=model, positive=conditioning(1), vae=preview_vae(), steps=3,
                  latent={"samples": picture()}, distance="lpips")
