"""How files name the factors of a LoRA, and the factors behind the names. Pure functions; no file is opened here."""
from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, NamedTuple, get_args

from torch import Tensor

Role = Literal["down", "up", "alpha"]

# What follows the name of a layer; an older diffusers writes `to_q_lora.up.weight` for the layer `to_q`.
SUFFIXES: dict[str, Role] = {
    ".lora_down.weight": "down", ".lora_up.weight": "up",                               # kohya, LyCORIS, ComfyUI
    "_lora.down.weight": "down", "_lora.up.weight": "up",                               # diffusers, AnimateDiff
    ".lora.down.weight": "down", ".lora.up.weight": "up",                               # diffusers
    ".lora_linear_layer.down.weight": "down", ".lora_linear_layer.up.weight": "up",     # diffusers' text encoders
    ".lora_A.weight": "down", ".lora_B.weight": "up",                                   # PEFT
    ".lora_A.default.weight": "down", ".lora_B.default.weight": "up",                   # PEFT, adapter not stripped
    ".lora_A": "down", ".lora_B": "up",                                                 # Mochi
    ".alpha": "alpha",
}


class Factors(NamedTuple):
    """The weight change alpha / rank * up @ down of one layer.

    Attributes:
        down: [rank, in], of a convolution [rank, in, h, w].
        up: [out, rank], of a convolution [out, rank, 1, 1].
    """
    down: Tensor
    up: Tensor
    alpha: float


def split_key(key: str) -> tuple[str, Role] | None:
    """(stem, role) of a key, None if it is of no family in SUFFIXES. The stem is the layer's name in the file."""
    return next(((key.removesuffix(suffix), role) for suffix, role in SUFFIXES.items() if key.endswith(suffix)), None)


def kohya_key(name: str, role: Role) -> str:
    """`<name>.lora_down.weight`, `<name>.lora_up.weight` or `<name>.alpha`."""
    return f"{name}.alpha" if role == "alpha" else f"{name}.lora_{role}.weight"


def read_factors(state: Mapping[str, object]) -> tuple[dict[str, Factors], list[str]]:
    """The factors of a LoRA's state_dict by stem, and the keys that are no part of them, both in file order.

    A missing alpha is the rank: the change is up @ down. A stem of which `.dora_scale` or `.lora_mid.weight` is among
    the other keys is no plain LoRA. Raises ValueError where down and up have different ranks.
    """
    found: dict[str, dict[Role, str]] = {}
    for key in state:
        if isinstance(state[key], Tensor) and (split := split_key(key)):
            found.setdefault(split[0], {}).setdefault(split[1], key)        # of two families in one file the first
    complete = {stem: keys for stem, keys in found.items() if {"down", "up"} <= keys.keys()}
    used = {key for keys in complete.values() for key in keys.values()}
    factors = {stem: _factors(stem, *(state.get(keys.get(role)) for role in get_args(Role)))
               for stem, keys in complete.items()}
    return factors, [key for key in state if key not in used]


def _factors(stem: str, down: Tensor, up: Tensor, alpha: Tensor | None) -> Factors:
    if min(down.ndim, up.ndim) < 2 or up.shape[1] != down.shape[0]:
        raise ValueError(f"The LoRA of {stem} has factors of shapes {tuple(down.shape)} (down) and {tuple(up.shape)} "
                         "(up). They must be [rank, in] and [out, rank] with one rank: the file is damaged, or no "
                         "LoRA. Save or download it again.")
    return Factors(down, up, float(len(down) if alpha is None else alpha))
