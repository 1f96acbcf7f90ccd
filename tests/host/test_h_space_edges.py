"""h-space in the host: inputs that cannot work, or not as they are meant, row by row."""
from __future__ import annotations

import logging
from dataclasses import replace

import pytest
import torch
from comfy.patcher_extension import WrappersMP
from comfy.samplers import calculate_sigmas
from comfy_extras import nodes_custom_sampler as custom
from comfy_extras.nodes_model_advanced import ModelSamplingDiscrete
from h_space_examples import PLAIN, QUICK, SIZE, comfy_sampler, guider, injected, levels, record, run, with_hook
from motion_examples import TINY, random_motion
from training_examples import preview_vae

from frozen_diffusion.modules.curve import parse_curve
from frozen_diffusion.modules.host.hspace.capture import Injection
from frozen_diffusion.modules.host.hspace.inversion import invert
from frozen_diffusion.modules.host.hspace.t_edit import calibrate
from frozen_diffusion.modules.host.motion.apply import apply_motion, hold_motion
from frozen_diffusion.modules.host.weights import model_identity
from frozen_diffusion.modules.hspace.steps import InjectionSettings
from frozen_diffusion.modules.hspace.trace import HTrace, TraceError, beside, masked
from frozen_diffusion.modules.motion.module import MotionConfig
from frozen_diffusion.modules.seeding import stream
from testhost.models import as_flow, conditioning

pytestmark = pytest.mark.usefixtures("unloaded")
LIGHT = {"gamma": "0.3", "t_edit": 400.0, "apply_to": "both", "norm_mode": "masked", "check": "model",
         "gamma_skips": 0.0}
SAMPLER = {"gamma": "0.3", "t_edit": 400.0, "t_boost": 0.0, "omega": 0.0, "mode": "asymmetric", "apply_to": "both",
           "norm_mode": "masked", "check": "model", "gamma_skips": 0.0, "dt_lambda": 1.0, "replace_steps": 50,
           "auto_gamma": False, "shared_encoder": False}


@pytest.fixture(scope="module")
def other(comfy, base):
    return record(comfy, base, start="other", deep_skips=3)[1]


@pytest.fixture(scope="module")
def quick(tiny_sd15):
    return tiny_sd15(**QUICK)


def calls_of(model, seen):
    """The MODEL, noting every call of its U-Net."""
    model = model.clone()
    model.add_wrapper_with_key(WrappersMP.DIFFUSION_MODEL, "count",
                               lambda executor, *args, **kwargs: seen.append(1) or executor(*args, **kwargs))
    return model


def test_idle_injection_makes_no_second_call(comfy, base, other):
    seen = []
    run(calls_of(base, seen), injected(other, InjectionSettings(t_edit=1001, t_boost=-1)))
    assert len(seen) == 5
    run(calls_of(base, seen), injected(other))
    assert len(seen) > 10


def test_no_steps_no_trace(comfy, base, other):
    nothing, noise = torch.tensor([]), torch.ones(1, 4, SIZE, SIZE)
    with pytest.raises(TraceError, match="No step was sampled"):
        comfy.run("FrozenRecordHSpace", noise=custom.Noise_RandomNoise(1), guider=guider(base), sigmas=nothing,
                  sampler=comfy_sampler("euler"), latent_image={"samples": noise}, deep_skips=0)
    one = guider(base).sample(noise, torch.zeros_like(noise), injected(other), levels(base)[:1], disable_pbar=True)
    assert one.isfinite().all()


def test_opposite_features_are_left_with_one_warning(caplog):
    h = torch.randn(1, 8, 2, 2, generator=stream("opposite"))
    injection = Injection(HTrace({"h": -h[None]}, (900.0,), {}), time=900, gamma=0.5)
    for _ in range(2):
        assert torch.equal(injection.blend("h", h, {}), h)
    assert caplog.text.count("exactly away") == 1


@pytest.mark.fault("E5")
@pytest.mark.parametrize("gamma", ["999: 0.1, 0.5", "0.5; 999: 0.1"])
@pytest.mark.parametrize(("node", "inputs"), [("FrozenHSpaceInjectionSampler", {"preset": "custom"}),
                                              ("FrozenInjectHSpace", {})])
def test_a_part_of_gamma_without_a_timestep_is_named(comfy, base, other, node, inputs, gamma):
    inputs |= {"model": base, **LIGHT} if node == "FrozenInjectHSpace" else SAMPLER
    with pytest.raises(ValueError, match="the part '0.5' has no timestep"):
        comfy.run(node, trace=other, **inputs | {"gamma": gamma})


def test_a_preset_keeps_what_it_does_not_set(comfy, other):
    kept = {**SAMPLER, "mode": "symmetric", "replace_steps": 7, "gamma": "0.9"}
    sampler = comfy.run("FrozenHSpaceInjectionSampler", trace=other, preset="painting", **kept)[0]
    settings = sampler.extra_options["request"].settings
    assert (settings.mode, settings.replace_steps, settings.omega, settings.t_boost) == ("symmetric", 7, 0.0, 0)
    assert settings.gamma.at(500) == 0.4


def test_lead_takes_features_from_further_on(comfy, base, other):
    """A lead of one step is the trace with its features one step later; beyond its end the last ones stay."""
    step = 200
    times = tuple(range(950, -1, -step))
    trace = replace(other, features={place: x[:len(times)] for place, x in other.features.items()}, times=times)
    later = replace(trace, features={place: torch.cat([x[1:], x[-1:]]) for place, x in trace.features.items()})
    plain, ahead, moved = (run(base, injected(*given)) for given in (
        (trace,), (trace, replace(PLAIN, lead=step)), (later,)))
    assert torch.equal(ahead, moved) and not torch.equal(ahead, plain)


@pytest.mark.parametrize("lead", [-1.0, 1001.0, float("nan")])
def test_lead_is_within_the_schedule(comfy, other, lead):
    with pytest.raises(ValueError, match="lead is from 0"):
        comfy.run("FrozenHSpaceInjectionSampler", trace=other, preset="custom", lead=lead, **SAMPLER)


def test_strict_refuses_other_steps_in_the_light_form_too(comfy, base, other):
    model = comfy.run("FrozenInjectHSpace", model=base, trace=other, **{**LIGHT, "check": "strict"})[0]
    run(model, comfy_sampler("euler"))
    with pytest.raises(TraceError, match="steps are up to"):
        run(model, comfy_sampler("euler"), steps=7)


def test_the_light_form_warns_once_a_run(comfy, base, other, caplog):
    small = HTrace({"h": other.features["h"][..., :1, :]}, other.times, other.provenance)
    model = comfy.run("FrozenInjectHSpace", model=base, trace=small, **LIGHT)[0]
    for runs in (1, 2):
        run(model, comfy_sampler("euler"), 3.0)
        assert caplog.text.count("are resized") == runs


def test_the_light_form_sees_what_later_nodes_changed(comfy, base, other):
    """Its timesteps are those of the run, and a LoRA added after it makes another model."""
    model = comfy.run("FrozenInjectHSpace", model=base, trace=other, **{**LIGHT, "t_edit": 990.0})[0]
    plain = run(base, comfy_sampler("euler"))
    assert not torch.equal(run(model, comfy_sampler("euler")), plain)
    changed = ModelSamplingDiscrete().patch(model, "eps", zsnr=True)[0]        # t 999 lies far above these levels
    same = ModelSamplingDiscrete().patch(base, "eps", zsnr=True)[0]
    sigmas = levels(base)
    noise = torch.randn(1, 4, SIZE, SIZE, generator=stream("h-space noise", "later"))
    one, two = (guider(each).sample(noise, torch.zeros_like(noise), comfy_sampler("euler"), sigmas, disable_pbar=True)
                for each in (changed, same))
    assert torch.equal(one, two)
    name = "diffusion_model.input_blocks.1.1.transformer_blocks.0.attn1.to_out.0.weight"
    lora = model.clone()
    lora.add_patches({name: (torch.ones_like(base.model.state_dict()[name]),)}, 0.1)
    with pytest.raises(TraceError, match="another model"):
        run(lora, comfy_sampler("euler"))


@pytest.mark.parametrize("layer", ["attn1.to_q", "attn2.to_v", "ff.net.2"])
def test_a_lora_anywhere_makes_another_model(base, layer):
    lora = base.clone()
    name = f"diffusion_model.input_blocks.4.1.transformer_blocks.0.{layer}.weight"
    weight = base.model.state_dict()[name]
    lora.add_patches({name: (torch.ones_like(weight),)}, 0.1)
    assert model_identity(lora) != model_identity(base) == model_identity(base.clone())


def test_clones_share_the_trace(comfy, base, other):
    model = comfy.run("FrozenInjectHSpace", model=base, trace=other, **LIGHT)[0]
    wrappers = [each.clone().get_wrappers(WrappersMP.APPLY_MODEL, "frozen_inject_h_space") for each in (model, model)]
    assert wrappers[0][0].__self__.trace is wrappers[1][0].__self__.trace is other


def test_what_runs_but_not_as_meant_is_told(comfy, base, other, caplog):
    caplog.set_level(logging.WARNING)
    picture = 5 * torch.randn(1, 4, SIZE, SIZE, generator=stream("edges", "picture"))
    inverted = invert(base, conditioning(1), picture, 5, way_back=False).trace
    run(base, injected(inverted), cfg=3.0)
    assert "Use cfg 1 to keep it" in caplog.text and "Only 3 steps are injected" in caplog.text
    two = record(comfy, base, batch=2, start="contents")[1]
    run(base, injected(two))
    assert "holds 2 pictures and 1 are sampled" in caplog.text


def test_the_light_form_below_the_sampler(comfy, base, other):
    """Both at once: the light one acts in every pass of the decoder, once, and what is recorded is before it."""
    model = comfy.run("FrozenInjectHSpace", model=base, trace=other, **LIGHT)[0]
    two, one = (run(model, injected(other, shared_encoder=shared)) for shared in (False, True))
    torch.testing.assert_close(one, two, rtol=1e-3, atol=1e-3)
    assert not torch.allclose(two, run(base, injected(other)), atol=1e-2)
    seen = []
    trace = record(comfy, with_hook(model, seen), steps=1)[1]
    torch.testing.assert_close(trace.features["h"][0].float(), seen[0], rtol=1e-2, atol=1e-2)


def test_recording_beside_a_shared_encoder(comfy, base, other):
    """What is recorded is the plain prediction, whichever way the injected one is made."""
    two, one = (record(comfy, base, deep_skips=3, sampler=injected(other, shared_encoder=shared))[1]
                for shared in (False, True))
    for place, features in two.features.items():
        torch.testing.assert_close(one.features[place].float(), features.float(), rtol=2e-2, atol=2e-2)


def test_freeinit_is_recorded_as_its_last_pass(comfy, base):
    freeinit = comfy.run("FrozenFreeInit", sampler=comfy_sampler("euler"), iterations=2, filter="gaussian",
                         spatial_cutoff=0.25, temporal_cutoff=0.25, frames_per_clip=0)[0]
    samples, trace = record(comfy, base, batch=4, sampler=freeinit)
    assert len(trace.times) == 5
    first = record(comfy, base, batch=4)[1]
    assert not torch.allclose(trace.features["h"].float(), first.features["h"].float(), atol=1e-2)
    assert samples.isfinite().all()


def test_each_trace_beside_another_acts_where_it_was_recorded(comfy, base, other):
    exclusive_sampling = HTrace({"h": other.features["h"]}, other.times, other.provenance)
    skips = HTrace({**other.features}, other.times, other.provenance)
    mixed = HTrace({"h": other.features["h"], "skip0": other.features["skip0"]}, other.times, other.provenance)
    both = run(base, injected(beside(mixed, skips), gamma_skips=0.3))
    assert not torch.equal(both, run(base, injected(beside(mixed, mixed), gamma_skips=0.3)))
    with pytest.raises(TraceError, match="deep_skips"):
        run(base, injected(exclusive_sampling, gamma_skips=0.3))


def test_the_skips_alone_are_injected_too(comfy, base, other):
    """gamma 0 leaves h, not the skips; so does the light form."""
    nothing = replace(PLAIN, gamma=parse_curve("0"))
    plain = run(base, comfy_sampler("euler"))
    assert torch.equal(run(base, injected(other, nothing)), plain)
    assert not torch.allclose(run(base, injected(other, nothing, gamma_skips=0.5)), plain, atol=1e-3)
    sampler = comfy.run("FrozenHSpaceInjectionSampler", trace=other, preset="custom",
                        **{**SAMPLER, "gamma": "0", "gamma_skips": 0.5, "t_boost": -1.0})[0]
    assert torch.equal(run(base, sampler), run(base, injected(other, nothing, gamma_skips=0.5)))


def test_more_deep_skips_than_the_decoder_has(comfy, base, tiny_sdxl):
    xl, latent = tiny_sdxl(), torch.randn(1, 4, SIZE, SIZE, generator=stream("skips"))
    with pytest.raises(ValueError, match="deep_skips is 10; the decoder of this MODEL takes 9 skips"):
        invert(xl, conditioning(1), latent, 3, deep_skips=10)
    with pytest.raises(ValueError, match="deep_skips is 13; the decoder of this MODEL takes 12 skips"):
        record(comfy, base, deep_skips=13)


def test_flow_sampling_on_a_u_net_is_refused(base, other):
    flow = as_flow(base)
    for call in (lambda: invert(flow, conditioning(1), torch.ones(1, 4, SIZE, SIZE), 3),
                 lambda: run(flow, injected(other))):
        with pytest.raises(ValueError, match="samples by ModelSamplingDiscreteFlow with CONST.*flow or EDM"):
            call()


def test_a_threshold_makes_the_mask_hard_in_the_cells_of_h(base, other):
    """A cell that is white to six tenths is in, one that is white to three tenths is out."""
    painted = torch.zeros(1, 20, 20)
    painted[:, :10, :6], painted[:, :10, 10:13] = 1, 1
    x = torch.zeros(1, 8, 2, 2)
    soft, hard = (Injection(other).mask(masked(other, painted, threshold), x, [0]) for threshold in (0.0, 0.5))
    torch.testing.assert_close(soft[0, 0], torch.tensor([[0.6, 0.3], [0.0, 0.0]]))
    assert torch.equal(hard[0, 0], torch.tensor([[1.0, 0.0], [0.0, 0.0]]))


def test_calibration_takes_the_wrappers_of_the_edit(comfy, base):
    edited = base.clone()
    edited.add_wrapper_with_key(WrappersMP.DIFFUSION_MODEL, "louder",
                                lambda executor, *args, **kwargs: 1.2 * executor(*args, **kwargs))
    sampler = comfy.run("FrozenLatentCalibration", edited_model=edited, omega=0.3, start=1000.0, end=0.0)[0]
    assert not torch.allclose(run(base, sampler), run(base, comfy_sampler("euler")), atol=1e-3)


def test_calibration_checks_the_steps_of_a_light_injection(comfy, base, other, caplog):
    small = HTrace({"h": other.features["h"][..., :1, :]}, other.times, other.provenance)
    strict, loose = (comfy.run("FrozenInjectHSpace", model=base, trace=trace, **{**LIGHT, "check": check})[0]
                     for trace, check in ((other, "strict"), (small, "model")))
    sampler = comfy.run("FrozenLatentCalibration", edited_model=strict, omega=0.3, start=1000.0, end=0.0)[0]
    run(base, sampler)
    with pytest.raises(TraceError, match="steps are up to"):
        run(base, sampler, steps=7)
    sampler = comfy.run("FrozenLatentCalibration", edited_model=loose, omega=0.3, start=1000.0, end=0.0)[0]
    run(base, sampler)
    assert caplog.text.count("are resized") == 1


def test_calibration_wants_the_same_motion_module_on_both_sides(comfy, base):
    config = MotionConfig("sd15", TINY.channels, max_frames=16)
    one, two = (apply_motion(base, hold_motion(config, random_motion(config, seed).state_dict(), "random"))
                for seed in (1, 2))
    sampler = comfy.run("FrozenLatentCalibration", edited_model=two, omega=0.3, start=1000.0, end=0.0)[0]
    with pytest.raises(ValueError, match="two different ones"):
        run(one, sampler, batch=2)
    run(two, sampler, batch=2)


def test_calibration_of_timesteps_is_a_mean_over_pictures(base):
    vae, pictures = preview_vae(), torch.randn(2, 4, SIZE, SIZE, generator=stream("edges", "calibrate"))
    both, *single = (calibrate(base, conditioning(1), vae, given, 4) for given in (pictures, *pictures.split(1)))
    for name in ("predicted", "noisy"):
        mean = (getattr(single[0], name) + getattr(single[1], name)) / 2
        torch.testing.assert_close(getattr(both, name), mean)
        assert mean[0].abs() < 0.01 < mean[1:].min() and len(mean) == 4         # at t = 0: the picture itself
    assert both.t_edit in both.times and both.t_boost in both.times


@pytest.mark.fault("E6")
def test_a_threshold_that_is_not_reached_gives_no_timestep(comfy, quick):
    """A model that at the highest level, of all, predicts the picture itself."""
    picture = torch.randn(1, 4, SIZE, SIZE, generator=stream("edges", "calibrate"))

    def wrapper(apply, args):
        noisy = apply(args["input"], args["timestep"], **args["c"])
        return noisy if args["timestep"].max() < 10 else 0.18215 * picture

    model = quick.clone()
    model.set_model_unet_function_wrapper(wrapper)
    with pytest.raises(ValueError, match=r"no t_edit.*highest value is 0\.\d+ \(timestep 666\).*set t_edit by hand"):
        comfy.run("FrozenCalibrateTimesteps", model=model, positive=conditioning(1), vae=preview_vae(), steps=4,
                  latent={"samples": picture}, distance="ssim")


@pytest.mark.fault("E7")
@pytest.mark.parametrize(("replace_steps", "injections"), [(50, 26), (1000, 26), (25, 13)])
def test_no_more_steps_than_replace_steps_are_all_injected(quick, replace_steps, injections):
    """50 steps of Karras, of which 26 are at or above t_edit."""
    sampling, seen = quick.get_model_object("model_sampling"), []
    sigmas = calculate_sigmas(sampling, "karras", 50)
    assert sum(float(sampling.timestep(sigma)) >= 400 for sigma in sigmas[:-1]) == 26
    trace = HTrace({"h": torch.randn(1, 1, 32, SIZE, SIZE, generator=stream("edges", "h")).half()}, (500.0,), {})
    noise = torch.randn(1, 4, SIZE, SIZE, generator=stream("h-space noise", "karras"))
    guider(calls_of(quick, seen)).sample(noise, torch.zeros_like(noise),
                                         injected(trace, replace(PLAIN, replace_steps=replace_steps)), sigmas,
                                         disable_pbar=True, seed=1)
    assert len(seen) == 50 + injections


def test_sigmas_that_stay_are_told_from_those_that_rise(base, other):
    noise = torch.ones(1, 4, SIZE, SIZE)
    for sigmas, words in (([9.0, 4.0, 4.0, 0.0], r"hold levels twice \(4\)"), ([4.0, 9.0, 0.0], "these rise")):
        with pytest.raises(ValueError, match=words):
            guider(base).sample(noise, noise, injected(other), torch.tensor(sigmas), disable_pbar=True)


def test_what_has_no_bottleneck_is_not_calibrated(comfy, base):
    model = base.clone()
    model.model = type("Model", (), {"diffusion_model": torch.nn.Linear(1, 1)})()
    with pytest.raises(ValueError, match="Linear, which has no bottleneck"):
        comfy.run("FrozenCalibrateTimesteps", model=model, positive=conditioning(1), vae=None, steps=4,
                  latent={"samples": torch.ones(1, 4, SIZE, SIZE)}, distance="ssim")


def test_inversion_ends_where_something_of_the_picture_is_left(base):
    """Zero terminal SNR: the last level holds nothing of it."""
    zero = ModelSamplingDiscrete().patch(base, "v_prediction", zsnr=True)[0]
    found = invert(zero, conditioning(1), 5 * torch.ones(1, 4, SIZE, SIZE).cumsum(3), 5)
    top = float(zero.get_model_object("model_sampling").sigma_max)
    assert float(found.sigmas[0]) ** -2 >= 1e-5 > top ** -2 and found.noise.isfinite().all()


def test_the_rows_of_the_prompt_are_kept_at_any_cfg(comfy, base):
    guided, plain = (record(comfy, base, cfg)[1].features["h"][0].float() for cfg in (3.0, 1.0))
    torch.testing.assert_close(guided, plain, rtol=1e-2, atol=1e-2)


def test_a_noise_mask_and_an_injection_do_not_mix(comfy, base, other):
    """Outside of the mask the given latent comes out, inside the injection acts."""
    mask = torch.zeros(1, 1, SIZE, SIZE)
    mask[..., : SIZE // 2] = 1
    given = torch.randn(1, 4, SIZE, SIZE, generator=stream("given"))
    noise = torch.randn(1, 4, SIZE, SIZE, generator=stream("h-space noise", "noise"))
    plain, with_content = (guider(base).sample(noise, given, sampler, levels(base), denoise_mask=mask,
                                               disable_pbar=True, seed=5)
                           for sampler in (comfy_sampler("euler"), injected(other, PLAIN)))
    torch.testing.assert_close(with_content[..., SIZE // 2:], given[..., SIZE // 2:], rtol=1e-4, atol=1e-4)
    assert not torch.allclose(with_content[..., : SIZE // 2], plain[..., : SIZE // 2], atol=1e-3)
