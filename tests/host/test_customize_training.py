"""Customize-A-Video's two trainings in the host: what is trained and left alone, captions, looks, ways of ending."""
from __future__ import annotations

from dataclasses import replace

import comfy.model_management
import pytest
import torch
from motion_examples import TINY, random_motion
from training_examples import Slides, Squares, WordClip, preview_vae, run

from frozen_diffusion.modules.customize.absorber import PLACEHOLDER, Absorber, cropped, draw_crop, look_caption
from frozen_diffusion.modules.customize.meters import best_snapshot, diversity, fidelity, leakage
from frozen_diffusion.modules.customize.recipe import (
    BOTH,
    JOINT,
    PLAIN_LOSS,
    S_LORA,
    TEXT_INVERSION,
    AbsorberRecipe,
    MotionLoRARecipe,
)
from frozen_diffusion.modules.host.codec import HostText
from frozen_diffusion.modules.host.customize import train
from frozen_diffusion.modules.host.customize.absorb import AbsorberSubject
from frozen_diffusion.modules.host.customize.files import with_motion_lora
from frozen_diffusion.modules.host.customize.text_model import TextModel
from frozen_diffusion.modules.host.customize.train import MotionLoRASubject
from frozen_diffusion.modules.host.motion.apply import hold_motion
from frozen_diffusion.modules.host.motion.frozen_copy import FrozenCopy
from frozen_diffusion.modules.host.weights import copy_unet, model_identity
from frozen_diffusion.modules.seeding import stream
from frozen_diffusion.modules.training.driver import Driver
from frozen_diffusion.modules.training.lora_keys import Factors

LOOK = AbsorberRecipe(steps=3, batch_size=2, crops=4, rank=2, vectors=2, checkpoint_every=2)
MOTION = MotionLoRARecipe(steps=4, rank=2, frames=4, sample_every=2, checkpoint_every=2, learning_rate=1e-2)


@pytest.fixture(scope="module")
def vae():
    return preview_vae()


@pytest.fixture(scope="module")
def sprite_clip(comfy):
    from frozen_diffusion.modules.host.demo import load_sprite_world
    return load_sprite_world()[1]


def motion():
    return hold_motion(TINY, random_motion().state_dict(), "random.safetensors")


def trained(driver, stop_after=None):
    """As `run`, with the looks that the recipe asks for. Returns the losses."""
    return run(driver, stop_after, looks=(2, 4) if driver.sample_every else ())


@pytest.fixture
def look(tiny_sd15, vae, tmp_path):
    def make(recipe=LOOK, name="look", clip=None, caption="a white square", **more):
        subject = AbsorberSubject(more.pop("model", None) or tiny_sd15(), vae, clip or WordClip(),
                                  more.pop("source", Slides()), recipe, caption, tmp_path / "cache", **more)
        return Driver(subject, tmp_path / f"{name}.safetensors")
    return make


@pytest.fixture
def move(tiny_sd15, vae, tmp_path, monkeypatch):
    monkeypatch.setattr(train, "SAMPLE_STEPS", 2)

    def make(recipe=MOTION, name="motion", caption="a square, sliding", prompts=("a circle, sliding",), **more):
        subject = MotionLoRASubject(more.pop("model", None) or tiny_sd15(), vae, more.pop("clip", None) or WordClip(),
                                    more.pop("motion", None) or motion(), more.pop("source", Slides()), recipe,
                                    caption, prompts, cache=tmp_path / "cache", **more)
        return Driver(subject, tmp_path / f"{name}.safetensors")
    return make


def test_the_text_model_is_the_hosts(sprite_clip):
    """Without vectors its output is the host's; with some it has a gradient, which the host's own layers do not."""
    words, host = TextModel(sprite_clip), HostText(sprite_clip)
    for caption in ("a large fox in the middle of a blue plain background", ""):
        torch.testing.assert_close(words(caption, None).tokens, host.text(caption).tokens, rtol=1e-5, atol=1e-5)
    vectors = torch.nn.Parameter(words.fresh_vectors("a fox", 3).clone())
    made = words(f"a {PLACEHOLDER} on a blue background", vectors)
    made.tokens.square().mean().backward()
    assert vectors.grad.abs().max() > 0
    appended = words("a fox", vectors.detach())
    assert (appended.tokens - words("a fox", None).tokens).abs().max() > 1e-3
    with pytest.raises(ValueError, match="tokens with its 3 vectors"):
        words("a fox " * 37, vectors.detach())


@pytest.mark.parametrize("kind", [S_LORA, TEXT_INVERSION, BOTH, JOINT])
def test_an_absorber_learns_and_nothing_else_changes(look, tiny_sd15, sprite_clip, kind):
    """Only its own numbers; the MODEL is as it was; of every kind the parts that it says."""
    model = tiny_sd15(context_dim=128)
    before = model_identity(model)
    driver = look(replace(LOOK, kind=kind), model=model, clip=sprite_clip)
    losses = trained(driver)
    made = driver.result()
    assert len(losses) == 3 and all(loss == loss for loss in losses) and model_identity(model) == before
    assert bool(made.factors) == (kind != TEXT_INVERSION) and (made.vectors is not None) == (kind != S_LORA)
    if made.factors:
        assert any(pair.up.abs().max() > 0 for pair in made.factors.values())
    if made.vectors is not None:
        assert made.vectors.shape == (2, 128)
    with torch.inference_mode():
        assert driver.sample().shape[0] == 8
    assert set(driver.subject.measured) == {"absorbed at 100", "absorbed at 500", "absorbed at 900"}


def test_the_bypass_is_the_image_model(look, tiny_sd15):
    """Frame by frame the host's U-Net: no frame hears of another. A motion module over a still clip is not that."""
    driver = look(model=tiny_sd15())
    with torch.inference_mode():
        list(driver.encode())
    subject = driver.subject
    subject.prepare()
    x = torch.randn(4, 4, 8, 8, generator=stream("frames"))
    t = torch.tensor([10, 300, 600, 900])
    with torch.inference_mode(False):
        made = subject.predict(x, t, subject.plain)
        turned = subject.predict(x.flip(0), t.flip(0), subject.plain).flip(0)
        alone = [subject.predict(x[i:i + 1], t[i:i + 1], subject.plain)[0] for i in range(4)]
    torch.testing.assert_close(turned, made, rtol=1e-4, atol=1e-4)
    for frame in range(4):
        torch.testing.assert_close(alone[frame], made[frame], rtol=1e-4, atol=1e-4)
    unet = copy_unet(subject.model)
    plain = unet(x, t.float(), context=subject.plain.tokens.expand(4, -1, -1))
    torch.testing.assert_close(plain, made, rtol=1e-4, atol=1e-4)
    one = x[:1].clone().requires_grad_()
    rest = x[1:].clone().requires_grad_()
    subject.predict(torch.cat([one, rest]), t, subject.plain)[0].sum().backward()
    assert one.grad.abs().max() > 0 and rest.grad.abs().max() == 0
    moving = FrozenCopy(subject.model, motion().module, 2)
    through = moving(x[:1].expand(2, -1, -1, -1)[None], t[:1], subject.plain)[0, 0]
    assert (through - made[0]).abs().max() > 1e-2


def test_losses_are_the_papers(look, move):
    """Equations 3 and 5 in a few lines: the mean squared error of the predicted noise."""
    first, second = look(), move(replace(MOTION, sample_every=0, **{
        name: value for name, value in PLAIN_LOSS.items() if name not in ("learning_rate", "steps", "schedule")}),
        prompts=())
    for driver in (first, second):
        with torch.inference_mode():
            list(driver.encode())
        driver.subject.prepare()
    for subject, is_clip in ((first.subject, False), (second.subject, True)):
        batch, levels = subject.batch(0), subject.levels
        found = subject.loss()(batch, torch.Generator().manual_seed(3))[0]
        generator = torch.Generator().manual_seed(3)
        x0 = subject.model.model.process_latent_in(batch.latents)
        t = torch.randint(len(levels.abar), (len(x0),), generator=generator)
        eps = torch.randn(x0.shape, generator=generator)
        abar = levels.abar[t].view(-1, *[1] * (x0.ndim - 1)).float()
        noisy = abar.sqrt() * x0 + (1 - abar).sqrt() * eps
        with torch.inference_mode(False), torch.no_grad():
            made = (subject.predict(noisy, t, batch.text, batch.frame_indices) if is_clip
                    else subject.predict(noisy, t, subject.plain))
        assert float(found) == pytest.approx(float((eps - made).square().mean()), rel=1e-5)


def test_an_absorber_needs_a_caption(look):
    with pytest.raises(ValueError, match="Write an appearance caption"):
        look(caption=" ")
    with pytest.raises(ValueError, match="text encoder .CLIP-L alone"):
        class Other(WordClip):
            def load_model(self):
                self.cond_stage_model, self.tokenizer = object(), object()
        look(replace(LOOK, kind=TEXT_INVERSION), clip=Other())


def test_both_is_two_trainings_at_once(look, tiny_sd15, sprite_clip):
    """Each against the clean base: the S-LoRA of `both` is that of S-LoRA alone, bit for bit."""
    alone, both = (look(replace(LOOK, kind=kind, grad_clip=0.0), name=kind, model=tiny_sd15(context_dim=128),
                        clip=sprite_clip) for kind in (S_LORA, BOTH))
    trained(alone)
    trained(both)
    for name, pair in alone.result().factors.items():
        torch.testing.assert_close(both.result().factors[name].up, pair.up, rtol=1e-4, atol=1e-6)


def test_crops():
    """A third to two thirds of each side, of the frame's aspect, inside of it; resized back or not."""
    generator = stream("crops")
    for _ in range(50):
        top, left, tall, across = draw_crop(256, 384, generator)
        assert 0 <= top <= 256 - tall and 0 <= left <= 384 - across
        assert 0.3 < tall / 256 < 0.7 and 0.3 < across / 384 < 0.7 and tall % 8 == across % 8 == 0
    frame = torch.randint(0, 255, (3, 256, 384), dtype=torch.uint8)
    box = draw_crop(256, 384, generator)
    assert cropped(frame, box, True).shape == frame.shape and cropped(frame, box, False).shape[1:] == box[2:]
    assert draw_crop(64, 64, generator)[2:] == (64, 64)


def test_a_motion_lora_learns_and_nothing_else_changes(move, tiny_sd15):
    """Only its factors; MODEL and motion module are as they were; a look at prompts becomes the result."""
    model, loaded = tiny_sd15(), motion()
    before = model_identity(model), {name: tensor.clone() for name, tensor in loaded.module.state_dict().items()}
    driver = move(model=model, motion=loaded)
    losses = trained(driver)
    made = driver.result()
    assert len(losses) == 4 and model_identity(model) == before[0]
    assert all(torch.equal(tensor, before[1][name]) for name, tensor in loaded.module.state_dict().items())
    assert any(pair.up.abs().max() > 0 for pair in made.factors.values())
    assert made.metadata["caption"] == "a square, sliding" and made.metadata["snapshot"].startswith("look ")
    assert {"fidelity", "leakage", "diversity"} == set(driver.subject.measured) and len(driver.subject.seen()) == 2
    report = driver.subject.report()
    assert "no absorber" in report and "look 1" in report and "kept: look" in report
    assert with_motion_lora(loaded, made, 1.0)[0].loras


def test_gradients_are_those_of_a_fresh_lora(move):
    """In the first step `up` gets a gradient and `down` none; frozen parts get none ever."""
    driver = move(replace(MOTION, sample_every=0), prompts=())
    with torch.inference_mode():
        list(driver.encode())
    subject = driver.subject
    subject.prepare()
    loss, _ = subject.loss()(subject.batch(0), stream("gradient"))
    loss.backward()
    grads = {name: weight.grad for name, weight in subject.trained.named_parameters()}
    assert any(grad.abs().max() > 0 for name, grad in grads.items() if name.endswith("up"))
    assert all(grad is None or grad.abs().max() == 0 for name, grad in grads.items() if name.endswith("down"))
    assert all(weight.grad is None for weight in subject.predict.unet.parameters() if not weight.requires_grad)


def test_a_cut_training_goes_on_bit_for_bit(move):
    settings = replace(MOTION, sample_every=0)
    whole = move(settings, "whole", prompts=())
    trained(whole)
    trained(move(settings, "cut", prompts=()), stop_after=2)
    again = move(settings, "cut", prompts=())
    trained(again)
    expected = whole.result().factors
    assert all(torch.equal(pair.up, expected[name].up) for name, pair in again.result().factors.items())


def test_a_cancel_leaves_everything_as_it_was(move, tiny_sd15, monkeypatch):
    model, loaded = tiny_sd15(), motion()
    before = model_identity(model)
    driver = move(model=model, motion=loaded)
    calls = []

    def stop():
        calls.append(1)
        if len(calls) > 25:
            raise comfy.model_management.InterruptProcessingException()

    monkeypatch.setattr(comfy.model_management, "throw_exception_if_processing_interrupted", stop)
    with pytest.raises(comfy.model_management.InterruptProcessingException):
        trained(driver)
    assert model_identity(model) == before
    assert not any(module._forward_hooks for module in loaded.module.modules())


def test_an_absorber_is_in_while_the_motion_is_learned_and_out_in_looks(look, move, tiny_sd15):
    """The loss is another with it; the looks are without it."""
    model = tiny_sd15()
    source = look(model=model)
    trained(source)
    absorber = source.result()
    strong = replace_factors(absorber, 50.0)
    plain, with_look = move(model=model, name="plain"), move(model=model, name="with", absorber=strong)
    assert trained(plain)[0] != trained(with_look)[0]
    first, second = (driver.subject.yardsticks for driver in (plain, with_look))
    torch.testing.assert_close(first[0], second[0])
    assert "S-LoRA" in with_look.result().metadata["absorber"]


def replace_factors(absorber, scale):
    return Absorber({name: pair._replace(up=scale * pair.up) for name, pair in absorber.factors.items()},
                    absorber.vectors, absorber.caption)


def test_the_word_of_a_textual_inversion_must_be_in_the_caption(move, tiny_sd15, sprite_clip):
    absorber = Absorber({}, torch.randn(2, 128, generator=stream("v")), "a square")
    with pytest.raises(ValueError, match=f"word {PLACEHOLDER} is not in the caption"):
        move(model=tiny_sd15(context_dim=128), clip=sprite_clip, absorber=absorber)
    driver = move(replace(MOTION, sample_every=0, steps=2), model=tiny_sd15(context_dim=128), clip=sprite_clip,
                  absorber=absorber, caption=f"a square {PLACEHOLDER}, sliding", prompts=())
    assert len(trained(driver)) == 2


def test_inputs_that_do_not_belong_together(move, tiny_sd15, tiny_sdxl):
    class Short(Squares):
        pass

    with pytest.raises(ValueError, match="clips have 4 frames; a motion wants at least 8"):
        move(source=Short())
    with pytest.raises(ValueError, match="frames is 9, but the clips have 8"):
        move(replace(MOTION, frames=9))
    with pytest.raises(ValueError, match="is for SD15 image models"):
        move(model=tiny_sdxl())
    short = hold_motion(replace(TINY, max_frames=4), random_motion(replace(TINY, max_frames=4)).state_dict(), "short")
    with pytest.raises(ValueError, match="short can do 4 at most"):
        move(motion=short)
    alien = Absorber({"down_blocks.9.x": Factors(torch.zeros(1, 2), torch.zeros(2, 1), 1.0)}, None, "x")
    driver = move(absorber=alien)
    with torch.inference_mode():
        list(driver.encode())
        with pytest.raises(ValueError, match="not in this network, e.g. down_blocks.9.x"):
            next(driver.records())


def test_captions():
    assert look_caption("a fox is twirling in a room", "is twirling") == "a fox in a room"
    assert look_caption("a fox", "") == "a fox"
    with pytest.raises(ValueError, match="'spinning' are not in the caption"):
        look_caption("a fox", "spinning")


def test_meters():
    """A clip moves like itself and not like its mirror; the look of the reference is 1, of the base 0."""
    def clip(step, colour, behind=0.1):
        frames = torch.full((8, 64, 64, 3), behind)
        for frame in range(8):
            frames[frame, 20:34, 4 + step * frame:18 + step * frame] = torch.tensor(colour)
        return frames

    reference, other = clip(5, (1.0, 0.0, 0.0)), clip(5, (0.0, 1.0, 0.0), 0.6)
    assert fidelity(reference, reference) == pytest.approx(1) and fidelity(other, reference) > 0.9
    assert fidelity(reference.flip(0), reference) < -0.9 and abs(fidelity(clip(0, (1.0, 0, 0)), reference)) < 0.3
    assert leakage(reference, reference, other) == pytest.approx(1) and leakage(other, reference, other) == 0
    assert diversity(torch.stack([reference, reference])) == 0 < diversity(torch.stack([reference, other]))
    assert best_snapshot([0.2, 0.77, 0.8, 0.79]) == 1 and best_snapshot([]) == -1


@pytest.mark.parametrize(("make", "change", "text"), [
    (AbsorberRecipe, {"kind": "magic"}, "kind is one of"), (AbsorberRecipe, {"rank": 0}, "rank must be at least 1"),
    (AbsorberRecipe, {"crops": -1}, "crops is 0"), (AbsorberRecipe, {"embedding_rate": 0.0}, "above 0"),
    (MotionLoRARecipe, {"rank": 0}, "rank must be at least 1"), (MotionLoRARecipe, {"frames": 1}, "at least 2"),
    (MotionLoRARecipe, {"pure_noise": 2.0}, "fraction"), (MotionLoRARecipe, {"learning_rate": 0.0}, "positive"),
    (MotionLoRARecipe, {"steps": 0}, "steps")])
def test_recipes_that_mean_nothing(make, change, text):
    with pytest.raises(ValueError, match=text):
        make(**change)


def test_the_trainings_by_the_nodes(comfy, tiny_sd15, vae, tmp_path, monkeypatch):
    """Absorber, then motion, then the module with the LoRA, then files."""
    import folder_paths
    monkeypatch.setattr(folder_paths, "get_user_directory", lambda: str(tmp_path))
    monkeypatch.setattr(folder_paths, "get_output_directory", lambda: str(tmp_path / "output"))
    model, loaded, clips = tiny_sd15(), motion(), Slides()
    shared = {"model": model, "vae": vae, "clip": WordClip(), "clips": clips, "resume": True, "seed": 0}
    absorber, losses, sheet, report = comfy.run(
        "FrozenTrainAbsorber", **shared, caption="a white square", kind="S-LoRA", steps=2, learning_rate=1e-3,
        embedding_rate=1e-2, rank=2, vectors=2, batch_size=2, crops=4, native_scale=False, sample_every=0,
        checkpoint="look")
    assert len(losses["loss"]) == 2 and "absorbed at 500" in report and sheet.shape[0] == 1
    lora, losses, sheet, report = comfy.run(
        "FrozenTrainMotionLoRA", **shared, motion_module=loaded, absorber=absorber, caption="a square, sliding",
        prompts="a circle, sliding", recipe="fast", steps=2, learning_rate=1e-2, rank=2, frames=4, sample_every=0,
        checkpoint="slide")
    assert lora.name == "slide" and "fidelity" in report and sheet.shape[0] == 1
    made, report = comfy.run("FrozenApplyMotionLoRA", motion_module=loaded, motion_lora=lora, strength=1.0,
                             fade_after=0.5)
    assert "layers applied" in report and len(made.loras) == 1
    paths, = comfy.run("FrozenSaveAbsorber", absorber=absorber, filename_prefix="absorbers/a")
    assert paths.endswith("a_s_lora_00001_.safetensors")
    faithful = comfy.run(
        "FrozenTrainMotionLoRA", **shared, motion_module=loaded, caption="", prompts="", recipe="faithful", steps=2,
        learning_rate=1e-3, rank=2, frames=0, sample_every=0, checkpoint="faithful")
    assert "no absorber" in faithful[3]


def test_the_command_learns_both(tiny_sd15, vae, tmp_path, monkeypatch, capsys, sprite_clip):
    """Absorber first, then the motion, into a file that Load Motion LoRA reads."""
    from frozen_diffusion.modules import cli
    from frozen_diffusion.modules.host import image_model
    from frozen_diffusion.modules.host.customize.files import load_lora, motion_lora_of
    from frozen_diffusion.modules.host.motion import files as motion_files
    monkeypatch.setattr(train, "SAMPLE_STEPS", 2)
    monkeypatch.setattr(image_model, "load_image_model", lambda path: (tiny_sd15(), WordClip(), vae))
    monkeypatch.setattr(motion_files, "load_motion_file", lambda path: (motion(), None))
    (tmp_path / "words.txt").write_text("a fox, swaying\n")
    out = tmp_path / "mine.safetensors"
    options = ["train", "motion-lora", "--data", "sprite world: sway", "--checkpoint", "model.safetensors", "--out",
               str(out), *("--steps 2 --rank 2 --frames-at-once 4 --sample-every 0 --absorber S-LoRA --look-steps 2 "
                           "--look panda").split(), "--prompts", str(tmp_path / "words.txt")]
    assert cli.main(options) == 0
    said = capsys.readouterr().out
    assert f"written: {out}" in said and "fidelity" in said
    made = motion_lora_of(load_lora(out))
    assert made.metadata["absorber"] == "S-LoRA" and made.metadata["beta_schedule"]
    assert cli.main([*options, "--size", "big", "--data", str(tmp_path)]) == 1
