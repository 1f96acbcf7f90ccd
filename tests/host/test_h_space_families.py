"""h-space on every kind of model that has one: SDXL, v-prediction, 16-bit weights, a model that does not fit."""
from __future__ import annotations

import pytest
import torch
from comfy import supported_models
from comfy_extras import nodes_custom_sampler as custom
from comfy_extras.nodes_model_advanced import ModelSamplingDiscrete
from h_space_examples import PLAIN, SIZE, comfy_sampler, guider, injected, record, run

from frozen_diffusion.modules.curve import parse_curve
from frozen_diffusion.modules.host.hspace.inversion import invert
from frozen_diffusion.modules.host.weights import model_identity
from frozen_diffusion.modules.hspace.steps import InjectionSettings
from frozen_diffusion.modules.hspace.trace import HTrace, TraceError
from frozen_diffusion.modules.seeding import stream
from testhost.models import SD15, conditioning, leave_room_for_half, patcher_around, watch_loading, with_lora

pytestmark = pytest.mark.usefixtures("unloaded")

ABAR = (1 - torch.linspace(0.00085 ** 0.5, 0.012 ** 0.5, 1000, dtype=torch.float64) ** 2).cumprod(0)
FACTOR = 0.18215


@pytest.fixture(scope="module")
def sdxl(tiny_sdxl):
    """In fp64: one row and a batch of two round differently, which a random model makes more of."""
    return tiny_sdxl(torch.float64)


@pytest.fixture(scope="module")
def wide(tiny_sd15):
    """SD1.5's topology in fp64, to be compared with formulas."""
    return tiny_sd15(torch.float64)


def content(channels=128, height=2, width=2, time=800.0):
    features = torch.randn(1, 1, channels, height, width, generator=stream("families", "content"))
    return HTrace({"h": features.half()}, (time,), {})


def test_sdxl_is_inverted(comfy, sdxl):
    picture, text = 5 * torch.randn(1, 4, SIZE, SIZE, generator=stream("families", "picture")), conditioning(1)
    noise, trace, sigmas, again, _ = comfy.run(
        "FrozenInvertDDIM", model=sdxl, positive=text, latent={"samples": picture}, steps=4, refinements=0,
        deep_skips=6, check=True)
    assert trace.features["h"].shape == (4, 1, 128, 4, 4) and trace.times == (0, 333, 666, 999)
    assert [trace.features[f"skip{number}"].shape[2:] for number in range(6)] == [
        (128, 4, 4), (128, 4, 4), (64, 4, 4), (64, 8, 8), (64, 8, 8), (32, 8, 8)]
    back = comfy.run(custom.SamplerCustom, model=sdxl, add_noise=False, noise_seed=0, cfg=1.0, positive=text,
                     negative=text, sampler=comfy_sampler("euler"), sigmas=sigmas, latent_image=noise)[0]
    torch.testing.assert_close(back["samples"], again["samples"], rtol=1e-4, atol=1e-4)
    finer = invert(sdxl, text, picture, 12).again
    assert (finer - picture).norm() < (again["samples"] - picture).norm()


@pytest.mark.parametrize("settings", [PLAIN, InjectionSettings(t_boost=-1)], ids=["asymmetric", "calibrated"])
def test_sdxl_takes_content(comfy, sdxl, settings):
    """Its size and pooled text go through label_emb, which the shared encoder's decoder repeats."""
    plain, trace = run(sdxl, comfy_sampler("euler"), steps=3), record(comfy, sdxl, steps=3, start="other",
                                                                      deep_skips=2)[1]
    assert trace.features["h"].shape == (3, 1, 128, 4, 4)
    idle = InjectionSettings(gamma=parse_curve("0"), t_boost=-1)
    assert torch.equal(run(sdxl, injected(trace, idle), steps=3), plain)
    for cfg in (1.0, 3.0):
        two, one = (run(sdxl, injected(trace, settings, gamma_skips=0.2, shared_encoder=shared), cfg, steps=3)
                    for shared in (False, True))
        torch.testing.assert_close(one, two, rtol=1e-5, atol=1e-5)
    exclusive_sampling = run(sdxl, injected(trace, settings), steps=3)
    assert (exclusive_sampling - plain).norm() > 0.01 * plain.norm()


def test_sdxl_and_sd15_refuse_each_others_traces(comfy, base, sdxl):
    trace = record(comfy, sdxl, steps=2)[1]
    with pytest.raises(TraceError, match="another model"):
        run(base, injected(trace))
    narrow = content(channels=64, height=4, width=4)
    with pytest.raises(TraceError, match="64 channels.*128|128.*64"):
        run(sdxl, injected(narrow, check="shapes only"))


def paper_step(model, kind, x, t, later, features, gamma, omega):
    """One injected step of the network itself, variance-preserving and in float64: the specification's 2.3 to 2.5."""
    a, a_next = ABAR[t], ABAR[later]
    unet = model.model.diffusion_model

    def turned(_, inputs, h):
        u, v = h.flatten(), features.flatten()
        v = v * u.norm() / v.norm()
        angle = (u @ v / (u @ u)).acos()
        return ((((1 - gamma) * angle).sin() * u + (gamma * angle).sin() * v) / angle.sin()).view(h.shape)

    def network(x, with_content=False):
        """(P_t, eps) of a prediction of eps or of v = sqrt(a) eps - sqrt(1 - a) x_0."""
        handle = unet.middle_block[-1].register_forward_hook(turned) if with_content else None
        out = unet(x, torch.tensor([float(t)]), conditioning(1)[0][0].double(), transformer_options={})
        if handle is not None:
            handle.remove()
        if kind == "v_prediction":
            return a.sqrt() * x - (1 - a).sqrt() * out, (1 - a).sqrt() * x + a.sqrt() * out
        return (x - (1 - a).sqrt() * out) / a.sqrt(), out

    (plain, eps), (changed, eps_changed) = network(x), network(x, True)
    if omega:
        contrast = plain.std() / changed.std()
        moved = changed.mean() + (changed - changed.mean()) * contrast
        x = x + a.sqrt() * (moved - plain) + omega * (1 - a).sqrt() * (eps_changed - eps)
        changed, eps = network(x)
    return a_next.sqrt() * changed + (1 - a_next).sqrt() * eps


@pytest.mark.parametrize("omega", [0.0, 0.3])
@pytest.mark.parametrize("kind", ["eps", "v_prediction"])
def test_an_injected_step_is_the_papers_whatever_is_predicted(wide, kind, omega):
    model, t, later, trace = ModelSamplingDiscrete().patch(wide, kind, zsnr=False)[0], 800, 600, content()
    sigmas = [((1 - ABAR[time]) / ABAR[time]).sqrt().item() for time in (t, later)]
    noise = torch.randn(1, 4, SIZE, SIZE, generator=stream("families", "noise"))
    ours, plain = (guider(model).sample(noise, torch.zeros_like(noise), sampler, torch.tensor(sigmas),
                                        disable_pbar=True, seed=0).double()
                   for sampler in (injected(trace, InjectionSettings(t_boost=-1, omega=omega)), comfy_sampler("euler")))
    with torch.no_grad():
        theirs = paper_step(model, kind, noise.double() * (1 - ABAR[t]).sqrt(), t, later,
                            trace.features["h"].double(), 0.3, omega) / ABAR[later].sqrt() / FACTOR
    error = (ours - theirs).norm()
    assert error < 1e-5 * theirs.norm() and error < 1e-3 * (ours - plain).norm()


def sixteen_bit(kind, tiny_sd15):
    """A MODEL that stores 16-bit numbers: computed in them, or as the host does on devices that cannot."""
    if kind != "fp16 in fp32":
        return tiny_sd15(getattr(torch, kind))
    config = supported_models.SD15(SD15)
    config.set_inference_dtype(torch.float16, torch.float32)
    return patcher_around(config, seed=0)


@pytest.mark.parametrize(("kind", "near"), [("fp16 in fp32", 0.01), ("float16", 0.02), ("bfloat16", 0.15)])
def test_sixteen_bit_weights_are_close_to_full_precision(comfy, tiny_sd15, base, kind, near):
    """What is inverted, recorded and injected; `near` is a share of the result, of an injection of what it changes."""
    model, text = sixteen_bit(kind, tiny_sd15), conditioning(1)
    picture = 5 * torch.randn(1, 4, SIZE, SIZE, generator=stream("families", "picture"))
    (found, *full), (other, *half) = ([invert(each, text, picture, 2, way_back=False),
                                       *record(comfy, each, steps=1, start="other")] for each in (base, model))
    pairs = [(other.noise, found.noise), (half[0], full[0]),
             *((h.features["h"].float(), f.features["h"].float())
               for h, f in ((other.trace, found.trace), (half[1], full[1])))]
    change, meant = (run(each, injected(content(), check="shapes only"), steps=1) - samples
                     for each, samples in ((model, run(model, comfy_sampler("euler"), steps=1)),
                                           (base, run(base, comfy_sampler("euler"), steps=1))))
    for given, wanted in pairs:
        assert given.isfinite().all() and (given - wanted).norm() < near * wanted.norm()
    assert change.isfinite().all() and (change - meant).norm() < 3 * near * meant.norm() > 0


def test_a_model_that_does_not_fit_gives_the_same(comfy, base, monkeypatch):
    """The host keeps what is too much for the device elsewhere and merges its LoRAs call by call: here with little
    memory on the CPU, where both places are the same."""
    model, picture, states = with_lora(base), torch.randn(1, 4, SIZE, SIZE, generator=stream("families", "x")), []

    def everything():
        watched = watch_loading(model, states)
        samples, trace = record(comfy, watched, steps=2, start="other", deep_skips=1)
        return {"identity": model_identity(model), "samples": samples, **trace.features,
                "inverted": invert(watched, conditioning(1), picture, 2, way_back=False).noise,
                "injected": run(watched, injected(trace, gamma_skips=0.2), steps=2),
                "shared": run(watched, injected(trace, gamma_skips=0.2, shared_encoder=True), steps=2)}

    whole = everything()
    assert set(states) == {(False, False)}
    states.clear()
    leave_room_for_half(monkeypatch, base)
    partly = everything()
    assert set(states) == {(True, True)}
    assert partly.pop("identity") == whole.pop("identity")
    for name, value in whole.items():
        torch.testing.assert_close(partly[name].float(), value.float(), rtol=1e-3, atol=2e-3, msg=name)
