"""HARIVO in the host: inputs that cannot work, or not as they are meant, row by row."""
from __future__ import annotations

import logging

import pytest
import torch
from comfy import sampler_helpers, samplers
from comfy.controlnet import ControlBase
from comfy.sample import sample as ksample
from comfy_extras.nodes_context_windows import ContextWindowsManualNode
from motion_examples import TINY, random_motion

from frozen_diffusion.modules.host.motion.apply import MotionRun, apply_motion, hold_motion, run_of_call
from frozen_diffusion.modules.host.motion.mitigating_gradient import mitigate_gradient
from frozen_diffusion.modules.motion.mitigating_gradient import LARGEST_STEP, energy, limited_alpha, mitigate, step_size
from frozen_diffusion.modules.motion.module import MotionConfig, MotionModule
from testhost.models import CONTEXT, as_flow, conditioning, latent, sample

pytestmark = pytest.mark.usefixtures("unloaded")
SIZE = (8, 8)


def harivo(seed=0, dtype=None):
    config = MotionConfig("sd15", TINY.channels, max_frames=16, mapping_width=16, frame_tokens=4, text_channels=CONTEXT)
    return hold_motion(config, random_motion(config, seed).state_dict(), "random", dtype=dtype)


class Listening(ControlBase):
    """A ControlNet that changes nothing and keeps what it is given."""

    def __init__(self, hints, seen):
        super().__init__()
        self.cond_hint_original, self.seen = hints, seen

    def get_control(self, x_noisy, t, cond, batched_number, transformer_options):
        self.seen.append((x_noisy.clone(), cond["c_crossattn"].shape[1]))
        return {"input": [], "middle": [], "output": []}

    def copy(self):
        made = Listening(self.cond_hint_original, self.seen)
        self.copy_to(made)
        return made


def test_controlnet_gets_unmapped_latents_and_plain_text(base):
    calls = []
    for mapping in ("every_step", "off"):
        seen = []
        control = Listening(torch.zeros(4, 3, 64, 64), seen)
        sample(apply_motion(base, harivo(), mapping=mapping), 4, steps=1, size=SIZE,
               positive=conditioning(1, control=control))
        calls.append(seen[0])
    assert torch.equal(calls[0][0], calls[1][0]) and calls[0][1] == calls[1][1] == 77


def test_long_prompts_get_their_tokens_once_at_the_end(base, monkeypatch):
    """And the short prompt beside them stays in one call with them: the host repeats it to their length."""
    seen, real = [], MotionModule.add_tokens
    monkeypatch.setattr(MotionModule, "add_tokens", lambda module, text, seconds: seen.append(
        (text, real(module, text, seconds))) or seen[-1][1])
    long = conditioning(1, tokens=154)
    assert sample(apply_motion(base, harivo()), 4, size=SIZE, steps=1, positive=long).isfinite().all()
    (text, longer), = seen
    assert text.shape[:2] == (8, 154) and longer.shape[1] == 158 and torch.equal(longer[:, :154], text)
    assert any(torch.equal(part, long[0][0].expand(4, -1, -1)) for part in text.chunk(2))


@pytest.mark.parametrize(("rows", "chunks", "frames"), [(3, [], 2), (3, [0, 1], 2), (1, [0, 1], 0)])
def test_calls_that_are_no_whole_clips(rows, chunks, frames):
    options = {"cond_or_uncond": chunks, "sigmas": torch.ones(1)}
    with pytest.raises(ValueError, match=f"{rows} rows in {len(chunks)} chunks, which are no whole clips"):
        run_of_call(MotionRun(frames=frames, sigmas=(10.0, 0.0)), rows, options)


def test_hints_a_frame_in_windows_are_warned_of(comfy, base, caplog):
    """Also when that ControlNet is not the last of a chain."""
    first, last = Listening(torch.zeros(8, 3, 64, 64), []), Listening(torch.zeros(1, 3, 64, 64), [])
    model = comfy.run(ContextWindowsManualNode, model=apply_motion(base, harivo()), context_length=4, context_overlap=2,
                      context_schedule="standard_static", context_stride=1, closed_loop=False, fuse_method="pyramid",
                      dim=0)[0]
    sample(model, 8, steps=1, size=SIZE, positive=conditioning(1, control=last))
    assert "does not cut ControlNet images" not in caplog.text
    last.set_previous_controlnet(first)
    sample(model, 8, steps=1, size=SIZE, positive=conditioning(1, control=last))
    assert "does not cut ControlNet images" in caplog.text


def test_prompts_a_frame_go_with_their_frames_in_windows(comfy, base):
    """Two windows without overlap are two clips, each with the prompts of its own frames."""
    model = apply_motion(base, harivo(), frame_tokens=False)        # tokens go by the time in the whole clip
    noise, words = torch.randn(8, 4, *SIZE, generator=torch.Generator().manual_seed(5)), conditioning(1)[0]
    text = torch.cat([conditioning(seed)[0][0] for seed in range(8)])

    def clip(model, noise, text):
        return ksample(model, noise, 2, 4.0, "euler", "normal", [[text, words[1]]], conditioning(2),
                       torch.zeros_like(noise), disable_pbar=True, seed=0)

    windows, = comfy.run(ContextWindowsManualNode, model=model, context_length=4, context_overlap=0,
                         context_schedule="standard_static", context_stride=1, closed_loop=False, fuse_method="flat",
                         dim=0)
    exclusive_sampling = [clip(model, noise[part], text[part]) for part in (slice(0, 4), slice(4, 8))]
    torch.testing.assert_close(clip(windows, noise, text), torch.cat(exclusive_sampling), rtol=1e-4, atol=1e-4)
    one = clip(windows, noise, text[:1])                            # one prompt for all frames
    torch.testing.assert_close(one[4:], clip(model, noise[4:], text[:1]), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("mode", ["fast", "exact"])
def test_too_much_alpha_and_negative_alpha_are_warned_of(comfy, base, caplog, mode):
    caplog.set_level(logging.WARNING)

    def through_node(alpha, order=1):
        caplog.clear()
        return comfy.run("FrozenMitigatingGradient", model=base, alpha=alpha, mode=mode, order=order, start_percent=0.0,
                         end_percent=1.0, frames_per_clip=0, locked_frames="")[0]

    limited, below = "is more than can be done", "gets rougher, not smoother"
    through_node(150.0)
    assert limited not in caplog.text and below not in caplog.text
    through_node(-100.0)
    assert limited not in caplog.text and below in caplog.text
    for alpha, order in ((1e6, 1), (-1e6, 1), (1000.0, 2)):
        model = through_node(alpha, order)
        assert limited in caplog.text and (below in caplog.text) == (alpha < 0)
        assert sample(model, 3, steps=1, size=SIZE).isfinite().all()


def test_both_modes_have_the_same_limits():
    """Through the Gaussian denoiser, J = 1 / (1 + sigma^2), k is the same."""
    for alpha in (40.0, 1e5, -1e5):
        for sigma in (0.1, 1.0, 14.0):
            k = limited_alpha(alpha, sigma) / 4096 * sigma ** 2 / (1 + sigma ** 2)
            assert k == pytest.approx(step_size(alpha, sigma)) and k <= LARGEST_STEP
    assert limited_alpha(40.0, 5.0) == pytest.approx(40.0)


@pytest.mark.parametrize(("order", "frames"), [(1, 1), (2, 2)])
def test_exact_leaves_clips_that_are_too_short_to_change(base, order, frames):
    model = mitigate_gradient(base, 500.0, "exact", order)
    assert torch.equal(sample(model, frames, size=SIZE), sample(base, frames, size=SIZE))


def test_exact_refuses_flow_models_and_models_loaded_in_parts(base, monkeypatch):
    exact = mitigate_gradient(base, 40.0, "exact")
    with pytest.raises(ValueError, match="flow model. Use mode fast"):
        sample(as_flow(exact), 3, steps=1, size=SIZE)
    real = sampler_helpers.prepare_sampling

    def in_parts(model, *args, **kwargs):
        prepared = real(model, *args, **kwargs)
        monkeypatch.setattr(model.model, "model_lowvram", True)
        return prepared

    monkeypatch.setattr(sampler_helpers, "prepare_sampling", in_parts)
    with pytest.raises(ValueError, match="piece by piece here. Use mode fast"):
        sample(exact, 3, steps=1, size=SIZE)


def test_freeinit_on_flow_models(comfy, base, caplog):
    """Pure noise of a flow model holds nothing of a clip: one pass, and a word."""
    flow = as_flow(base)
    freeinit = comfy.run("FrozenFreeInit", sampler=samplers.sampler_object("euler"), iterations=3,
                         filter="gaussian", spatial_cutoff=0.25, temporal_cutoff=0.25, frames_per_clip=0)[0]
    noise, results = torch.randn(4, 4, *SIZE, generator=torch.Generator().manual_seed(0)), {}
    for first in (1.0, 0.9):
        for name, sampler in (("once", samplers.sampler_object("euler")), ("freeinit", freeinit)):
            results[name, first] = comfy_guider(flow).sample(
                noise, torch.zeros_like(noise), sampler, torch.tensor([first, 0.5, 0.0]), disable_pbar=True, seed=0)
    assert torch.equal(results["once", 1.0], results["freeinit", 1.0]) and "nothing of a clip" in caplog.text
    assert not torch.allclose(results["once", 0.9], results["freeinit", 0.9], atol=1e-3)
    assert results["freeinit", 0.9].isfinite().all()


def test_a_part_without_a_derivative_is_refused_in_exact_mode(base):
    model = base.clone()
    model.set_model_unet_function_wrapper(
        lambda apply, args: apply(args["input"].detach(), args["timestep"], **args["c"]).detach())
    with pytest.raises(ValueError, match="No gradient came back"):
        sample(mitigate_gradient(model, 40.0, "exact"), 3, steps=1, size=SIZE)


def test_smoothing_acts_on_the_whole_clip_of_context_windows(comfy, base):
    """The seam between two windows is smoothed as well: the energy of the whole clip falls."""
    def windows(model):
        return comfy.run(ContextWindowsManualNode, model=apply_motion(model, harivo()), context_length=4,
                         context_overlap=1, context_schedule="standard_static", context_stride=1, closed_loop=False,
                         fuse_method="flat", dim=0)[0]

    plain, smooth = (sample(windows(model), 8, steps=1, size=SIZE) for model in (base, mitigate_gradient(base, 150.0)))
    k = step_size(150.0, base.get_model_object("model_sampling").sigma_max.item())
    ends = torch.cat([plain[:1], plain, plain[-1:]])
    expected = plain + k * (ends[2:] - 2 * plain + ends[:-2])
    torch.testing.assert_close(smooth, expected, rtol=1e-4, atol=1e-4)
    assert energy(smooth[None]) < energy(plain[None])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_smoothed(tiny_sd15, dtype):
    model = apply_motion(tiny_sd15(dtype=dtype), harivo(dtype=dtype))
    plain, smooth = (sample(given, 4, size=SIZE, steps=1) for given in (model, mitigate_gradient(model, 150.0)))
    k = step_size(150.0, model.get_model_object("model_sampling").sigma_max.item())
    torch.testing.assert_close(smooth, mitigate(plain[None], k)[0], rtol=1e-3, atol=1e-3)


def test_eight_bit_files_are_held_in_sixteen(base):
    config = MotionConfig("sd15", TINY.channels, max_frames=16)
    state = random_motion(config).state_dict()
    eight = {name: value.to(torch.float8_e4m3fn) for name, value in state.items()}
    held = hold_motion(config, eight, "eight bits")
    assert {value.dtype for name, value in held.module.state_dict().items() if not name.endswith(".pe")} <= {
        torch.float16, torch.float32}
    assert sample(apply_motion(base, held), 4, size=SIZE).isfinite().all()


def test_first_step_is_the_highest_level_of_a_run(base, monkeypatch):
    """An inversion rises to it: there it is the last one, so both ways map at the same level."""
    noise, seen = latent(4, *SIZE)["samples"] + 1, {}
    real = MotionModule.map_noise
    for name, sigmas in (("down", [10.0, 5.0, 1.0]), ("up", [1.0, 5.0, 10.0])):
        levels = []
        model = apply_motion(base, harivo(), mapping="first_step")
        monkeypatch.setattr(MotionModule, "map_noise", lambda module, x, t, *rest, levels=levels: levels.append(
            round(float(t[0]))) or real(module, x, t, *rest))
        guider = comfy_guider(model)
        guider.sample(noise, torch.zeros_like(noise), Calls(), torch.tensor(sigmas), disable_pbar=True, seed=0)
        seen[name] = levels
    assert len(seen["down"]) == 1 and seen["down"] == seen["up"]


class Calls(samplers.Sampler):
    """Asks the model at every level."""

    def sample(self, model_wrap, sigmas, extra_args, callback, noise, latent_image=None, denoise_mask=None,
               disable_pbar=False):
        for sigma in sigmas:
            model_wrap(noise, noise.new_full((len(noise),), float(sigma)), model_options=extra_args["model_options"],
                       seed=0)
        return noise


def comfy_guider(model):
    guider = samplers.CFGGuider(model)
    guider.inner_set_conds({"positive": conditioning(1)})
    guider.set_cfg(1.0)
    return guider
