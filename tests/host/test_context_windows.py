"""The host's context windows: whose frames a window shows, on every sampler and every host."""
import pytest
import torch
from comfy.patcher_extension import WrappersMP
from comfy.sample import sample as ksample
from comfy_extras.nodes_context_windows import ContextWindowsManualNode
from comfy_extras.nodes_hunyuan import EmptyHunyuanLatentVideo
from motion_examples import TINY, random_motion

from frozen_diffusion.modules.host.context_windows import frames_of_call, window_frames, window_length
from frozen_diffusion.modules.host.motion.apply import apply_motion, hold_motion
from testhost.models import conditioning

SIZE = (8, 8)
BETWEEN_STEPS = ["dpm_2", "dpmpp_sde", "seeds_2", "seeds_3", "dpm_fast", "dpm_adaptive"]


@pytest.fixture(scope="module")
def module():
    return hold_motion(TINY, random_motion().state_dict(), "random")


@pytest.fixture(scope="module")
def windows(comfy):
    """The host's node, as the page adds it: every input that is not named has its default."""
    def add(model, length, schedule="batched", overlap=0, fuse="flat", **changes):
        return comfy.run(ContextWindowsManualNode, model=model, context_length=length, context_overlap=overlap,
                         context_schedule=schedule, fuse_method=fuse, dim=0, **changes)[0]
    return add


def watch(model, calls: list):
    """A clone of the MODEL that notes the noise level and the frames of each of its calls."""
    def note(executor, x, timesteps, context, y, control, transformer_options, *args, **kwargs):
        calls.append((float(transformer_options["sigmas"][0]), window_frames(transformer_options)))
        return executor(x, timesteps, context, y, control, transformer_options, *args, **kwargs)

    watched = model.clone()
    watched.add_wrapper_with_key(WrappersMP.DIFFUSION_MODEL, "watch", note)
    return watched


def run(model, frames: int, levels: list[float], sampler: str = "euler", noise: torch.Tensor | None = None):
    """Sampling over these noise levels with the prompt alone; returns latents."""
    noise = torch.randn(frames, 4, *SIZE, generator=torch.Generator().manual_seed(0)) if noise is None else noise
    return ksample(model, noise, len(levels) - 1, 1.0, sampler, "normal", conditioning(1), conditioning(2),
                   torch.zeros_like(noise), sigmas=torch.tensor(levels), disable_pbar=True, seed=0)


@pytest.mark.fault("C1")
@pytest.mark.parametrize("sampler", BETWEEN_STEPS)
def test_samplers_that_evaluate_between_steps(base, module, windows, sampler):
    """Windows without overlap are clips of their own: the same as two clips in one batch without windows."""
    levels = [3.0, 2.9, 2.8]                            # near to each other: dpm_adaptive takes as many as it likes
    clips, cut = (run(model, 4, levels, sampler) for model in (
        apply_motion(base, module, frames_per_clip=2), windows(apply_motion(base, module), 2)))
    torch.testing.assert_close(cut, clips, rtol=1e-3, atol=1e-3)


@pytest.mark.fault("C1")
def test_a_call_between_steps_keeps_the_windows_of_its_step(base, module, windows):
    """The looped schedule has other windows in each step."""
    levels, calls = [6.0, 4.0, 2.0, 1.0], []
    run(watch(windows(apply_motion(base, module), 3, "looped_uniform", 1), calls), 6, levels, "dpm_2")
    seen: dict[float, set] = {}                         # in the order of the calls
    for sigma, frames in calls:
        seen.setdefault(sigma, set()).add(frames)
    steps = [found for sigma, found in seen.items() if round(sigma, 4) in levels]
    for sigma, found in seen.items():
        step = max(number for number, level in enumerate(levels[:-1]) if sigma < level + 1e-4)
        assert found == steps[step]
    assert len(steps) == 3 < len(seen) and steps[0] != steps[1] != steps[2]


@pytest.mark.fault("C2")
def test_a_short_last_window_is_moved_back(base, module, windows):
    """Nine frames in windows of four: the last is not left alone, it sees the three before it."""
    calls, noise = [], torch.randn(9, 4, *SIZE, generator=torch.Generator().manual_seed(0))
    model, levels = apply_motion(base, module), [3.0, 2.0]
    out = run(watch(windows(model, 4), calls), 9, levels, noise=noise)
    assert {frames for _, frames in calls} == {(0, 1, 2, 3), (4, 5, 6, 7), (5, 6, 7, 8)}
    first, second, last = (run(model, 4, levels, noise=noise[start:start + 4]) for start in (0, 4, 5))
    expected = torch.cat([first, second[:1], (second[1:] + last[:-1]) / 2, last[-1:]])
    torch.testing.assert_close(out, expected, rtol=1e-3, atol=1e-3)
    assert not torch.allclose(out[-1:], run(model, 1, levels, noise=noise[-1:]), atol=1e-2)     # the still it was


def test_the_frame_that_newer_hosts_put_before_a_window(windows, base):
    """It is the window's first row. Hosts without it never set `causal_anchor_index`."""
    handler = windows(base, 4, "standard_static", 1).model_options["context_handler"]
    first, second = handler.get_context_windows(base.model, torch.zeros(7, 4, *SIZE), {})[:2]
    assert frames_of_call(4, {"context_window": second}) == (3, 4, 5, 6)
    second.causal_anchor_index = second.index_list[0] - 1
    assert frames_of_call(5, {"context_window": second}) == (2, 3, 4, 5, 6)
    first.causal_anchor_index = -1
    assert frames_of_call(4, {"context_window": first}) == (0, 1, 2, 3)
    handler.causal_window_fix = True
    assert window_length({"context_handler": handler}, 7) == 5 and window_length({"context_handler": handler}, 4) == 0


def test_frames_are_those_of_the_rows(windows, base):
    assert frames_of_call(3, {}) == (0, 1, 2)
    assert frames_of_call(2, {"ad_params": {"sub_idxs": [5, 6]}}) == (5, 6)
    assert frames_of_call(2, {"ad_params": {"sub_idxs": None}}) == (0, 1)
    handler = windows(base, 4).model_options["context_handler"]
    window = handler.get_context_windows(base.model, torch.zeros(8, 4, *SIZE), {})[1]
    with pytest.raises(ValueError, match=r"5 frames inside a context window of 4 \(frames 4, 5, 6, 7 of the clip\)"):
        frames_of_call(5, {"context_window": window})
    window.dim = 2                                      # of the picture's height: the batch is whole
    assert frames_of_call(5, {"context_window": window}) == (0, 1, 2, 3, 4)


def test_plain_windows_with_motion_see_no_frame_more(comfy, base, module, windows):
    """At the module's limit, with whatever the host's node has as its defaults."""
    calls = []
    most = module.config.max_frames
    run(watch(windows(apply_motion(base, module), most, "standard_static", 4), calls), most + 4, [3.0, 2.0])
    assert {len(frames) for _, frames in calls} == {most}


@pytest.mark.fault("E3")
def test_a_video_models_latent_is_named(comfy, base, module):
    latent, = comfy.run(EmptyHunyuanLatentVideo, width=64, height=64, length=25, batch_size=1)
    with pytest.raises(ValueError, match=r"5 dimensions, \[1, 4, 7, 8, 8\]: it is that of a video model.*"
                                         r"Use Empty Latent Image with batch_size = the number of frames"):
        comfy.run("KSampler", model=apply_motion(base, module), seed=0, steps=1, cfg=4.0, sampler_name="euler",
                  scheduler="normal", positive=conditioning(1), negative=conditioning(2), latent_image=latent,
                  denoise=1.0)
