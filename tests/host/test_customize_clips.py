"""Motion LoRAs from several clips and from parts of the frame, and looks that outlive a cancel."""
from __future__ import annotations

from dataclasses import replace

import comfy.model_management
import pytest
import torch
from motion_examples import TINY, random_motion
from training_examples import Slides, WordClip, preview_vae, run

from frozen_diffusion.modules.customize.absorber import PLACEHOLDER, Absorber, joined
from frozen_diffusion.modules.customize.focus import REST, SUBJECT, WHOLE, Focus, masks_for, subject_mask
from frozen_diffusion.modules.customize.recipe import AbsorberRecipe, MotionLoRARecipe
from frozen_diffusion.modules.data.encoded import ClipBatch, Text
from frozen_diffusion.modules.host.customize import train
from frozen_diffusion.modules.host.customize.absorb import AbsorberSubject
from frozen_diffusion.modules.host.customize.spatial import spatial_paths
from frozen_diffusion.modules.host.customize.train import MotionLoRASubject
from frozen_diffusion.modules.host.motion.apply import hold_motion
from frozen_diffusion.modules.seeding import stream
from frozen_diffusion.modules.training.denoising import NoiseLevels, denoising_loss
from frozen_diffusion.modules.training.driver import Driver
from frozen_diffusion.modules.training.lora_keys import Factors

MOTION = MotionLoRARecipe(steps=4, rank=2, frames=4, sample_every=2, checkpoint_every=2, learning_rate=1e-2)


@pytest.fixture(scope="module")
def vae():
    return preview_vae()


@pytest.fixture
def move(tiny_sd15, vae, tmp_path, monkeypatch):
    monkeypatch.setattr(train, "SAMPLE_STEPS", 2)

    def make(recipe=MOTION, name="motion", caption="a square, sliding", prompts=("a circle, sliding",), **more):
        loaded = hold_motion(TINY, random_motion().state_dict(), "random.safetensors")
        subject = MotionLoRASubject(tiny_sd15(), vae, WordClip(), loaded, more.pop("source", Slides()), recipe,
                                    caption, prompts, cache=tmp_path / "cache", **more)
        return Driver(subject, tmp_path / f"{name}.safetensors")
    return make


def absorber_for(model, seed, size=0.5):
    name, path = next((name, path) for name, path in spatial_paths(model).items() if name.endswith("attn1.to_q"))
    layer = model.model.diffusion_model.get_submodule(path)
    return Absorber({name: Factors(torch.randn(2, layer.in_features, generator=stream("down", seed)),
                                   size * torch.randn(layer.out_features, 2, generator=stream("up", seed)), 2.0)},
                    None, f"look {seed}")


def test_each_clip_has_its_own_absorber(move, tiny_sd15):
    """Beside a layer there is one change at work: that of the batch's clip, as if it were the only one."""
    model = tiny_sd15()
    absorbers = [absorber_for(model, seed) for seed in range(len(Slides()))]
    driver = move(replace(MOTION, sample_every=0), prompts=(), absorber=joined(joined(*absorbers[:2]), *absorbers[2:]))
    with torch.inference_mode():
        list(driver.encode())
    subject = driver.subject
    subject.prepare()
    loss = subject.loss()
    for draw in range(2):
        batch = subject.batch(draw)
        found = loss(batch, stream("draw", draw))[0]
        assert [next(iter(look.by_name.values())).scale for look in subject.absorbing] == [
            float(clip == batch.clips[0]) for clip in range(len(absorbers))]
        alone = move(replace(MOTION, sample_every=0), "alone", prompts=(), absorber=absorbers[batch.clips[0]]).subject
        alone.prepare()
        assert torch.equal(found, alone.loss()(alone.batch(draw), stream("draw", draw))[0])
    names = [hook for layer in subject.predict.unet.modules() for hook in layer._forward_hooks.values()
             if getattr(hook, "__self__", None) is not None and hook.__self__ in [
                 next(iter(look.by_name.values())) for look in subject.absorbing]]
    assert len(names) == len(absorbers)                 # beside the layer, not inside of each other


def test_absorbers_that_do_not_fit_the_clips(move, tiny_sd15):
    absorber = absorber_for(tiny_sd15(), 0)
    with pytest.raises(ValueError, match=f"5 absorbers were given for {len(Slides())} clips"):
        move(absorber=[absorber] * 5)
    with pytest.raises(ValueError, match="batch is one clip; batch_size is 2"):
        move(replace(MOTION, batch_size=2), absorber=[absorber] * len(Slides()))


def test_each_clip_has_its_own_word(comfy, move, vae, tiny_sd15, tmp_path):
    """PLACEHOLDER in the caption stands for the vectors of the clip's own absorber."""
    from frozen_diffusion.modules.host.demo import load_sprite_world
    clip, source = load_sprite_world()[1], Slides()
    absorbers = [Absorber({}, torch.randn(2, 128, generator=stream("v", seed)), f"look {seed}")
                 for seed in range(len(source))]
    loaded = hold_motion(TINY, random_motion().state_dict(), "random.safetensors")

    def subject(absorber):
        return MotionLoRASubject(tiny_sd15(context_dim=128), vae, clip, loaded, source, MOTION,
                                 f"a {PLACEHOLDER}, sliding", (), absorber, tmp_path / "cache")

    each = subject(absorbers)
    for number, absorber in enumerate(absorbers):
        own = each.clips.codec.text(each.clips.source.caption(number)).tokens
        alone = subject(absorber)
        assert torch.equal(own, alone.clips.codec.text(alone.clips.source.caption(number)).tokens)
    assert not torch.equal(*(each.clips.codec.text(each.clips.source.caption(number)).tokens for number in (0, 1)))


def test_an_absorber_of_one_clip_alone(tiny_sd15, vae, tmp_path):
    """It sees the frames of its clip and no others."""
    recipe = AbsorberRecipe(steps=2, crops=6, rank=2)

    def subject(number):
        return AbsorberSubject(tiny_sd15(), vae, WordClip(), Slides(), recipe, "a square", tmp_path / "cache", number)

    assert {clip for clip, _, _ in subject(2).pieces} == {1} and len({clip for clip, _, _ in subject(0).pieces}) > 1
    assert subject(1).provenance({})["clips"] != subject(2).provenance({})["clips"]
    with pytest.raises(ValueError, match=f"clip_number is 9, but there are {len(Slides())} clips"):
        subject(9)


def test_the_subjects_mask():
    """It is what moves, with an edge; of a still clip there is none."""
    mask = subject_mask(Slides().pixels(0))
    assert mask.shape == (8, 64, 64) and mask[3, 4, 18 + 8] == 1 and mask[3, 40, 40] == 0
    assert mask.mean() < 0.25
    still = torch.full((8, 3, 64, 64), 90, dtype=torch.uint8)
    with pytest.raises(ValueError, match="marks nothing in clip 1"):
        Focus(SUBJECT, [subject_mask(still)], (8, 8))
    with pytest.raises(ValueError, match="marks everything in clip 1"):
        Focus(REST, [torch.ones(8, 64, 64)], (8, 8))


def test_masks_of_users():
    assert [mask.shape for mask in masks_for(torch.ones(5, 7), 2, 8)] == [(8, 5, 7)] * 2
    several = torch.arange(16.0)[:, None, None].expand(16, 5, 7)
    first, second = masks_for(several, 2, 8)
    assert first[-1, 0, 0] == 7 and second[0, 0, 0] == 8
    with pytest.raises(ValueError, match="mask has 3 frames; expected 1, 8"):
        masks_for(torch.ones(3, 5, 7), 2, 8)


@pytest.mark.parametrize("focus", [SUBJECT, REST])
def test_the_loss_looks_where_it_is_told(focus):
    """An error outside of the mask costs nothing, one inside costs; a mask of ones is no mask, bit for bit."""
    levels = NoiseLevels(torch.linspace(0.9, 0.01, 50, dtype=torch.float64), "eps")
    inside = torch.zeros(8, 32, 32)
    inside[:, :, :16] = 1
    latents = torch.randn(1, 4, 4, 8, 8, generator=stream("latents"))
    batch = ClipBatch(latents, Text(torch.zeros(1, 1, 4), None), clips=(0,), drawn=torch.tensor([[0, 2, 5, 7]]))

    def loss_of(left, right, weigh):
        """Of a prediction that errs by so much in each half."""
        off = torch.cat([torch.full((1, 4, 4, 8, 4), left), torch.full((1, 4, 4, 8, 4), right)], -1)

        def predict(x, t, text, indices):
            return noise_in(x, latents, t) + off

        def noise_in(x, x0, t):
            abar = levels.abar[t].to(x)
            return (x - abar.sqrt() * x0) / (1 - abar).sqrt()

        return float(denoising_loss(predict, levels, lambda z: z, torch.device("cpu"), weigh=weigh)(
            batch, torch.Generator().manual_seed(1)))

    weigh = Focus(focus, [inside], (8, 8))
    ways = (2.0, 0.0) if focus == SUBJECT else (0.0, 2.0)
    assert loss_of(*ways, weigh) == pytest.approx(4.0, rel=1e-3)            # half of the frame counts twice
    assert loss_of(*reversed(ways), weigh) < 1e-4
    ones = Focus(SUBJECT, [torch.ones(8, 32, 32)], (8, 8))
    assert loss_of(1.0, 2.0, ones) == loss_of(1.0, 2.0, None)


def test_learning_from_a_part(move):
    """Other weights come out, by an automatic mask and by a user's; the file says it; a resume wants the same."""
    whole, own, mine = (move(replace(MOTION, sample_every=0), name, prompts=(), focus=focus, mask=mask)
                        for name, focus, mask in (("whole", WHOLE, None), ("auto", SUBJECT, None),
                                                  ("mine", SUBJECT, torch.ones(1, 64, 64))))
    losses = [run(driver) for driver in (whole, own, mine)]
    assert losses[0] != losses[1] and losses[0] == losses[2]
    assert own.result().metadata["learned_from"] == SUBJECT
    with pytest.raises(ValueError, match="learn_from is one of"):
        move(focus="magic")
    with pytest.raises(Exception, match="focus"):
        run(move(replace(MOTION, sample_every=0, steps=6), "auto", prompts=()))


def test_looks_outlive_a_cancel(move):
    """A resumed training knows the looks before it; one of another recipe or other prompts has its own."""
    whole = move(name="whole")
    run(whole, looks=(2, 4))
    cut = move(name="cut")
    run(cut, looks=(2,), stop_after=2)
    again = move(name="cut")
    run(again, looks=(4,))
    for driver in (whole, again):
        assert [look.draws for look in driver.subject.seen()] == [2, 4]
    kept, expected = (driver.result() for driver in (again, whole))
    assert kept.metadata["snapshot"] == expected.metadata["snapshot"]
    assert all(torch.equal(pair.up, kept.factors[name].up) for name, pair in expected.factors.items())
    finished = move(name="cut")
    assert run(finished) == [] and finished.result().metadata["snapshot"].endswith("of 2")
    names = [move(replace(MOTION, learning_rate=2e-2)).subject.looks.name, move(prompts=("a star",)).subject.looks.name]
    assert len({whole.subject.looks.name, *names}) == 3


def test_all_seeds_alike_is_said(move):
    """K4 of the peers' reports: over-trained LoRAs that draw one clip."""
    driver = move()
    run(driver, looks=(4,))
    look = driver.subject.looks.known[4]
    driver.subject.looks.known[4] = replace(look, measured={**look.measured, "diversity": 0.0005, "leakage": 0.4})
    assert "all seeds give nearly the same clip" in driver.subject.report()
    assert "the clip's look comes along" in driver.subject.report()


def test_a_cancelled_absorber_goes_on(tiny_sd15, vae, tmp_path, monkeypatch):
    """Queued again it goes on where it was, to the same numbers."""
    recipe = AbsorberRecipe(steps=4, crops=4, rank=2, batch_size=2, checkpoint_every=2)

    def driver(name):
        return Driver(AbsorberSubject(tiny_sd15(), vae, WordClip(), Slides(), recipe, "a square", tmp_path / "cache"),
                      tmp_path / f"{name}.safetensors")

    whole, cut = driver("whole"), driver("cut")
    run(whole)
    draw = cut.subject.batch

    def cancelled(number):
        if number == 2:
            raise comfy.model_management.InterruptProcessingException()
        return draw(number)

    monkeypatch.setattr(cut.subject, "batch", cancelled)
    with pytest.raises(comfy.model_management.InterruptProcessingException):
        run(cut)
    again = driver("cut")
    assert len(run(again)) == 2
    expected = whole.result().factors
    assert all(torch.equal(pair.up, expected[name].up) for name, pair in again.result().factors.items())
