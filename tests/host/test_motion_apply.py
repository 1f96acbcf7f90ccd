"""Apply Motion Module through the host's samplers."""
from types import SimpleNamespace

import pytest
import torch
from comfy import model_management, supported_models
from comfy.controlnet import ControlBase, broadcast_image_to
from comfy.model_sampling import EPS, V_PREDICTION
from comfy.sample import sample as ksample
from motion_examples import SDXL, TINY, random_motion

from frozen_diffusion.modules.host.motion import apply as motion
from frozen_diffusion.modules.host.motion.apply import LoadedMotion, hold_motion
from frozen_diffusion.modules.host.motion.splice import MotionSlot
from frozen_diffusion.modules.motion.module import MotionConfig
from testhost.models import CONTEXT, conditioning, latent, sample

SIZE = (8, 8)
HARIVO = {"mapping_width": 16, "frame_tokens": 4, "text_channels": CONTEXT, "temporal_convolution": True}
with_and_without_harivo = pytest.mark.parametrize("parts", [{}, HARIVO], ids=["plain", "harivo"])


@pytest.fixture(scope="module")
def plain(base):
    return sample(base, 4, size=SIZE)


@pytest.fixture(autouse=True)
def model_stays_clean(base):
    """After every test, whatever happened in it: no layer left, every weight as it was."""
    unet = base.model.diffusion_model
    names, weights = [name for name, _ in unet.named_modules()], checksum(unet)
    yield
    model_management.unload_all_models()        # takes LoRA patches out again
    assert [name for name, _ in unet.named_modules()] == names and checksum(unet) == weights


def checksum(unet) -> float:
    return sum(value.double().abs().sum().item() for value in unet.state_dict().values())


def loaded(seed: int = 0, **settings) -> LoadedMotion:
    config = MotionConfig("sd15", TINY.channels, **{"max_frames": 16, **settings})
    return hold_motion(config, random_motion(config, seed).state_dict(), f"random {seed}")


def apply(comfy, model, module: LoadedMotion, **changes):
    """The node, with its defaults."""
    node = comfy.node("FrozenApplyMotionModule")
    defaults = {entry.id: entry.default for entry in node.GET_SCHEMA().inputs if hasattr(entry, "default")}
    settings = {**defaults, **changes}
    return comfy.run("FrozenApplyMotionModule", model=model, motion_module=module, **settings)[0]


@pytest.fixture
def calls(monkeypatch):
    """(rows, frames, active) of every call of a motion layer."""
    seen, forward = [], MotionSlot.forward

    def record(slot, x, run=None):
        seen.append((x.shape[0], run.frames, run.active))
        return forward(slot, x, run)

    monkeypatch.setattr(MotionSlot, "forward", record)
    return seen


def denoise(model, noise: torch.Tensor, **changes) -> torch.Tensor:
    """KSampler on given noise."""
    settings = {"steps": 2, "cfg": 4.0, "sampler_name": "euler", "scheduler": "normal",
                "positive": conditioning(1), "negative": conditioning(2), **changes}
    return ksample(model, noise, latent_image=torch.zeros_like(noise), disable_pbar=True, seed=0, **settings)


def test_motion_changes_the_clip_and_repeats(comfy, base, plain):
    model = apply(comfy, base, loaded())
    first = sample(model, 4, size=SIZE)
    assert first.isfinite().all() and not torch.allclose(first, plain, atol=1e-2)
    assert torch.equal(sample(base, 4, size=SIZE), plain)
    assert torch.equal(sample(model, 4, size=SIZE), first)


def test_strength_zero_and_one_frame_are_the_image_model(comfy, base, plain, calls):
    off = apply(comfy, base, loaded(beta_schedule="sqrt_linear"), strength=0.0)
    assert torch.equal(sample(off, 4, size=SIZE), plain)
    assert not calls
    for changes in ({"groupnorm": "official"}, {"groupnorm": "pooled"}):
        model = apply(comfy, base, loaded(), **changes)
        assert torch.equal(sample(model, 1, size=SIZE), sample(base, 1, size=SIZE))
    model = apply(comfy, base, loaded(), frames_per_clip=1)
    assert torch.equal(sample(model, 4, size=SIZE), plain)
    assert calls and not any(active for *_, active in calls)


def test_samplers_agree(comfy, base):
    """SamplerCustomAdvanced with the same ingredients is KSampler."""
    from comfy_extras import nodes_custom_sampler as custom
    model = apply(comfy, base, loaded(beta_schedule="sqrt_linear"))
    guider, = comfy.run(custom.CFGGuider, model=model, positive=conditioning(1), negative=conditioning(2), cfg=4.0)
    sigmas, = comfy.run(custom.BasicScheduler, model=model, scheduler="normal", steps=2, denoise=1.0)
    sampler, = comfy.run(custom.KSamplerSelect, sampler_name="euler")
    noise, = comfy.run(custom.RandomNoise, noise_seed=0)
    out, _ = comfy.run(custom.SamplerCustomAdvanced, noise=noise, guider=guider, sampler=sampler,
                       sigmas=sigmas, latent_image=latent(4, *SIZE))
    assert torch.equal(out["samples"], sample(model, 4, size=SIZE))


@pytest.mark.parametrize("sampler", ["dpmpp_2m", "euler_ancestral", "ddim", "uni_pc", "lcm"])
def test_any_sampler(comfy, base, sampler, calls):
    out = sample(apply(comfy, base, loaded()), 4, size=SIZE, sampler=sampler)
    assert out.isfinite().all() and calls


@with_and_without_harivo
def test_chunks_of_cond_and_uncond(comfy, base, calls, parts):
    """cfg 1 (one chunk), cfg 4 (two), and cfg 4 when memory forces two calls: always four frames a clip."""
    model = apply(comfy, base, loaded(**parts))
    sample(model, 4, size=SIZE, cfg=1.0)
    assert {call[:2] for call in calls} == {(4, 4)}
    calls.clear()
    together = sample(model, 4, size=SIZE)
    assert {call[:2] for call in calls} == {(8, 4)}
    calls.clear()
    required = model.model.memory_required
    model.model.memory_required = lambda *args, **kwargs: 1e30
    try:
        apart = sample(model, 4, size=SIZE)
    finally:
        model.model.memory_required = required
        del model.model.__dict__["memory_required"]
    assert {call[:2] for call in calls} == {(4, 4)}
    assert torch.allclose(together, apart, rtol=1e-3, atol=1e-3 * together.std().item())


@with_and_without_harivo
def test_several_clips_in_one_batch(comfy, base, calls, parts):
    noise = torch.randn(8, 4, *SIZE, generator=torch.Generator().manual_seed(5))
    both = denoise(apply(comfy, base, loaded(**parts), frames_per_clip=4), noise)
    assert {call[:2] for call in calls} == {(16, 4)}
    exclusive_sampling = torch.cat([denoise(apply(comfy, base, loaded(**parts)), clip) for clip in noise.chunk(2)])
    assert torch.allclose(both, exclusive_sampling, rtol=1e-3, atol=1e-3 * both.std().item())
    assert not torch.allclose(both, denoise(apply(comfy, base, loaded(**parts)), noise), atol=1e-2)


@with_and_without_harivo
def test_regional_prompts(comfy, base, calls, parts):
    """Areas and masks add chunks and crops; every chunk is still a whole clip."""
    areas = conditioning(3, area=(8, 4, 0, 0), strength=1.0) + conditioning(4, area=(4, 8, 2, 0), strength=0.5)
    masked = conditioning(5, mask=torch.rand(1, 8, 8), mask_strength=1.0)
    model = apply(comfy, base, loaded(**parts))
    out = sample(model, 4, size=SIZE, positive=conditioning(1) + areas + masked)
    assert out.isfinite().all()
    assert {frames for _, frames, _ in calls} == {4} and max(rows for rows, *_ in calls) > 8


@with_and_without_harivo
def test_lora_before_and_after(comfy, base, parts):
    """Also on an Upsample that follows a motion layer."""
    patches = {f"diffusion_model.{key}": ("diff", (torch.full(value.shape, 0.05),))
               for key, value in base.model.diffusion_model.state_dict().items()
               if key in ("output_blocks.2.1.conv.weight", "input_blocks.1.1.proj_in.weight", "out.2.weight")}
    assert len(patches) == 3
    before = base.clone()
    before.add_patches(patches)
    after = apply(comfy, base, loaded(**parts))
    without = sample(after, 4, size=SIZE)
    after.add_patches(patches)
    first = sample(apply(comfy, before, loaded(**parts)), 4, size=SIZE)
    assert torch.equal(first, sample(after, 4, size=SIZE))
    assert not torch.allclose(first, without, atol=1e-2)


class FrameControl(ControlBase):
    """A ControlNet that adds each frame's own hint to the bottleneck."""

    def __init__(self, hint: torch.Tensor):
        super().__init__()
        self.set_cond_hint(hint)

    def get_control(self, x_noisy, t, cond, batched_number, transformer_options):
        hint = broadcast_image_to(self.cond_hint_original, x_noisy.shape[0], batched_number)
        bottleneck = hint.mean((1, 2, 3))[:, None, None, None].expand(-1, 128, 1, 1)
        return {"input": [], "middle": [bottleneck], "output": []}


def test_controlnet_per_frame(comfy, base):
    """A hint on the last frame reaches the first one, but only through the motion layers."""
    hints = torch.zeros(4, 3, 64, 64)
    hints[3] = 50.0
    model = apply(comfy, base, loaded())

    def change(with_model):     # against hints of zero: without any, the host calls in other batches, which round so
        controlled, plain = (sample(with_model, 4, size=SIZE, positive=conditioning(1, control=FrameControl(given)))
                             for given in (hints, torch.zeros_like(hints)))
        return (controlled - plain).abs().amax((1, 2, 3))

    exclusive_sampling, moved = change(base), change(model)
    assert exclusive_sampling[0] == 0 and exclusive_sampling[3] > 0.1 and moved[0] > 1e-3 and moved[3] > 0.1


@with_and_without_harivo
@pytest.mark.parametrize("size", [(8, 24), (24, 8), (9, 15)])
def test_sizes(comfy, base, size, parts):
    out = sample(apply(comfy, base, loaded(**parts)), 3, size=size)
    assert out.shape == (3, 4, *size) and out.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_sixteen_bit_weights(comfy, tiny_sd15, base, dtype):
    """A 16-bit image model with motion weights in fp32 and in 16 bits, near the fp32 result after one call."""
    config = MotionConfig("sd15", TINY.channels, max_frames=16)
    state = random_motion(config).state_dict()
    exact = sample(apply(comfy, base, loaded()), 4, size=SIZE, steps=1)
    model = tiny_sd15(dtype=dtype)
    for weights in (torch.float32, dtype):
        module = hold_motion(config, state, "random", dtype=weights)
        out = sample(apply(comfy, model, module), 4, size=SIZE, steps=1)
        assert out.isfinite().all()
        assert (out - exact).std() < 0.15 * exact.std()


def test_part_of_the_sampling(comfy, base, plain, calls):
    never = apply(comfy, base, loaded(), start_percent=0.0, end_percent=0.0)
    assert torch.equal(sample(never, 4, size=SIZE), plain)
    calls.clear()
    sample(apply(comfy, base, loaded(), start_percent=0.5), 4, size=SIZE, steps=4)
    active = [active for *_, active in calls]
    assert not active[0] and active[-1] and active == sorted(active)
    with pytest.raises(ValueError, match="start_percent is 0.8"):
        apply(comfy, base, loaded(), start_percent=0.8, end_percent=0.2)


def test_context_windows(comfy, base, calls):
    """The host's node cuts a long clip; every window is a clip of its own to the layers."""
    from comfy_extras.nodes_context_windows import ContextWindowsManualNode

    def windows(model, length):
        return comfy.run(ContextWindowsManualNode, model=model, context_length=length, context_overlap=2,
                         context_schedule="standard_static", context_stride=1, closed_loop=False,
                         fuse_method="pyramid", dim=0)[0]

    model = apply(comfy, base, loaded(max_frames=6))
    with pytest.raises(ValueError, match=r"10 frames at once .* limit is 6\. Add the node Context Windows"):
        sample(model, 10, size=SIZE)
    with pytest.raises(ValueError, match="8 frames at once"):
        sample(windows(model, 8), 10, size=SIZE)
    assert not calls
    out = sample(windows(model, 6), 10, size=SIZE)
    assert out.isfinite().all() and {call[:2] for call in calls} == {(12, 6)}
    assert torch.equal(sample(windows(model, 6), 4, size=SIZE), sample(model, 4, size=SIZE))
    with pytest.raises(ValueError, match="across 2 clips"):
        sample(windows(apply(comfy, base, loaded(), frames_per_clip=5), 4), 10, size=SIZE)


def test_batches_that_are_no_whole_clips(comfy, base):
    with pytest.raises(ValueError, match="10 frames and frames_per_clip is 4: 10 is not a multiple of 4"):
        sample(apply(comfy, base, loaded(), frames_per_clip=4), 10, size=SIZE)


def test_families_that_do_not_match(comfy, base, tiny_sdxl):
    config = MotionConfig("sdxl", SDXL, mid=False, max_frames=8)
    xl = SimpleNamespace(config=config, source="hotshot.safetensors")
    with pytest.raises(ValueError, match="hotshot.safetensors is for SDXL image models, but the MODEL is SD15"):
        apply(comfy, base, xl)
    with pytest.raises(ValueError, match="is for SD15 image models, but the MODEL is SDXL"):
        apply(comfy, tiny_sdxl(), loaded())
    for name in ("SD20", "Flux", "SD3", "SVD_img2vid"):
        other = object.__new__(getattr(supported_models, name))
        model = SimpleNamespace(model=SimpleNamespace(model_config=other))
        with pytest.raises(ValueError, match=f"is for SD15 image models, but the MODEL is {name}"):
            apply(comfy, model, loaded())
    wide = MotionConfig("sd15", (64, 128, 256, 256))
    with pytest.raises(ValueError, match="wide.ckpt does not fit this SD15 model"):
        apply(comfy, base, SimpleNamespace(config=wide, source="wide.ckpt"))


def test_two_motion_modules_on_one_model_are_refused(comfy, base):
    with pytest.raises(ValueError, match="already has a motion module"):
        apply(comfy, apply(comfy, base, loaded()), loaded(1))


def test_two_prompts_share_a_checkpoint(comfy, base, plain):
    """Different motion modules on clones of one model, run in turns, with the image model between them."""
    one, two = apply(comfy, base, loaded(1)), apply(comfy, base, loaded(2, mid=False))
    first, second = sample(one, 4, size=SIZE), sample(two, 4, size=SIZE)
    assert not torch.allclose(first, second, atol=1e-2)
    assert torch.equal(sample(one, 4, size=SIZE), first)
    assert torch.equal(sample(base, 4, size=SIZE), plain)
    assert torch.equal(sample(two.clone(), 4, size=SIZE), second)


@with_and_without_harivo
@pytest.mark.parametrize("when", ["loading", "first step", "last step", "inside a layer"])
def test_failure_leaves_the_model_clean(comfy, base, plain, monkeypatch, when, parts):
    model = apply(comfy, base, loaded(**parts), groupnorm="pooled")
    good = sample(model, 4, size=SIZE)

    def fail(*args, **kwargs):
        raise ZeroDivisionError

    with monkeypatch.context() as broken:
        if when == "loading":
            broken.setattr(model_management, "load_models_gpu", fail)
        elif when == "inside a layer":
            broken.setattr(motion, "run_of_call", fail)

        def callback(step, *args):
            if (when, step) in (("first step", 0), ("last step", 1)):
                fail()

        noise = torch.randn(4, 4, *SIZE)
        with pytest.raises(ZeroDivisionError):
            denoise(model, noise, callback=callback)
    assert torch.equal(sample(base, 4, size=SIZE), plain)
    assert torch.equal(sample(model, 4, size=SIZE), good)


@with_and_without_harivo
def test_cancel_leaves_the_model_clean(comfy, base, plain, parts):
    model = apply(comfy, base, loaded(**parts))

    def callback(step, *args):
        model_management.interrupt_current_processing()

    with pytest.raises(model_management.InterruptProcessingException):
        denoise(model, torch.randn(4, 4, *SIZE), callback=callback)
    model_management.interrupt_current_processing(False)
    assert torch.equal(sample(base, 4, size=SIZE), plain)


def test_group_norm_rule(comfy, base):
    """v1 files are pooled by themselves, others when asked."""
    v1, v3 = loaded(groupnorm="pooled"), loaded(groupnorm="per frame")
    official, per_frame = (sample(apply(comfy, base, module), 4, size=SIZE) for module in (v1, v3))
    asked = sample(apply(comfy, base, v3, groupnorm="pooled"), 4, size=SIZE)
    assert torch.equal(official, asked) and not torch.allclose(official, per_frame, atol=1e-2)


@pytest.mark.parametrize(("schedule", "last"), [
    ("keep", None), ("sqrt_linear", 0.012), ("linear", 0.012), ("linear (AnimateDiff-SDXL)", 0.02)])
def test_schedules(comfy, base, schedule, last):
    given = base.get_model_object("model_sampling")
    module = loaded(beta_schedule=schedule)
    found = apply(comfy, base, module).get_model_object("model_sampling")
    explicit = apply(comfy, base, loaded(), beta_schedule=schedule).get_model_object("model_sampling")
    assert torch.equal(found.sigmas, explicit.sigmas)
    if last is None:
        assert found is given
        return
    start = torch.tensor(0.00085, dtype=torch.float64)
    betas = torch.linspace(start, last, 1000, dtype=torch.float64) if schedule == "sqrt_linear" else (
        torch.linspace(start.sqrt(), last**0.5, 1000, dtype=torch.float64) ** 2)
    kept = torch.cumprod(1 - betas, 0)
    assert torch.allclose(found.sigmas, ((1 - kept) / kept).sqrt().float(), rtol=1e-4)
    assert isinstance(found, EPS)
    assert base.get_model_object("model_sampling") is given


def test_schedule_keeps_what_the_model_predicts(comfy, base):
    from comfy_extras.nodes_model_advanced import ModelSamplingDiscrete
    velocity, = comfy.run(ModelSamplingDiscrete, model=base, sampling="v_prediction", zsnr=True)
    found = apply(comfy, velocity, loaded(beta_schedule="sqrt_linear")).get_model_object("model_sampling")
    assert isinstance(found, V_PREDICTION) and found.zsnr
    consistency = apply(comfy, base, loaded(beta_schedule="lcm")).get_model_object("model_sampling")
    assert len(consistency.sigmas) == 50


def test_schedule_without_a_table_is_refused(comfy, base):
    from comfy_extras.nodes_model_advanced import ModelSamplingContinuousEDM
    continuous, = comfy.run(ModelSamplingContinuousEDM, model=base, sampling="eps", sigma_max=120.0,
                            sigma_min=0.002)
    with pytest.raises(ValueError, match="Set beta_schedule to 'keep'"):
        apply(comfy, continuous, loaded(), beta_schedule="sqrt_linear")
    assert sample(apply(comfy, continuous, loaded()), 4, size=SIZE).isfinite().all()


def test_call_outside_of_a_sampler_is_refused(comfy, base):
    model = apply(comfy, base, loaded())
    options = {"wrappers": model.wrappers, **model.model_options["transformer_options"]}
    with pytest.raises(RuntimeError, match="outside of a sampler"), torch.no_grad():
        base.model.diffusion_model(torch.zeros(4, 4, *SIZE), torch.zeros(4), context=torch.zeros(4, 7, 64),
                                   transformer_options=options)
