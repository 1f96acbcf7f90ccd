"""Training a guide in the host: both kinds, both stages, resume, cancel, results; the full guide's parity."""
from __future__ import annotations

from dataclasses import replace

import comfy.model_management
import comfy.ops
import pytest
import torch
from comfy.cldm.cldm import ControlNet
from h_space_examples import comfy_sampler, run
from training_examples import WordClip, preview_vae
from training_examples import run as trained

from frozen_diffusion.modules.guide.networks import fresh_guide
from frozen_diffusion.modules.guide.recipe import GuideRecipe
from frozen_diffusion.modules.guide.shape import shape_of
from frozen_diffusion.modules.guide.trajectories import grid
from frozen_diffusion.modules.host.guide.apply import GuideSettings, apply_guide
from frozen_diffusion.modules.host.guide.files import hold_guide
from frozen_diffusion.modules.host.guide.full import FullGuide, fresh_full_guide
from frozen_diffusion.modules.host.guide.train import GuideSubject
from frozen_diffusion.modules.seeding import stream
from frozen_diffusion.modules.training.checkpoint import CheckpointError
from frozen_diffusion.modules.training.driver import Driver
from testhost.models import CONTEXT, SD15, initialise

PROMPTS = [f"prompt {number}" for number in range(6)]
RECIPE = GuideRecipe(steps=4, learning_rate=1e-3, batch_size=2, trajectories=3, trajectory_steps=3, ema=0.5,
                     checkpoint_every=2)


@pytest.fixture(scope="module")
def vae():
    return preview_vae()


@pytest.fixture
def setup(tiny_sd15, vae, tmp_path):
    def make(recipe=RECIPE, name="run", prompts=PROMPTS, **more):
        subject = GuideSubject(more.pop("model", None) or tiny_sd15(), vae, WordClip(), prompts, recipe, (64, 64),
                               cache=tmp_path / "cache", **more)
        return Driver(subject, tmp_path / f"{name}.safetensors")
    return make


def weights(driver):
    return driver.result().network.state_dict()


@pytest.mark.parametrize("kind", ["tiny", "full"])
def test_a_training_learns_and_its_guide_guides(setup, tiny_sd15, kind):
    """The MODEL stays as it was; what comes out changes the picture of the MODEL that it is applied to."""
    model = tiny_sd15()
    before = {name: weight.clone() for name, weight in model.model.state_dict().items()}
    driver = setup(replace(RECIPE, kind=kind, steps=30), model=model)
    losses = trained(driver)
    assert sum(losses[-10:]) < sum(losses[:10])
    with torch.inference_mode():
        assert driver.sample().shape == (24, 64, 64, 3)
    measured = driver.subject.measured
    assert set(measured) == {"ratio", "FGU 2", "FGU 3", "FGU 5", "FGU 9"} and all(map(torch.isfinite, map(
        torch.tensor, measured.values())))
    loaded = driver.result()
    assert loaded.config.kind == kind and loaded.metadata["train_steps"] == "30" and loaded.config.sigmas == ()
    plain, made = (run(each, comfy_sampler("euler"), cfg, steps=2) for each, cfg in (
        (model, 1.0), (apply_guide(model, loaded, GuideSettings()), 5.0)))
    assert (made - plain).abs().max() > 1e-5
    after = model.model.state_dict()
    assert before.keys() == after.keys() and all(torch.equal(before[name], after[name]) for name in before)


def test_a_cut_training_goes_on_bit_for_bit(setup):
    whole = setup(name="whole")
    expected = trained(whole)
    before = trained(setup(name="cut"), stop_after=2)
    second = setup(name="cut")
    assert before + trained(second) == expected
    assert all(torch.equal(weights(whole)[name], weight) for name, weight in weights(second).items())
    with pytest.raises(CheckpointError, match="made with trajectories"):
        trained(setup(name="cut", prompts=PROMPTS[:2]))


def test_a_cancel_while_sampling_trajectories_leaves_what_is_done(setup, monkeypatch):
    driver, asked = setup(replace(RECIPE, trajectories=12)), []

    def tick():
        asked.append(1)
        if len(asked) > 5:
            raise comfy.model_management.InterruptProcessingException

    monkeypatch.setattr(comfy.model_management, "throw_exception_if_processing_interrupted", tick)
    with pytest.raises(comfy.model_management.InterruptProcessingException):
        trained(driver)
    monkeypatch.setattr(comfy.model_management, "throw_exception_if_processing_interrupted", lambda: None)
    with torch.inference_mode():
        assert next(iter(setup(replace(RECIPE, trajectories=12)).encode()))[0] in (0, 8)


def test_stage_2_starts_from_a_guide_and_keeps_its_grid(setup):
    first = setup(name="first")
    trained(first)
    recipe = replace(RECIPE, student_steps=4, steps=3)
    second = setup(recipe, name="second", warm=first.result())
    assert all(loss > 0 for loss in trained(second))
    made = second.result().config
    levels = second.subject.levels
    expected = [float(levels.snr(torch.tensor([time])) ** -0.5) for time in grid(4)] + [0.0]
    assert made.steps == 4 and made.sigmas == pytest.approx(expected)
    assert {plan.times for plan in second.subject.trajectories.plans} == {grid(8)}
    with pytest.raises(ValueError, match="Connect the guide of stage 1"):
        setup(recipe)
    with pytest.raises(ValueError, match="starts from a tiny guide, but kind is full"):
        setup(replace(recipe, kind="full"), warm=first.result())


def test_stage_2_of_a_student_like_its_teacher_has_the_error_of_one_step(setup):
    """By the definition of the target: where two steps of the teacher are one straight line, there is no error."""
    first = setup(name="first")
    trained(first)
    subject = setup(replace(RECIPE, student_steps=4), name="second", warm=first.result()).subject
    with torch.inference_mode():
        list(subject.encode())
    subject.prepare()
    subject.predict = lambda x, *rest, **more: torch.full_like(x, 0.3)
    with torch.no_grad():
        assert subject.two_steps(subject.batch(0)).max() < 1e-8


def test_a_negative_aware_guide_learns_from_negatives(setup, tiny_sd15):
    """Some states are guided away from a text; the guide says so, and reads the negative prompt in a sampling."""
    driver = setup(replace(RECIPE, trajectories=8), negatives=["stripes", "dots"])
    losses = trained(driver)
    subject = driver.subject
    negatives = {plan.negative for plan in subject.trajectories.plans}
    assert len(losses) == 4 and negatives == {"", "stripes", "dots"}
    states = subject.trajectories.states([(0, 0)], torch.tensor([5.0]))
    plan = subject.trajectories.plans[0]
    with torch.no_grad():
        expected = subject.base(states.x, states.t, subject.trajectories.text_of(plan.negative))
    torch.testing.assert_close(states.unconditional, expected, rtol=2e-3, atol=2e-3)
    torch.testing.assert_close(states.negative.tokens, subject.trajectories.text_of(plan.negative).tokens)
    assert driver.result().config.negative_aware


def test_noised_pictures_are_states_too(setup, tmp_path, vae):
    """A share of the trajectories are pictures of a folder with noise on them, with their captions."""
    from PIL import Image
    folder = tmp_path / "pictures"
    folder.mkdir()
    for number in range(3):
        Image.new("RGB", (64, 64), (80 * number, 20, 200)).save(folder / f"{number}.png")
        (folder / f"{number}.txt").write_text(f"picture {number}")
    driver = setup(replace(RECIPE, trajectories=6, picture_share=0.5, empty_share=0.0), pictures=folder)
    trained(driver)
    subject = driver.subject
    plans = [plan for plan in subject.trajectories.plans if plan.picture is not None]
    assert 0 < len(plans) < 6
    plan = plans[0]
    assert plan.prompt == f"picture {plan.picture}"
    states = subject.trajectories.states([(plan.number, step) for step in range(3)], torch.full((3,), 5.0))
    noise = torch.randn(subject.size, generator=stream("noise", RECIPE.seed, plan.number))
    pictures = subject.trajectories.pictures.latents(plan.picture)
    expected = subject.levels.add_noise(pictures.expand(3, -1, -1, -1), noise.expand(3, -1, -1, -1), states.t)
    torch.testing.assert_close(states.x, expected, rtol=2e-3, atol=2e-3)
    with pytest.raises(ValueError, match="There is no folder"):
        setup(pictures=tmp_path / "none")


@pytest.mark.parametrize("fed", [False, True])
def test_a_fed_guide_gets_gradients_and_goes_on(setup, fed):
    """The features are read before the decoder adds to them; a warm start keeps what its guide is."""
    driver = setup(replace(RECIPE, fed=fed))
    trained(driver)
    loaded = driver.result()
    assert loaded.config.fed == fed and loaded.network.fed == fed
    again = setup(replace(RECIPE, fed=not fed), "again", warm=loaded)
    trained(again)
    assert again.result().config.fed == fed


def test_inputs_that_do_not_belong_together(setup, tiny_sdxl, vae):
    with pytest.raises(ValueError, match="no prompt to learn from"):
        setup(prompts=["", "  "])
    with pytest.raises(ValueError, match=r"The CLIP gives text of 8 channels, but the MODEL reads"):
        GuideSubject(tiny_sdxl(), vae, WordClip(width=8), PROMPTS, RECIPE, (64, 64))


def test_the_full_guide_of_sd15_has_the_parameters_that_were_planned():
    """guide_model.md 2.3: 362,243,200 with the embedding of g."""
    unet = SD15 | {"model_channels": 320, "context_dim": 768, "num_heads": 8}
    from comfy.supported_models import SD15 as Family
    config = Family(unet).unet_config
    guide = FullGuide(shape_of(config), {name: value for name, value in config.items() if name != "dtype"},
                      comfy.ops.disable_weight_init, device="meta", dtype=torch.float32)
    assert sum(weight.numel() for weight in guide.parameters()) == 362_243_200


def test_the_full_guide_is_a_controlnet_without_hint(tiny_sd15):
    """The residuals of the host's ControlNet with the same weights, whose hint branch ends in zeros, at the anchor."""
    model = tiny_sd15()
    config = {name: value for name, value in model.model.model_config.unet_config.items() if name != "dtype"}
    shape = shape_of(config)
    guide = fresh_full_guide(shape, model.model.diffusion_model, config, comfy.ops.disable_weight_init, 0.3)
    control = ControlNet(**{name: value for name, value in config.items()
                            if name not in ("out_channels", "transformer_depth_output")},
                         hint_channels=3, dtype=torch.float32, operations=comfy.ops.disable_weight_init)
    initialise(control, seed=1)
    own = guide.state_dict()
    with torch.no_grad():
        for name, weight in control.state_dict().items():
            if name in own:
                weight.copy_(own[name])
        for index, output in enumerate(guide.outputs[:-1]):
            control.zero_convs[index][0].weight.copy_(output.weight)
            control.zero_convs[index][0].bias.copy_(output.bias)
        control.middle_block_out[0].weight.copy_(guide.outputs[-1].weight)
        control.middle_block_out[0].bias.copy_(guide.outputs[-1].bias)
        for weight in control.input_hint_block[-1].parameters():
            weight.zero_()
        x, t = torch.randn(1, 4, 16, 16, generator=stream("parity")), torch.tensor([321])
        context = torch.randn(1, 7, CONTEXT, generator=stream("parity text"))
        found = guide(x, t, torch.tensor([5.0]), guide.read_text(context))
        expected = control(x=x, hint=torch.randn(1, 3, 128, 128), timesteps=t, context=context)
    for residual, other in zip(found, [*expected["output"], *expected["middle"]], strict=True):
        torch.testing.assert_close(residual, other, rtol=1e-3, atol=1e-4)
    assert all(residual.abs().max() == 0 for residual in guide(x, t, torch.tensor([1.0]), context))


def test_a_full_guide_is_held_and_moved_by_the_host(tiny_sd15):
    model = tiny_sd15()
    config = {name: value for name, value in model.model.model_config.unet_config.items() if name != "dtype"}
    from frozen_diffusion.modules.guide.files import FULL, GuideConfig
    made = fresh_full_guide(shape_of(config), model.model.diffusion_model, config, comfy.ops.disable_weight_init, 0.3)
    loaded = hold_guide(GuideConfig(FULL, "sd15", "eps", shape_of(config), unet=config), made.state_dict(), "full")
    plain, guided = (run(each, comfy_sampler("euler"), cfg, steps=2) for each, cfg in (
        (model, 1.0), (apply_guide(model, loaded, GuideSettings()), 5.0)))
    assert (guided - plain).abs().max() > 1e-3
    assert fresh_guide(shape_of(config), 0).shape == loaded.config.shape
