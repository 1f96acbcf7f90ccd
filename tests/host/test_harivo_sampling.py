"""HARIVO's parts through the host's samplers: mapping, frame tokens, mitigating gradient, clip noise, FreeInit."""
from __future__ import annotations

import pytest
import torch
from comfy.patcher_extension import WrappersMP
from comfy.sample import sample as ksample
from comfy.samplers import KSAMPLER, CFGGuider, Sampler, sampler_object
from comfy_extras import nodes_custom_sampler as custom
from comfy_extras.nodes_context_windows import ContextWindowsManualNode
from motion_examples import TINY, random_motion

from frozen_diffusion.modules.host.clip_noise import ClipNoise
from frozen_diffusion.modules.host.motion.apply import hold_motion
from frozen_diffusion.modules.motion.mitigating_gradient import mitigate, step_size
from frozen_diffusion.modules.motion.module import MotionConfig
from testhost.models import conditioning, latent, sample

pytestmark = pytest.mark.usefixtures("unloaded")

SIZE = (8, 8)


def context_width(model) -> int:
    return model.model.model_config.unet_config["context_dim"]


def harivo(model, seed: int = 0, **settings):
    """A module with random weights and HARIVO's parts."""
    config = MotionConfig("sd15", TINY.channels, max_frames=16,
                          **{"mapping_width": 16, "frame_tokens": 4, "text_channels": context_width(model), **settings})
    return hold_motion(config, random_motion(config, seed).state_dict(), f"random {seed}")


def apply(comfy, model, module, **changes):
    node = comfy.node("FrozenApplyMotionModule")
    defaults = {entry.id: entry.default for entry in node.GET_SCHEMA().inputs if hasattr(entry, "default")}
    return comfy.run("FrozenApplyMotionModule", model=model, motion_module=module, **{**defaults, **changes})[0]


def mitigating(comfy, model, **changes):
    settings = {"alpha": 40.0, "mode": "fast", "order": 1, "start_percent": 0.0, "end_percent": 1.0,
                "frames_per_clip": 0, "locked_frames": "", **changes}
    return comfy.run("FrozenMitigatingGradient", model=model, **settings)[0]


def in_windows(comfy, model, length: int):
    return comfy.run(ContextWindowsManualNode, model=model, context_length=length, context_overlap=1,
                     context_schedule="standard_static", context_stride=1, closed_loop=False, fuse_method="pyramid",
                     dim=0)[0]


@pytest.fixture
def seen():
    """Spies on what the U-Net gets: (x, context) of every call, and what ControlNet would have got."""
    return []


def spy(model, seen):
    """The MODEL with a wrapper innermost, behind those of the motion module."""
    model = model.clone()

    def wrapper(executor, x, timesteps, context, *args, **kwargs):
        seen.append((x, context))
        return executor(x, timesteps, context, *args, **kwargs)

    model.add_wrapper_with_key(WrappersMP.DIFFUSION_MODEL, "spy", wrapper)
    return model


def test_switches_turn_the_parts_off_one_by_one(comfy, base):
    full = harivo(base)
    state = {name: value for name, value in full.module.state_dict().items() if not name.startswith("harivo.")}
    plain = apply(comfy, base, hold_motion(MotionConfig("sd15", TINY.channels, max_frames=16), state, "plain"))
    off = apply(comfy, base, full, mapping="off", frame_tokens=False)
    assert torch.equal(sample(off, 4, size=SIZE), sample(plain, 4, size=SIZE))
    results = [sample(apply(comfy, base, full, **changes), 4, size=SIZE) for changes in (
        {}, {"mapping": "off"}, {"frame_tokens": False}, {"mapping": "first_step"})]
    for index, result in enumerate(results):
        assert result.isfinite().all()
        assert not any(torch.allclose(result, other, atol=1e-4) for other in results[index + 1:])


@pytest.mark.parametrize("sampler", ["euler", "dpm_fast"])
def test_first_step_maps_the_first_call_of_every_sampler(comfy, base, seen, sampler):
    """Some samplers go through the logarithm of the noise level, which does not come back the same."""
    first = []
    for mapping in ("first_step", "every_step", "off"):
        seen.clear()
        sample(spy(apply(comfy, base, harivo(base), mapping=mapping), seen), 4, size=SIZE, steps=3, sampler=sampler,
               scheduler="simple")
        first.append(seen[0][0])
    assert torch.equal(first[0], first[1]) and not torch.equal(first[0], first[2])


def test_what_the_unet_gets(comfy, base, seen):
    text = conditioning(1)[0][0]
    sample(spy(apply(comfy, base, harivo(base)), seen), 4, size=SIZE)
    assert all(context.shape[1] == text.shape[1] + 4 for _, context in seen)
    seen.clear()
    sample(spy(apply(comfy, base, harivo(base), frame_tokens=False, mapping="first_step"), seen), 4, size=SIZE, steps=3)
    mapped = [x for x, _ in seen]
    seen.clear()
    sample(spy(apply(comfy, base, harivo(base), frame_tokens=False, mapping="off"), seen), 4, size=SIZE, steps=3)
    assert not torch.equal(mapped[0], seen[0][0]) and len(mapped) == len(seen)
    assert all(context.shape[1] == text.shape[1] for _, context in seen)


def test_negative_tokens_off_leaves_the_negative_prompt_its_last_word(comfy, base, seen):
    """The lengths stay equal, so that the host may still run both prompts at once, and the positive prompt's stay."""
    for negative_tokens in (True, False):
        sample(spy(apply(comfy, base, harivo(base), negative_tokens=negative_tokens), seen), 4, size=SIZE, steps=1)
    (_, both), (_, positive) = seen
    last = both[:, -5:-4].expand(-1, 4, -1)
    differs = (both != positive).flatten(1).any(1)
    assert both.shape == positive.shape == (8, *both.shape[1:]) and differs.sum() == 4
    assert torch.equal(positive[differs, -4:], last[differs]) and not torch.equal(both[~differs, -4:], last[~differs])
    negative = conditioning(2)[0][0].expand(4, -1, -1)
    assert torch.equal(both[differs, :-4], negative)


@pytest.mark.parametrize("changes", [{"strength": 0.0}, {"frames_per_clip": 1}])
def test_single_frames_and_strength_zero_are_the_image_model(comfy, base, changes):
    assert torch.equal(sample(apply(comfy, base, harivo(base), **changes), 4, size=SIZE), sample(base, 4, size=SIZE))


def test_tokens_keep_absolute_time_in_context_windows(comfy, base, monkeypatch):
    from frozen_diffusion.modules.motion.module import MotionModule
    timestamps = []
    real = MotionModule.add_tokens
    monkeypatch.setattr(MotionModule, "add_tokens",
                        lambda self, context, at: timestamps.append(at.tolist()) or real(self, context, at))
    model = apply(comfy, base, harivo(base), fps=4.0)
    windows = in_windows(comfy, model, 4)
    assert sample(windows, 8, size=SIZE).isfinite().all()
    assert [0, 0.25, 0.5, 0.75] in timestamps and max(max(window) for window in timestamps) == 7 / 4


def test_prompts_that_differ_by_frame_get_their_own_tokens(base):
    module = harivo(base).module
    text, seconds = torch.randn(4, 7, context_width(base)), torch.arange(4) / 8
    with torch.no_grad():
        mixed = module.add_tokens(text, seconds)
        for frame in range(4):
            exclusive_sampling = module.add_tokens(text[frame].expand(4, -1, -1), seconds)
            torch.testing.assert_close(mixed[frame], exclusive_sampling[frame])


def test_alpha_zero_is_off(comfy, base):
    assert torch.equal(sample(mitigating(comfy, base, alpha=0.0), 4, size=SIZE), sample(base, 4, size=SIZE))


@pytest.mark.parametrize("sampler", ["euler", "ddim", "dpmpp_2m", "euler_ancestral"])
def test_every_sampler_feels_it(comfy, base, sampler):
    plain, smooth = (sample(model, 6, size=SIZE, sampler=sampler)
                     for model in (base, mitigating(comfy, base, alpha=800.0)))
    roughness = [torch.diff(x, dim=0).square().mean() for x in (plain, smooth)]
    assert roughness[1] < 0.9 * roughness[0]


@pytest.mark.parametrize("order", [1, 2])
def test_one_step_is_the_formula(comfy, base, order):
    """One Euler step to zero returns the denoised prediction itself."""
    sigma = base.get_model_object("model_sampling").sigma_max.item()
    plain = sample(base, 6, size=SIZE, steps=1)
    smooth = sample(mitigating(comfy, base, alpha=150.0, order=order), 6, size=SIZE, steps=1)
    expected = mitigate(plain[None], step_size(150.0, sigma, order), order)[0]
    torch.testing.assert_close(smooth, expected, atol=1e-5, rtol=1e-4)


def ddim(model, x, sigmas, extra_args, callback=None, disable=None):
    """DDIM with eta 0 in its own terms, x_t = sqrt(abar) x0 + sqrt(1 - abar) eps (Song et al., ICLR 2021, eq. 12)."""
    for sigma, following in zip(sigmas[:-1], sigmas[1:], strict=True):
        abar, then = 1 / (1 + sigma ** 2), 1 / (1 + following ** 2)
        x0 = model(x, sigma.expand(len(x)), **extra_args)
        eps = (abar.sqrt() * x - abar.sqrt() * x0) / (1 - abar).sqrt()
        x = (then.sqrt() * x0 + (1 - then).sqrt() * eps) / then.sqrt()
    return x


def test_one_step_is_the_same_through_euler_and_ddim(comfy, base):
    """Between two levels and down to zero; with the smoothing, which without it would be missed (harivo.md 8.4 h)."""
    noise = torch.randn(6, 4, *SIZE, generator=torch.Generator().manual_seed(5))

    def step(model, sampler, sigmas):
        guider = CFGGuider(model)
        guider.set_conds(conditioning(1), conditioning(2))
        guider.set_cfg(4.0)
        return guider.sample(noise, torch.zeros_like(noise), sampler, torch.tensor(sigmas), disable_pbar=True, seed=0)

    for sigmas in ([10.0, 3.0], [10.0, 0.0]):
        model = mitigating(comfy, base, alpha=150.0)
        euler = step(model, sampler_object("euler"), sigmas)
        assert torch.equal(step(model, sampler_object("ddim"), sigmas), euler)          # the host's is Euler
        torch.testing.assert_close(step(model, KSAMPLER(ddim), sigmas), euler, rtol=1e-4, atol=1e-4)
        assert not torch.allclose(step(base, KSAMPLER(ddim), sigmas), euler, atol=1e-2)


@pytest.mark.parametrize("motion", [False, True], ids=["image model", "motion module"])
@pytest.mark.parametrize("alpha", [0.0, 150.0])
def test_a_masked_first_frame_stays_and_its_neighbours_follow_it(comfy, base, motion, alpha):
    model = mitigating(comfy, apply(comfy, base, harivo(base)) if motion else base, alpha=alpha)
    noise = torch.randn(4, 4, *SIZE, generator=torch.Generator().manual_seed(5))
    mask = torch.ones(4, 1, *SIZE)
    mask[0] = 0

    def clip(first):
        given = torch.cat([first[None], torch.zeros(3, *first.shape)])
        return ksample(model, noise, 3, 4.0, "euler", "normal", conditioning(1), conditioning(2), given,
                       noise_mask=mask, disable_pbar=True, seed=0)

    firsts = torch.randn(2, 4, *SIZE, generator=torch.Generator().manual_seed(6)) * 5
    clips = [clip(first) for first in firsts]
    for kept, first in zip(clips, firsts, strict=True):
        torch.testing.assert_close(kept[0], first, rtol=1e-5, atol=1e-5)                # the host's factor and back
        assert kept.isfinite().all()
    assert (torch.equal(clips[0][1], clips[1][1]) if not motion and not alpha
            else (clips[0][1] - clips[1][1]).abs().mean() > 1e-3)


def test_locked_frames_and_clips(comfy, base):
    plain = sample(base, 6, size=SIZE, steps=1)
    model = mitigating(comfy, base, alpha=500.0, locked_frames="0, -1", frames_per_clip=3)
    smooth = sample(model, 6, size=SIZE, steps=1)
    same = [torch.equal(a, b) for a, b in zip(plain, smooth, strict=True)]
    assert same == [True, False, True, True, False, True]


def test_part_of_the_sampling(comfy, base):
    def clip(**changes):
        return sample(mitigating(comfy, base, alpha=500.0, **changes), 4, size=SIZE, steps=2)

    plain = sample(base, 4, size=SIZE, steps=2)
    assert torch.equal(clip(start_percent=1.0), plain) and torch.equal(clip(end_percent=0.0), plain)
    early, late, whole = clip(end_percent=0.5), clip(start_percent=0.5), clip()
    for one, other in ((early, plain), (late, plain), (early, whole), (late, whole)):
        assert not torch.allclose(one, other, atol=1e-3)


@pytest.mark.parametrize("changes", [{"frames_per_clip": 4}, {"locked_frames": "7"}, {"locked_frames": "x"}])
def test_wrong_settings_are_refused(comfy, base, changes):
    with pytest.raises(ValueError, match=next(iter(changes))):
        sample(mitigating(comfy, base, **changes), 6, size=SIZE)


@pytest.mark.parametrize(("kind", "order"), [("image model", 1), ("image model", 2), ("motion module", 1),
                                             ("context windows", 1)])
def test_exact_is_the_gradient_through_the_unet(comfy, tiny_sd15, kind, order):
    """Against finite differences of the energy: one Euler step to zero gives x0 - alpha sigma^2 grad_x E."""
    with torch.inference_mode():                                # as the loaders' nodes make their weights
        base = tiny_sd15()
        if kind != "image model":
            base = apply(comfy, base, harivo(base))
    if kind == "context windows":
        base = in_windows(comfy, base, 2)
    settings = {"steps": 1, "cfg": 2.0, "sampler_name": "euler", "scheduler": "normal", "positive": conditioning(1),
                "negative": conditioning(2), "disable_pbar": True, "seed": 0}
    noise = torch.randn(3, 4, *SIZE, generator=torch.Generator().manual_seed(5))

    def predicted(model, x):
        return ksample(model, x, latent_image=torch.zeros_like(x), **settings)

    sigma = base.get_model_object("model_sampling").sigma_max.item()
    scale = (1 + sigma ** 2) ** 0.5                             # of the host's first x over the noise given
    factor = base.model.latent_format.scale_factor
    plain, alpha = predicted(base, noise), 30.0
    with torch.inference_mode():                                # as the host runs its nodes
        exact = predicted(mitigating(comfy, base, alpha=alpha, mode="exact", order=order), noise)
    direction = torch.randn(noise.shape, generator=torch.Generator().manual_seed(6))

    def energy(x):
        return torch.diff(predicted(base, x) * factor, n=order, dim=0).double().square().sum() / 2 / 4096

    step = 1e-2
    slope = (energy(noise + step * direction) - energy(noise - step * direction)) / (2 * step) / scale
    ours = ((plain - exact) * factor / (alpha * sigma ** 2) * direction).sum().double()
    assert ours.item() == pytest.approx(slope.item(), rel=2e-2)


def test_exact_refuses_a_model_that_is_loaded_in_parts(comfy, base):
    model = mitigating(comfy, base, mode="exact")
    model.model.model_lowvram = True
    try:
        with pytest.raises(ValueError, match="fast"):
            from frozen_diffusion.modules.host.motion.mitigating_gradient import check_gradients
            check_gradients(model)
    finally:
        model.model.model_lowvram = False


def advanced(comfy, model, noise, sampler="euler", frames=6, wrap=None):
    """SamplerCustomAdvanced with given noise; `wrap` changes the sampler."""
    guider, = comfy.run(custom.CFGGuider, model=model, positive=conditioning(1), negative=conditioning(2), cfg=4.0)
    sigmas, = comfy.run(custom.BasicScheduler, model=model, scheduler="normal", steps=2, denoise=1.0)
    chosen, = comfy.run(custom.KSamplerSelect, sampler_name=sampler)
    out, _ = comfy.run(custom.SamplerCustomAdvanced, noise=noise, guider=guider, sigmas=sigmas,
                       sampler=wrap(chosen) if wrap else chosen, latent_image=latent(frames, *SIZE))
    return out["samples"]


def clip_noise(comfy, **changes):
    settings = {"noise_seed": 0, "kind": "iid", "alpha": 1.0, "window": 3, "frames_per_clip": 0, **changes}
    return comfy.run("FrozenClipNoise", **settings)[0]


def test_iid_clip_noise_is_the_hosts(comfy, base):
    ours = advanced(comfy, base, clip_noise(comfy))
    assert torch.equal(ours, advanced(comfy, base, comfy.run(custom.RandomNoise, noise_seed=0)[0]))


@pytest.mark.parametrize("kind", ["pyoco mixed", "pyoco progressive", "freenoise"])
def test_correlated_noise_samples_and_repeats(comfy, base, kind):
    noise = clip_noise(comfy, kind=kind, frames_per_clip=3)
    first = noise.generate_noise(latent(6, *SIZE))
    assert first.shape == (6, 4, *SIZE) and torch.equal(first, noise.generate_noise(latent(6, *SIZE)))
    assert not torch.equal(first[:3], first[3:])                # the second clip has noise of its own
    assert advanced(comfy, base, noise).isfinite().all()


@pytest.mark.fault("E4")
@pytest.mark.parametrize("frames_per_clip", [0, 4])
@pytest.mark.parametrize("kind", ["iid", "pyoco mixed", "pyoco progressive", "freenoise"])
def test_frames_of_a_batch_have_their_noise_of_the_whole_batch(comfy, kind, frames_per_clip):
    """Latent From Batch: by batch_index, though what is taken is no whole clip and the end of the batch is unknown."""
    noise, batch = clip_noise(comfy, kind=kind, frames_per_clip=frames_per_clip), latent(12, *SIZE)
    whole = noise.generate_noise(batch)
    for start, length in ((0, 2), (3, 3), (5, 7), (11, 1)):
        part, = comfy.run("LatentFromBatch", samples=batch, batch_index=start, length=length)
        assert torch.equal(noise.generate_noise(part), whole[start:start + length])
    scattered = {"samples": batch["samples"][:3], "batch_index": [9, 2, 2]}
    assert torch.equal(noise.generate_noise(scattered), whole[[9, 2, 2]])


@pytest.mark.fault("E4")
def test_video_latents_and_a_batch_index_that_does_not_fit():
    noise = ClipNoise(3, "pyoco progressive", 1.0, 3, 0)
    videos = {"samples": torch.zeros(3, 4, 5, *SIZE)}           # [b, C, f, H, W]: an index is of a whole clip
    whole = noise.generate_noise(videos)
    taken = {"samples": videos["samples"][:2], "batch_index": [2, 0]}
    assert torch.equal(noise.generate_noise(taken), whole[[2, 0]])
    with pytest.raises(ValueError, match=r"3 frames, but its batch_index is \[0, 1\]"):
        noise.generate_noise({**latent(3, *SIZE), "batch_index": [0, 1]})


def test_noise_for_a_batch_that_is_no_whole_clips_is_refused():
    with pytest.raises(ValueError, match="not a multiple of 4"):
        ClipNoise(0, "pyoco mixed", 1.0, 3, 4).generate_noise(latent(6, *SIZE))


def test_freeinit(comfy, base):
    def freeinit(**changes):
        settings = {"iterations": 2, "filter": "gaussian", "spatial_cutoff": 0.25, "temporal_cutoff": 0.25,
                    "frames_per_clip": 0, **changes}
        return advanced(comfy, base, clip_noise(comfy),
                        wrap=lambda sampler: comfy.run("FrozenFreeInit", sampler=sampler, **settings)[0])

    plain = advanced(comfy, base, clip_noise(comfy))
    assert torch.equal(freeinit(iterations=1), plain)
    twice = freeinit()
    assert twice.isfinite().all() and not torch.allclose(twice, plain, atol=1e-3)
    assert torch.equal(twice, freeinit())


def test_freeinit_keeps_the_low_frequencies_of_the_noised_clip(comfy, base):
    """x_T of the second pass against x0 / sigma + eps of the first, frequency by frequency; a sharp filter."""
    passes, euler = [], sampler_object("euler")

    class Recording(Sampler):
        def sample(self, model_wrap, sigmas, extra_args, callback, noise, *args):
            x0 = euler.sample(model_wrap, sigmas, extra_args, callback, noise, *args)
            passes.append((float(sigmas[0]), noise, x0))
            return x0

    cutoff = 0.5
    advanced(comfy, base, clip_noise(comfy), wrap=lambda sampler: comfy.run(
        "FrozenFreeInit", sampler=Recording(), iterations=2, filter="ideal", spatial_cutoff=cutoff,
        temporal_cutoff=cutoff, frames_per_clip=0)[0])
    (sigma, noise, x0), (_, second, _) = passes
    clip, given = (torch.fft.fftn(x.double(), dim=(0, 2, 3)) for x in (x0 / sigma + noise, second))
    frequency = [2 * torch.fft.fftfreq(size).abs() for size in (len(noise), *SIZE)]         # 1 is the highest
    f, y, x = torch.meshgrid(*frequency, indexing="ij")
    low = ((f / cutoff) ** 2 + (y / cutoff) ** 2 + (x / cutoff) ** 2 <= 1)[:, None].expand_as(clip)
    assert 0 < low.sum() < low.numel() / 2
    torch.testing.assert_close(given[low], clip[low], rtol=1e-4, atol=1e-3)
    assert not torch.isclose(given[~low], clip[~low], rtol=0.01, atol=0.01).any()
