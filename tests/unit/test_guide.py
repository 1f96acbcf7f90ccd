"""The guide's network, what it learns, its states and its file, without the host."""
from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from frozen_diffusion.modules.data.cache import TensorCache
from frozen_diffusion.modules.data.encoded import Text
from frozen_diffusion.modules.demo.models import UNET
from frozen_diffusion.modules.guide.distillation import (
    guided,
    step_weight,
    stratified,
    two_steps_in_one,
    unexplained,
)
from frozen_diffusion.modules.guide.files import GuideConfig, GuideFileError, read_guide, write_guide
from frozen_diffusion.modules.guide.networks import fresh_guide
from frozen_diffusion.modules.guide.recipe import GuideRecipe
from frozen_diffusion.modules.guide.rollout import distance_ratio, rollout
from frozen_diffusion.modules.guide.shape import shape_of
from frozen_diffusion.modules.guide.trajectories import Trajectories, grid
from frozen_diffusion.modules.seeding import stream
from frozen_diffusion.modules.training.denoising import NoiseLevels

SD15 = {"model_channels": 320, "channel_mult": (1, 2, 4, 4), "num_res_blocks": [2, 2, 2, 2],
        "transformer_depth": [1, 1, 1, 1, 1, 1, 0, 0], "context_dim": 768}
SDXL = {"model_channels": 320, "channel_mult": (1, 2, 4), "num_res_blocks": [2, 2, 2],
        "transformer_depth": [0, 0, 2, 2, 10, 10], "context_dim": 2048, "adm_in_channels": 2816}
BETAS = torch.linspace(0.00085 ** 0.5, 0.012 ** 0.5, 1000, dtype=torch.float64) ** 2
LEVELS = {kind: NoiseLevels((1 - BETAS).cumprod(0), kind) for kind in ("eps", "v")}


def noise(*shape, name="guide"):
    return torch.randn(*shape, generator=stream(name))


def test_the_tiny_guide_of_sd15_has_the_parameters_that_were_planned():
    """guide_model.md 2.4: 8,478,752, .986 % of the base; SDXL's nine skips, widths and text levels."""
    guide = fresh_guide(shape_of(SD15), 0)
    assert sum(weight.numel() for weight in guide.parameters()) == 8_478_752
    assert guide.shape.widths == (48, 96, 192, 192) and guide.shape.text_levels == (1, 2)
    assert guide.shape.skips == (320, 320, 320, 320, 640, 640, 640, 1280, 1280, 1280, 1280, 1280)
    large = shape_of(SDXL)
    assert (large.skips, large.middle) == ((320, 320, 320, 320, 640, 640, 640, 1280, 1280), 1280)
    assert (large.widths, large.text_levels, large.vector_dim) == ((64, 128, 256), (1, 2), 2816)
    small = sum(weight.numel() for weight in fresh_guide(shape_of(UNET), 0).parameters())
    assert 0.008 < small / 9_913_220 < 0.012
    fed = fresh_guide(shape_of(UNET), 0, fed=True)
    assert 0.011 < sum(weight.numel() for weight in fed.parameters()) / 9_913_220 < 0.013
    with pytest.raises(ValueError, match="context_dim None"):
        shape_of({**SD15, "context_dim": None})


@pytest.mark.parametrize("size", [(16, 16), (18, 14), (17, 11)])
def test_residuals_have_the_sizes_of_the_skips(size):
    """The same arithmetic of convolutions as the base's: every Downsample halves and rounds up."""
    guide = fresh_guide(shape_of(UNET), 0)
    text = guide.read_text(noise(2, 7, 128))
    found = guide(noise(2, 4, *size), torch.tensor([5, 900]), torch.tensor([2.0, 5.0]), text)
    height, width, expected = *size, []
    for skip, channels in enumerate(guide.shape.skips):
        if skip in guide.shape.downsamples:
            height, width = -(-height // 2), -(-width // 2)
        expected.append((2, channels, height, width))
    assert [tuple(residual.shape) for residual in found] == [*expected, (2, guide.shape.middle, height, width)]


def test_what_the_guide_sees():
    """g = 1 is exactly off; every input changes the residuals, and a row's scale its own row alone."""
    guide = fresh_guide(shape_of(UNET), 0).requires_grad_(False)
    for layer in guide.scale:
        if hasattr(layer, "reset_parameters"):
            layer.reset_parameters()
    x, t, g = noise(2, 4, 16, 16), torch.tensor([300, 300]), torch.tensor([5.0, 5.0])
    text = noise(2, 7, 128, name="text")

    def look(x=x, t=t, g=g, text=text):
        return torch.cat([residual.flatten(1) for residual in guide(x, t, g, guide.read_text(text))], 1)

    assert look(g=torch.tensor([1.0, 5.0]))[0].abs().max() == 0
    plain = look()
    for change in ({"x": x + 1}, {"t": t + 100}, {"g": g + 2}, {"text": -text}):
        assert (look(**change) - plain).norm() > 0.01 * plain.norm(), change
    one = look(g=torch.tensor([5.0, 7.0]))
    torch.testing.assert_close(one[0], plain[0])
    assert (one[1] - plain[1]).norm() > 0.01 * plain[1].norm()
    one, same = (fresh_guide(shape_of(UNET), 3).outputs[0].weight for _ in range(2))
    assert torch.equal(one, same)


def test_a_negative_aware_guide_reads_two_texts():
    """At initialisation it is the guide that reads one; trained, the negative prompt changes every residual."""
    plain, aware = (fresh_guide(shape_of(UNET), 0, output_std=0.3, negative=negative).requires_grad_(False)
                    for negative in (False, True))
    aware.load_state_dict(plain.state_dict(), strict=False)
    x, t, g = noise(1, 4, 16, 16), torch.tensor([300]), torch.tensor([5.0])
    one, two, three = (noise(1, length, 128, name=f"text {length}") for length in (7, 9, 11))

    def look(negative):
        return aware(x, t, g, aware.read_text(one, negative))

    assert all(torch.equal(*pair) for pair in zip(look(two), plain(x, t, g, plain.read_text(one)), strict=True))
    for block in aware.text_blocks():
        torch.nn.init.normal_(block.to_out_neg.weight)
    changed = [not torch.equal(*pair) for pair in zip(look(two), look(three), strict=True)]
    assert any(changed) and changed[-1]


def test_a_fed_guide_reads_features_of_any_size():
    guide = fresh_guide(shape_of(UNET), 0, fed=True).requires_grad_(False)
    sizes = [tuple(part.shape) for part in fresh_guide(shape_of(UNET), 0)(
        noise(1, 4, 16, 16), torch.tensor([300]), torch.tensor([5.0]), guide.read_text(noise(1, 7, 128)))]

    def look(scale, shrink=1):
        features = [scale * noise(1, size[1], max(1, size[2] // shrink), max(1, size[3] // shrink)) for size in sizes]
        return guide(noise(1, 4, 16, 16), torch.tensor([300]), torch.tensor([5.0]), guide.read_text(noise(1, 7, 128)),
                     features=features[:-1])

    one, two, small = look(1.0), look(2.0), look(1.0, shrink=2)
    assert [tuple(part.shape) for part in small] == sizes
    assert all((a - b).abs().max() > 0 for a, b in zip(one, two, strict=True))


def test_zero_outputs_learn_before_the_rest():
    """The signature of zero-initialised outputs: in the first step they get a gradient, what is before them none."""
    guide = fresh_guide(shape_of(UNET), 0, output_std=0)
    for step in range(2):
        loss = sum((residual - 1).square().mean() for residual in guide(
            noise(1, 4, 16, 16), torch.tensor([300]), torch.tensor([5.0]), guide.read_text(noise(1, 7, 128))))
        guide.zero_grad()
        loss.backward()
        assert guide.outputs[3].weight.grad.abs().max() > 0
        assert (guide.blocks[1].res.conv_in.weight.grad.abs().max() > 0) == (step == 1)
        with torch.no_grad():
            for weight in guide.parameters():
                weight -= 0.01 * weight.grad


@pytest.mark.parametrize("kind", ["eps", "v"])
def test_guidance_is_the_same_in_every_form(kind):
    """The weights of the combination add up to 1, so guiding predictions guides x_0, eps and v alike."""
    levels, x, t = LEVELS[kind], noise(3, 4, 8, 8), torch.tensor([100, 500, 950])
    conditional, unconditional = noise(3, 4, 8, 8, name="c"), noise(3, 4, 8, 8, name="u")
    g = torch.tensor([1.0, 4.0, 9.0])
    of_prediction = levels.split(x, guided(conditional, unconditional, g), t)
    parts = zip(levels.split(x, conditional, t), levels.split(x, unconditional, t), strict=True)
    for whole, (with_text, without) in zip(of_prediction, parts, strict=True):
        torch.testing.assert_close(whole, guided(with_text, without, g), rtol=1e-4, atol=1e-3)
    torch.testing.assert_close(guided(conditional, unconditional, torch.ones(3)), conditional)


def test_the_fraction_unexplained():
    """1 without a guide, 0 for a perfect one, and the fingerprint of one that knows only the mean scale."""
    c, u, g = noise(2, 4, 8, 8, name="c"), noise(2, 4, 8, 8, name="u"), torch.tensor([2.0, 9.0])
    assert unexplained(c, c, u, g).tolist() == pytest.approx([1, 1], rel=1e-5)
    assert unexplained(guided(c, u, g), c, u, g).tolist() == pytest.approx([0, 0], abs=1e-6)
    mean = guided(c, u, torch.tensor([5.5, 5.5]))
    assert unexplained(mean, c, u, g).tolist() == pytest.approx([12.25, (3.5 / 8) ** 2], rel=1e-4)


def test_one_step_that_is_two():
    """One Euler step with the target lands where two end; the three forms of it agree (Salimans & Ho, algorithm 2)."""
    x = noise(2, 4, 8, 8).double()
    first, second = (noise(2, 4, 8, 8, name=name).double() for name in "ab")
    t, m, s = (torch.tensor(pair, dtype=torch.float64) for pair in ([14.6, 2.0], [5.0, 1.0], [1.5, 0.0]))
    row = (-1, 1, 1, 1)
    end = x + (m - t).view(row) * first + (s - m).view(row) * second
    target = two_steps_in_one(first, second, t, m, s)
    torch.testing.assert_close(x + (s - t).view(row) * target, end)
    a_t, a_s = (1 / (1 + sigma.square()).sqrt() for sigma in (t, s))        # the variance-preserving scale
    z_t, z_s = a_t.view(row) * x, a_s.view(row) * end
    eps = (z_s - (a_s / a_t).view(row) * z_t) / (s * a_s - a_s / a_t * t * a_t).view(row)
    torch.testing.assert_close(target, eps)
    x0 = (z_s - (s * a_s / (t * a_t)).view(row) * z_t) / (a_s - s * a_s / (t * a_t) * a_t).view(row)
    torch.testing.assert_close(x - t.view(row) * target, x0)
    assert step_weight(torch.tensor([0.1, 2.0, 14.6])).tolist() == pytest.approx([1, 4, 5])
    assert step_weight(torch.tensor([14.6]), limit=0).item() == pytest.approx(14.6 ** 2)


def test_grids_of_half_as_many_steps_are_nested():
    assert grid(8)[0] == 999 and len(grid(8)) == 8
    for steps in (16, 8, 4):
        assert set(grid(steps // 2)) <= set(grid(steps))
    parts = (stratified(10, stream("a")) * 10).long().sort().values
    assert parts.tolist() == list(range(10))


def world(tmp_path, **changes):
    """Trajectories on a toy of which the prediction is known: eps = x times a number of the prompt."""
    recipe = GuideRecipe(steps=4, batch_size=6, trajectories=5, trajectory_steps=4, **changes)
    strength = {"": 0.1, "red": 0.3, "blue": 0.5}
    calls = []

    def text(prompt):
        return Text(torch.full((1, 2, 3), strength[prompt]), None)

    def predict(x, t, words):
        calls.append(len(x))
        return x * words.tokens[:, 0, :1, None, None]

    made = Trajectories(["red", "blue"], recipe, "toy", (4, 8, 8), LEVELS["eps"], text,
                        TensorCache(tmp_path, "A trajectory", torch.float32))
    return made, predict, calls


def test_states_are_those_of_guided_sampling(tmp_path):
    made, predict, calls = world(tmp_path, empty_share=0.0)
    assert list(made.sample(predict, torch.device("cpu"))) == [(0, 5), (5, 5)]
    assert calls == [10] * 4                                    # both predictions of five trajectories in a call
    states = made.states([(1, 0), (1, 1)], torch.tensor([2.0, 3.0]))
    plan = made.plans[1]
    assert plan.prompt == "blue" and states.t.tolist() == list(plan.times[:2]) and plan.times[0] == 999
    torch.testing.assert_close(states.conditional, 0.5 * states.x)
    torch.testing.assert_close(states.unconditional, 0.1 * states.x)
    eps = guided(states.conditional[:1], states.unconditional[:1], torch.tensor([plan.g]))
    x0, eps = LEVELS["eps"].split(states.x[:1], eps, states.t[:1])
    torch.testing.assert_close(states.x[1:], LEVELS["eps"].add_noise(x0, eps, states.t[1:]), rtol=1e-4, atol=1e-5)
    again, predict, calls = world(tmp_path, empty_share=0.0)
    assert list(again.sample(predict, torch.device("cpu"))) == [(5, 5)] and calls == []
    drawn = [state for draw in range(10) for state in again.batch(draw).t.tolist()]
    assert sorted(drawn[:20]) == sorted(time for plan in again.plans for time in plan.times)     # an epoch: each once
    assert world(tmp_path, seed=1)[0].name != again.name
    with pytest.raises(ValueError, match="no prompt to learn from"):
        Trajectories([], again.recipe, "toy", (4, 8, 8), LEVELS["eps"], None, again.cache)


def test_a_rollout_follows_the_prediction():
    """Of eps = 0 x_0 is the first x over its scale; the ratio is 1 for no guide and 0 for the real thing."""
    start = noise(2, 4, 8, 8)
    made = rollout(lambda x, t: torch.zeros_like(x), LEVELS["eps"], start, grid(4))
    torch.testing.assert_close(made, start / LEVELS["eps"].abar[999].sqrt().float(), rtol=1e-4, atol=1e-4)
    plain, real = noise(2, 4, name="p"), noise(2, 4, name="r")
    assert distance_ratio(plain, plain, real) == pytest.approx(1) and distance_ratio(real, plain, real) == 0


@pytest.mark.parametrize(("change", "text"), [
    ({"kind": "middle"}, "tiny or full"), ({"g_min": 0.5}, "1 <= g_min"), ({"g_max": 1.0}, "1 <= g_min"),
    ({"batch_size": 0}, "at least 1"), ({"trajectory_steps": 1}, "at least 2"), ({"empty_share": 2.0}, "fraction"),
    ({"student_steps": 1}, "stage 1"), ({"learning_rate": 0.0}, "positive")])
def test_recipes_that_mean_nothing(change, text):
    with pytest.raises(ValueError, match=text):
        GuideRecipe(**change)


CONFIG = GuideConfig("tiny", "sd15", "eps", shape_of(UNET), 1.0, 9.0, 128, (14.6, 2.0, 0.0), "a.b:1")


def test_a_guide_file_there_and_back(tmp_path):
    guide = fresh_guide(CONFIG.shape, 0)
    write_guide(tmp_path / "guide.safetensors", CONFIG, guide.state_dict(), {"trained_on": "words"})
    config, state, metadata = read_guide(tmp_path / "guide.safetensors")
    assert config == CONFIG and config.steps == 2 and metadata["trained_on"] == "words"
    assert json.loads(metadata["skip_channels"]) == [*CONFIG.shape.skips, 128] and metadata["g_convention"] == "1=off"
    assert all(torch.equal(state[name], weight) for name, weight in guide.state_dict().items())


@pytest.mark.parametrize(("change", "text"), [
    ({"format": "other"}, "no guide model: its format is 'other'"), ({"format_version": "7"}, "version 7.*Update"),
    ({"g_convention": "0=off"}, "g_convention.*'0=off'"), ({"kind": "huge"}, "kind.*neither tiny nor full"),
    ({"shape": "{}"}, "field shape"), ({"g_min": "low"}, "field g_min"), ({"sigmas": "["}, "field sigmas")])
def test_files_that_are_no_guides(tmp_path, change, text):
    path = tmp_path / "guide.safetensors"
    write_guide(path, CONFIG, fresh_guide(CONFIG.shape, 0).state_dict(), {})
    metadata = json.loads(path.read_bytes()[8:8 + int.from_bytes(path.read_bytes()[:8], "little")])["__metadata__"]
    save_file(load_file(path), path, {**metadata, **change})
    with pytest.raises(GuideFileError, match=text):
        read_guide(path)


def test_a_guide_with_a_broken_number(tmp_path):
    state = fresh_guide(CONFIG.shape, 0).state_dict()
    state["outputs.0.bias"][3] = float("nan")
    write_guide(tmp_path / "guide.safetensors", CONFIG, state, {})
    with pytest.raises(GuideFileError, match="not finite .in outputs.0.bias"):
        read_guide(tmp_path / "guide.safetensors")
