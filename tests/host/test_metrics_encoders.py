"""The encoders of attribute metrics: pairs of the host, whole CLIP files, the probe, what shares no space."""
from __future__ import annotations

import comfy.sd
import comfy.sd1_clip
import pytest
import torch
from metrics_examples import openai_layout, small_clip
from safetensors.torch import save_file

from frozen_diffusion.modules.files.provenance import same_model
from frozen_diffusion.modules.host.demo import load_sprite_world
from frozen_diffusion.modules.host.metrics.clip_pair import ClipPairError, HostPair, check_pair, text_encoder
from frozen_diffusion.modules.host.metrics.full_clip import FullCLIP
from frozen_diffusion.modules.metrics.clip_keys import CLIPFileError, clip_config, clip_name, whole_clip
from frozen_diffusion.modules.seeding import stream


@pytest.fixture(scope="module")
def world(comfy):
    return load_sprite_world()


@pytest.fixture
def saved(tmp_path):
    """Write a CLIP's weights into a file."""
    def write(state, name="clip.safetensors"):
        save_file({key: value.contiguous().clone() for key, value in state.items()}, tmp_path / name)
        return tmp_path / name
    return write


def test_sprite_worlds_own_pair_passes_the_probe(comfy, world):
    pair, = comfy.run("FrozenCLIPPair", clip=world[1], clip_vision=world[3])
    assert (pair.width, pair.size, pair.notes) == (128, 128, [])
    assert same_model(pair.identity, HostPair(world[1], world[3]).identity)


def test_the_pair_reads_projected_text_and_leaves_the_clip_as_it_was(world):
    clip, pair = world[1], HostPair(world[1], world[3])
    before = clip.encode_from_tokens(clip.tokenize("a dog"), return_pooled=True)[1]
    one, both = pair.texts(["a dog"]), pair.texts(["a dog", "a (red:1.3) cat"])
    assert torch.allclose(one[0], both[0], atol=1e-5)
    encoder = text_encoder(clip)
    assert torch.allclose(one, encoder.transformer.text_projection(before), atol=1e-4)
    assert torch.equal(clip.encode_from_tokens(clip.tokenize("a dog"), return_pooled=True)[1], before)


def test_an_uninitialised_projection_is_found_by_the_probe(world):
    clip = load_sprite_world()[1]
    weight = text_encoder(clip).transformer.text_projection.weight
    weight.data = 0.05 * torch.randn(weight.shape, generator=stream("garbage"))
    with pytest.raises(ClipPairError, match="do not share a space.*lacks its text_projection"):
        HostPair(clip, world[3])
    weight.data.fill_(torch.nan)
    with pytest.raises(ClipPairError, match="0 found the text"):
        HostPair(clip, world[3])


def test_text_encoders_of_other_kinds_are_refused(world):
    class Mixture(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.clip_l = world[1].cond_stage_model.clip_l
            self.t5xxl = comfy.sd1_clip.SDClipModel(textmodel_json_config=dict(
                hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1, hidden_act="gelu",
                max_position_embeddings=77, eos_token_id=1))
            del self.t5xxl.transformer.text_projection

    other = world[1].clone()
    other.cond_stage_model = Mixture()
    with pytest.raises(ClipPairError, match="clip_l, t5xxl.*only CLIP text encoders"):
        HostPair(other, world[3])


def test_encoders_of_different_widths_are_refused(world, saved):
    class Narrow:
        image_size, model = 128, world[3].model

        def encode_image(self, image, crop):
            return {"image_embeds": torch.zeros(len(image), 64)}

    with pytest.raises(ClipPairError, match="gives 128 numbers for a text and the CLIP_VISION 64"):
        HostPair(world[1], Narrow())


def test_a_lora_on_the_clip_is_told(world):
    clip = world[1].clone()
    key = "clip_l.transformer.text_model.encoder.layers.0.mlp.fc1.weight"
    shape = clip.cond_stage_model.state_dict()[key].shape
    clip.add_patches({key: (1e-4 * torch.ones(shape),)}, 1.0)
    changed = HostPair(clip, world[3])
    assert "a LoRA changes the CLIP" in changed.notes[0]
    assert not same_model(changed.identity, HostPair(world[1], world[3]).identity)


def test_long_attributes_are_errors_and_not_cut(world, saved):
    long = "a very " * 80 + "long attribute"
    with pytest.raises(ClipPairError, match="more tokens than the CLIP reads"):
        HostPair(world[1], world[3]).texts([long])
    with pytest.raises(ClipPairError, match="the CLIP reads 77"):
        FullCLIP(saved(small_clip().state_dict()), probe=False).texts([long])


@pytest.mark.parametrize("layout", ["hf", "openai", "wrapped"])
def test_a_whole_clip_is_read_from_every_layout(saved, layout):
    model = small_clip()
    state = model.state_dict()
    state = {"hf": state, "openai": openai_layout(state),
             "wrapped": {f"clip_model.{key}": value for key, value in state.items()}}[layout]
    pair = FullCLIP(saved(state), probe=False)
    pixels = (255 * torch.rand(3, 3, 32, 32, generator=stream("pixels"))).to(torch.uint8)
    mean, std = (torch.tensor(value)[:, None, None] for value in (
        (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)))
    from transformers import CLIPTokenizer
    tokens = CLIPTokenizer.from_pretrained(str(next(iter(comfy.sd1_clip.__path__), "")) if hasattr(
        comfy.sd1_clip, "__path__") else comfy.sd1_clip.__file__.replace("sd1_clip.py", "sd1_tokenizer"))(
        ["a dog", "a red cat"], padding="max_length", max_length=77, return_tensors="pt")
    with torch.inference_mode():
        images = model.visual_projection(model.vision_model((pixels / 255 - mean) / std).pooler_output)
        texts = model.text_projection(model.text_model(tokens["input_ids"]).pooler_output)
    assert torch.allclose(pair.images(pixels), images, atol=1e-5)
    assert torch.allclose(pair.texts(["a dog", "a red cat"]), texts, atol=1e-5)


@pytest.mark.parametrize("missing, told", [
    (("text_projection.weight",), "lacks the text projection"),
    (("visual_projection.weight",), "lacks the visual projection"),
    (("text_projection.weight", "text_model"), "lacks the text tower and the text projection"),
    (("vision_model.encoder.layers.1",), None),
    (("text_model", "vision_model", "text_projection", "visual_projection"), "holds no CLIP")])
def test_a_file_of_part_of_a_clip_is_refused(missing, told):
    state = {key: value for key, value in small_clip().state_dict().items() if not key.startswith(missing)}
    if told is None:
        assert clip_config(whole_clip(state, "x"))["vision_config"]["num_hidden_layers"] == 1
        return
    with pytest.raises(CLIPFileError, match=told):
        whole_clip(state, "x.safetensors")


def test_a_random_clip_fails_the_probe_and_a_broken_file_is_named(saved, tmp_path):
    with pytest.raises(ClipPairError, match="do not share a space"):
        FullCLIP(saved(small_clip().state_dict()))
    (tmp_path / "page.safetensors").write_text("<!doctype html>")
    with pytest.raises(CLIPFileError, match="saved web page"):
        FullCLIP(tmp_path / "page.safetensors")
    cut = {key: value for key, value in small_clip().state_dict().items() if "layers.0.mlp.fc2" not in key}
    with pytest.raises(CLIPFileError, match="weights of the CLIP are missing"):
        FullCLIP(saved(cut, "cut.safetensors"))


@pytest.mark.parametrize("vision, patch, size, text, layers, name, activation", [
    (768, 32, 224, 512, 12, "ViT-B/32", "quick_gelu"), (768, 16, 224, 512, 12, "ViT-B/16", "quick_gelu"),
    (1024, 14, 224, 768, 24, "ViT-L/14", "quick_gelu"), (1024, 14, 336, 768, 24, "ViT-L/14-336", "quick_gelu"),
    (1280, 14, 224, 1024, 32, "ViT-H/14", "gelu"), (1664, 14, 224, 1280, 48, "ViT-bigG/14", "gelu")])
def test_the_released_sizes_are_told_from_shapes(vision, patch, size, text, layers, name, activation):
    def empty(*shape):
        return torch.empty(*shape, device="meta")

    state = {"vision_model.post_layernorm.weight": empty(vision), "text_model.final_layer_norm.weight": empty(text),
             "vision_model.embeddings.patch_embedding.weight": empty(vision, 3, patch, patch),
             "vision_model.embeddings.position_embedding.weight": empty((size // patch) ** 2 + 1, vision),
             "text_model.embeddings.position_embedding.weight": empty(77, text),
             "text_model.embeddings.token_embedding.weight": empty(49408, text),
             "text_projection.weight": empty(text, text), "visual_projection.weight": empty(text, vision)}
    for tower, width in (("vision_model", vision), ("text_model", text)):
        for layer in range(layers):
            state[f"{tower}.encoder.layers.{layer}.mlp.fc1.weight"] = empty(4 * width, width)
    config = clip_config(state)
    assert clip_name(config) == name and config["vision_config"]["hidden_act"] == activation
    assert config["vision_config"]["num_hidden_layers"] == layers
    assert clip_config(state, "gelu")["text_config"]["hidden_act"] == "gelu"


def test_check_pair_counts_colours(world):
    pair = HostPair(world[1], world[3])

    class Blind:
        size, width = pair.size, pair.width
        images, texts = staticmethod(lambda pixels: pair.images(pixels[:1]).expand(8, -1)), pair.texts

    with pytest.raises(ClipPairError, match="of 8 flat colours, [01] found"):
        check_pair(Blind())
