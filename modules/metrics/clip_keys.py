"""Full CLIP files: their two layouts, and the configuration that the shapes tell."""
from __future__ import annotations

import math
import re
from collections.abc import Mapping

from torch import Tensor

OPENAI = "visual.conv1.weight"
HF_TEXT, HF_VISION = "text_model.embeddings.token_embedding.weight", "vision_model.embeddings.class_embedding"
HEADS = {512: 8, 768: 12, 1024: 16, 1280: 20}           # of text models by width
VISION_HEADS = {768: 12, 1024: 16, 1280: 16, 1664: 16}
HEAD = 64                                               # channels of a head in other sizes
GELU_WIDTHS = (1280, 1664)                              # vision models that LAION trained, with plain GELU
QUICK_GELU, GELU = "quick_gelu", "gelu"
ACTIVATIONS = ("auto", QUICK_GELU, GELU)
WRAPPERS = ("clip_model.", "model.", "module.", "clip.")
BLOCK = {"attn.out_proj": "self_attn.out_proj", "ln_1": "layer_norm1", "ln_2": "layer_norm2", "mlp.c_fc": "mlp.fc1",
         "mlp.c_proj": "mlp.fc2"}
OUTSIDE = {"token_embedding.weight": "text_model.embeddings.token_embedding.weight",
           "positional_embedding": "text_model.embeddings.position_embedding.weight",
           "ln_final.weight": "text_model.final_layer_norm.weight", "ln_final.bias": "text_model.final_layer_norm.bias",
           "visual.class_embedding": "vision_model.embeddings.class_embedding",
           "visual.conv1.weight": "vision_model.embeddings.patch_embedding.weight",
           "visual.positional_embedding": "vision_model.embeddings.position_embedding.weight",
           "visual.ln_pre.weight": "vision_model.pre_layrnorm.weight",
           "visual.ln_pre.bias": "vision_model.pre_layrnorm.bias",
           "visual.ln_post.weight": "vision_model.post_layernorm.weight",
           "visual.ln_post.bias": "vision_model.post_layernorm.bias", "logit_scale": "logit_scale"}


class CLIPFileError(ValueError):
    """A file that does not hold a whole CLIP."""


def whole_clip(state: Mapping[str, Tensor], file: str) -> dict[str, Tensor]:
    """The weights of both towers and both projections, in transformers' names.

    Raises CLIPFileError naming what is missing.
    """
    state = _unwrapped(state)
    found = _from_openai(state) if OPENAI in state else {key: value for key, value in state.items()
                                                          if not key.endswith("position_ids")}
    towers = {"text tower": HF_TEXT, "vision tower": HF_VISION, "text projection": "text_projection.weight",
              "visual projection": "visual_projection.weight"}
    missing = [name for name, key in towers.items() if key not in found]
    if len(missing) == 4:
        raise CLIPFileError(f"{file} holds no CLIP. Expected one file with both towers of a CLIP, in the layout of "
                            "Hugging Face (text_model., vision_model.) or of OpenAI (visual., transformer.).")
    if missing:
        raise CLIPFileError(f"{file} lacks the {' and the '.join(missing)}: pictures and texts share no space then. "
                            "Text-only and vision-only files, as generation uses them, do not do. Get the file of the "
                            "whole CLIP, e.g. model.safetensors of openai/clip-vit-base-patch32.")
    wanted = ("text_model.", "vision_model.", "text_projection.", "visual_projection.", "logit_scale")
    return {key: value for key, value in found.items() if key.startswith(wanted)}


def _unwrapped(state: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """Without a prefix that all keys of the CLIP share."""
    for prefix in WRAPPERS:
        if any(prefix + key in state for key in (OPENAI, HF_TEXT, HF_VISION)):
            return {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
    return state


def _from_openai(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """OpenAI's and open_clip's names -> transformers'; joint q, k, v are parted and projections turned."""
    found = {}
    for key, value in state.items():
        tower = "vision_model" if key.startswith("visual.") else "text_model"
        block = re.fullmatch(r"(?:visual\.)?transformer\.resblocks\.(\d+)\.(.+)", key)
        if key in OUTSIDE:
            found[OUTSIDE[key]] = value
        elif key in ("text_projection", "visual.proj"):
            found["text_projection.weight" if key == "text_projection" else "visual_projection.weight"] = value.T
        elif key == "text_projection.weight":
            found[key] = value
        elif block and block[2].startswith("attn.in_proj_"):
            for name, part in zip("qkv", value.chunk(3), strict=True):
                kind = block[2].removeprefix("attn.in_proj_")
                found[f"{tower}.encoder.layers.{block[1]}.self_attn.{name}_proj.{kind}"] = part
        elif block:
            name, _, kind = block[2].rpartition(".")
            if name in BLOCK:
                found[f"{tower}.encoder.layers.{block[1]}.{BLOCK[name]}.{kind}"] = value
    return found


def clip_config(state: Mapping[str, Tensor], activation: str = "auto") -> dict:
    """Arguments of transformers' CLIPConfig, from the shapes of transformers' names.

    Args:
        activation: quick_gelu, gelu, or auto: quick_gelu (OpenAI) up to L/14, gelu (LAION) for H and bigG. LAION's B
            and L have OpenAI's shapes and want gelu.
    """
    vision, text = (state[f"{tower}.post_layernorm.weight" if tower == "vision_model" else
                          f"{tower}.final_layer_norm.weight"].shape[0] for tower in ("vision_model", "text_model"))
    patch = state["vision_model.embeddings.patch_embedding.weight"].shape[-1]
    positions = state["vision_model.embeddings.position_embedding.weight"].shape[0]
    vocabulary = state[HF_TEXT].shape[0]
    if activation == "auto":
        activation = GELU if vision in GELU_WIDTHS else QUICK_GELU
    return {"projection_dim": state["text_projection.weight"].shape[0],
            "text_config": _tower(state, "text_model", text, HEADS, activation) | {
                "vocab_size": vocabulary, "eos_token_id": vocabulary - 1, "bos_token_id": vocabulary - 2,
                "max_position_embeddings": state["text_model.embeddings.position_embedding.weight"].shape[0],
                "projection_dim": state["text_projection.weight"].shape[0]},
            "vision_config": _tower(state, "vision_model", vision, VISION_HEADS, activation) | {
                "patch_size": patch, "image_size": patch * math.isqrt(positions - 1),
                "projection_dim": state["visual_projection.weight"].shape[0]}}


def _tower(state: Mapping[str, Tensor], tower: str, width: int, heads: Mapping[int, int], activation: str) -> dict:
    if width not in heads and width % HEAD:
        raise CLIPFileError(f"The {tower} is {width} wide, which no CLIP is that this pack knows: {sorted(heads)}.")
    layers = {int(found[1]) for key in state if (found := re.match(rf"{tower}\.encoder\.layers\.(\d+)\.", key))}
    return {"hidden_size": width, "num_hidden_layers": len(layers), "hidden_act": activation,
            "num_attention_heads": heads.get(width, width // HEAD),
            "intermediate_size": state[f"{tower}.encoder.layers.0.mlp.fc1.weight"].shape[0]}


def clip_name(config: Mapping) -> str:
    """What a configuration is called, e.g. ViT-B/32."""
    vision = config["vision_config"]
    letter = {768: "B", 1024: "L", 1280: "H", 1664: "bigG"}.get(vision["hidden_size"], str(vision["hidden_size"]))
    large = f"-{vision['image_size']}" if vision["image_size"] != 224 else ""
    return f"ViT-{letter}/{vision['patch_size']}{large}"
