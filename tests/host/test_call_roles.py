"""Which conditioning a call of the U-Net follows: every guider of the host, guidance nodes beside it, and others'."""
from __future__ import annotations

from copy import deepcopy

import comfy.samplers as comfy_samplers
import pytest
import torch
from comfy.patcher_extension import WrappersMP
from comfy_extras.nodes_custom_sampler import Guider_Basic, Guider_DualCFG
from comfy_extras.nodes_pag import PerturbedAttentionGuidance
from comfy_extras.nodes_perpneg import Guider_PerpNeg, PerpNeg
from comfy_extras.nodes_sag import SelfAttentionGuidance
from h_space_examples import SIZE, comfy_sampler, injected, levels, record
from motion_examples import TINY, random_motion

from frozen_diffusion.modules.host.hspace.inversion import invert
from frozen_diffusion.modules.host.motion.apply import apply_motion, hold_motion
from frozen_diffusion.modules.hspace.trace import TraceError
from frozen_diffusion.modules.motion.module import MotionConfig
from frozen_diffusion.modules.seeding import stream
from testhost.models import CONTEXT, conditioning

pytestmark = pytest.mark.usefixtures("unloaded")
TEXTS = POSITIVE, NEGATIVE, THIRD = 1, 2, 3     # seeds of the prompts
TOKENS = 4


class Reversed(comfy_samplers.CFGGuider):
    """Somebody's guider: CFG whose list of conditionings begins with the negative prompt."""

    def predict_noise(self, x, timestep, model_options=None, seed=None):
        conds = [self.conds["negative"], self.conds["positive"]]
        without, with_prompt = comfy_samplers.calc_cond_batch(self.inner_model, conds, x, timestep, model_options)
        return without + (with_prompt - without) * self.cfg


class Unnamed(comfy_samplers.CFGGuider):
    """Somebody's guider whose conditionings are neither a prompt nor a negative one by their names."""

    def set_conds(self, first, second):
        self.inner_set_conds({"first": first, "second": second})

    def predict_noise(self, x, timestep, model_options=None, seed=None):
        out = comfy_samplers.calc_cond_batch(self.inner_model, list(self.conds.values()), x, timestep, model_options)
        return (out[0] + out[1]) / 2


def plain(model, kind=comfy_samplers.CFGGuider, positive=None):
    made = kind(model)
    made.set_conds(positive or conditioning(POSITIVE), conditioning(NEGATIVE))
    made.set_cfg(3.0)
    return made


def basic(model):
    made = Guider_Basic(model)
    made.set_conds(conditioning(POSITIVE))
    return made


def dual(model, nested=False):
    made = Guider_DualCFG(model)
    made.set_conds(conditioning(POSITIVE), conditioning(THIRD), conditioning(NEGATIVE))
    made.set_cfg(3.0, 2.0, nested)
    return made


def perpendicular(model):
    made = Guider_PerpNeg(model)
    made.set_conds(conditioning(POSITIVE), conditioning(NEGATIVE), conditioning(THIRD))
    made.set_cfg(3.0, 1.0)
    return made


GUIDERS = {
    "CFGGuider": plain, "BasicGuider": basic, "DualCFGGuider regular": dual,
    "DualCFGGuider nested": lambda model: dual(model, nested=True), "PerpNegGuider": perpendicular,
    "another order": lambda model: plain(model, Reversed),
}
each_guider = pytest.mark.parametrize("make", GUIDERS.values(), ids=GUIDERS.keys())


def guided(comfy, model, *nodes):
    """The MODEL with guidance nodes of the host on it."""
    for node, settings in nodes:
        model = comfy.run(node, model=model, **settings)[0]
    return model


PAG = PerturbedAttentionGuidance, {"scale": 3.0}
SAG = SelfAttentionGuidance, {"scale": 0.5, "blur_sigma": 2.0}
GUIDANCE = {"PAG": [PAG], "SAG": [SAG], "both": [PAG, SAG]}
each_guidance = pytest.mark.parametrize("nodes", GUIDANCE.values(), ids=GUIDANCE.keys())


@pytest.fixture(scope="module")
def prompts_h(comfy, base):
    """h of the prompt alone in the first step, [1, C, H, W]."""
    return recorded(comfy, basic(base)).features["h"][0]


@pytest.fixture(scope="module")
def other(comfy, base):
    return record(comfy, base, start="other", steps=2)[1]


@pytest.fixture(scope="module")
def clips(tiny_sd15):
    """A MODEL with a motion module whose frame tokens the negative prompt does not get."""
    model = tiny_sd15()
    config = MotionConfig("sd15", TINY.channels, max_frames=16, frame_tokens=TOKENS, text_channels=CONTEXT)
    return apply_motion(model, hold_motion(config, random_motion(config).state_dict(), "random"), negative_tokens=False)


def recorded(comfy, by, steps=1):
    return record(comfy, by.model_patcher, steps=steps, by=by)[1]


def texts_with_tokens(by, calls):
    """The prompts whose rows do not end with their last word again, in one step of two frames."""
    noise = torch.randn(2, 4, SIZE, SIZE, generator=stream("call roles", "clip"))
    by.sample(noise, torch.zeros_like(noise), comfy_sampler("euler"), levels(by.model_patcher, 1), disable_pbar=True)
    return {text_of(row[:-TOKENS]) for _, context, _ in calls for row in context
            if not torch.equal(row[-TOKENS:], row[-TOKENS - 1:-TOKENS].expand(TOKENS, -1))}


def sampled(by, sampler, steps=2):
    noise = torch.randn(1, 4, SIZE, SIZE, generator=stream("h-space noise", "noise"))
    sigmas = levels(by.model_patcher, steps)
    return by.sample(noise, torch.zeros_like(noise), sampler, sigmas, disable_pbar=True, seed=5)


def watched(model, calls):
    """The MODEL, noting of every row of every call its latent, its text and what its decoder gets."""
    model = model.clone()

    def note_inputs(executor, x, timesteps, context, *args, **kwargs):
        calls.append([x, context])
        return executor(x, timesteps, context, *args, **kwargs)

    def note_h(h, skip, options):
        if options["block"] == ("output", 0):
            calls[-1].append(h.clone())
        return h, skip

    model.add_wrapper_with_key(WrappersMP.DIFFUSION_MODEL, "watch", note_inputs)
    model.set_model_output_block_patch(note_h)
    return model


def text_of(row):
    """The seed of the prompt that a row of the context [L, D] is of."""
    return next(seed for seed in TEXTS if torch.allclose(row.float(), conditioning(seed)[0][0][0], atol=1e-5))


def differ(before, after):
    """Whether an injection tells these h apart, and not the batch that they were made in."""
    return (after - before).norm() > 1e-3 * before.norm()


def changed_texts(model, make, sampler):
    """The prompts of which the sampler's first step makes more than one h from the same latent."""
    calls, kept, changed = [], {}, set()
    sampled(make(watched(model, calls)), sampler, steps=1)
    for x, context, h in (row for call in calls for row in zip(*call, strict=True)):
        before = kept.setdefault((text_of(context), tuple(x.shape), float(x.sum())), h)
        if differ(before, h):
            changed.add(text_of(context))
    return changed


@pytest.mark.fault("A1")
@each_guider
def test_the_prompts_h_is_recorded_under_every_guider(comfy, base, prompts_h, make):
    trace = recorded(comfy, make(base))
    torch.testing.assert_close(trace.features["h"][0].float(), prompts_h.float(), rtol=2e-3, atol=2e-3)


@pytest.mark.fault("A1")
@each_guider
def test_injection_reaches_the_conditionings_it_is_for(base, other, make):
    texts = {to: changed_texts(base, make, injected(other, apply_to=to)) for to in ("cond", "uncond", "both")}
    assert texts["cond"] == {POSITIVE} and texts["uncond"] == texts["both"] - {POSITIVE}
    assert texts["both"] == ({POSITIVE} if make is basic else texts["uncond"] | {POSITIVE, NEGATIVE})


@pytest.mark.fault("A1")
@each_guider
def test_only_the_prompt_keeps_its_frame_tokens(comfy, clips, make):
    """negative_tokens off: the other conditionings end with their own last word, wherever the guider lists them."""
    assert texts_with_tokens(make(watched(clips, calls := [])), calls) == {POSITIVE}


@pytest.mark.fault("A2")
@each_guidance
def test_guidance_beside_does_not_change_what_is_recorded(comfy, base, prompts_h, nodes):
    trace = recorded(comfy, plain(guided(comfy, base, *nodes)))
    torch.testing.assert_close(trace.features["h"][0].float(), prompts_h.float(), rtol=2e-3, atol=2e-3)


def test_calls_that_check_a_gradient_are_not_recorded(comfy, base):
    """Mitigating Gradient, exact: two calls beside the latent, once a run."""
    mitigated = comfy.run("FrozenMitigatingGradient", model=base, alpha=40.0, mode="exact", order=1, start_percent=0.0,
                          end_percent=1.0, frames_per_clip=0, locked_frames="")[0]
    alone, beside = (record(comfy, model, steps=1, batch=2)[1].features["h"].float() for model in (base, mitigated))
    torch.testing.assert_close(beside, alone, rtol=2e-3, atol=2e-3)


@pytest.mark.fault("A2")
@pytest.mark.parametrize("kind", [comfy_samplers.CFGGuider, Reversed])
def test_an_attention_patch_that_mixes_rows_leaves_them_their_roles(comfy, base, kind):
    """As normalised attention guidance does it: the prompt's rows are looked for by their index, and take of others."""
    def mix(out, options):
        rows = out.unflatten(0, (len(options["cond_or_uncond"]), -1))
        return (rows + 0.5 * (rows - rows.flip(0))).flatten(0, 1)

    mixing = base.clone()
    mixing.set_model_attn1_output_patch(mix)
    mixing.model_options["disable_cfg1_optimization"] = True
    trace = recorded(comfy, plain(watched(mixing, calls := []), kind))
    seen, = (h for _, context, hs in calls for text, h in zip(context, hs, strict=True) if text_of(text) == POSITIVE)
    torch.testing.assert_close(trace.features["h"][0, 0].float(), seen, rtol=2e-3, atol=2e-3)


@pytest.mark.fault("A2")
@each_guidance
def test_guidance_beside_does_not_change_what_an_inversion_records(comfy, base, nodes):
    latent = torch.randn(1, 4, SIZE, SIZE, generator=stream("call roles", "picture"))
    alone, beside = (invert(model, conditioning(POSITIVE), latent, 3, way_back=False).trace.features["h"][0].float()
                     for model in (base, guided(comfy, base, *nodes)))
    torch.testing.assert_close(beside, alone, rtol=2e-3, atol=2e-3)


@pytest.mark.fault("A2")
@each_guidance
def test_extra_calls_are_injected_like_the_conditioning_they_are_made_with(comfy, base, other, nodes):
    model = guided(comfy, base, *nodes)
    for to, texts in {"cond": {POSITIVE}, "uncond": {NEGATIVE}, "both": {POSITIVE, NEGATIVE}}.items():
        calls = []
        sampled(plain(watched(model, calls)), injected(other, apply_to=to), steps=1)
        half = len(calls) // 2          # the plain prediction with its guidance, then the injected one
        for before, after in zip(calls[:half], calls[half:], strict=True):
            for context, was, now in zip(before[1], before[2], after[2], strict=True):
                if text_of(context) in texts:
                    assert differ(was, now)
                elif torch.equal(before[0], after[0]):      # SAG's latent follows from the prediction
                    assert not differ(was, now)


@pytest.mark.fault("A2")
@each_guidance
def test_extra_calls_have_the_frame_tokens_of_their_conditioning(comfy, clips, nodes):
    model = guided(comfy, clips, *nodes)
    assert texts_with_tokens(plain(watched(model, calls := [])), calls) == {POSITIVE}
    assert len(calls) > 1


def test_a_region_of_the_prompt_is_not_the_prompt_in_the_other_list(base, other):
    """The host puts a copy of a region into each list that has none there, under the same name."""
    region = conditioning(POSITIVE) + conditioning(THIRD, area=(8, 16, 0, 0), strength=1.0)
    for to, texts in {"cond": {POSITIVE, THIRD}, "uncond": {NEGATIVE}}.items():
        assert changed_texts(base, lambda model: plain(model, positive=region), injected(other, apply_to=to)) == texts


def test_a_region_of_a_second_prompt_leaves_the_prompt_its_role(base, other):
    """DualCFGGuider writes "negative" into its second prompt, and the host copies that with the region."""
    def regional(model):
        made = Guider_DualCFG(model)
        region = conditioning(THIRD) + conditioning(THIRD, area=(8, 16, 0, 0), strength=1.0)
        made.set_conds(conditioning(POSITIVE), region, conditioning(NEGATIVE))
        made.set_cfg(3.0, 2.0)
        return made

    for to, texts in {"cond": {POSITIVE}, "uncond": {NEGATIVE, THIRD}}.items():
        assert changed_texts(base, regional, injected(other, apply_to=to)) == texts


def test_a_guidance_that_copies_the_options_of_the_run(comfy, base):
    """Some nodes take a deep copy of them in every step."""
    copied = base.clone()
    copied.set_model_sampler_post_cfg_function(lambda args: args["denoised"])
    copied.model_options["sampler_pre_cfg_function"] = [
        lambda args: deepcopy(args["model_options"]) and args["conds_out"]]
    assert recorded(comfy, plain(copied)).features["h"].isfinite().all()


@pytest.mark.parametrize("nodes", [[SAG], [PAG, SAG]], ids=["SAG", "both"])
def test_one_encoder_pass_beside_guidance_is_two(comfy, tiny_sd15, other, nodes):
    """SAG calls with a latent that follows from the prediction: what was kept of the plain one is not its."""
    model = guided(comfy, tiny_sd15(torch.float64), *nodes)
    one, two = (sampled(plain(model), injected(other, shared_encoder=shared)) for shared in (True, False))
    torch.testing.assert_close(one, two, rtol=1e-4, atol=1e-4)


def test_a_guider_of_unknown_conditionings_is_refused_where_it_matters(comfy, base, clips, other):
    def unnamed(model):
        made = Unnamed(model)
        made.set_conds(conditioning(POSITIVE), conditioning(NEGATIVE))
        return made

    with pytest.raises(ValueError, match="Recording h-space has to know which part"):
        recorded(comfy, unnamed(base))
    with pytest.raises(ValueError, match="apply_to cond has to know"):
        sampled(unnamed(base), injected(other, apply_to="cond"))
    with pytest.raises(ValueError, match="negative_tokens off has to know"):
        texts_with_tokens(unnamed(clips), [])
    assert changed_texts(base, unnamed, injected(other, apply_to="both")) == {POSITIVE, NEGATIVE}


def test_a_guidance_with_a_prompt_of_its_own_is_refused_where_it_matters(comfy, base, prompts_h, other):
    """The deprecated Perp-Neg: its calls are extra ones of a conditioning that the guider does not have."""
    model = guided(comfy, base, (PerpNeg, {"empty_conditioning": conditioning(THIRD), "neg_scale": 1.0}))
    trace = recorded(comfy, plain(model))
    torch.testing.assert_close(trace.features["h"][0].float(), prompts_h.float(), rtol=2e-3, atol=2e-3)
    with pytest.raises(ValueError, match="brings a conditioning of its own"):
        sampled(plain(model), injected(other, apply_to="cond"))


def test_a_prompt_that_is_called_twice_with_other_results_is_not_recorded(comfy, base):
    """A guidance inside of the guider itself: nothing tells which of its calls is the prompt's."""
    class Perturbing(comfy_samplers.CFGGuider):
        def predict_noise(self, x, timestep, model_options=None, seed=None):
            near, far = (comfy_samplers.calc_cond_batch(self.inner_model, [self.conds["positive"]], given, timestep,
                                                        model_options)[0] for given in (x, x + 0.1))
            return near + (near - far)

    with pytest.raises(TraceError, match="more than once for the same prompt"):
        recorded(comfy, plain(base, Perturbing))
