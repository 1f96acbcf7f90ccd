"""Training a motion module on tiny random models of the real topologies, in the host."""
from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import comfy.lora
import comfy.model_management
import comfy.sd
import comfy.taesd.taesd
import pytest
import torch
from PIL import Image
from training_examples import RECIPE, Squares, WordClip, inputs, prepared, preview_vae, run, same, state, trained

from frozen_diffusion.modules.data.encoded import ClipBatch
from frozen_diffusion.modules.host import train_node
from frozen_diffusion.modules.host.files import checkpoint_path
from frozen_diffusion.modules.host.motion.apply import apply_motion, hold_motion
from frozen_diffusion.modules.host.motion.frozen_copy import FrozenCopy
from frozen_diffusion.modules.host.motion.schedule import with_schedule
from frozen_diffusion.modules.host.motion.train import MotionSubject, build_module, module_config
from frozen_diffusion.modules.host.noise_levels import noise_levels
from frozen_diffusion.modules.host.weights import copy_unet
from frozen_diffusion.modules.motion.module import MotionConfig, fresh_motion_module
from frozen_diffusion.modules.motion.recipe import MotionRecipe
from frozen_diffusion.modules.seeding import stream
from frozen_diffusion.modules.training.checkpoint import CheckpointError
from frozen_diffusion.modules.training.loop import NonFiniteError
from testhost.models import as_flow, sample

DATASET = {"frames": 4, "fps": 8.0, "width": 64, "height": 64, "stride": 0.0, "max_clips": 0, "mirror": False,
           "keep_still": False, "seed": 0}


@pytest.fixture(scope="module")
def vae():
    return preview_vae()


@pytest.fixture
def setup(tiny_sd15, vae, tmp_path):
    return lambda model=None, *args, **more: prepared(tmp_path, model or tiny_sd15(), vae, *args, **more)


def checksum(model) -> int:
    """Of every weight of the MODEL as it lies in memory, and of the module tree around them."""
    names = [f"{name} {type(module).__name__}" for name, module in model.model.named_modules()]
    weights = [f"{name} {tensor.data_ptr()} {hash(tensor.cpu().numpy().tobytes())}"
               for name, tensor in model.model.state_dict().items()]
    return hash("".join(names + weights))


def test_the_copy_computes_what_the_model_computes(tiny_sd15):
    model = tiny_sd15()
    module, _ = build_module(MotionConfig("sd15", (32, 64, 128, 128)), 0, None)
    x, t, text = inputs()
    with torch.no_grad():
        expected = model.model.diffusion_model(x[0], t.repeat(4), text.tokens.repeat(4, 1, 1))
        found = FrozenCopy(model, module, frames=4)(x, t, text)[0]
    assert torch.allclose(found, expected, atol=1e-5)     # a fresh module is the identity


def test_patches_are_merged_and_the_model_may_be_loaded(tiny_sd15):
    model = tiny_sd15()
    key = "diffusion_model.input_blocks.1.1.proj_in.weight"
    plain = model.model.diffusion_model.input_blocks[1][1].proj_in.weight.clone()
    change = torch.randn(plain.shape)
    patched = model.clone()
    patched.add_patches({key: (change,)}, 0.5)
    for loaded in (False, True):
        if loaded:
            comfy.model_management.load_models_gpu([patched], force_patch_weights=True)
        before = checksum(model)
        assert torch.allclose(copy_unet(patched).input_blocks[1][1].proj_in.weight, plain + 0.5 * change)
        assert torch.equal(copy_unet(model).input_blocks[1][1].proj_in.weight, plain)
        assert checksum(model) == before
    comfy.model_management.unload_all_models()


def test_scattered_frames_and_pure_noise(setup, tiny_sd15):
    """A cut training goes on bit for bit, the sample shows the whole clip, and AnimateDiff v1 is refused."""
    recipe = replace(RECIPE, frames=2, scattered=True, pure_noise=0.5)
    whole = setup(recipe=recipe, name="whole")
    expected = run(whole)
    assert len(whole.sample()) == Squares.settings.frames
    before = run(setup(recipe=recipe, name="cut"), stop_after=2)
    second = setup(recipe=recipe, name="cut")
    assert before + run(second) == expected and same(state(second.result()), state(whole.result()))
    assert run(setup(recipe=replace(recipe, scattered=False), name="run")) != expected
    long = SimpleNamespace(settings=replace(Squares.settings, frames=40))
    assert module_config(tiny_sd15(), long, recipe, None).max_frames == 40
    config = replace(whole.subject.config, groupnorm="pooled")
    pooled = hold_motion(config, fresh_motion_module(config).state_dict(), "v1.ckpt")
    with pytest.raises(ValueError, match="scattered frames.*AnimateDiff v1.*runs of frames"):
        setup(recipe=recipe, name="pooled", warm=pooled)


def test_training_lowers_the_loss(setup):
    training = setup(recipe=MotionRecipe(steps=12, learning_rate=1e-2, batch_size=2, ema=0.7,
                                         beta_schedule="keep", caption_dropout=0.0))
    run(training)
    from frozen_diffusion.modules.training.denoising import denoising_loss
    predict = training.subject.predict
    loss = denoising_loss(predict, training.subject.levels, predict.latents_in, torch.device("cpu"))

    @torch.no_grad()
    def measure():
        batches = [training.subject.clips.batch(3, 4, 0.0, 7, draw) for draw in range(6)]
        return sum(loss(batch, stream("test", draw)).item() for draw, batch in enumerate(batches))

    with training.subject.ema.applied(training.subject.trained):
        after = measure()
    with torch.no_grad():
        for layer in training.subject.module.output_projections():
            layer.weight.zero_()
            layer.bias.zero_()
    assert after < 0.9 * measure()                  # without the module's contribution


def test_the_model_is_untouched_in_every_way_of_ending(setup, tiny_sd15, monkeypatch):
    model = tiny_sd15()
    before = checksum(model)
    run(setup(model, name="success"))
    assert checksum(model) == before
    run(setup(model, name="cancelled"), stop_after=1)
    assert checksum(model) == before
    training = setup(model, name="broken")
    monkeypatch.setattr(training.subject, "rate", lambda name: 1.0)
    monkeypatch.setattr(training.subject, "batch", lambda draw: ClipBatch(
        torch.full((2, 4, 4, 8, 8), float("nan")), inputs(2)[2]))
    with pytest.raises(NonFiniteError):
        run(training)
    assert checksum(model) == before
    training = setup(model, name="no_room")
    training.checkpoint = training.checkpoint / "not" / "a folder"
    training.checkpoint.parents[1].write_text("a file in the way")
    with pytest.raises(CheckpointError, match="could not be written"):
        run(training)
    assert checksum(model) == before


def test_the_host_s_interrupt_stops_anywhere_and_leaves_a_checkpoint(setup, monkeypatch):
    interrupted = comfy.model_management.InterruptProcessingException
    training = setup()
    calls = []

    def encode(pixels, latents=training.subject.codec.latents):
        calls.append(1)
        if len(calls) == 2:
            comfy.model_management.interrupt_current_processing()
        return latents(pixels)

    monkeypatch.setattr(training.subject.codec, "latents", encode)
    with pytest.raises(interrupted):                # while encoding
        run(training)
    training = setup()
    assert next(iter(training.encode())) == (5, 7)  # 4 captions and one clip are kept
    inner = training.subject.batch

    def batch(draw):
        if draw == 2:
            comfy.model_management.interrupt_current_processing()
        return inner(draw)

    monkeypatch.setattr(training.subject, "batch", batch)
    with pytest.raises(interrupted):                # inside a step
        run(training)
    resumed = setup()
    assert len(run(resumed)) == 2
    comfy.model_management.interrupt_current_processing()
    with pytest.raises(interrupted):                # while sampling
        resumed.sample()
    assert resumed.sample().shape == (4, 64, 64, 3)


def test_checkpointing_and_bf16_change_little(setup):
    losses = {}
    changes = {"plain": {"gradient_checkpointing": False}, "checkpointing": {}, "bf16": {"precision": "bf16"},
               "conv": {"temporal_convolution": True}}
    for name, change in changes.items():
        training = setup(name=name, recipe=replace(RECIPE, **change))
        losses[name] = run(training)
        assert training.sample().isfinite().all()
    assert losses["checkpointing"] == pytest.approx(losses["plain"], rel=1e-4)
    assert losses["bf16"] == pytest.approx(losses["plain"], rel=0.1)
    assert losses["conv"][0] == pytest.approx(losses["plain"][0], rel=1e-5)


def test_sdxl(setup, tiny_sdxl):
    model = tiny_sdxl()
    before = checksum(model)
    training = setup(model)
    assert all(loss > 0 for loss in run(training))
    assert training.subject.config.family == "sdxl" and training.sample().shape == (4, 64, 64, 3)
    assert checksum(model) == before


@pytest.mark.parametrize("groupnorm", ["per frame", "pooled"])
def test_warm_start(setup, groupnorm):
    config = MotionConfig("sd15", (32, 64, 128, 128), mid=False, max_frames=24, groupnorm=groupnorm,
                          beta_schedule="sqrt_linear", kind="animatediff v1")
    warm = trained(config)
    given = {name: tensor.clone() for name, tensor in state(warm).items()}
    recipe = replace(RECIPE, warm_start_rate=0.0, temporal_convolution=True)
    training = setup(recipe=recipe, warm=warm)
    run(training)
    result = training.result()
    assert result.config.groupnorm == groupnorm and result.config.temporal_convolution
    assert training.subject.config.beta_schedule == "sqrt_linear"
    assert same(given, {name: state(result)[name] for name in given})       # at rate 0 the given weights rest
    convolutions = [name for name in state(result) if name.endswith("conv2.weight")]
    assert convolutions and all(state(result)[name].abs().sum() > 0 for name in convolutions)
    assert same(given, state(warm))
    long = MotionRecipe(frames=30)
    with pytest.raises(ValueError, match="frames is 30, but the clips of the dataset have 4"):
        setup(recipe=long, warm=warm)


def test_the_result_moves_a_sampled_clip_and_is_what_was_averaged(setup, tiny_sd15):
    model = tiny_sd15()
    training = setup(model)
    run(training)
    result = training.result()
    assert result.source == "run"
    assert result.metadata == {"train_data": "3 clips of squares", "train_steps": "4"}
    averaged = {name.removeprefix("motion."): weight for name, weight in training.subject.ema.weights.items()}
    assert all(torch.equal(state(result)[name], weight) for name, weight in averaged.items())
    assert not torch.equal(sample(apply_motion(model, result), 4, size=(8, 8)), sample(model, 4, size=(8, 8)))


def test_wrong_inputs(setup, tiny_sd15, tiny_sdxl, vae):
    model = tiny_sd15()
    with pytest.raises(ValueError, match="needs a VAE and a CLIP"):
        MotionSubject(model, vae, None, Squares(), RECIPE)
    config = MotionConfig("sd15", (32, 64, 128, 128))
    with pytest.raises(ValueError, match="already has a motion module"):
        setup(apply_motion(model, trained(config)))
    video = SimpleNamespace(encode=lambda pixels: torch.zeros(1, 16, 8, 8))
    with pytest.raises(ValueError, match=r"latents of shape \[1, 16, 8, 8\]"):
        MotionSubject(model, video, WordClip(), Squares(), RECIPE)
    with pytest.raises(ValueError, match="gives text of 32 channels, but the MODEL reads 64"):
        setup(clip=WordClip(width=32))
    with pytest.raises(ValueError, match="is for SD15 image models, but the MODEL is SDXL"):
        setup(tiny_sdxl(), warm=trained(config))
    with pytest.raises(ValueError, match="lora_rank is 4, but there is no motion module to start from"):
        setup(recipe=replace(RECIPE, lora_rank=4))
    wide = trained(replace(config, mapping_width=16, frame_tokens=4, text_channels=64))
    for name, value in (("mapping_width", 32), ("frame_tokens", 8)):
        with pytest.raises(ValueError, match=rf"{name} is {value}, but given.safetensors.* has (16|4)\. Set {name}"):
            setup(recipe=replace(RECIPE, **{name: value}), warm=wide)
    with pytest.raises(ValueError, match="samples by ModelSamplingDiscreteFlow with CONST"):
        noise_levels(as_flow(model))
    with pytest.raises(ValueError, match="with 9 input channels"):
        copy_unet(tiny_sd15(in_channels=9))
    for name in ("../up", "", "a/b", ".hidden"):
        with pytest.raises(ValueError, match="not a plain name"):
            checkpoint_path(name, "motion_training")


def test_noise_levels_are_the_schedule_s(tiny_sd15):
    betas = torch.linspace(0.00085, 0.012, 1000, dtype=torch.float64)
    linear = noise_levels(with_schedule(tiny_sd15(), "sqrt_linear"))
    assert torch.allclose(linear.abar, (1 - betas).cumprod(0), rtol=1e-4)
    betas = torch.linspace(0.00085 ** 0.5, 0.012 ** 0.5, 1000, dtype=torch.float64) ** 2
    kept = noise_levels(tiny_sd15())
    assert torch.allclose(kept.abar, (1 - betas).cumprod(0), rtol=1e-4) and kept.prediction == "eps"


def test_the_nodes(comfy, tiny_sd15, vae, tmp_path, monkeypatch):
    import folder_paths
    monkeypatch.setattr(folder_paths, "get_user_directory", lambda: str(tmp_path))
    clips, report, preview = comfy.run(
        "FrozenClipDataset", source="sprite world", folder="", **{**DATASET, "max_clips": 2, "seed": 1})
    assert report == "2 clips of sprite world, 4 frames each" and preview.shape == (1, 256, 512, 3)
    motion, losses, sheet = comfy.run(
        "FrozenTrainMotionModule", model=tiny_sd15(), vae=vae, clip=WordClip(), clips=clips, steps=3,
        learning_rate=1e-3, sample_every=2, checkpoint="from a test", resume=True, seed=2**64 - 1)
    assert motion.source == "from a test" and len(losses["loss"]) == 3
    assert sheet.shape == (1, 128, 4 * 128 + 3 * 2, 3)
    from comfy_extras.nodes_train import LossGraphNode
    comfy.run(LossGraphNode, loss=losses, filename_prefix="loss")


def test_options_by_the_socket_take_the_place_of_inputs(comfy, tiny_sd15, vae, tmp_path, monkeypatch):
    import folder_paths
    monkeypatch.setattr(folder_paths, "get_user_directory", lambda: str(tmp_path))
    chosen, = comfy.run("FrozenTrainingOptions", schedule="cosine", warmup=2, optimizer="adamw", weight_decay=0.0,
                        grad_clip=0.0, accumulate=2, ema=0.5, precision="fp32", gradient_checkpointing=False,
                        checkpoint_every=1)
    seen = []
    made = MotionSubject.__init__
    monkeypatch.setattr(MotionSubject, "__init__", lambda self, *args: seen.append(args[4]) or made(self, *args))
    clips = comfy.run("FrozenClipDataset", source="sprite world", folder="", **{**DATASET, "max_clips": 2})[0]
    comfy.run("FrozenTrainMotionModule", model=tiny_sd15(), vae=vae, clip=WordClip(), clips=clips, steps=1,
              accumulate=1, learning_rate=1e-3, sample_every=0, checkpoint="options", resume=True, seed=0, ema=0.9,
              options=chosen)
    recipe = seen[0]
    assert (recipe.schedule, recipe.warmup, recipe.accumulate, recipe.ema, recipe.learning_rate) == (
        "cosine", 2, 2, 0.5, 1e-3)
    assert recipe.settings().grad_clip == 0 and recipe.settings().weight_decay == 0
    with pytest.raises(ValueError, match="schedule must be constant or cosine; 'line' was given"):
        replace(chosen, schedule="line").over(recipe)


def test_the_node_trains_harivo_with_its_losses(comfy, tiny_sd15, vae, tmp_path, monkeypatch):
    """And refuses DC where the clips are too few for it."""
    import folder_paths
    monkeypatch.setattr(folder_paths, "get_user_directory", lambda: str(tmp_path))
    clips = comfy.run("FrozenClipDataset", source="sprite world", folder="", **{**DATASET, "max_clips": 4})[0]
    told = []
    monkeypatch.setattr(train_node, "report_progress", lambda text, node_id: told.append(text))

    def train(**changes):
        settings = {"steps": 4, "learning_rate": 1e-3, "sample_every": 0, "resume": True, "seed": 0, "mapping_width": 8,
                    "frame_tokens": 2, "temporal_convolution": True, "trs": 0.05, "trs_from": 0, "dc": 0.01, **changes}
        return comfy.run("FrozenTrainMotionModule", model=tiny_sd15(), vae=vae, clip=WordClip(), clips=clips,
                         checkpoint="harivo", **settings)[0]

    with pytest.raises(ValueError, match="batch_size is 1. Set batch_size to 2 or more"):
        train()
    with pytest.raises(ValueError, match="come from 4 different videos.*has seen 64 of them"):
        train(dc_negatives="queue")
    config = train(batch_size=2, steps=2).config
    assert (config.mapping_width, config.frame_tokens, config.temporal_convolution) == (8, 2, True)
    assert ", trs 0." in told[-1] and ", dc " in told[-1]


def test_a_full_disk_ends_a_training_with_a_sentence(comfy, tiny_sd15, vae, small_disk, tmp_path, monkeypatch):
    """Through the node, on a real file system of one megabyte; the MODEL stays as it was."""
    import folder_paths
    monkeypatch.setattr(folder_paths, "get_user_directory", lambda: str(tmp_path))
    monkeypatch.setattr(folder_paths, "get_output_directory", lambda: str(small_disk))
    model = tiny_sd15()
    before = checksum(model)
    clips = comfy.run("FrozenClipDataset", source="sprite world", folder="", **{**DATASET, "max_clips": 2})[0]
    with pytest.raises(CheckpointError, match=r"could not be written .*It needs .*There was none before"):
        comfy.run("FrozenTrainMotionModule", model=model, vae=vae, clip=WordClip(), clips=clips, steps=2,
                  learning_rate=1e-3, sample_every=0, checkpoint="full", checkpoint_every=1, resume=True, seed=0)
    assert checksum(model) == before and [path for path in small_disk.rglob("*") if path.is_file()] == []


def test_the_command_trains_resumes_and_writes_a_file(tiny_sd15, vae, tmp_path, monkeypatch, capsys):
    from frozen_diffusion.modules import cli
    from frozen_diffusion.modules.host import image_model
    from frozen_diffusion.modules.host.motion.files import load_motion_file
    model = tiny_sd15()
    monkeypatch.setattr(image_model, "load_image_model", lambda path: (model, WordClip(), vae))
    sequence = tmp_path / "clips" / "walk"
    sequence.mkdir(parents=True)
    for index, frame in enumerate(Squares().pixels(1)):
        Image.fromarray(frame.permute(1, 2, 0).numpy()).save(sequence / f"{index}.png")
    out = tmp_path / "mine.safetensors"
    options = ["train", "motion", "--data", str(tmp_path / "clips"), "--checkpoint", "model.safetensors",
               "--frames", "4", "--size", "64x64", "--lr", "1e-3", "--trs", "0.05", "--trs-from", "0",
               "--out", str(out)]
    assert cli.main([*options, "--steps", "1"]) == 0
    assert cli.main([*options, "--steps", "2", "--sample-every", "2"]) == 0
    said = capsys.readouterr().out
    assert "walk: has no caption" in said and "step 2 of 2" in said and f"written: {out}" in said
    assert (tmp_path / "mine_000002.png").is_file() and ", trs 0." in said and " (gradient " in said
    loaded, _ = load_motion_file(out)
    assert loaded.config.beta_schedule == "sqrt_linear" and loaded.metadata["train_steps"] == "2"
    assert cli.main([*options, "--steps", "2", "--seed", "1"]) == 1
    assert "error: The checkpoint" in capsys.readouterr().out
    assert cli.main([*options, "--size", "big"]) == 1
    assert "expected WIDTHxHEIGHT" in capsys.readouterr().out
    assert cli.main([*options, "--motions", "spin"]) == 1
    assert "--motions is for --data sprite-world" in capsys.readouterr().out


def test_folder_node_errors(comfy, tmp_path):
    with pytest.raises(ValueError, match="No folder was given"):
        comfy.run("FrozenClipDataset", source="folder", folder=" ", **DATASET)
    with pytest.raises(ValueError, match="it is empty. Expected video files"):
        comfy.run("FrozenClipDataset", source="folder", folder=str(tmp_path), **DATASET)
