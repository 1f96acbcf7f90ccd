"""ControlNet on chosen frames: who gets the hint, who does not, and in which window."""
import pytest
import torch
from comfy.controlnet import T2IAdapter
from comfy.t2i_adapter.adapter import Adapter_light
from control_examples import random_control_net, random_model

from frozen_diffusion.modules.demo import models
from frozen_diffusion.modules.host.control import control_frames, parse_frames, parse_strengths
from testhost.models import conditioning, initialise, sample

FRAMES = 4


@pytest.fixture(scope="module")
def model(comfy):
    return random_model()


@pytest.fixture(scope="module")
def control_net(model, tmp_path_factory):
    return random_control_net(model, tmp_path_factory.mktemp("control"))


def prompts():
    return [conditioning(seed, width=models.CONTEXT) for seed in (1, 2)]


def run(model, conditionings, frames=FRAMES, steps=2):
    return sample(model, frames, steps=steps, positive=conditionings[0], negative=conditionings[1])


def test_only_listed_frames_change(model, control_net):
    images = torch.rand(2, 128, 128, 3)
    plain = run(model, prompts())
    guided = run(model, control_frames(prompts(), control_net, images, "0, -1", "1.0", FRAMES, 0.0, 1.0))
    assert torch.equal(guided[1:3], plain[1:3])
    assert not torch.allclose(guided[0], plain[0], atol=1e-3)
    assert not torch.allclose(guided[3], plain[3], atol=1e-3)


def test_all_frames_at_full_strength_are_the_plain_controlnet(model, control_net):
    images = torch.rand(FRAMES, 128, 128, 3)
    ours = run(model, control_frames(prompts(), control_net, images, "0, 1, 2, 3", "1.0", FRAMES, 0.0, 1.0))
    shared = control_net.copy().set_cond_hint(images.movedim(-1, 1), 1.0, (0.0, 1.0))
    theirs = run(model, [[[tensor, {"control": shared, "control_apply_to_uncond": False}] for tensor, _ in prompt]
                         for prompt in prompts()])
    assert (ours - theirs).abs().max() < 1e-5 * theirs.abs().max()


def test_strength_zero_is_without(model, control_net):
    images = torch.rand(1, 128, 128, 3)
    none = run(model, control_frames(prompts(), control_net, images, "0", "0.0", FRAMES, 0.0, 1.0))
    assert torch.equal(none, run(model, prompts()))


def test_windows_get_the_hints_of_their_own_frames(model, control_net):
    from comfy.context_windows import (
        ContextFuseMethods,
        ContextSchedules,
        IndexListContextHandler,
        get_matching_context_schedule,
        get_matching_fuse_method,
    )
    windowed = model.clone()
    windowed.model_options["context_handler"] = IndexListContextHandler(
        context_schedule=get_matching_context_schedule(ContextSchedules.STATIC_STANDARD),
        fuse_method=get_matching_fuse_method(ContextFuseMethods.FLAT), context_length=4, context_overlap=0)
    images = torch.rand(2, 128, 128, 3)
    # without a motion module this host's windows need as many noise levels as frames (context_windows.py, set_step)
    plain = run(windowed, prompts(), 8, steps=7)
    guided = run(windowed, control_frames(prompts(), control_net, images, "1, 6", "1.0", 8, 0.0, 1.0), 8, steps=7)
    changed = [bool((guided[frame] - plain[frame]).abs().max() > 1e-3) for frame in range(8)]
    assert changed == [frame in (1, 6) for frame in range(8)]


def test_a_t2i_adapter_bears_a_prompt_that_ends_halfway(model):
    """It keeps what it made of the hints of one call, whose number of rows may change from step to step."""
    adapter = T2IAdapter(Adapter_light(channels=[64, 64, 128, 128], nums_rb=1, cin=192), 3, 8, "nearest-exact")
    initialise(adapter.t2i_model, 0)
    positive, negative = prompts()
    early = conditioning(3, width=models.CONTEXT, start_percent=0.0, end_percent=0.5)
    controlled = control_frames([positive + early, negative], adapter, torch.rand(1, 128, 128, 3), "0", "1.0", FRAMES,
                                0.0, 1.0)
    guided, plain = run(model, controlled, steps=4), run(model, [positive + early, negative], steps=4)
    changed = [bool((guided[frame] - plain[frame]).abs().max() > 1e-3) for frame in range(FRAMES)]
    assert changed == [True, False, False, False]


def test_what_was_given_is_left_alone(model, control_net):
    given = prompts()
    control_frames(given, control_net, torch.rand(1, 64, 64, 3), "0", "1.0", FRAMES, 0.0, 1.0)
    assert all("control" not in options for prompt in given for _, options in prompt)
    assert control_net.cond_hint_original is None


@pytest.mark.parametrize("text", ["", "a", "4", "-5", "0, 0", "0, -4", "1.5"])
def test_wrong_frames_are_explained(text):
    with pytest.raises(ValueError, match="the clip has 4 frames.*for example 0, -1"):
        parse_frames(text, 4)


def test_wrong_strengths_and_images_are_explained(control_net):
    with pytest.raises(ValueError, match="give one number for all frames, or 3"):
        parse_strengths("1, 2", 3)
    with pytest.raises(ValueError, match="3 hint images were given for 2 frames"):
        control_frames([conditioning(1)], control_net, torch.rand(3, 8, 8, 3), "0, 1", "1", 4, 0.0, 1.0)

