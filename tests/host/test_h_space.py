"""h-space in the host: what the tap sees and changes, both ways of injecting, the wrong inputs."""
from __future__ import annotations

from uuid import uuid4

import pytest
import torch
from comfy.patcher_extension import WrappersMP
from comfy_extras import nodes_custom_sampler as custom
from comfy_extras.nodes_context_windows import ContextWindowsManualNode
from comfy_extras.nodes_freelunch import FreeU
from h_space_examples import PLAIN, SIZE, comfy_sampler, guider, injected, levels, record, run, with_hook

from frozen_diffusion.modules.curve import parse_curve
from frozen_diffusion.modules.host.calls import KEY, NEGATIVE, PROMPT, CallRoles, know_roles
from frozen_diffusion.modules.host.hspace.capture import Capture, HSpaceTap, with_first_patch
from frozen_diffusion.modules.host.hspace.inversion import invert
from frozen_diffusion.modules.host.weights import model_identity
from frozen_diffusion.modules.hspace.steps import InjectionSettings
from frozen_diffusion.modules.hspace.trace import HTrace, TraceError, masked
from frozen_diffusion.modules.seeding import stream
from testhost.models import conditioning

pytestmark = pytest.mark.usefixtures("unloaded")

@pytest.fixture(scope="module")
def other(comfy, base):
    """The trace of another picture's making, with three deep skips."""
    return record(comfy, base, start="other", deep_skips=3)[1]


@pytest.mark.parametrize("freeu", [None, "before", "after"])
def test_the_tap_sees_the_middle_blocks_output(comfy, base, freeu):
    """Whatever other patches do, and on whichever side of ours they were added."""
    seen, calls, model = [], [], with_hook(base, [])
    model = with_hook(base, seen)
    capture = Capture(1, (SIZE, SIZE), ("h", "skip0", "skip1", "skip2"))
    if freeu == "before":
        model = comfy.run(FreeU, model=model, b1=1.3, b2=1.4, s1=0.5, s2=0.2)[0]
    tap = HSpaceTap(capture)

    def counted(h, skip, options):
        calls.append(options["block"])
        return tap(h, skip, options)

    model = model.clone()
    model.model_options = with_first_patch(model.model_options, counted)
    know_roles(model)
    if freeu == "after":
        model = comfy.run(FreeU, model=model, b1=1.3, b2=1.4, s1=0.5, s2=0.2)[0]
    run(model, comfy_sampler("euler"), steps=1)
    assert calls.count(("output", 0)) == len(seen) == 1
    assert torch.equal(capture.take()["h"], seen[0])


@pytest.mark.parametrize("cfg", [1.0, 3.0])
def test_nothing_to_inject_is_eulers_method(comfy, base, cfg, other):
    """gamma 0 and t_edit beyond the schedule: bit-identical, and no second call of the network."""
    plain = run(base, comfy_sampler("euler"), cfg)
    for settings in (InjectionSettings(gamma=parse_curve("0"), t_boost=-1),
                     InjectionSettings(t_edit=1001, t_boost=-1)):
        assert torch.equal(run(base, injected(other, settings), cfg), plain)
    assert torch.equal(run(base, injected(masked(other, torch.zeros(1, 8, 8))), cfg), plain)
    assert not torch.equal(run(base, injected(other), cfg), plain)


def test_a_picture_as_its_own_content_changes_nothing(comfy, base, other):
    samples, trace = record(comfy, base)
    torch.testing.assert_close(run(base, injected(trace)), samples, rtol=1e-5, atol=1e-5)
    everywhere = masked(trace, torch.ones(1, 8, 8))
    torch.testing.assert_close(run(base, injected(masked(other, torch.ones(1, 8, 8)))), run(base, injected(other)),
                               rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(run(base, injected(everywhere)), samples, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("settings", [PLAIN, InjectionSettings(), InjectionSettings(mode="symmetric", t_boost=-1)],
                         ids=["asymmetric", "paper", "symmetric"])
def test_one_encoder_pass_serves_both_predictions(comfy, tiny_sd15, settings, other):
    """In fp64: one row and a batch of two round differently, which this random model makes 1e-4 of in fp32."""
    model = tiny_sd15(torch.float64)
    for cfg in (1.0, 3.0):
        two = run(model, injected(other, settings, gamma_skips=0.2), cfg)
        one = run(model, injected(other, settings, gamma_skips=0.2, shared_encoder=True), cfg)
        torch.testing.assert_close(one, two, rtol=1e-5, atol=1e-5)


def with_control(model):
    """The MODEL as a ControlNet would call it: residuals after the middle block and on the first skip."""
    model = model.clone()

    def wrapper(executor, x, timesteps, context, y, control, options, *args, **kwargs):
        residuals = {name: [torch.randn(len(x), 128, 2, 2, generator=stream("control", name))]
                     for name in ("middle", "output")}
        return executor(x, timesteps, context, y, residuals, options, *args, **kwargs)

    model.add_wrapper_with_key(WrappersMP.DIFFUSION_MODEL, "control", wrapper)
    return model


@pytest.mark.parametrize("change", [with_control, lambda model: FreeU().patch(model, 1.1, 1.2, 0.9, 0.8)[0]],
                         ids=["ControlNet", "FreeU"])
def test_one_encoder_pass_beside_other_changes(tiny_sd15, change, other):
    """Residuals and patches of others act in both decoder passes as they do in whole passes. In fp64, as above."""
    model = tiny_sd15(torch.float64)
    two, one = (run(change(model), injected(other, PLAIN, shared_encoder=on)) for on in (False, True))
    torch.testing.assert_close(one, two, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(one, run(model, injected(other)), atol=1e-3)


def test_chunks_in_one_call_or_two(comfy, base, monkeypatch, other):
    """Low memory runs cond and uncond apart; injection and recording are the same."""
    together = run(base, injected(other), 3.0), record(comfy, base, 3.0)
    monkeypatch.setattr(comfy_model_base(), "memory_required", lambda *args, **kwargs: 10 ** 15)
    torch.testing.assert_close(run(base, injected(other), 3.0), together[0], rtol=1e-4, atol=5e-3)
    torch.testing.assert_close(record(comfy, base, 3.0)[1].features["h"].float(),
                               together[1][1].features["h"].float(), rtol=1e-2, atol=1e-2)


def comfy_model_base():
    import comfy.model_base
    return comfy.model_base.BaseModel


def test_who_is_changed(comfy, base, other):
    """apply_to picks the rows of the prompt or those without it."""
    from frozen_diffusion.modules.host.hspace.capture import Injection
    names = [uuid4(), uuid4()]
    options = {"cond_or_uncond": [1, 0], "block": ("output", 0), "original_shape": [2, 4, SIZE, SIZE], "uuids": names,
               KEY: CallRoles(dict(zip(names, (NEGATIVE, PROMPT), strict=True)))}
    h, skip = (torch.randn(2, 128, 2, 2, generator=stream("rows", name)) for name in "hs")
    for apply_to, changed in (("both", [True, True]), ("cond", [False, True]), ("uncond", [True, False])):
        out, same = HSpaceTap(injection=Injection(other, apply_to, time=900, gamma=0.5))(h, skip, options)
        assert [not torch.equal(new, old) for new, old in zip(out, h, strict=True)] == changed
        assert torch.equal(same, skip)
    assert torch.equal(run(base, injected(other, PLAIN, apply_to="uncond"), 1.0), run(base, comfy_sampler("euler")))


def test_two_contents_on_two_originals_are_two_runs(comfy, base):
    both = record(comfy, base, batch=2, start="contents")[1]
    single = [HTrace({"h": both.features["h"][:, row:row + 1]}, both.times, both.provenance) for row in range(2)]
    noise = torch.randn(2, 4, SIZE, SIZE, generator=stream("h-space noise", "originals"))

    def go(trace, rows):
        return guider(base).sample(noise[rows], torch.zeros_like(noise[rows]), injected(trace), levels(base),
                                   disable_pbar=True, seed=5)

    together = go(both, slice(0, 2))
    apart = torch.cat([go(single[row], slice(row, row + 1)) for row in range(2)])
    torch.testing.assert_close(together, apart, rtol=1e-4, atol=5e-3)


def test_windows_get_the_features_of_their_frames(comfy, base):
    """One picture repeated as a clip, one content a frame: windows change nothing."""
    clip = record(comfy, base, batch=6, start="clip")[1]
    windowed = comfy.run(ContextWindowsManualNode, model=base, context_length=4, context_overlap=2,
                         context_schedule="standard_static", context_stride=1, closed_loop=False, fuse_method="flat",
                         dim=0)[0]
    whole, parts = (run(model, injected(clip), batch=6) for model in (base, windowed))
    torch.testing.assert_close(whole, parts, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(record(comfy, windowed, batch=6, start="clip")[1].features["h"].float(),
                               clip.features["h"].float(), rtol=1e-2, atol=1e-2)


def test_the_light_form_is_weaker(comfy, base, other):
    plain = run(base, comfy_sampler("euler"))
    light = comfy.run("FrozenInjectHSpace", model=base, trace=other, gamma="0.3", t_edit=400.0, apply_to="both",
                      norm_mode="masked", check="model", gamma_skips=0.0)[0]
    weak = (run(light, comfy_sampler("euler")) - plain).norm()
    symmetric = run(base, injected(other, InjectionSettings(t_boost=-1, mode="symmetric")))
    torch.testing.assert_close(run(light, comfy_sampler("euler")), symmetric, rtol=1e-4, atol=1e-4)
    assert 0 < weak < 0.9 * (run(base, injected(other)) - plain).norm()
    assert base.model_options["transformer_options"].get("patches") is None


def test_calibration_moves_the_latent_instead_of_the_network(comfy, base, other):
    light = comfy.run("FrozenInjectHSpace", model=base, trace=other, gamma="0.3", t_edit=400.0, apply_to="both",
                      norm_mode="masked", check="model", gamma_skips=0.0)[0]
    sampler = comfy.run("FrozenLatentCalibration", edited_model=light, omega=0.3, start=1000.0, end=400.0)[0]
    ours = run(base, injected(other, InjectionSettings(t_boost=-1, omega=0.3)))
    torch.testing.assert_close(run(base, sampler), ours, rtol=1e-4, atol=1e-4)
    idle = comfy.run("FrozenLatentCalibration", edited_model=base, omega=0.3, start=1.0, end=1.0)[0]
    assert torch.equal(run(base, idle), run(base, comfy_sampler("euler")))


def test_models_and_traces_are_told_apart(comfy, base, tiny_sd15, tiny_sdxl, other):
    assert model_identity(base) == model_identity(base.clone())
    stranger = tiny_sd15(seed=3)
    assert model_identity(stranger) != model_identity(base)
    with pytest.raises(TraceError, match="another model"):
        run(stranger, injected(other))
    run(stranger, injected(other, check="shapes only"), steps=3)
    wide = HTrace({"h": torch.zeros(1, 1, 64, 2, 2).half()}, (500.0,), {})
    with pytest.raises(TraceError, match="64 channels.*128|128.*64"):
        run(base, injected(wide))
    with pytest.raises(TraceError, match="deep_skips"):
        run(base, injected(HTrace({"h": other.features["h"]}, other.times, other.provenance), gamma_skips=0.3))
    with pytest.raises(TraceError, match="different sizes"):
        small = HTrace({"h": other.features["h"][..., :1, :]}, other.times, other.provenance)
        run(base, injected(small, check="strict"))
    with pytest.raises(TraceError, match="steps are up to"):
        run(base, injected(other, check="strict"), steps=7)


def test_sizes_and_batches_that_differ_are_fitted_with_a_word(comfy, base, caplog):
    _, trace = record(comfy, base, batch=2, start="contents")
    small = HTrace({"h": trace.features["h"][..., :1, :]}, trace.times, trace.provenance)
    assert run(base, injected(small), batch=3).isfinite().all()
    text = caplog.text
    assert text.count("are resized") == 1 and text.count("they are repeated") == 1


def test_what_has_no_bottleneck_is_refused(comfy, base):
    class DiT(torch.nn.Module):
        pass

    model = base.clone()
    model.model = type("Model", (), {"diffusion_model": DiT()})()
    trace = record(comfy, base)[1]
    for call in (lambda: invert(model, conditioning(1), torch.ones(1, 4, SIZE, SIZE), 4),
                 lambda: comfy.run("FrozenInjectHSpace", model=model, trace=trace, gamma="0.3", t_edit=400.0,
                                   apply_to="both", norm_mode="masked", check="model", gamma_skips=0.0)):
        with pytest.raises(ValueError, match="DiT, which has no bottleneck"):
            call()


@pytest.mark.parametrize("gamma", ["1.5", "-0.1", "nan", "much"])
def test_gamma_must_be_a_weight(comfy, base, gamma):
    with pytest.raises(ValueError, match="gamma is"):
        comfy.run("FrozenHSpaceInjectionSampler", trace=record(comfy, base, steps=2)[1], preset="custom", gamma=gamma,
                  t_edit=400.0, t_boost=200.0, omega=0.3, mode="asymmetric", apply_to="both", norm_mode="masked",
                  check="model", gamma_skips=0.0, dt_lambda=1.0, replace_steps=50, auto_gamma=False,
                  shared_encoder=False)


def test_rising_sigmas_are_refused(comfy, base):
    _, trace = record(comfy, base)
    with pytest.raises(ValueError, match="fall from step to step"):
        picture = torch.ones(1, 4, SIZE, SIZE)
        guider(base).sample(picture, picture, injected(trace), levels(base).flip(0), disable_pbar=True)


def test_skipped_deep_blocks_are_noticed(comfy, base, other):
    """A pack that leaves the decoder's first block out shows no h: an error, not an empty trace."""
    model = base.clone()
    model.add_wrapper_with_key(WrappersMP.DIFFUSION_MODEL, "cache",
                               lambda executor, x, *args, **kwargs: torch.zeros_like(x))
    for call in (lambda: record(comfy, model, steps=2), lambda: run(model, injected(other)),
                 lambda: run(model, injected(other, shared_encoder=True))):
        with pytest.raises(TraceError, match="not seen"):
            call()


def test_the_model_stays_clean_after_a_failure(comfy, base):
    before = run(base, comfy_sampler("euler"))
    wide = HTrace({"h": torch.zeros(1, 1, 64, 2, 2).half()}, (500.0,), {})
    with pytest.raises(TraceError):
        run(base, injected(wide))
    assert torch.equal(run(base, comfy_sampler("euler")), before)
    assert all(not layer._forward_hooks for layer in base.model.diffusion_model.modules())


def test_boosting_is_seeded(comfy, base, other):
    settings = InjectionSettings(t_boost=300)
    one, two, three = (run(base, injected(other, settings), seed=seed) for seed in (1, 1, 2))
    assert torch.equal(one, two) and not torch.equal(one, three)


def test_record_plots_what_an_injection_did(comfy, base, other):
    random = custom.Noise_RandomNoise(3)
    output, _, plot = comfy.run("FrozenRecordHSpace", noise=random, guider=guider(base), sampler=injected(other),
                                sigmas=levels(base), deep_skips=0,
                                latent_image={"samples": torch.zeros(1, 4, SIZE, SIZE)})
    assert plot.shape[1] > 500 and plot.min() < 0.2 and output["samples"].isfinite().all()


def test_saved_traces_come_back(comfy, base, other):
    region = comfy.run("FrozenMaskHSpace", trace=other, mask=torch.ones(1, 32, 32), threshold=0.5, strength=1.0)[0]
    merged = comfy.run("FrozenMergeHSpace", trace_a=region, trace_b=other, mode="beside", weight=0.5)[0]
    path = comfy.run("FrozenSaveHTrace", trace=merged, filename_prefix="h_traces/test")[0]
    again = comfy.run("FrozenLoadHTrace", file=path)[0]
    assert torch.equal(run(base, injected(again)), run(base, injected(merged)))
    with pytest.raises(FileNotFoundError, match="There is no file"):
        comfy.run("FrozenLoadHTrace", file="nowhere.safetensors")
