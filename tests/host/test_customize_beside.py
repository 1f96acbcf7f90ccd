"""Motion LoRAs beside what else a user has on, reference noise, and the rows of "bad inputs" of their specification."""
from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from control_examples import random_control_net, random_model
from guide_examples import guide_for
from h_space_examples import QUICK, comfy_sampler, guider, injected, levels, record
from motion_examples import TINY, random_motion
from training_examples import WordClip, preview_vae

from frozen_diffusion.modules.customize.absorber import Absorber, caption_notes
from frozen_diffusion.modules.customize.recipe import TEXT_INVERSION, AbsorberRecipe, MotionLoRARecipe
from frozen_diffusion.modules.demo import models
from frozen_diffusion.modules.demo.paths import path_clip, plain_look
from frozen_diffusion.modules.demo.pool import as_bytes
from frozen_diffusion.modules.demo.world import Scene
from frozen_diffusion.modules.host.control import control_frames
from frozen_diffusion.modules.host.customize.absorb import AbsorberSubject
from frozen_diffusion.modules.host.customize.files import with_motion_lora
from frozen_diffusion.modules.host.customize.reference_noise import reference_noise
from frozen_diffusion.modules.host.customize.train import MotionLoRASubject
from frozen_diffusion.modules.host.folders import SHIPPED
from frozen_diffusion.modules.host.guide.apply import GuideSettings, apply_guide
from frozen_diffusion.modules.host.hspace.inversion import invert
from frozen_diffusion.modules.host.motion.apply import apply_motion, hold_motion
from frozen_diffusion.modules.host.motion.files import find_motion_file, load_motion_file
from frozen_diffusion.modules.hspace.trace import psnr
from frozen_diffusion.modules.motion.motion_lora import MotionLoRA
from frozen_diffusion.modules.motion.temporal_lora import attention_projections
from frozen_diffusion.modules.seeding import stream
from frozen_diffusion.modules.training.driver import Driver
from frozen_diffusion.modules.training.lora_keys import Factors
from testhost.models import conditioning, with_lora

pytestmark = pytest.mark.usefixtures("unloaded")
FRAMES = 4
HARIVO = replace(TINY, temporal_convolution=True, mapping_width=8, frame_tokens=2, text_channels=64)


def motion(config=TINY):
    return hold_motion(config, random_motion(config).state_dict(), "random.safetensors")


def lora_for(module, seed=0, rank=2, size=0.3):
    layers = dict(module.named_modules())
    return MotionLoRA(f"lora {seed}", {path: Factors(
        torch.randn(rank, layers[path].in_features, generator=stream("down", seed, path)),
        size * torch.randn(layers[path].out_features, rank, generator=stream("up", seed, path)), float(rank))
        for path in attention_projections(module)})


def sample(model, cfg=3.0, steps=2, sampler="euler", frames=FRAMES, positive=None, negative=None):
    made = guider(model, cfg, positive)
    if negative is not None:
        made.set_conds(positive, negative)
    noise = torch.randn(frames, 4, 16, 16, generator=stream("beside"))
    sampler = comfy_sampler(sampler) if isinstance(sampler, str) else sampler
    return made.sample(noise, torch.zeros_like(noise), sampler, levels(model, steps), disable_pbar=True, seed=1)


def check(without, with_it, off, other):
    """The LoRA changes the clip, at strength 0 it does not, and what else is on still counts."""
    assert (with_it - without).abs().max() > 1e-3
    assert torch.equal(off, without)
    assert (with_it - other).abs().max() > 1e-3


def three(loaded, lora):
    """A motion module without the LoRA, with it, and with it at strength 0."""
    return loaded, with_motion_lora(loaded, lora, 1.0)[0], with_motion_lora(loaded, lora, 0.0)[0]


def test_harivo_modules(base):
    """Convolution, mapping network and frame tokens stay as they are."""
    loaded = motion(HARIVO)
    clips = [sample(apply_motion(base, part)) for part in three(loaded, lora_for(loaded.module))]
    plain = motion()
    check(*clips, sample(apply_motion(base, with_motion_lora(plain, lora_for(plain.module), 1.0)[0])))


def test_style_loras_before_and_after(base):
    loaded = motion()
    parts = three(loaded, lora_for(loaded.module))
    styled = with_lora(base)                    # made before the host merges anything into the weights
    after, before = ([sample(model) for model in models] for models in (
        [with_lora(apply_motion(base, part)) for part in parts], [apply_motion(styled, part) for part in parts]))
    check(*after, sample(apply_motion(base, parts[1])))
    for one, other in zip(after, before, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-3 * other.std().item())


def test_a_guide(base):
    loaded = motion()
    parts = three(loaded, lora_for(loaded.module))
    guide = guide_for(base)
    clips = [sample(apply_guide(apply_motion(base, part), guide, GuideSettings())) for part in parts]
    check(*clips, sample(apply_motion(base, parts[1])))


def test_control_frames(comfy, tmp_path):
    model = random_model()
    net = random_control_net(model, tmp_path)
    config = replace(TINY, channels=(64, 64, 128, 128))
    loaded = motion(config)
    prompts = [conditioning(seed, width=models.CONTEXT) for seed in (1, 2)]
    held = control_frames(prompts, net, torch.rand(1, 128, 128, 3, generator=stream("hint")), "0", "1.0", FRAMES, 0.0,
                          1.0)
    parts = three(loaded, lora_for(loaded.module))
    clips = [sample(apply_motion(model, part), positive=held[0], negative=held[1]) for part in parts]
    check(*clips, sample(apply_motion(model, parts[1]), positive=prompts[0], negative=prompts[1]))


def test_h_space_injection(comfy, base):
    loaded = motion()
    parts = three(loaded, lora_for(loaded.module))
    _, trace = record(comfy, apply_motion(base, loaded), steps=2, batch=FRAMES, start="content")
    clips = [sample(apply_motion(base, part), cfg=1.0, sampler=injected(trace)) for part in parts]
    check(*clips, sample(apply_motion(base, parts[1]), cfg=1.0))


def test_two_clips_in_a_batch(base):
    """(b f) with cfg's halves outside: each clip is what it is alone."""
    loaded = motion()
    on = with_motion_lora(loaded, lora_for(loaded.module, size=0.03), 1.0)[0]
    noise = torch.randn(2 * FRAMES, 4, 16, 16, generator=stream("two"))

    def clip(noise, frames_per_clip):
        model = apply_motion(base, on, frames_per_clip=frames_per_clip)
        return guider(model, 3.0).sample(noise, torch.zeros_like(noise), comfy_sampler("euler"), levels(model, 1),
                                         disable_pbar=True, seed=1)

    both = clip(noise, FRAMES)
    for number, own in enumerate(noise.split(FRAMES)):
        torch.testing.assert_close(both[number * FRAMES:(number + 1) * FRAMES], clip(own, 0), rtol=1e-3,
                                   atol=1e-3 * both.std().item())


def test_negative_strengths(base):
    """Of the residual: the change of weights is that of strength 1, turned round."""
    loaded = motion()
    lora = lora_for(loaded.module)
    turned = MotionLoRA("turned", {path: pair._replace(up=-pair.up) for path, pair in lora.factors.items()})
    minus = sample(apply_motion(base, with_motion_lora(loaded, lora, -1.0)[0]))
    torch.testing.assert_close(minus, sample(apply_motion(base, with_motion_lora(loaded, turned, 1.0)[0])))


class NoNoise:
    seed = 1

    def generate_noise(self, latent):
        return torch.zeros_like(latent["samples"])


def run_with(comfy, model, noise, latent, prompt, steps=6):
    from comfy_extras.nodes_custom_sampler import SamplerCustomAdvanced
    made = guider(model, positive=prompt)
    made.set_conds(prompt, prompt)
    return comfy.run(SamplerCustomAdvanced, noise=noise, guider=made, sampler=comfy_sampler("euler"),
                     sigmas=levels(model, steps), latent_image={"samples": latent})[0]["samples"]


@pytest.fixture(scope="module")
def sprites(comfy):
    """(MODEL that moves, prompt, a clip's latents): networks that know noise, for what only those can do."""
    from frozen_diffusion.modules.host.demo import load_sprite_world
    model, clip, vae, _ = load_sprite_world()
    moving = apply_motion(model, load_motion_file(find_motion_file(f"{SHIPPED}sprite_motion.safetensors"))[0])
    latents = vae.encode(plain_look("sway").frames[:FRAMES].movedim(1, -1))
    return moving, clip.encode_from_tokens_scheduled(clip.tokenize("")), latents


def test_reference_noise(comfy, sprites):
    """Share 1 is the inverted clip itself, share 0 the host's own noise; between them the variance stays."""
    from comfy_extras.nodes_custom_sampler import RandomNoise
    model, prompt, clip = sprites
    inverted = invert(model, prompt, clip, 6, way_back=False).noise
    empty = torch.zeros_like(clip)

    def noise(share, seed=3):
        return comfy.run("FrozenReferenceNoise", model=model, noise_latent={"samples": inverted}, share=share,
                         noise_seed=seed)[0]

    torch.testing.assert_close(run_with(comfy, model, noise(1.0), empty, prompt),
                               run_with(comfy, model, NoNoise(), inverted, prompt), rtol=1e-3, atol=1e-3)
    fresh = comfy.run(RandomNoise, noise_seed=3)[0]
    assert torch.equal(run_with(comfy, model, noise(0.0), empty, prompt), run_with(comfy, model, fresh, empty, prompt))
    unit = reference_noise(model, inverted, 1.0, 3).generate_noise({"samples": empty})
    half = noise(0.5).generate_noise({"samples": empty})
    own = fresh.generate_noise({"samples": empty})
    torch.testing.assert_close(half, 0.5 ** 0.5 * (unit + own))
    one = noise(0.5).generate_noise({"samples": empty[1:3], "batch_index": [1, 2]})
    torch.testing.assert_close(one, half[1:3])
    with pytest.raises(ValueError, match="Sample as many frames"):
        noise(0.5).generate_noise({"samples": empty[:2]})
    with pytest.raises(ValueError, match="share is from 0"):
        reference_noise(model, inverted, 1.5, 0)
    with pytest.raises(ValueError, match="spread is .* of the noise"):
        reference_noise(model, 0.05 * inverted, 1.0, 0)
    with pytest.raises(ValueError, match="not finite"):
        reference_noise(model, inverted * float("nan"), 1.0, 0)


def test_an_inverted_clip_comes_back(sprites):
    """Without a motion LoRA and at cfg 1, and the nearer the more steps (item 8)."""
    model, prompt, clip = sprites

    def found(steps):
        return psnr(clip, invert(model, prompt, clip, steps).again)

    few, many = found(4), found(20)
    assert many > few + 6 and many > 30


def test_captions_that_undo_the_method():
    """The appearance caption that tells the motion too, and an absorber that was forgotten, are said."""
    factors = {"x": Factors(torch.zeros(1, 2), torch.zeros(2, 1), 1.0)}
    assert "leave them out" in caption_notes("a fox, spinning", Absorber(factors, None, "a fox, spinning"))[0]
    assert "no absorber" in caption_notes("a fox, spinning", None)[0]
    assert caption_notes("a fox, spinning", Absorber(factors, None, "a fox")) == []


def motion_training(model, tmp_path, source, recipe=None, **more):
    recipe = recipe or MotionLoRARecipe(steps=2, rank=2, frames=4, sample_every=0)
    return MotionLoRASubject(model, preview_vae(), WordClip(), motion(), source, recipe, cache=tmp_path / "cache",
                             **more)


def test_clips_that_teach_nothing_are_told(base, tmp_path):
    """A still one, and one with a cut in it."""
    source = plain_look("sway")
    still = replace(source, frames=source.frames[:1].expand(16, -1, -1, -1), name="still")
    cut = replace(source, frames=torch.cat([source.frames[:8], 1 - source.frames[8:]]), name="cut")
    assert any("hardly anything moves in clip 1" in note for note in motion_training(base, tmp_path, still).notes)
    notes = motion_training(base, tmp_path, cut).notes
    assert any("clip 1 has a cut at frame 8" in note for note in notes)
    assert not any("clip 1" in note for note in motion_training(base, tmp_path, source).notes)


def test_a_rank_that_is_too_large(base, tmp_path):
    driver = Driver(motion_training(base, tmp_path, plain_look("sway"), MotionLoRARecipe(
        steps=2, rank=64, frames=4, sample_every=0)))
    with torch.inference_mode():
        list(driver.encode())
        with pytest.raises(ValueError, match="Set the rank to 32 at most"):
            next(driver.records())


def test_a_model_without_layers_to_change(tiny_sd15, tmp_path):
    """K6 of the peers' reports: told before the first step."""
    bare = tiny_sd15(**QUICK)
    driver = Driver(AbsorberSubject(bare, preview_vae(), WordClip(), plain_look("sway"), AbsorberRecipe(
        steps=2, crops=2), "a panda", tmp_path / "cache"))
    with torch.inference_mode():
        list(driver.encode())
        with pytest.raises(ValueError, match="beside nothing and learn nothing"):
            next(driver.records())


def test_a_full_memory_has_advice(base, tmp_path, monkeypatch):
    driver = Driver(motion_training(base, tmp_path, plain_look("sway")), tmp_path / "full.safetensors")

    def full(number):
        raise torch.OutOfMemoryError("tried to allocate")

    monkeypatch.setattr(driver.subject, "batch", full)
    with torch.inference_mode():
        list(driver.encode())
        with pytest.raises(torch.OutOfMemoryError, match="fewer frames or a smaller batch"):
            next(driver.records())


def test_vectors_are_held(comfy, tiny_sd15, tmp_path):
    """A rate that is far too high does not let them grow without end."""
    from frozen_diffusion.modules.host.demo import load_sprite_world
    recipe = AbsorberRecipe(kind=TEXT_INVERSION, steps=4, batch_size=1, crops=2, vectors=2, embedding_rate=50.0)
    driver = Driver(AbsorberSubject(tiny_sd15(context_dim=128), preview_vae(), load_sprite_world()[1],
                                    plain_look("sway"), recipe, "a panda", tmp_path / "cache"))
    with torch.inference_mode():
        list(driver.encode())
        for _ in driver.records():
            pass
        driver.subject.batch(5)
    lengths = driver.result().vectors.norm(dim=1)
    assert (lengths <= driver.subject.words.longest * 1.001).all()


def test_clips_of_different_sizes(comfy, tmp_path):
    """The dataset brings them to one size, and a motion is learned from both."""
    from clip_examples import write_video
    scene = Scene("fox", "large", "middle", "blue", "plain")
    for name, step in (("a", 1), ("b", 2)):
        pixels = as_bytes(path_clip(scene, "sway"))[..., ::step, ::step]
        write_video(tmp_path / f"{name}.mp4", pixels.movedim(1, -1).numpy(), fps=8)
        (tmp_path / f"{name}.txt").write_text("a fox, swaying")
    clips = comfy.run("FrozenClipDataset", source="folder", folder=str(tmp_path), frames=8, fps=8.0, width=64,
                      height=64, stride=0.0, max_clips=0, mirror=False, keep_still=False, seed=0)[0]
    assert {tuple(clips.pixels(index).shape) for index in range(len(clips))} == {(8, 3, 64, 64)} and len(clips) >= 2
