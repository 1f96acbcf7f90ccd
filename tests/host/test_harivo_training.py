"""Training HARIVO's parts and losses on tiny random models of the real topologies, in the host."""
from __future__ import annotations

import argparse
import json
import re
from dataclasses import replace

import pytest
import torch
from motion_examples import TINY, random_motion
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from training_examples import RECIPE, Squares, inputs, prepared, preview_vae, run, same, state

from frozen_diffusion.modules.demo_training.harivo import options
from frozen_diffusion.modules.demo_training.motion import run_training
from frozen_diffusion.modules.demo_training.parts import WEIGHTS
from frozen_diffusion.modules.host.motion import train_command
from frozen_diffusion.modules.host.motion.apply import hold_motion
from frozen_diffusion.modules.host.motion.frozen_copy import FrozenCopy
from frozen_diffusion.modules.motion import smoothness, total_loss
from frozen_diffusion.modules.motion.module import MotionConfig, fresh_motion_module
from frozen_diffusion.modules.motion.smoothness import trs_loss
from frozen_diffusion.modules.training.checkpoint import CheckpointError
from frozen_diffusion.modules.training.loop import StepRecord
from frozen_diffusion.modules.training.progress import progress_lines
from testhost.models import CONTEXT

HARIVO = replace(RECIPE, steps=6, temporal_convolution=True, mapping_width=8, frame_tokens=2, trs=0.05, trs_from=2,
                 dc=0.01, checkpoint_every=2)
QUEUE = replace(HARIVO, dc_negatives="queue")
PARTS = MotionConfig("sd15", TINY.channels, temporal_convolution=True, mapping_width=8, frame_tokens=2,
                     text_channels=CONTEXT)


@pytest.fixture(scope="module")
def vae():
    return preview_vae()


@pytest.fixture
def setup(tiny_sd15, vae, tmp_path, monkeypatch):
    monkeypatch.setattr(smoothness, "LEAST_NEGATIVES", 2)
    return lambda recipe=HARIVO, **more: prepared(tmp_path, tiny_sd15(), vae, recipe, **more)


def test_every_part_learns_and_comes_out(setup):
    training = setup()
    fresh = fresh_motion_module(training.subject.config, RECIPE.seed).state_dict()
    run(training)
    result = training.result()
    learned = state(result)
    for start in ("harivo.map.", "harivo.tok.", "harivo.tconv.", "down_blocks."):
        assert any(not torch.equal(learned[name].cpu(), fresh[name]) for name in fresh if name.startswith(start)), start
    assert not any("head" in name for name in learned)
    assert (result.config.mapping_width, result.config.frame_tokens, result.config.text_channels) == (8, 2, CONTEXT)


def run_extras(training) -> list[set[str]]:
    """What is reported of every step."""
    with torch.inference_mode():
        list(training.encode())
        return [set(record.extras) for record in training.records()]


def test_the_terms_are_reported(setup):
    seen = run_extras(setup())
    assert "trs" not in seen[1] and {"denoising", "trs", "dc"} <= seen[-1]


def test_the_time_left_may_be_days():
    (_, text), = progress_lines(iter([StepRecord(1, 0.5, 1.0, 1e-4, 3.0)]), 50_001)
    assert text.endswith("1 day, 17:40:00 left")


def test_the_line_about_a_step_keeps_the_last_share_of_each_term(setup, monkeypatch):
    """Shares are measured in draws 0 and 4 here; before that, and for a plain training, the line has none."""
    monkeypatch.setattr(total_loss, "REPORT_EVERY", 4)
    training = setup(replace(QUEUE, trs_from=0))
    with torch.inference_mode():
        list(training.encode())
        told = list(progress_lines(training.records(), HARIVO.steps))
    shares = [[part for part in text.split(", ") if "(gradient " in part] for _, text in told]
    assert [len(part) for part in shares] == [1, 1, 1, 1, 2, 2]         # DC begins after the first draw
    last = {name: f"(gradient {told[4][0].extras[f'{name} share']:.1%} of denoising's)" for name in ("trs", "dc")}
    record, text = told[5]
    assert "trs share" not in record.extras
    for name in ("trs", "dc"):
        assert f", {name} {record.extras[name]:.4f} {last[name]}" in text
    assert f", denoising {record.extras['denoising']:.4f}, trs" in text


def test_too_few_videos_for_the_contrastive_loss_are_refused(setup, monkeypatch):
    """64 different videos suffice for the queue, two for the batch; fewer would leave the loss out for ever."""
    monkeypatch.setattr(smoothness, "LEAST_NEGATIVES", 4)
    with pytest.raises(ValueError, match="from 3 different videos.*has seen 4 of them. Add videos, set dc_negatives"):
        setup(QUEUE)
    setup()
    setup(replace(QUEUE, dc=0.0))
    monkeypatch.setattr(smoothness, "LEAST_NEGATIVES", 3)
    assert "dc" in run_extras(setup(replace(QUEUE, batch_size=1)))[-1]
    monkeypatch.setattr(Squares, "video", lambda self, index: "one")
    for recipe in (HARIVO, QUEUE):
        with pytest.raises(ValueError, match="from 1 different videos. It compares videos"):
            setup(recipe)


def test_batch_negatives_need_two_clips_a_draw_however_many_are_accumulated():
    """Told when the recipe is made, so before anything is encoded or trained."""
    for accumulate in (1, 8):
        with pytest.raises(ValueError, match="batch_size is 1. Set batch_size to 2 or more .*dc_negatives to queue"):
            replace(HARIVO, batch_size=1, accumulate=accumulate)
    replace(HARIVO, batch_size=1, dc=0.0)
    for name, choices in (("dc_negatives", "batch or queue"), ("dc_head", "mlp or none")):
        with pytest.raises(ValueError, match=f"{name} is {choices}; 'both' was given"):
            replace(HARIVO, **{name: "both"})


def test_batch_negatives_act_from_the_first_step_and_without_a_head_nothing_else_is_trained(setup):
    training = setup(replace(HARIVO, steps=2, dc_head="none"))
    assert all("dc" in extras for extras in run_extras(training))
    assert list(training.subject.trained) == ["motion"]


def test_a_cancelled_training_with_all_losses_goes_on_bit_for_bit(setup):
    whole = setup(name="whole")
    expected = run(whole)
    before = run(setup(name="cut"), stop_after=3)
    second = setup(name="cut")
    after = run(second)
    assert before + after == expected
    assert same(state(second.result()), state(whole.result()))


def test_a_checkpoint_from_before_the_choice_of_negatives_goes_on_with_its_queue_and_head_only(setup, tmp_path):
    """What it says nothing of was the queue and the head; the rest of such a training is bit for bit the same."""
    recipe = replace(QUEUE, steps=4)
    whole = setup(recipe, name="whole")
    expected = run(whole)
    before = run(setup(recipe, name="old"), stop_after=2)
    path = tmp_path / "old.safetensors"
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
    facts = json.loads(metadata["facts"])
    assert (facts["about"].pop("DC negatives"), facts["about"].pop("DC head")) == ("queue", "mlp")
    save_file(load_file(path), path, metadata | {"facts": json.dumps(facts)})
    for changes, sentence in (({"dc_negatives": "batch"}, "with DC negatives 'queue', this run has 'batch'"),
                              ({"dc_head": "none"}, "with DC head 'mlp', this run has 'none'")):
        with pytest.raises(CheckpointError, match=sentence):
            run(setup(replace(recipe, **changes), name="old"))
    second = setup(recipe, name="old")
    assert before + run(second) == expected
    assert same(state(second.result()), state(whole.result()))


def test_fresh_parts_do_not_change_the_model(tiny_sd15):
    """Mapping and layers exactly; tokens only repeat the last word, which weighs it more (harivo.md 8.3)."""
    model, (x, t, text) = tiny_sd15(), inputs()
    plain, mapped, tokened = (FrozenCopy(model, fresh_motion_module(config), frames=4) for config in (
        replace(PARTS, mapping_width=0, frame_tokens=0), replace(PARTS, frame_tokens=0), PARTS))
    with torch.no_grad():
        assert torch.equal(plain(x, t, text), mapped(x, t, text))
        last = text.tokens[:, -1:].expand(-1, PARTS.frame_tokens, -1)
        weighed = plain(x, t, replace(text, tokens=torch.cat((text.tokens, last), dim=1)))
        torch.testing.assert_close(tokened(x, t, text), weighed)
        assert not torch.allclose(weighed, plain(x, t, text), atol=1e-4)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_trs_reaches_what_is_before_its_layers_and_nothing_after(tiny_sd15, checkpointing):
    module = random_motion(PARTS).requires_grad_(True)
    unet = FrozenCopy(tiny_sd15(), module, frames=4, gradient_checkpointing=checkpointing, watch=True)
    x, t, text = inputs()
    unet(x, t, text)
    features = unet.features()
    assert features.h.shape == (1, 4, 128) and len(features.attention) == 2
    q, k = features.attention[0]
    assert q.shape == k.shape == (1, 4, 8, 64, 4)
    trs_loss(features.attention).backward()
    touched = {name for name, parameter in module.named_parameters()
               if parameter.grad is not None and parameter.grad.abs().sum() > 0}
    assert any(name.startswith("harivo.map.") for name in touched)
    assert any(name.startswith("down_blocks.0.") for name in touched)
    last = "up_blocks.3.motion_modules.2."                      # follows the last watched self-attention
    assert not any(name.startswith(last) for name in touched)
    assert any(name.startswith("up_blocks.3.motion_modules.0.") for name in touched)


def test_features_are_the_same_with_and_without_checkpointing(tiny_sd15):
    model, module, gradients = tiny_sd15(), random_motion(PARTS).requires_grad_(True), []
    for checkpointing in (False, True):
        unet = FrozenCopy(model, module, frames=4, gradient_checkpointing=checkpointing, watch=True)
        out = unet(*inputs())
        loss = out.square().mean() + trs_loss(unet.features().attention) + unet.features().h.square().mean()
        gradients.append(torch.autograd.grad(loss, list(module.parameters()), allow_unused=True))
    for plain, recomputed in zip(*gradients, strict=True):
        if plain is not None:
            torch.testing.assert_close(recomputed, plain, atol=1e-5, rtol=1e-3)


def test_warm_start_from_a_plain_module_adds_the_parts(setup):
    plain = hold_motion(replace(TINY, kind="animatediff v2"), random_motion(TINY).state_dict(), "animatediff",
                        {"licence": "CC BY 4.0", "train_data": "a million clips"})
    training = setup(warm=plain)
    run(training, stop_after=1)
    made = training.result()
    assert made.config.kind == "frozen" and made.metadata["train_data"] == "3 clips of squares"
    assert (made.metadata["licence"], made.metadata["started_from"]) == ("CC BY 4.0", "animatediff")
    assert training.subject.rate("motion.harivo.map.first.conv.weight") == 1.0
    assert training.subject.rate("motion.down_blocks.0.motion_modules.0.temporal_transformer.proj_in.weight") == 0.1
    assert training.subject.config.mapping_width == 8


def test_lora_only_keeps_the_rest_of_the_temporal_layers(setup):
    plain = hold_motion(TINY, random_motion(TINY).state_dict(), "animatediff")
    training = setup(replace(RECIPE, steps=3, lora_rank=2), warm=plain)
    run(training)
    learned, given = state(training.result()), state(plain)
    assert learned.keys() == given.keys()
    changed = {name for name in given if not torch.equal(learned[name].cpu().float(), given[name].cpu().float())}
    assert changed and all(".to_" in name and name.endswith("weight") for name in changed)


def test_another_choice_of_parts_is_not_resumed(setup):
    run(setup(name="same"), stop_after=1)
    with pytest.raises(CheckpointError, match="TRS"):
        run(setup(replace(HARIVO, trs=0.1), name="same"))


def test_the_card_of_the_shipped_weights_names_the_recipe_they_were_trained_with(tmp_path):
    """Its command, with the DC loss of then, is that of the ablation's row "full"."""
    card = (WEIGHTS / "sprite_harivo.md").read_text()
    words = re.search(r"train motion (.*?)`", card).group(1).split()
    parser = argparse.ArgumentParser()
    train_command.add_arguments(parser)
    written = train_command.recipe_of(parser.parse_args(words))
    assert (written.dc, written.dc_negatives, written.dc_head) == (0.01, "queue", "mlp")
    there = tmp_path / "trained.safetensors"
    there.touch()                               # so that nothing is trained
    assert run_training(options("full"), there, tmp_path)[1] == written
