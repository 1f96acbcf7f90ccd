"""A training that was cut short, lengthened or changed, in the host: what goes on, and what is refused."""
from __future__ import annotations

import re
from dataclasses import replace

import comfy.model_management
import pytest
from motion_examples import TINY
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from training_examples import RECIPE, Squares, WordClip, prepared, preview_vae, run, same, state, trained

from frozen_diffusion.modules.motion.module import MotionConfig
from frozen_diffusion.modules.training.checkpoint import CheckpointError


class Shouting(WordClip):
    """Another text model of the same width."""

    def tokenize(self, text):
        return text.upper()


@pytest.fixture(scope="module")
def vae():
    return preview_vae()


@pytest.fixture
def setup(tiny_sd15, vae, tmp_path):
    return lambda *args, **more: prepared(tmp_path, tiny_sd15(), vae, *args, **more)


def test_a_cancelled_training_goes_on_bit_for_bit(setup):
    whole = setup(name="whole")
    expected = run(whole)
    first = setup(name="cut")
    before = run(first, stop_after=1)
    second = setup(name="cut")
    after = run(second)
    assert before + after == expected == second.losses
    assert same(state(whole.result()), state(second.result()))
    done = setup(name="cut")
    assert run(done) == [] and done.losses == expected and same(state(done.result()), state(whole.result()))


def test_another_rate_or_precision_goes_on(setup):
    """What the help advises when a loss is no longer finite."""
    half = replace(RECIPE, precision="bf16")
    run(setup(recipe=half), stop_after=2)
    full = replace(RECIPE, learning_rate=1e-4)
    assert len(run(setup(recipe=full))) == 2


def test_starting_afresh_sets_the_old_checkpoint_aside(setup, tmp_path):
    run(setup())
    assert len(run(setup(resume=False))) == 4
    assert (tmp_path / "run.previous.safetensors").is_file()


@pytest.mark.parametrize("error", [comfy.model_management.InterruptProcessingException, MemoryError])
def test_a_training_that_took_no_step_leaves_nothing_and_may_be_changed(setup, monkeypatch, tmp_path, error):
    def batch(draw):
        raise error

    training = setup()
    monkeypatch.setattr(training.subject, "batch", batch)
    with pytest.raises(error):
        run(training)
    assert not (tmp_path / "run.safetensors").exists()
    assert len(run(setup(replace(RECIPE, batch_size=1)))) == 4


def test_another_start_text_or_data_is_not_resumed(setup, monkeypatch):
    warm, other = (trained(MotionConfig("sd15", (32, 64, 128, 128)), seed) for seed in (1, 2))
    run(setup(name="warm", warm=warm), stop_after=1)
    with pytest.raises(CheckpointError, match="made with start 'given.safetensors"):
        run(setup(name="warm", warm=other))
    run(setup(), stop_after=1)
    with pytest.raises(CheckpointError, match="made with text model"):
        run(setup(clip=Shouting()))
    with pytest.raises(CheckpointError, match="made with temporal convolution 'False'"):
        run(setup(recipe=replace(RECIPE, temporal_convolution=True)))
    monkeypatch.setattr(Squares, "caption", lambda self, index: "another")
    with pytest.raises(CheckpointError, match="made with clips"):
        run(setup())


def test_a_lora_training_goes_on_also_from_a_checkpoint_of_parametrized_weights(setup, tmp_path):
    """As earlier releases named them: the changes were parts of the module, not LoRAs beside it."""
    recipe = replace(RECIPE, lora_rank=2)
    whole = setup(recipe=recipe, warm=trained(TINY), name="whole")
    expected = run(whole)
    before = run(setup(recipe=recipe, warm=trained(TINY), name="cut"), stop_after=2)
    path = tmp_path / "cut.safetensors"
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
    old = {}
    for name, tensor in load_file(path).items():
        if lora := re.fullmatch(r"(\w+)/lora\.(.+)\.(down|up)(/\w+)?", name):
            kind, layer, factor, rest = lora.groups("")
            name = f"{kind}/motion.{layer.replace('/', '.')}.parametrizations.weight.0.{factor}{rest}"
        old[name] = tensor
    assert sum(".parametrizations." in name for name in old) == 21 * 8 * 2 * 5     # weight, average, three of AdamW
    save_file(old, path, metadata)
    second = setup(recipe=recipe, warm=trained(TINY), name="cut")
    assert before + run(second) == expected
    assert same(state(second.result()), state(whole.result()))
