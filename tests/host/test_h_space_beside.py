"""h-space beside what else a user has on: regional prompts, clips, a motion module, context windows, ControlNet."""
from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from comfy.patcher_extension import WrappersMP
from comfy_extras.nodes_context_windows import ContextWindowsManualNode
from control_examples import random_control_net, random_model
from h_space_examples import PLAIN, SIZE, comfy_sampler, guider, injected, levels, record, run, with_hook
from motion_examples import TINY, random_motion

from frozen_diffusion.modules.curve import parse_curve
from frozen_diffusion.modules.demo import models
from frozen_diffusion.modules.host.calls import know_roles
from frozen_diffusion.modules.host.hspace.capture import Capture, HSpaceTap, with_first_patch
from frozen_diffusion.modules.host.motion.apply import apply_motion, hold_motion
from frozen_diffusion.modules.hspace.slerp import inject, norms
from frozen_diffusion.modules.hspace.steps import InjectionSettings
from frozen_diffusion.modules.hspace.trace import HTrace, TraceError
from frozen_diffusion.modules.seeding import stream
from testhost.models import conditioning

pytestmark = pytest.mark.usefixtures("unloaded")

IDLE = InjectionSettings(gamma=parse_curve("0"), t_boost=-1)


@pytest.fixture(scope="module")
def wide(tiny_sd15):
    """In fp64: batches of different sizes round differently, which a random model makes more of."""
    return tiny_sd15(torch.float64)


@pytest.fixture(scope="module")
def other(comfy, wide):
    return record(comfy, wide, start="other", steps=2)[1]


def decoder_sees(model, seen):
    """The MODEL, noting what comes into its decoder after our patch."""
    model = model.clone()

    def note(h, skip, options):
        if options["block"] == ("output", 0):
            seen.append(h.clone())
        return h, skip

    model.set_model_output_block_patch(note)
    return model


def halves(*seeds):
    """A prompt of two texts, each for a half of the picture by a mask: the host samples both over the whole."""
    prompts = []
    for side, seed in enumerate(seeds):
        mask = torch.zeros(1, SIZE, SIZE)
        mask[..., side * SIZE // 2:(side + 1) * SIZE // 2] = 1
        prompts += conditioning(seed, mask=mask, mask_strength=1.0)
    return prompts


def crop(seed, height=8, width=16):
    """A prompt for the upper part of the picture by an area: the host samples a crop for it."""
    return conditioning(seed, area=(height, width, 0, 0), strength=1.0)


def test_halves_of_one_text_are_the_whole(comfy, wide, other):
    """Two chunks that both follow the prompt: the mean of equal rows is recorded, and both are injected."""
    whole, both = (record(comfy, wide, 3.0, steps=2, positive=positive)
                   for positive in (conditioning(1), halves(1, 1)))
    torch.testing.assert_close(both[0], whole[0], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(both[1].features["h"].float(), whole[1].features["h"].float(), rtol=2e-3, atol=2e-3)
    for shared in (False, True):
        one, two = (run(wide, injected(other, shared_encoder=shared), 3.0, steps=2, positive=positive)
                    for positive in (conditioning(1), halves(1, 1)))
        torch.testing.assert_close(two, one, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(one, whole[0], atol=1e-2)


def test_a_row_that_two_texts_show_is_their_mean(comfy, wide):
    one, other, both = (record(comfy, wide, steps=1, positive=positive)[1].features["h"].float()
                        for positive in (conditioning(1), conditioning(2), halves(1, 2)))
    torch.testing.assert_close(both, (one + other) / 2, rtol=2e-3, atol=2e-3)
    assert not torch.allclose(one, other, atol=0.1)


def test_crops_are_not_recorded(comfy, wide):
    """Beside a prompt for the whole picture they are left out; alone they show no picture."""
    whole, beside = (record(comfy, wide, steps=1, positive=positive)
                     for positive in (conditioning(1), conditioning(1) + crop(2)))
    torch.testing.assert_close(beside[1].features["h"].float(), whole[1].features["h"].float(), rtol=2e-3, atol=2e-3)
    assert not torch.allclose(beside[0], whole[0], atol=1e-2)
    with pytest.raises(TraceError, match="a prompt for a region only"):
        record(comfy, wide, steps=1, positive=crop(2))


def test_crops_get_the_content_at_their_size(wide, other, caplog):
    """Every call, whole or crop, has its own |h| and its share of the way to the content, which is resized to it."""
    before, after = [], []
    model = decoder_sees(with_hook(wide, before), after)
    regional = conditioning(1) + crop(2)
    run(model, injected(other), steps=1, positive=regional)
    assert [h.shape[2:] for h in before] == 2 * [h.shape[2:] for h in before[:2]]
    assert {h.shape[2:] for h in before} == {(2, 2), (1, 2)}
    for was, is_now in zip(before[:2], after[:2], strict=True):        # of the plain prediction
        assert torch.equal(was, is_now)
    content = other.features["h"][other.nearest(999)].double()
    for was, is_now in zip(before[2:], after[2:], strict=True):
        fitted = F.interpolate(content.float(), was.shape[2:], mode="bilinear", align_corners=False).double()
        torch.testing.assert_close(is_now, inject(was, fitted, 0.3), rtol=1e-6, atol=1e-6)
    assert caplog.text.count("are resized") == 1
    with pytest.raises(TraceError, match="different sizes"):
        run(wide, injected(other, check="strict"), steps=2, positive=regional)


@pytest.mark.parametrize("settings", [PLAIN, InjectionSettings(t_boost=-1)], ids=["asymmetric", "calibrated"])
def test_one_content_for_every_row(wide, other, settings):
    noise = torch.randn(3, 4, SIZE, SIZE, generator=stream("h-space noise", "rows"))

    def go(rows):
        return guider(wide).sample(rows, torch.zeros_like(rows), injected(other, settings), levels(wide, 2),
                                   disable_pbar=True, seed=5)

    together = go(noise)
    torch.testing.assert_close(together, torch.cat([go(row) for row in noise.split(1)]), rtol=1e-4, atol=1e-4)
    assert not torch.allclose(together[0], together[1], atol=0.1)


@pytest.fixture(scope="module")
def moving(wide):
    """(the MODEL with a motion module, the same for clips of 2 frames)."""
    module = hold_motion(TINY, random_motion().state_dict(), "random", dtype=torch.float64)
    return apply_motion(wide, module), apply_motion(wide, module, frames_per_clip=2)


def windows(comfy, model, overlap):
    return comfy.run(ContextWindowsManualNode, model=model, context_length=2, context_overlap=overlap,
                     context_schedule="standard_static", context_stride=1, closed_loop=False, fuse_method="flat",
                     dim=0)[0]


def test_idle_injection_beside_motion_and_windows(comfy, moving, wide, other):
    model = windows(comfy, moving[0], 1)
    plain = run(model, comfy_sampler("euler"), steps=2, batch=4)
    assert torch.equal(run(model, injected(other, IDLE), steps=2, batch=4), plain)
    assert not torch.equal(run(model, injected(other), steps=2, batch=4), plain)
    assert not torch.allclose(run(wide, comfy_sampler("euler"), steps=2, batch=4), plain, atol=1e-2)


def test_moving_windows_get_the_features_of_their_frames(comfy, moving):
    """Windows that do not overlap are clips of their own: the same as two clips in one batch without windows."""
    whole, cut = moving[1], windows(comfy, moving[0], 0)
    (samples, clip), (cut_samples, cut_clip) = (record(comfy, model, steps=2, batch=4, start="clip")
                                                for model in (whole, cut))
    torch.testing.assert_close(cut_samples, samples, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(cut_clip.features["h"].float(), clip.features["h"].float(), rtol=2e-3, atol=2e-3)
    one = run(whole, injected(clip), steps=2, batch=4)
    for shared in (False, True):
        two = run(cut, injected(clip, shared_encoder=shared), steps=2, batch=4)
        torch.testing.assert_close(two, one, rtol=1e-4, atol=1e-4)
    turned = HTrace({"h": clip.features["h"].roll(2, dims=1)}, clip.times, clip.provenance)
    assert not torch.allclose(run(cut, injected(turned), steps=2, batch=4), two, atol=1e-2)


@pytest.fixture(scope="module")
def controlled(tmp_path_factory):
    """(a MODEL, a prompt with a ControlNet that the host has loaded for it)."""
    model = random_model()
    net = random_control_net(model, tmp_path_factory.mktemp("control"))
    hint = torch.rand(1, 3, 8 * SIZE, 8 * SIZE, generator=stream("hint"))
    return model, conditioning(1, width=models.CONTEXT, control=net.copy().set_cond_hint(hint, 1.0, (0.0, 1.0)))


def test_what_a_controlnet_adds_to_the_middle_belongs_to_h(controlled):
    """Recorded is h with the residual, bit for bit; injected is into that: its norm is what the decoder gets."""
    (model, prompt), before, residuals, after = controlled, [], [], []

    def note(executor, x, timesteps, context, y, control, *args, **kwargs):
        residuals.append(control["middle"][0].clone())
        return executor(x, timesteps, context, y, control, *args, **kwargs)

    model = with_hook(model, before)
    model.add_wrapper_with_key(WrappersMP.DIFFUSION_MODEL, "residual", note)
    noise = torch.randn(1, 4, SIZE, SIZE, generator=stream("h-space noise", "control"))

    def go(model, sampler):
        guider(model, positive=prompt).sample(noise, torch.zeros_like(noise), sampler, levels(model, 1),
                                              disable_pbar=True, seed=5)

    capture, recording = Capture(1, (SIZE, SIZE)), model.clone()
    recording.model_options = with_first_patch(model.model_options, HSpaceTap(capture))
    know_roles(recording)
    go(recording, comfy_sampler("euler"))
    recorded = capture.take()["h"]
    assert len(residuals) == 1 and residuals[0].norm() > 1e-3 * before[0].norm()
    assert torch.equal(recorded, before[0] + residuals[0])
    features = torch.randn(1, *recorded.shape, generator=stream("control", "content")).half()
    go(decoder_sees(model, after), injected(HTrace({"h": features}, (999.0,), {})))
    assert torch.equal(after[0], recorded) and not torch.allclose(after[1], recorded, atol=1e-2)
    torch.testing.assert_close(norms(after[1]), norms(recorded), rtol=1e-5, atol=0)
