"""Which weights a MODEL has, whatever way they came in: what is computed from them is what is sampled with them."""
from __future__ import annotations

from dataclasses import replace
from uuid import uuid4

import comfy.hooks
import comfy.sd
import pytest
import torch
from comfy.patcher_extension import PatcherInjection
from comfy_extras.nodes_train import TrainLoraNode
from h_space_examples import SIZE, comfy_sampler, injected, record
from h_space_examples import run as sampled
from training_examples import RECIPE, WordClip, prepared, preview_vae
from training_examples import run as trained

from frozen_diffusion.modules.files.provenance import same_model
from frozen_diffusion.modules.host.basis.compute import direction_between, encoder_of
from frozen_diffusion.modules.host.basis.encoder import record_call
from frozen_diffusion.modules.host.hspace.inversion import invert
from frozen_diffusion.modules.host.weights import PREFIX, copy_unet, merged_weights, model_identity
from frozen_diffusion.modules.hspace.trace import TraceError
from frozen_diffusion.modules.seeding import stream
from frozen_diffusion.modules.training.checkpoint import CheckpointError, CheckpointStore
from testhost.inprocess import page_defaults
from testhost.models import conditioning, with_lora

pytestmark = pytest.mark.usefixtures("unloaded")
RANK = 4


@pytest.fixture(scope="module")
def learned(comfy, base):
    """(the MODEL that the host's Train LoRA hands out, None on newer hosts, which hand out none; the LoRA itself)."""
    pictures = torch.randn(2, 4, SIZE, SIZE, generator=stream("weights", "pictures"))
    given = {**page_defaults(TrainLoraNode), "steps": 3, "learning_rate": 0.1, "rank": RANK, "lora_dtype": "fp32",
             "training_dtype": "fp32", "model": base.clone(), "positive": conditioning(1)}
    if getattr(TrainLoraNode, "INPUT_IS_LIST", False):
        node = {name: [value] for name, value in given.items()}
        node["latents"] = [{"samples": picture} for picture in pictures.split(1)]
    else:
        node = {**given, "latents": {"samples": pictures}}
    *models, lora, _, _ = comfy.run(TrainLoraNode, **node)
    return (models or [None])[0], {name: value.detach().clone() for name, value in lora.items()}


@pytest.fixture
def handed_out(learned):
    if learned[0] is None:
        pytest.skip("this host's Train LoRA hands out no MODEL")
    return learned


def loaded(model, lora, strength=1.0):
    """The MODEL with the LoRA as Load LoRA puts it on."""
    return comfy.sd.load_lora_for_models(model, None, lora, strength, 0)[0]


def hooked(lora, seed=1, strength=1.0):
    """A prompt with the LoRA as Create Hook LoRA and Set Model Hooks put it on."""
    group = comfy.hooks.create_hook_lora(lora, strength, 0.0)
    return comfy.hooks.set_hooks_for_conditioning(conditioning(seed), group)


def encoded(model, positive=None):
    """h by the copy that the latent basis is computed from."""
    latent = 27 * torch.randn(1, 4, SIZE, SIZE, generator=stream("weights", "noisy"))
    with torch.inference_mode(False), torch.no_grad():
        encoder = encoder_of(model, positive or conditioning(1), latent, torch.tensor([5.0, 0.0]))[0]
        return encoder.fused(encoder.x)


@pytest.mark.fault("B1")
def test_the_model_of_train_lora_has_the_loras_weights(base, handed_out):
    model, lora = handed_out
    own, by_loader, before = (merged_weights(each) for each in (model, loaded(base, lora), base))
    moved = [key for key in own if (own[key] - before[key]).norm() > 1e-3 * before[key].norm()]
    assert len(moved) > 100
    for key, weight in own.items():
        torch.testing.assert_close(weight, by_loader[key], rtol=1e-5, atol=1e-6)
    assert torch.equal(copy_unet(model).state_dict()[moved[0].removeprefix(PREFIX)], own[moved[0]])
    names = [model_identity(each) for each in (base, model)]
    assert not same_model(*names)


@pytest.mark.fault("B1")
def test_what_the_basis_sees_of_train_loras_model_is_that_of_the_loaded_lora(base, handed_out):
    model, lora = handed_out
    plain, own, by_loader = (encoded(each) for each in (base, model, loaded(base, lora)))
    torch.testing.assert_close(own, by_loader, rtol=1e-3, atol=1e-4)
    assert (own - plain).norm() > 0.02 * plain.norm()


@pytest.mark.fault("B2")
def test_what_the_basis_sees_of_a_hooked_prompt_is_that_of_the_loaded_lora(base, learned):
    lora = learned[1]
    plain, by_loader = encoded(base), encoded(loaded(base, lora, 0.7))
    by_hook = encoded(base, hooked(lora, strength=0.7))
    torch.testing.assert_close(by_hook, by_loader, rtol=1e-3, atol=1e-4)
    assert (by_hook - plain).norm() > 0.02 * plain.norm()


@pytest.mark.fault("B2")
def test_a_direction_to_a_hooked_prompt_leads_to_what_the_hook_makes(base, learned):
    """One text twice: what is between them is the hook's doing alone."""
    latent, sigmas = 27 * torch.randn(1, 4, SIZE, SIZE, generator=stream("weights", "way")), torch.tensor([5.0, 0.0])
    with torch.inference_mode():
        found, _ = direction_between(base, conditioning(1), hooked(learned[1]), latent, sigmas, None)
        with pytest.raises(ValueError, match="the same h"):
            direction_between(base, conditioning(1), conditioning(1), latent, sigmas, None)
    assert found.V.isfinite().all()


@pytest.mark.fault("B2")
def test_traces_know_the_hooks_of_their_prompt(comfy, base, learned):
    prompt, other = hooked(learned[1]), hooked(learned[1], strength=0.5)
    trace = record(comfy, base, steps=2, positive=prompt)[1]
    assert sampled(base, injected(trace), steps=2, positive=prompt).isfinite().all()
    for positive in (conditioning(1), other):
        with pytest.raises(TraceError, match="LoRA hooks on its prompt"):
            sampled(base, injected(trace), steps=2, positive=positive)
    light = comfy.run("FrozenInjectHSpace", model=base, trace=trace, gamma="0.3", t_edit=400.0, apply_to="both",
                      norm_mode="masked", check="model", gamma_skips=0.0)[0]
    with pytest.raises(TraceError, match="LoRA hooks on its prompt"):
        sampled(light, comfy_sampler("euler"), steps=2)


@pytest.mark.fault("B2")
def test_training_refuses_hooks_of_captions(base, tmp_path, learned):
    clip = WordClip()
    clip.apply_hooks_to_conds = comfy.hooks.create_hook_lora(learned[1], 1.0, 1.0)
    with pytest.raises(ValueError, match="Set CLIP Hooks"):
        prepared(tmp_path, base, preview_vae(), clip=clip)


@pytest.mark.fault("B2")
def test_keyframes_of_hooks_begin_anew_in_our_runs(base, learned):
    """The host keeps its place among them for the next run that begins at the same noise level."""
    group = comfy.hooks.create_hook_lora(learned[1], 1.0, 0.0)
    keyframes = comfy.hooks.HookKeyframeGroup()
    for strength, start in ((1.0, 0.0), (0.25, 0.5)):
        keyframes.add(comfy.hooks.HookKeyframe(strength, start, guarantee_steps=0))
    group.set_keyframes_on_hooks(keyframes)
    prompt = comfy.hooks.set_hooks_for_conditioning(conditioning(1), group)
    latent = torch.rand(1, 4, SIZE, SIZE, generator=stream("weights", "hooks"))
    strengths = [{patch[0] for patches in record_call(base, prompt, latent, sigma).hooked.values() for patch in patches}
                 for sigma in (0.5, 0.5, 10.0, 0.5)]
    assert strengths == [{0.25}, {0.25}, {1.0}, {0.25}]
    with pytest.raises(ValueError, match="hook with keyframes"):
        invert(base, prompt, latent, 3)


def test_a_rescaled_lora_and_a_compiled_network(base):
    """The same signs, but another size: another model. Another node's compiled network: the same weights."""
    loras = [base.clone() for _ in range(2)]
    key = "diffusion_model.input_blocks.1.1.proj_in.weight"
    change = torch.randn(base.model.state_dict()[key].shape, generator=stream("weights", "change"))
    for lora, scale in zip(loras, (1.0, 1.1), strict=True):
        lora.add_patches({key: (scale * change,)}, 0.5)
    one, other = map(model_identity, loras)
    assert not same_model(one, other)
    compiled, expected = loras[0].clone(), merged_weights(loras[0])[key]
    compiled.patches_uuid = uuid4()
    compiled.add_object_patch("diffusion_model", torch.nn.ModuleDict({"_orig_mod": base.model.diffusion_model}))
    compiled.object_patches["diffusion_model"]._orig_mod = base.model.diffusion_model
    compiled.patch_model()
    try:
        assert same_model(model_identity(compiled), one)
        torch.testing.assert_close(merged_weights(compiled)[key], expected)
    finally:
        compiled.unpatch_model()


@pytest.mark.fault("B3")
def test_precision_makes_no_other_model(tiny_sd15):
    kinds = torch.float32, torch.float16, torch.bfloat16
    names = [model_identity(model) for kind in kinds for model in (tiny_sd15(kind), with_lora(tiny_sd15(kind)))]
    plain, patched = names[::2], names[1::2]
    assert all(same_model(plain[0], name) for name in plain) and all(same_model(patched[0], name) for name in patched)
    assert not any(same_model(one, other) for one, other in zip(plain, patched, strict=True))
    assert not same_model(plain[0], model_identity(tiny_sd15(seed=1)))


@pytest.mark.fault("B3")
def test_a_trace_of_one_precision_is_taken_in_another(comfy, tiny_sd15):
    trace = record(comfy, tiny_sd15(torch.float16), steps=2)[1]
    assert sampled(tiny_sd15(torch.bfloat16), injected(trace), steps=2).isfinite().all()
    with pytest.raises(TraceError, match="another model"):
        sampled(with_lora(tiny_sd15(torch.bfloat16)), injected(trace), steps=2)


@pytest.mark.fault("B3")
def test_a_training_goes_on_in_another_precision(tiny_sd15, tmp_path):
    """And one from before, whose checkpoint names the frozen copy's first rows; another model is refused."""
    vae, short = preview_vae(), replace(RECIPE, steps=2, checkpoint_every=1)
    first = prepared(tmp_path, tiny_sd15(), vae, short)
    trained(first, stop_after=1)
    store = CheckpointStore(tmp_path / "run.safetensors")
    assert store.facts()["about"]["image model"] == model_identity(tiny_sd15())
    assert len(trained(prepared(tmp_path, tiny_sd15(torch.bfloat16), vae, short))) == 1
    trained(prepared(tmp_path, tiny_sd15(), vae, short, name="other"), stop_after=1)
    with pytest.raises(CheckpointError, match="made with image model"):
        trained(prepared(tmp_path, tiny_sd15(seed=1), vae, short, name="other"))


def with_injection(model, name):
    model = model.clone()
    model.set_injections(name, [PatcherInjection(lambda patcher: None, lambda patcher: None)])
    return model


@pytest.mark.fault("B1")
def test_layers_that_the_weights_do_not_tell_are_refused(comfy, base):
    bypass, others = with_injection(base, "bypass_lora"), with_injection(base, "somebodys_layers")
    trace = record(comfy, bypass, steps=2)[1]           # of the features that are sampled; it does not name the MODEL
    assert "model" not in trace.provenance and sampled(base, injected(trace), steps=2).isfinite().all()
    for read in (copy_unet, model_identity, encoded):
        with pytest.raises(ValueError, match="bypass mode"):
            read(bypass)
    for read in (copy_unet, encoded):
        with pytest.raises(ValueError, match="somebodys_layers"):
            read(others)
    replaced = base.clone()
    replaced.add_object_patch("diffusion_model.out", torch.nn.Identity())
    with pytest.raises(ValueError, match="diffusion_model.out"):
        copy_unet(replaced)
