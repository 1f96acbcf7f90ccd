"""The names under which motion weights are found in files, brought to one: AnimateDiff's.

Pure functions on state dicts; no file is opened here.
"""
from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from torch import Tensor

from .file_checks import MotionFileError
from .transformer import sinusoids

HARIVO = "harivo."              # before the names of all parts that AnimateDiff does not have
CONVOLUTION = HARIVO + "tconv."
MAPPING = HARIVO + "map."
TOKENS = HARIVO + "tok."
POSITIONAL_ENCODING = "pos_encoder.pe"
BLOCK = "transformer_blocks.0."
DIFFUSERS_MODULE = re.compile(r"(.*\bmotion_modules\.\d+\.)(?!temporal_transformer\.)(.+)")
DIFFUSERS_NAMES = (     # (AnimateDiff, diffusers), inside one block
    ("attention_blocks.0.pos_encoder.pe", "pos_embed.pe"),      # one set for both attentions
    ("attention_blocks.1.pos_encoder.pe", "pos_embed.pe"),
    ("attention_blocks.0.", "attn1."),
    ("attention_blocks.1.", "attn2."),
    ("norms.0.", "norm1."),
    ("norms.1.", "norm2."),
    ("ff_norm.", "norm3."),
    ("ff.", "ff."),
)
# What training scripts and torch's wrappers put around a state and before its names, in any nesting.
CONTAINERS = ("state_dict", "model_state_dict", "unet_state_dict", "module", "model", "unet", "motion_module")
PREFIXES = re.compile(r"(?:module\.|unet\.|model\.(?!diffusion_model\.)|motion_module\.)+")
WRAPPERS = re.compile(r"\b(?:_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")
FRAMES_WITHOUT_ENCODING = {"animatediff": 64, "hotshotxl": 8, "diffusers": 32}     # AnimateLCM stores none


@dataclass(frozen=True)
class Names:
    """What the names of a file tell about it.

    Attributes:
        layout: "animatediff", "hotshotxl" or "diffusers".
        positional_encoding: whether the file stores them; if not, they were rebuilt as plain sinusoids.
        pia: whether the file has the nine-channel first convolution of PIA.
        dropped: names that are no motion weights, in file order.
        entries: how many names the file has.
    """
    layout: str
    positional_encoding: bool
    pia: bool = False
    dropped: tuple[str, ...] = ()
    entries: int = 0


def unwrap(state: Mapping) -> dict[str, object]:
    """A state without the containers of training scripts, under names without the prefixes of wrappers.

    Wrappers are torch.compile, DistributedDataParallel, FSDP, activation checkpointing, and models that hold the
    U-Net as a part. Raises MotionFileError when two motion weights get the same name.
    """
    while (inner := next((state[key] for key in CONTAINERS if isinstance(state.get(key), Mapping)), None)) is not None:
        state = inner
    names: dict[str, str] = {}
    for key in state:
        short = without_prefixes(key)
        if short in names and "temporal" in short:
            raise MotionFileError(f"It holds two networks: {names[short]} and {key} are both {short} without the "
                                  "prefixes of wrappers. Save one of them alone.")
        names[short] = key
    return {short: state[key] for short, key in names.items()}


def without_prefixes(key: str) -> str:
    """A name as the plain U-Net or motion module has it: "module._orig_mod.unet.down_blocks.0" is "down_blocks.0"."""
    key = WRAPPERS.sub("", key)
    prefix = PREFIXES.match(key)
    return key[prefix.end():] if prefix else key


def layout_of(keys: Iterable[str]) -> str:
    """Whose names the keys are: "animatediff", "hotshotxl" or "diffusers"."""
    keys = list(keys)
    if any("temporal_attentions." in key for key in keys):
        return "hotshotxl"
    return "diffusers" if any(DIFFUSERS_MODULE.fullmatch(key) for key in keys) else "animatediff"


def from_hotshot(key: str) -> str:
    """One key of a HotshotXL file as AnimateDiff's; other keys come back unchanged."""
    key = re.sub(r"\btemporal_attentions\.(\d+)\.", r"motion_modules.\1.temporal_transformer.", key)
    return key.replace("pos_encoder.positional_encoding", POSITIONAL_ENCODING)


def from_diffusers(key: str) -> tuple[str, ...]:
    """The AnimateDiff keys for one key of diffusers' MotionAdapter: two for positional encoding, else one."""
    match = DIFFUSERS_MODULE.fullmatch(key)
    if match is None:
        return (key,)
    prefix, name = match[1] + "temporal_transformer.", match[2]
    if not name.startswith(BLOCK):
        return (prefix + name,)
    name = name.removeprefix(BLOCK)
    return tuple(prefix + BLOCK + ours + name.removeprefix(theirs)
                 for ours, theirs in DIFFUSERS_NAMES if name.startswith(theirs)) or (key,)


def to_diffusers(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A normalised state under the names of diffusers' MotionAdapter.

    Raises ValueError when diffusers has no place for it: HARIVO's parts, or two different positional encodings in one
    layer.
    """
    out: dict[str, Tensor] = {}
    for key, tensor in state.items():
        if key.startswith(HARIVO):
            raise ValueError("This motion module has parts of HARIVO (mapping network, frame tokens or temporal "
                             "convolutions); diffusers' MotionAdapter has none. Convert a module without them.")
        start, _, name = key.partition("temporal_transformer.")
        if name.startswith(BLOCK):
            name = name.removeprefix(BLOCK)
            ours, theirs = next(pair for pair in DIFFUSERS_NAMES if name.startswith(pair[0]))
            name = BLOCK + theirs + name.removeprefix(ours)
        if start + name in out and not out[start + name].equal(tensor):
            raise ValueError(f"The two attentions of {start!r} have different positional encoding; diffusers "
                             "keeps one set for both. This module cannot be converted.")
        out[start + name] = tensor
    return out


def adapter_settings(channels: tuple[int, ...], mid: bool, max_frames: int) -> dict[str, object]:
    """Arguments of diffusers' MotionAdapter for a module of these shapes."""
    return {"block_out_channels": tuple(channels), "motion_layers_per_block": 2, "use_motion_mid_block": mid,
            "motion_num_attention_heads": 8, "motion_norm_num_groups": 32, "motion_max_seq_length": max_frames}


def normalise(state: Mapping) -> tuple[dict[str, Tensor], Names]:
    """All motion weights of an unwrapped state under AnimateDiff's names, and what the names told.

    Missing positional encoding are rebuilt. Keys with "temporal" in them are kept even when they fit nothing, so
    that the caller can say so.
    """
    layout, weights, dropped = layout_of(state), {}, []
    for key, tensor in state.items():
        names = from_diffusers(from_hotshot(key))
        if isinstance(tensor, Tensor) and ("temporal" in names[0] or key.startswith(HARIVO)):
            weights.update({name: tensor for name in names})
        else:
            dropped.append(key)
    stored = any(name.endswith(POSITIONAL_ENCODING) for name in weights)
    if not stored:
        for name in [name for name in weights if name.endswith(".to_q.weight")]:
            weights[name.removesuffix("to_q.weight") + POSITIONAL_ENCODING] = sinusoids(FRAMES_WITHOUT_ENCODING[layout],
                                                                          weights[name].shape[0])
    first = state.get("conv_in.weight")
    pia = isinstance(first, Tensor) and first.ndim == 4 and first.shape[1] == 9
    return weights, Names(layout, stored, pia, tuple(dropped), len(state))
