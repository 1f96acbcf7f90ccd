"""A guide model beside what else a user has on: the rows of "edge cases and bad inputs" of its specification."""
from __future__ import annotations

import importlib
import logging
import random

import comfy.model_management
import pytest
import torch
from comfy.patcher_extension import WrappersMP
from guide_examples import guide_for
from h_space_examples import SIZE, comfy_sampler, guider, levels, run
from motion_examples import TINY, random_motion

from frozen_diffusion.modules.demo.world import caption, random_scene
from frozen_diffusion.modules.guide.files import marks_of_text
from frozen_diffusion.modules.host.guide.apply import HYBRID, GuideSettings, apply_guide, scales_of
from frozen_diffusion.modules.host.motion.apply import apply_motion, hold_motion
from frozen_diffusion.modules.seeding import stream
from testhost.models import conditioning


def counted(model):
    """(the MODEL, the rows of each of its U-Net's calls)."""
    model, rows = model.clone(), []

    def look(executor, x, *args, **kwargs):
        rows.append(len(x))
        return executor(x, *args, **kwargs)

    model.add_wrapper_with_key(WrappersMP.DIFFUSION_MODEL, "counted", look)
    return model, rows


def sample(model, cfg=5.0, sampler="euler", **more):
    return run(model, comfy_sampler(sampler), cfg, steps=3, **more)


def by(guider_, batch=1, steps=2, size=(SIZE, SIZE)):
    """A guider's samples."""
    noise = torch.randn(batch, 4, *size, generator=stream("beside"))
    return guider_.sample(noise, torch.zeros_like(noise), comfy_sampler("euler"), levels(guider_.model_patcher, steps),
                          disable_pbar=True, seed=1)


@pytest.fixture
def lines(caplog):
    """What the pack has said since it was asked the last time."""
    caplog.set_level(logging.INFO)

    def said():
        found = [record.message for record in caplog.records if "Frozen Diffusion" in record.message]
        caplog.clear()
        return found
    return said


OTHERS = {
    "FreeU_V2": {"b1": 1.3, "b2": 1.4, "s1": 0.9, "s2": 0.2},
    "HyperTile": {"tile_size": 64, "swap_size": 2, "max_depth": 0, "scale_depth": False},
    "TomePatchModel": {"ratio": 0.3},
    "EasyCache": {"reuse_threshold": 0.2, "start_percent": 0.15, "end_percent": 0.95, "verbose": False},
    "LazyCache": {"reuse_threshold": 0.2, "start_percent": 0.15, "end_percent": 0.95, "verbose": False},
    "PerturbedAttentionGuidance": {"scale": 3.0},
    "PatchModelAddDownscale": {"block_number": 1, "downscale_factor": 2.0, "start_percent": 0.0, "end_percent": 1.0,
                               "downscale_after_skip": True, "downscale_method": "bicubic",
                               "upscale_method": "bicubic"},
}


@pytest.mark.parametrize("before", [True, False])
@pytest.mark.parametrize("name", OTHERS)
def test_beside_other_nodes(comfy, base, name, before):
    """In either order: no second pass for a negative prompt, and the guide changes the picture."""
    kinds = {"FreeU_V2": "freelunch", "HyperTile": "hypertile", "TomePatchModel": "tomesd", "EasyCache": "easycache",
             "LazyCache": "easycache", "PerturbedAttentionGuidance": "pag",
             "PatchModelAddDownscale": "model_downscale"}
    module = importlib.import_module(f"comfy_extras.nodes_{kinds[name]}")
    kind = getattr(module, name, None) or getattr(module, f"{name}Node")
    loaded = guide_for(base)

    def other(model):
        return comfy.run(kind, model=model, **OTHERS[name])[0]

    def guided(model):
        return apply_guide(model, loaded, GuideSettings())

    model, rows = counted(guided(other(base)) if before else other(guided(base)))
    made = sample(model)
    assert made.isfinite().all() and set(rows) == {1}
    assert (made - sample(other(base), 1.0)).abs().max() > 1e-3


@pytest.mark.parametrize("name", ["APG", "TCFG", "CFGZeroStar", "RescaleCFG"])
def test_nodes_of_two_predictions_do_nothing_and_are_named(comfy, base, lines, name):
    """APG by itself takes the missing prediction for one of zeros and burns the picture."""
    from comfy_extras.nodes_apg import APG
    from comfy_extras.nodes_cfg import CFGZeroStar
    from comfy_extras.nodes_model_advanced import RescaleCFG
    from comfy_extras.nodes_tcfg import TCFG
    kind, inputs = {"APG": (APG, {"eta": 1.0, "norm_threshold": 5.0, "momentum": 0.5}), "TCFG": (TCFG, {}),
                    "CFGZeroStar": (CFGZeroStar, {}), "RescaleCFG": (RescaleCFG, {"multiplier": 0.7})}[name]
    loaded = guide_for(base)
    plain = sample(apply_guide(base, loaded, GuideSettings()))
    lines()
    made = sample(comfy.run(kind, model=apply_guide(base, loaded, GuideSettings()), **inputs)[0])
    torch.testing.assert_close(made, plain, rtol=1e-3, atol=1e-3)
    named = name != "CFGZeroStar"           # it acts behind the guidance, as nodes do that need no second prediction
    assert sum("in one pass there is only one: it does nothing here" in line for line in lines()) == named


def test_self_attention_guidance_makes_two_passes_and_says_so(comfy, base, lines):
    from comfy_extras.nodes_sag import SelfAttentionGuidance
    model = comfy.run(SelfAttentionGuidance, model=apply_guide(base, guide_for(base), GuideSettings()), scale=0.5,
                      blur_sigma=2.0)[0]
    assert sample(model).isfinite().all()
    assert sum("saves no time here" in line for line in lines()) == 1


def test_a_negative_prompt_that_is_not_read_is_told(base, lines):
    """Only where its text is not empty (G1); what reads it is named. Hybrid says what it costs."""
    def told(loaded, negative, **settings):
        made = guider(apply_guide(base, loaded, GuideSettings(**settings)), 5.0)
        made.set_conds(conditioning(1), negative)
        lines()
        by(made)
        return lines()

    empty = conditioning(2)
    knowing = guide_for(base, empty_text=tuple(marks_of_text(empty[0][0]).tolist()))
    zeros = [[torch.zeros_like(empty[0][0]), {}]]
    assert told(knowing, empty) == [] and told(knowing, zeros) == []
    for loaded in (knowing, guide_for(base)):
        said, = told(loaded, conditioning(3))
        assert "negative prompt is not empty" in said and "negative-aware guide" in said and "hybrid" in said
    said, = told(knowing, conditioning(3), guidance=5.0, mode=HYBRID)
    assert "two passes a step" in said


def test_a_negative_aware_guide_reads_it(base, lines):
    """In one pass; the prompt as its own negative is no guidance at all, exactly; without a negative it refuses."""
    aware = guide_for(base, negative_aware=True)

    def made(negative, positive=None, cfg=5.0):
        model, rows = counted(apply_guide(base, aware, GuideSettings()))
        own = guider(model, cfg)
        own.set_conds(positive or conditioning(1), negative)
        return by(own, steps=3), rows

    one, rows = made(conditioning(2))
    two, _ = made(conditioning(3))
    assert rows == [1, 1, 1] and (one - two).abs().max() > 1e-3 and lines() == []
    same, _ = made(conditioning(1))
    assert torch.equal(same, made(conditioning(2), cfg=1.0)[0])
    longer, _ = made(conditioning(2, tokens=154))
    assert longer.isfinite().all() and (longer - one).abs().max() > 1e-3
    both, _ = made(conditioning(2) + conditioning(3))
    torch.testing.assert_close(both, one)
    assert any("reads the first" in line for line in lines())
    ranged = conditioning(3, start_percent=0.0, end_percent=0.4) + conditioning(2, start_percent=0.4, end_percent=1.0)
    parts, _ = made(ranged)
    assert (parts - one).abs().max() > 1e-3 and (parts - two).abs().max() > 1e-3
    import comfy.samplers
    none = comfy.samplers.CFGGuider(apply_guide(base, aware, GuideSettings(guidance=5.0)))
    none.inner_set_conds({"positive": conditioning(1)})
    with pytest.raises(ValueError, match="has no negative prompt at this step.*it may be empty"):
        by(none)


def test_several_prompts_each_get_their_own_walk(base):
    """Halves by masks, a crop by an area, parts of the sampling: what each text adds stands on its own rows."""
    loaded = guide_for(base)
    model = apply_guide(base, loaded, GuideSettings())

    def made(*positive):
        own = guider(model, 5.0)
        own.set_conds([each for prompt in positive for each in prompt], conditioning(2))
        return by(own, size=(16, 16))

    def half(seed, side):
        mask = torch.zeros(1, 16, 16)
        mask[..., side * 8:side * 8 + 8] = 1
        return conditioning(seed, mask=mask, mask_strength=1.0)

    whole = made(conditioning(1))
    torch.testing.assert_close(made(half(1, 0), half(1, 1)), whole, rtol=1e-3, atol=1e-3)
    assert (made(half(1, 0), half(3, 1)) - whole).abs().max() > 1e-3
    assert made(conditioning(1), conditioning(3, area=(8, 16, 0, 0), strength=1.0)).isfinite().all()
    late = made(conditioning(1, start_percent=0.0, end_percent=0.4),
                conditioning(3, start_percent=0.4, end_percent=1.0))
    assert (late - whole).abs().max() > 1e-3


def test_prompts_of_any_length(base):
    model = apply_guide(base, guide_for(base), GuideSettings())
    own = guider(model, 5.0)
    own.set_conds(conditioning(1, tokens=231), conditioning(2))
    assert by(own).isfinite().all()


def test_scales_of_the_pictures_of_a_batch(base):
    """Each its own; 1 is off; a list that names too few is refused, and what is no number."""
    loaded = guide_for(base)
    given = apply_guide(base, loaded, GuideSettings(scales=scales_of("1, 3 7")))
    batch = by(guider(given, 5.0), batch=3)
    for row, scale in enumerate((1.0, 3.0, 7.0)):
        alone = by(guider(apply_guide(base, loaded, GuideSettings(guidance=scale)), 5.0), batch=3)
        torch.testing.assert_close(batch[row], alone[row], rtol=1e-4, atol=1e-4)
    with pytest.raises(ValueError, match="scales for 3 pictures, and the batch has at least 4"):
        by(guider(given, 5.0), batch=4)
    with pytest.raises(ValueError, match="numbers such as 2, 5, 8; 'high' was given"):
        scales_of("high")
    with pytest.raises(ValueError, match="numbers from 0 on"):
        apply_guide(base, loaded, GuideSettings(scales=(2.0, -1.0)))


def test_an_inpainting_model(tiny_sd15, lines):
    """The guide sees the four channels of the latents, and that this was not measured is said once."""
    model = tiny_sd15(in_channels=9)
    made = guider(apply_guide(model, guide_for(model), GuideSettings()), 5.0)
    assert by(made).isfinite().all()
    assert sum("more than 4 input channels" in line for line in lines()) == 1


def test_frames_of_a_motion_module(base):
    """Frames are rows of one pass; scales can be given a frame each."""
    model = apply_motion(base, hold_motion(TINY, random_motion().state_dict(), "random"))
    model, rows = counted(apply_guide(model, guide_for(base), GuideSettings()))
    made = by(guider(model, 5.0), batch=4)
    assert rows == [4, 4] and made.isfinite().all()


def test_a_fed_guide_reads_the_bases_features(base):
    """Another base, other residuals, of the same latents; and it is a guide like any other."""
    fed, plain = guide_for(base, fed=True), guide_for(base)
    assert sum(weight.numel() for weight in fed.network.parameters()) > sum(
        weight.numel() for weight in plain.network.parameters())
    model, rows = counted(apply_guide(base, fed, GuideSettings()))
    made = sample(model)
    assert rows == [1] * 3 and (made - sample(base, 1.0)).abs().max() > 1e-3
    assert torch.equal(sample(apply_guide(base, fed, GuideSettings())), made)


def test_the_guide_gets_timesteps_not_sigmas(base, monkeypatch):
    loaded, seen = guide_for(base), []
    walk = loaded.network.walk

    def look(x, t, *rest):
        seen.append((float(t[0]), float(x.std())))
        return walk(x, t, *rest)

    monkeypatch.setattr(loaded.network, "walk", look)
    run(apply_guide(base, loaded, GuideSettings()), comfy_sampler("euler"), 5.0, steps=3)
    assert seen[0][0] == pytest.approx(999, abs=1) and seen[0][1] == pytest.approx(1, abs=0.2)
    assert [t for t, _ in seen] == sorted((t for t, _ in seen), reverse=True) and len(seen) == 3


def test_numbers_that_are_not_finite_end_the_run(base):
    loaded = guide_for(base)
    broken = loaded.network.outputs[2].weight
    with torch.no_grad():
        kept = broken.clone()
        broken.fill_(3e38)
    with pytest.raises(ValueError, match="gave numbers that are not finite, at g 5 in"):
        sample(apply_guide(base, loaded, GuideSettings()))
    with torch.no_grad():
        broken.copy_(kept)
    assert sample(apply_guide(base, loaded, GuideSettings())).isfinite().all()


def test_other_noise_levels_than_those_of_stage_2(base, lines):
    grid = tuple(float(level) for level in levels(base, 2))
    loaded = guide_for(base, sigmas=grid)
    by(guider(apply_guide(base, loaded, GuideSettings()), 5.0), steps=2)
    assert not any("Stage-2 Sigmas" in line for line in lines())
    by(guider(apply_guide(base, loaded, GuideSettings()), 5.0), steps=3)
    assert sum("was taught 2 steps" in line and "Use Stage-2 Sigmas" in line for line in lines()) == 1


def test_a_sampler_of_distilled_models_is_told(base, lines):
    """A distilled LoRA leaves no mark in a MODEL: what was looked at is said (G2)."""
    sample(apply_guide(base, guide_for(base), GuideSettings()), sampler="lcm")
    assert sum("likely distilled by a LoRA" in line and "What was looked at" in line for line in lines()) == 1


def test_real_guidance_for_some_steps(base):
    """Hybrid (G3): the sampler's cfg is real guidance; the guide's part of the sampling ends where it is told to."""
    model, rows = counted(apply_guide(base, guide_for(base), GuideSettings(guidance=5.0, mode=HYBRID,
                                                                             percents=(0.0, 0.5))))
    mixed = sample(model, 2.0)
    assert rows == [2] * 3
    assert (mixed - sample(base, 2.0)).abs().max() > 1e-3
    off, rows = counted(apply_guide(base, guide_for(base), GuideSettings(guidance=5.0, mode=HYBRID)))
    sample(off, 1.0)
    assert rows == [1] * 3


def test_an_empty_prompt_is_left_alone(sprite_base):
    """Guidance of the empty prompt away from the empty prompt is none: the guide knows its encoding."""
    model, clip, loaded = sprite_base
    text = {name: clip.encode_from_tokens_scheduled(clip.tokenize(words)) for name, words in
            (("empty", ""), ("full", caption(random_scene(random.Random(1)))))}

    def change(prompt):
        own = [guider(each, cfg) for each, cfg in ((model, 1.0), (apply_guide(model, loaded, GuideSettings()), 5.0))]
        for each in own:
            each.set_conds(text[prompt], text["empty"])
        plain, guided = (by(each) for each in own)
        return float((guided - plain).square().mean())

    assert change("empty") == 0 < change("full")


@pytest.fixture(scope="module")
def sprite_base(comfy):
    from frozen_diffusion.modules.host.demo import WEIGHTS, load_sprite_world
    from frozen_diffusion.modules.host.guide.files import load_guide
    model, clip, _ = load_sprite_world()[:3]
    return model, clip, load_guide(WEIGHTS / "guides" / "sprite_guide.safetensors")


def test_the_hosts_memory_management_moves_the_guide(base):
    """It is an additional model of the run, and goes with the others."""
    loaded = guide_for(base)
    model = apply_guide(base, loaded, GuideSettings())
    assert [part.model for part in model.get_nested_additional_models()] == [loaded.network]
    sample(model)
    comfy.model_management.unload_all_models()
    assert sample(model).isfinite().all()
