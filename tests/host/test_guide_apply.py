"""Apply Guide Model in the real host: one pass, the right rows, the right places, and what it refuses."""
from __future__ import annotations

import logging

import pytest
import torch
from comfy.patcher_extension import WrappersMP
from guide_examples import guide_for
from h_space_examples import SIZE, comfy_sampler, guider, levels, run

from frozen_diffusion.modules.guide.shape import shape_of
from frozen_diffusion.modules.host.guide.apply import HYBRID, GuideSettings, apply_guide
from frozen_diffusion.modules.host.guide.base import FrozenBase
from frozen_diffusion.modules.host.guide.files import hold_guide, load_guide, save_guide
from frozen_diffusion.modules.host.guide.inject import Injection
from frozen_diffusion.modules.seeding import stream
from testhost.models import CONTEXT, conditioning


class Calls:
    """Rows of every call of the U-Net, and the control that it got."""

    def __init__(self, model):
        self.model, self.rows, self.controls = model.clone(), [], []
        self.model.add_wrapper_with_key(WrappersMP.DIFFUSION_MODEL, "calls", self.look)

    def look(self, executor, x, timesteps, context, y=None, control=None, options=None, *args, **kwargs):
        self.rows.append(len(x))
        self.controls.append({name: [None if part is None else part.clone() for part in parts]
                              for name, parts in (control or {}).items()})
        return executor(x, timesteps, context, y, control, options, *args, **kwargs)


def sample(model, cfg=5.0, sampler="euler", **more):
    calls = Calls(model)
    return run(calls.model, comfy_sampler(sampler), cfg, steps=3, **more), calls


def test_a_guide_that_adds_nothing_is_the_plain_pass(base):
    """Bit for bit at cfg 5, in one pass a step; so are g = 1, strength 0 and an empty part of the sampling."""
    plain, calls = sample(base, 1.0)
    assert calls.rows == [1] * 3
    zero, loaded = guide_for(base, std=0.0), guide_for(base)
    for guide, settings, cfg in ((zero, GuideSettings(), 5.0), (loaded, GuideSettings(), 1.0),
                                 (loaded, GuideSettings(strength=0.0), 1.0),
                                 (loaded, GuideSettings(percents=(1.0, 1.0)), 5.0)):
        made, calls = sample(apply_guide(base, guide, settings), cfg)
        assert torch.equal(made, plain) and calls.rows == [1] * 3


def test_guided_in_one_pass_by_the_samplers_cfg(base):
    """Half of CFG's rows; cfg changes the result, as the input guidance does; the MODEL itself is untouched."""
    before, real = sample(base)
    assert real.rows == [2] * 3
    loaded = guide_for(base)
    made, calls = sample(apply_guide(base, loaded, GuideSettings()))
    assert calls.rows == [1] * 3 and all(len(control["output"]) == len(loaded.config.shape.skips)
                                         for control in calls.controls)
    seven, _ = sample(apply_guide(base, loaded, GuideSettings()), 7.0)
    assert (made - seven).abs().max() > 1e-3
    given, _ = sample(apply_guide(base, loaded, GuideSettings(guidance=7.0)), 2.0)
    torch.testing.assert_close(given, seven)
    assert torch.equal(sample(base)[0], before)
    again, _ = sample(apply_guide(base, loaded, GuideSettings()))
    assert torch.equal(again, made)


def test_strength_schedule_and_interval_act(base):
    loaded = guide_for(base)
    full, _ = sample(apply_guide(base, loaded, GuideSettings()))
    for settings in (GuideSettings(strength=0.5), GuideSettings(schedule="cosine"), GuideSettings(percents=(0.5, 1.0))):
        assert (sample(apply_guide(base, loaded, settings))[0] - full).abs().max() > 1e-3
    ended, calls = sample(apply_guide(base, loaded, GuideSettings(percents=(0.0, 0.3))))
    assert [bool(control) for control in calls.controls] == [True, False, False]


def test_residuals_enter_where_they_belong(base):
    """Each by itself, against a U-Net written out here that adds it to the skip before the decoder joins it."""
    unet = FrozenBase(base)
    x = torch.randn(1, 4, 16, 16, generator=stream("site"))
    t, context = torch.tensor([500]), torch.randn(1, 7, CONTEXT, generator=stream("site text"))
    from frozen_diffusion.modules.data.encoded import Text
    shape = shape_of(base.model.model_config.unet_config)
    sizes = [tuple(part.shape) for part in by_hand(unet.unet, x, t, context, {})[1]]
    found = set()
    for number in range(len(shape.skips) + 1):
        residuals = [torch.zeros(1, channels, *sizes[min(index, len(sizes) - 1)][2:])
                     for index, channels in enumerate([*shape.skips, shape.middle])]
        residuals[number] = torch.randn(residuals[number].shape, generator=stream("probe", number))
        with torch.no_grad():
            made = unet(x, t, Text(context, None), Given(residuals))
            expected, _ = by_hand(unet.unet, x, t, context, {number: residuals[number]})
        torch.testing.assert_close(made, expected, rtol=1e-4, atol=1e-5)
        found.add(round(float(made.double().sum()), 6))
    assert len(found) == len(shape.skips) + 1


@torch.no_grad()
def by_hand(unet, x, t, context, probes):
    """(what the U-Net gives, its skips) with `probes` by index added to skips, the last index to the middle block."""
    from comfy.ldm.modules.diffusionmodules.openaimodel import forward_timestep_embed, timestep_embedding
    emb = unet.time_embed(timestep_embedding(t, unet.model_channels))
    skips, h = [], x
    for block in unet.input_blocks:
        h = forward_timestep_embed(block, h, emb, context, {})
        skips.append(h)
    sizes = list(skips)
    skips = [skip + probes[index] if index in probes else skip for index, skip in enumerate(skips)]
    h = forward_timestep_embed(unet.middle_block, h, emb, context, {})
    if len(skips) in probes:
        h = h + probes[len(skips)]
    for block in unet.output_blocks:
        skip = skips.pop()
        h = torch.cat([h, skip], dim=1)
        h = forward_timestep_embed(block, h, emb, context, {}, skips[-1].shape if skips else None)
    return unet.out(h), sizes


class Given:
    """A walk of which the residuals are known."""

    def __init__(self, residuals):
        self.residuals = residuals

    def skip(self, number, feature=None):
        return self.residuals[number]

    def middle(self):
        return self.residuals[-1]


def injected(control, residuals, count, sizes, **more):
    """What the decoder would be given, after an encoder whose skips have these sizes."""
    told = []
    made = Injection([(slice(None), Given(residuals))], count, control, told=told.append, **more)
    patch = made.options({})["patches"]["input_block_patch"][-1]
    for number, size in enumerate(sizes):
        patch(torch.zeros(1, 2, size, size), {"block": ("input", number)})
    return made.control, told


def test_a_controlnets_residuals_and_the_guides_add_up():
    """Lists align at their ends; what the ControlNet gave is left as it was; one of a wrong size is told."""
    ours = [torch.full((1, 2, 4, 4), float(number)) for number in range(4)]
    theirs = {"input": ["kept"], "middle": [torch.ones(1, 2, 4, 4)], "output": [None, torch.ones(1, 2, 4, 4)]}
    both, told = injected(theirs, ours, 3, [4] * 3)
    assert both["input"] == ["kept"] and both["middle"][0].unique().item() == 4 and not told
    assert [part.unique().item() for part in both["output"]] == [0, 1, 3]
    assert theirs["output"][0] is None and len(theirs["output"]) == 2
    assert [part.unique().item() for part in injected(None, ours, 3, [4] * 3)[0]["output"]] == [0, 1, 2]
    longer = {"output": [torch.ones(1, 2, 4, 4)] * 5}
    assert [part.unique().item() for part in injected(longer, ours, 3, [4] * 3)[0]["output"]] == [1, 1, 1, 2, 3]
    shrunk, told = injected(theirs, ours, 3, [4, 2, 2])
    assert [tuple(part.shape[2:]) for part in shrunk["output"]] == [(4, 4), (2, 2), (2, 2)]
    assert shrunk["output"][2].unique().item() == 2 and len(set(told)) == 2
    assert any("ControlNet" in line for line in told)


@pytest.mark.parametrize("reverse", [False, True])
def test_hybrid_leaves_the_negative_prompt_alone(base, reverse, monkeypatch):
    """Two passes; the residuals of the negative prompt's rows are zero, whichever rows these are."""
    residuals, whole = [], Injection.whole
    monkeypatch.setattr(Injection, "whole", lambda *args: residuals.append(whole(*args)) or residuals[-1])
    calls = Calls(apply_guide(base, guide_for(base), GuideSettings(guidance=5.0, mode=HYBRID)))
    made = guider(calls.model, 2.0)
    if reverse:
        made.original_conds = dict(reversed(made.original_conds.items()))
    noise = torch.randn(1, 4, SIZE, SIZE, generator=stream("hybrid"))
    made.sample(noise, torch.zeros_like(noise), comfy_sampler("euler"), levels(base, 2), disable_pbar=True, seed=1)
    assert calls.rows == [2, 2] and residuals
    for residual in residuals:
        assert sorted((residual.flatten(1).abs().max(1).values > 0).tolist()) == [False, True]


def test_cfg_is_put_back_however_the_call_ends(base):
    made = guider(apply_guide(base, guide_for(base), GuideSettings()), 5.0)

    def fail(*args, **kwargs):
        raise RuntimeError("in the middle")

    made.model_patcher.add_wrapper_with_key(WrappersMP.DIFFUSION_MODEL, "fails", fail)
    noise = torch.zeros(1, 4, SIZE, SIZE)
    with pytest.raises(RuntimeError, match="in the middle"):
        made.sample(noise, noise, comfy_sampler("euler"), levels(base, 2), disable_pbar=True, seed=1)
    assert made.cfg == 5.0


def test_guiders_with_scales_of_their_own(comfy, base):
    """BasicGuider has no cfg: the scale is given. DualCFG and PerpNeg have several: it must be given."""
    loaded = guide_for(base)
    noise = torch.randn(1, 4, SIZE, SIZE, generator=stream("guiders"))

    def by(kind, model, **inputs):
        made = comfy.run(kind, model=model, **inputs)[0]
        return made.sample(noise, torch.zeros_like(noise), comfy_sampler("euler"), levels(base, 2), disable_pbar=True,
                           seed=1)

    given = apply_guide(base, loaded, GuideSettings(guidance=5.0))
    expected, _ = sample(given, 5.0)
    from comfy_extras.nodes_custom_sampler import BasicGuider, DualCFGGuider
    plain = by(BasicGuider, base, conditioning=conditioning(1))
    assert (by(BasicGuider, given, conditioning=conditioning(1)) - plain).abs().max() > 1e-3
    dual = {"cond1": conditioning(1), "cond2": conditioning(3), "negative": conditioning(2), "cfg_conds": 5.0,
            "cfg_cond2_negative": 3.0, "style": "regular"}
    with pytest.raises(ValueError, match="combines its prompts by scales of its own.*Set guidance"):
        by(DualCFGGuider, apply_guide(base, loaded, GuideSettings()), **dual)
    assert by(DualCFGGuider, given, **dual).isfinite().all()


def test_what_is_said_once_a_run(base, caplog):
    loaded = guide_for(base, g_min=2.0, g_max=6.0)
    caplog.set_level(logging.INFO)

    def told(cfg, sampler="euler", **settings):
        caplog.clear()
        made = sample(apply_guide(base, loaded, GuideSettings(**settings)), cfg, sampler)[0]
        return made, [record.message for record in caplog.records if "Frozen Diffusion" in record.message]

    six, lines = told(6.0)
    assert len(lines) == 1 and "negative prompt is not empty" in lines[0]
    nine, lines = told(9.0)
    assert torch.equal(nine, six) and sum("cfg 9 is above" in line for line in lines) == 1
    beyond, lines = told(9.0, extrapolate=True)
    assert (beyond - six).abs().max() > 1e-3 and not any("above" in line for line in lines)
    _, lines = told(5.0, "euler_cfg_pp")
    assert sum("saves no time" in line for line in lines) == 1
    near_one, _ = told(1.0 + 1e-4)
    torch.testing.assert_close(near_one, sample(base, 1.0)[0], rtol=1e-2, atol=1e-2)


def test_what_is_refused(base, tiny_sdxl):
    loaded = guide_for(base)
    for settings, text in ((GuideSettings(guidance=-1.0), "0 .the sampler's cfg. or a scale"),
                           (GuideSettings(guidance=float("nan")), "0 .the sampler's cfg. or a scale"),
                           (GuideSettings(mode=HYBRID), "set guidance, e.g. 5"),
                           (GuideSettings(percents=(0.6, 0.4)), "the start must not come after the end")):
        with pytest.raises(ValueError, match=text):
            apply_guide(base, loaded, settings)
    with pytest.raises(ValueError, match="already has a guide model"):
        apply_guide(apply_guide(base, loaded, GuideSettings()), loaded, GuideSettings())
    with pytest.raises(ValueError, match="trained on a base that predicts v, and this MODEL predicts eps"):
        apply_guide(base, guide_for(base, prediction="v"), GuideSettings())
    with pytest.raises(ValueError, match=r"is for a base whose skips have \[.*this MODEL has \["):
        apply_guide(tiny_sdxl(), loaded, GuideSettings())
    from comfy_extras.nodes_model_advanced import ModelSamplingDiscrete
    lcm = ModelSamplingDiscrete().patch(base, "lcm", False)[0]
    with pytest.raises(ValueError, match="distilled already .LCM"):
        apply_guide(lcm, loaded, GuideSettings())
    made = guider(apply_guide(base, loaded, GuideSettings()), float("inf"))
    with pytest.raises(ValueError, match="guidance scale is inf"):
        zeros = torch.zeros(1, 4, SIZE, SIZE)
        made.sample(zeros, zeros, comfy_sampler("euler"), levels(base, 2), disable_pbar=True, seed=1)


def test_any_size_of_latent(base):
    """Sides that do not divide by 8: the decoder takes the skip's size, and nothing is dropped."""
    model, noise = apply_guide(base, guide_for(base), GuideSettings()), torch.randn(1, 4, 17, 11)
    made = guider(model, 5.0).sample(noise, torch.zeros_like(noise), comfy_sampler("euler"), levels(base, 2),
                                     disable_pbar=True, seed=1)
    assert made.shape == noise.shape and made.isfinite().all()


def test_deep_shrink_gets_residuals_of_its_size(comfy, base, caplog):
    """The host would drop them with a line in its log."""
    from comfy_extras.nodes_model_downscale import PatchModelAddDownscale
    shrunk = comfy.run(PatchModelAddDownscale, model=base, block_number=1, downscale_factor=2.0, start_percent=0.0,
                       end_percent=1.0, downscale_after_skip=False, downscale_method="bicubic",
                       upscale_method="bicubic")[0]
    model = apply_guide(shrunk, guide_for(base), GuideSettings())
    made, _ = sample(model)
    plain, _ = sample(shrunk, 1.0)
    assert (made - plain).abs().max() > 1e-3
    assert sum("residuals are resized there" in record.message for record in caplog.records) == 1
    assert not any("could not be applied" in record.message for record in caplog.records)


def test_a_file_there_and_back(base, tmp_path, monkeypatch):
    import folder_paths
    monkeypatch.setattr(folder_paths, "get_output_directory", lambda: str(tmp_path))
    loaded = guide_for(base)
    again = load_guide(save_guide(loaded, "guides/mine"))
    assert again.config == loaded.config
    for model in (base,):
        one, two = (sample(apply_guide(model, guide, GuideSettings()))[0] for guide in (loaded, again))
        assert torch.equal(one, two)
    state = loaded.network.state_dict()
    state.pop("outputs.0.bias")
    with pytest.raises(ValueError, match=r"is not whole.*outputs.0.bias.*found none"):
        hold_guide(loaded.config, state, "cut.safetensors")


