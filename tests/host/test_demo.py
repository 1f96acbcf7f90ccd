"""Sprite world as host objects: what is trained outside the host is the same inside it."""
import pytest
import torch
from comfy.controlnet import load_controlnet
from comfy.sample import prepare_noise, sample
from comfy.sd import load_lora_for_models
from safetensors.torch import save_file
from torch.nn.functional import interpolate

from frozen_diffusion.modules.demo import models, world
from frozen_diffusion.modules.demo.oracle import read_pictures
from frozen_diffusion.modules.demo.pool import draw_pool, signed
from frozen_diffusion.modules.demo_training.clip import ClipPair, pack
from frozen_diffusion.modules.demo_training.controlnet import ControlBranch
from frozen_diffusion.modules.demo_training.lora import RANK, start_like_layers
from frozen_diffusion.modules.host import demo
from frozen_diffusion.modules.training.lora import attach

CAPTIONS = ["a small dog on the left of a blue striped background", "",
            "a large cat on the right of a red plain background, moving left"]


def disturbed(module: torch.nn.Module, trained_only: bool = False) -> torch.nn.Module:
    torch.manual_seed(0)
    for parameter in module.parameters():
        if parameter.requires_grad or not trained_only:
            parameter.data += 0.02 * torch.randn_like(parameter)
    return module


@pytest.fixture(scope="module")
def unet():
    return disturbed(demo.fresh_unet()).requires_grad_(False)


@pytest.fixture(scope="module")
def inputs():
    generator = torch.Generator().manual_seed(1)
    return (torch.randn(2, 4, 16, 16, generator=generator), torch.tensor([5.0, 500.0]),
            torch.randn(2, 77, models.CONTEXT, generator=generator))


def test_the_world_comes_as_a_checkpoint_would(comfy):
    model, clip, vae, vision = demo.load_sprite_world()
    assert model.model.latent_format.scale_factor == 0.18215
    assert clip.encode_from_tokens(clip.tokenize(CAPTIONS[0])).shape == (1, 77, models.CONTEXT)
    pool = draw_pool(8, 0, seed=5)
    pixels = (signed(pool.pixels) / 2 + 0.5).movedim(1, -1)
    latents = vae.encode(pixels)
    assert latents.shape == (8, 4, 16, 16)
    assert 0.7 < (latents * 0.18215).std() < 1.3
    error = (vae.decode(latents) - pixels).square().mean()
    assert -10 * error.log10() > 26
    assert vision.encode_image(pixels)["image_embeds"].shape == (8, models.CONTEXT)


def test_live_previews_have_the_colours_of_the_picture(comfy):
    """The host's fast previews map a latent's channels to RGB; SD1.5's factors would show other colours."""
    model, _, vae, _ = demo.load_sprite_world()
    pixels = (signed(draw_pool(32, 0, seed=5).pixels) / 2 + 0.5)
    latents = model.model.process_latent_in(vae.encode(pixels.movedim(1, -1)))
    form = model.model.latent_format
    shown = torch.nn.functional.linear(latents.movedim(1, -1), torch.tensor(form.latent_rgb_factors).T,
                                       torch.tensor(form.latent_rgb_factors_bias)).movedim(-1, 1)
    true = torch.nn.functional.avg_pool2d(pixels, 8) * 2 - 1
    left = (shown - true).square().mean() / (true - true.mean((0, 2, 3), keepdim=True)).square().mean()
    assert left < 0.25 and form.taesd_decoder_name is None


@pytest.mark.parametrize(("width", "height", "colour"), [(192, 128, "red"), (256, 256, "blue")])
def test_bigger_pictures_than_it_was_trained_on(comfy, width, height, colour):
    """They come in their size and before the background asked for (sprite_world.md 5)."""
    model, clip, vae, _ = demo.load_sprite_world()
    empty = torch.zeros(1, 4, height // 8, width // 8)
    with torch.inference_mode():
        text, none = ([[clip.encode_from_tokens(clip.tokenize(words)), {}]]
                      for words in (f"a large cat in the middle of a {colour} plain background", ""))
        out = sample(model, prepare_noise(empty, 0), 6, 5.0, "euler", "normal", text, none, empty, disable_pbar=True,
                     seed=0)
        pixels = vae.decode(out).movedim(-1, 1)
    assert pixels.shape == (1, 3, height, width) and pixels.isfinite().all() and pixels.std() > 0.05
    small = interpolate(pixels, (128, 128), mode="area")        # what the oracle reads
    assert read_pictures(small).scenes[0].colour == colour


def test_newer_hosts_can_load_the_image_model_again(comfy):
    model = demo.load_unet()
    load, arguments = model.cached_patcher_init
    again = load(*arguments, disable_dynamic=True)
    assert again.model is not model.model
    for weight, other in zip(again.model.parameters(), model.model.parameters(), strict=True):
        assert torch.equal(weight, other)


def test_host_and_training_read_a_caption_alike(comfy):
    pair = ClipPair().eval()
    text, vision = pack(pair, demo.caption_tokens(CAPTIONS).unique())
    clip, tokens = demo.build_clip(text), demo.caption_tokens(CAPTIONS)
    with torch.no_grad():
        trained = pair.clip.text_model(input_ids=tokens).last_hidden_state
        host = torch.cat([clip.encode_from_tokens(clip.tokenize(caption)) for caption in CAPTIONS])
        torch.testing.assert_close(host, trained, atol=1e-5, rtol=0)
        torch.testing.assert_close(demo.caption_context(clip, CAPTIONS, 24), host[:, :24], atol=1e-5, rtol=0)
        pixels = torch.rand(2, 128, 128, 3)
        seen = demo.build_clip_vision(vision).encode_image(pixels)["image_embeds"]
        rounded = (pixels * 255).round() / 127.5 - 1
        torch.testing.assert_close(seen, pair.clip.get_image_features(pixel_values=rounded.movedim(-1, 1)),
                                   atol=2e-3, rtol=0)


def test_a_trained_lora_is_the_hosts_lora(comfy, unet, inputs):
    x, t, context = inputs
    host_model = demo.build_model(unet.state_dict())
    fine_tuned = demo.fresh_unet()
    fine_tuned.load_state_dict(unet.state_dict())
    loras = disturbed(attach(fine_tuned, demo.lora_names(), RANK))
    patched, _ = load_lora_for_models(host_model, None, loras.tensors(), 1.0, 0.0)
    with torch.no_grad():
        expected = fine_tuned(x, t, context=context)
        patched.patch_model()
        torch.testing.assert_close(patched.model.diffusion_model(x, t, context=context), expected, atol=1e-5, rtol=0)
        patched.unpatch_model()


def test_trainings_start_from_the_values_that_the_shipped_files_were_trained_from():
    """Those of torch's own layers, one after the other."""
    network = torch.nn.Sequential(torch.nn.Linear(6, 8), torch.nn.Conv2d(2, 5, 3, padding=1))
    torch.manual_seed(4)
    loras = start_like_layers(attach(network, {"linear": "0", "conv": "1"}, 3))
    torch.manual_seed(4)
    for name, down, up in (("linear", torch.nn.Linear(6, 3, bias=False), torch.nn.Linear(3, 8, bias=False)),
                           ("conv", torch.nn.Conv2d(2, 3, 3, bias=False), torch.nn.Conv2d(3, 5, 1, bias=False))):
        assert torch.equal(loras.by_name[name].down, down.weight)
        assert loras.by_name[name].up.shape == up.weight.shape and loras.by_name[name].up.count_nonzero() == 0


def test_a_trained_control_branch_is_the_hosts_control_lora(comfy, unet, inputs, tmp_path):
    x, t, context = inputs
    branch = disturbed(ControlBranch(demo.fresh_control(unet)), trained_only=True)
    path = tmp_path / "control.safetensors"
    save_file({name: value.detach().contiguous().clone() for name, value in branch.file().items()}, str(path))
    control = load_controlnet(str(path))
    control.pre_run(demo.build_model(unet.state_dict()).model, lambda percent: 0.0)
    hint = torch.rand(2, 3, 128, 128)
    with torch.no_grad():
        expected, host = branch.control(x, hint, t, context), control.control_model(x, hint, t, context)
    for part in ("output", "middle"):
        for a, b in zip(expected[part], host[part], strict=True):
            torch.testing.assert_close(b, a, atol=1e-5, rtol=0)


def test_every_word_of_the_world_has_its_own_vector(comfy):
    state = demo.read_weights("sprite_clip_text")
    known = set(state["vocabulary.ids"].tolist())
    captions = [world.caption(world.Scene(sprite, size, place, "red", "dots", motion))
                for sprite in world.SPRITES for size in world.SIZES
                for place in world.POSITIONS for motion in world.MOTIONS]
    assert set(demo.caption_tokens(captions).flatten().tolist()) <= known


def test_a_missing_file_says_how_to_get_it_back(comfy, monkeypatch, tmp_path):
    monkeypatch.setattr(demo, "WEIGHTS", tmp_path)
    with pytest.raises(FileNotFoundError, match="Install Frozen Diffusion again"):
        demo.read_weights("sprite_unet")
