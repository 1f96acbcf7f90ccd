"""What the tests of attribute metrics share: a pair, pictures, small CLIP files."""
from __future__ import annotations

from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from frozen_diffusion.modules.demo.scenes import drawn_scenes
from frozen_diffusion.modules.pictures.frame_sheet import to_image

WORDS = "Sprites:\na dog\na cat\na car\nColours:\na red background\na blue background\na green background"


def pictures(count: int, seed: int = 0) -> Tensor:
    """True pictures of sprite world, [count, H, W, 3]."""
    return drawn_scenes(count, seed)[1]


def write_pictures(folder: Path, count: int, seed: int = 0, ending: str = "png") -> list[Path]:
    """True pictures of sprite world as files p_0.png, p_1.png, ..."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"p_{number}.{ending}" for number in range(count)]
    for path, picture in zip(paths, pictures(count, seed), strict=True):
        to_image(picture).save(path)
    return paths


def odd_pictures(folder: Path) -> dict[str, Image.Image]:
    """One red square in files of many kinds, and what each should look like."""
    folder.mkdir(parents=True, exist_ok=True)
    red = Image.new("RGB", (40, 30), (200, 30, 30))
    clear = Image.new("RGBA", (40, 30), (0, 0, 0, 0))
    red.save(folder / "plain.png")
    red.convert("CMYK").save(folder / "cmyk.jpg", quality=95)
    clear.save(folder / "clear.png")
    Image.new("L", (40, 30), 128).save(folder / "grey.png")
    Image.fromarray(torch.full((30, 40), 32896).numpy().astype("uint16")).save(folder / "deep.png")
    red.save(folder / "moving.gif", save_all=True, append_images=[Image.new("RGB", (40, 30), "blue")])
    turned = Image.new("RGB", (40, 30), "white")
    turned.paste((200, 30, 30), (0, 0, 20, 30))
    tags = Image.Exif()
    tags[274] = 6
    turned.save(folder / "turned.png", exif=tags)
    (folder / "broken.png").write_bytes(b"no picture at all")
    (folder / "notes.txt").write_text("nothing")
    return {"plain.png": red, "clear.png": Image.new("RGB", (40, 30), "white"), "moving.gif": red,
            "grey.png": Image.new("RGB", (40, 30), (128, 128, 128)), "deep.png": Image.new("RGB", (40, 30), (128,) * 3)}


def small_clip(seed: int = 0, width: int = 64):
    """A random CLIP of transformers, 64 wide, with pictures of 32x32."""
    from transformers import CLIPConfig, CLIPModel
    text = {"hidden_size": width, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 1,
            "vocab_size": 49408, "eos_token_id": 49407, "bos_token_id": 49406, "hidden_act": "quick_gelu",
            "projection_dim": 48}
    vision = {"hidden_size": width, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 1,
              "image_size": 32, "patch_size": 8, "hidden_act": "quick_gelu", "projection_dim": 48}
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=48)).eval()


def openai_layout(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """A CLIP's weights under the names of OpenAI's release."""
    outside = {"text_model.embeddings.token_embedding.weight": "token_embedding.weight",
               "text_model.embeddings.position_embedding.weight": "positional_embedding",
               "text_model.final_layer_norm.weight": "ln_final.weight",
               "text_model.final_layer_norm.bias": "ln_final.bias",
               "vision_model.embeddings.class_embedding": "visual.class_embedding",
               "vision_model.embeddings.patch_embedding.weight": "visual.conv1.weight",
               "vision_model.embeddings.position_embedding.weight": "visual.positional_embedding",
               "vision_model.pre_layrnorm.weight": "visual.ln_pre.weight",
               "vision_model.pre_layrnorm.bias": "visual.ln_pre.bias",
               "vision_model.post_layernorm.weight": "visual.ln_post.weight",
               "vision_model.post_layernorm.bias": "visual.ln_post.bias", "logit_scale": "logit_scale"}
    inside = {"self_attn.out_proj": "attn.out_proj", "layer_norm1": "ln_1", "layer_norm2": "ln_2",
              "mlp.fc1": "mlp.c_fc", "mlp.fc2": "mlp.c_proj"}
    found = {outside[key]: value for key, value in state.items() if key in outside}
    found |= {"text_projection": state["text_projection.weight"].T.contiguous(),
              "visual.proj": state["visual_projection.weight"].T.contiguous()}
    for tower, prefix in (("text_model", ""), ("vision_model", "visual.")):
        for layer in range(2):
            here, there = f"{tower}.encoder.layers.{layer}.", f"{prefix}transformer.resblocks.{layer}."
            for kind in ("weight", "bias"):
                found[f"{there}attn.in_proj_{kind}"] = torch.cat([state[f"{here}self_attn.{name}_proj.{kind}"]
                                                                  for name in "qkv"])
                for name, other in inside.items():
                    found[f"{there}{other}.{kind}"] = state[f"{here}{name}.{kind}"]
    return found
