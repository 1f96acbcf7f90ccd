"""The layers that files of LoRAs name, brought to one name each (customize_a_video.md 6.2). Pure functions.

A temporal layer is called as in AnimateDiff's motion modules, e.g.
`down_blocks.0.motion_modules.1.temporal_transformer.transformer_blocks.0.attention_blocks.0.to_q`; a spatial one as in
diffusers' U-Net, e.g. `down_blocks.0.attentions.1.transformer_blocks.0.attn1.to_q`. Text layers keep their names.
"""
from __future__ import annotations

import functools
import re
from collections.abc import Iterator

TEMPORAL, SPATIAL, TEXT = "temporal", "spatial", "text"
SCOPES = (TEMPORAL, SPATIAL, TEXT)
PREFIXES = re.compile(r"^(?:base_model\.|model\.(?!diffusion_model)|module\.|unet\.)+")
KOHYA, NATIVE = "lora_unet_", "diffusion_model."
TEXT_STEMS = re.compile(r"^(?:lora_te\d?_|text_encoder\d?\.|te\d?\.|clip_[lgh]\.|conditioner\.)")
MODULE = r"((?:down|up)_blocks[._]\d+|mid_block)[._]motion_modules[._](\d+)[._](?:temporal_transformer[._])?(.+)"
TEMPORAL_STEM = re.compile(MODULE)
DEPTH = 10                      # transformer blocks in a row, at most: SDXL's deepest
PROJECTIONS = ("to_q", "to_k", "to_v", "to_out.0")


def scope_of(stem: str) -> tuple[str, str] | None:
    """(scope, one name) of a layer by its name in a file, without the LoRA's suffix; None for an unknown one."""
    plain = PREFIXES.sub("", stem)
    if (temporal := temporal_name(plain)) is not None:
        return TEMPORAL, temporal
    if TEXT_STEMS.match(plain):
        return TEXT, stem
    if (spatial := spatial_name(plain)) is not None:
        return SPATIAL, spatial
    return None


def temporal_name(stem: str) -> str | None:
    """The name in AnimateDiff's motion module of a temporal layer, None for another one.

    Its own files, ADMD's, diffusers' of both ages, and kohya's flattened names.
    """
    match = TEMPORAL_STEM.fullmatch(stem.removeprefix(KOHYA).removeprefix(NATIVE))
    if match is None:
        return None
    inner = _inner_names().get(_flat(match[3].replace("processor.", "")))
    if inner is None:
        return None
    block = re.sub(r"_blocks[._]", "_blocks.", match[1])
    return f"{block}.motion_modules.{match[2]}.temporal_transformer.{inner}"


def spatial_name(stem: str) -> str | None:
    """diffusers' name of a spatial layer of the U-Net, from any of the spellings; None for another one."""
    plain = _flat(stem.removeprefix(KOHYA).removeprefix(NATIVE).replace("processor.", ""))
    names = _spatial_names()
    return names.get(plain) or names.get(f"{plain}_0")             # diffusers' old files leave the .0 of to_out out


def animatediff_key(name: str, role: str) -> str:
    """The key of a temporal LoRA in AnimateDiff's files: what AnimateDiff-Evolved and others read (F1)."""
    head, _, layer = name.rpartition(".")
    if layer == "0" and head.endswith("to_out"):
        return f"{head.removesuffix('to_out')}processor.to_out_lora.{role}.weight"
    return f"{head}.processor.{layer}_lora.{role}.weight"


def diffusers_key(name: str, role: str) -> str:
    """The key of a temporal LoRA as diffusers saves it with PEFT (F3)."""
    name = name.replace(".temporal_transformer", "")
    for number in "01":
        name = name.replace(f"attention_blocks.{number}", f"attn{int(number) + 1}")
    return f"unet.{name}.lora_{'A' if role == 'down' else 'B'}.weight"


def kohya_stem(name: str) -> str:
    """The name of a spatial layer in kohya's files (F6)."""
    return KOHYA + name.replace(".", "_")


def native_stem(name: str, unet_keys: dict[str, str]) -> str | None:
    """The host's own name of a spatial layer (F9), by its table from diffusers' weights to its own."""
    own = unet_keys.get(f"{name}.weight")
    return None if own is None else NATIVE + own.removesuffix(".weight")


def _flat(name: str) -> str:
    return name.replace(".", "_")


@functools.cache
def _inner_names() -> dict[str, str]:
    """The layers inside of one temporal transformer, by their flattened names in every spelling."""
    names = ["proj_in", "proj_out"]
    block = "transformer_blocks.0."
    names += [f"{block}attention_blocks.{number}.{layer}" for number in range(2) for layer in PROJECTIONS]
    names += [f"{block}ff.net.0.proj", f"{block}ff.net.2"]
    found = {_flat(name): name for name in names}
    for number in range(2):
        for layer in PROJECTIONS:
            found[_flat(f"{block}attn{number + 1}.{layer}")] = f"{block}attention_blocks.{number}.{layer}"
    for flat, name in list(found.items()):
        if name.endswith("to_out.0"):
            found[flat.removesuffix("_0")] = name
    return found


@functools.cache
def _spatial_names() -> dict[str, str]:
    """All layers of SD1.5's and SDXL's U-Nets by their flattened names, diffusers' and the original ones."""
    found = {}
    for name, original in _spatial_pairs():
        found[_flat(name)] = name
        if original:
            found[_flat(original)] = name
    return found


def _spatial_pairs() -> Iterator[tuple[str, str]]:
    """(diffusers' name, the original one) of every layer that a LoRA may stand beside."""
    for levels in (3, 4):
        for level in range(levels):
            for layer in range(2):
                yield from _block(f"down_blocks.{level}", layer, f"input_blocks.{1 + 3 * level + layer}")
            if level + 1 < levels:
                yield f"down_blocks.{level}.downsamplers.0.conv", f"input_blocks.{3 * level + 3}.0.op"
            for layer in range(3):
                yield from _block(f"up_blocks.{level}", layer, f"output_blocks.{3 * level + layer}")
    for level in range(3):
        for place in (1, 2):
            yield f"up_blocks.{level}.upsamplers.0.conv", f"output_blocks.{3 * level + 2}.{place}.conv"
    yield from _resnet("mid_block.resnets.0", "middle_block.0")
    yield from _transformer("mid_block.attentions.0", "middle_block.1")
    yield from _resnet("mid_block.resnets.1", "middle_block.2")
    yield from (("conv_in", "input_blocks.0.0"), ("conv_out", "out.2"), ("time_embedding.linear_1", "time_embed.0"),
                ("time_embedding.linear_2", "time_embed.2"), ("add_embedding.linear_1", "label_emb.0.0"),
                ("add_embedding.linear_2", "label_emb.0.2"))


def _block(block: str, layer: int, original: str) -> Iterator[tuple[str, str]]:
    yield from _resnet(f"{block}.resnets.{layer}", f"{original}.0")
    yield from _transformer(f"{block}.attentions.{layer}", f"{original}.1")


def _resnet(name: str, original: str) -> Iterator[tuple[str, str]]:
    for layer, there in (("conv1", "in_layers.2"), ("conv2", "out_layers.3"), ("time_emb_proj", "emb_layers.1"),
                         ("conv_shortcut", "skip_connection")):
        yield f"{name}.{layer}", f"{original}.{there}"


def _transformer(name: str, original: str) -> Iterator[tuple[str, str]]:
    inner = [f"transformer_blocks.{depth}.{part}" for depth in range(DEPTH) for part in (
        *(f"attn{number}.{layer}" for number in (1, 2) for layer in PROJECTIONS), "ff.net.0.proj", "ff.net.2")]
    for layer in ("proj_in", "proj_out", *inner):
        yield f"{name}.{layer}", f"{original}.{layer}"
