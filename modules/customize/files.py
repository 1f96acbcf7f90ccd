"""Files of LoRAs for motion and for looks: every layout that is about is read into one form, four are written
(customize_a_video.md 6.2, F1 to F10).
"""
from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from ..files.atomic_write import write_atomically
from ..files.checks import Load, read_tensors
from ..training.lora_keys import Factors, kohya_key, read_factors
from .names import SCOPES, SPATIAL, TEMPORAL, TEXT, animatediff_key, diffusers_key, kohya_stem, scope_of

FORMAT, VERSION = "frozen_diffusion.lora", "1"
ANIMATEDIFF, DIFFUSERS, KOHYA = "AnimateDiff", "diffusers", "kohya"
LAYOUTS = (ANIMATEDIFF, DIFFUSERS, KOHYA)
CONTAINERS = ("state_dict", "lora", "unet_state_dict", "model")
EMBEDDING = "emb_params"                        # of a textual inversion (F10)
BIASES = (".diff", ".diff_b", ".set_weight")    # whole changes, which the host's Train LoRA saves beside its factors
# MotionDirector's list (F5), in the order of its traversal: (temporal transformers, channels of each pair).
LIST_PARTS = (["transformer_in"] + [f"down_blocks.{i}.temp_attentions.{j}" for i in range(3) for j in range(2)]
              + [f"up_blocks.{i}.temp_attentions.{j}" for i in range(1, 4) for j in range(3)]
              + ["mid_block.temp_attentions.0"])
LIST_LAYERS = (["proj_in"] + [f"transformer_blocks.0.attn{n}.{p}" for n in (1, 2)
                              for p in ("to_q", "to_k", "to_v", "to_out.0")]
               + ["transformer_blocks.0.ff.net.0.proj", "transformer_blocks.0.ff.net.2", "proj_out"])


class LoraFileError(ValueError):
    """A file is no usable LoRA; the message says what it is instead and what to do."""


@dataclass(frozen=True)
class LoraFile:
    """What a file of LoRAs holds.

    Attributes:
        scopes: factors by one name of each layer (see names.py), for TEMPORAL, SPATIAL and TEXT.
        unmatched: keys that are no part of them.
        source: its name.
        metadata: of the file.
        list_base: whether it is MotionDirector's list for ModelScope, whose layers no image model here has.
    """
    scopes: Mapping[str, Mapping[str, Factors]]
    unmatched: tuple[str, ...] = ()
    source: str = "in memory"
    metadata: Mapping[str, str] = field(default_factory=dict)
    list_base: bool = False

    @property
    def temporal(self) -> Mapping[str, Factors]:
        return self.scopes[TEMPORAL]

    @property
    def spatial(self) -> Mapping[str, Factors]:
        return self.scopes[SPATIAL]

    def counts(self) -> str:
        """Layers by scope, in words."""
        told = [f"{len(self.scopes[scope])} {scope}" for scope in SCOPES if self.scopes[scope]]
        return (" and ".join(told) or "no") + " layers"

    def ranks(self) -> str:
        """Ranks, the most frequent first."""
        found = Counter(len(factors.down) for part in self.scopes.values() for factors in part.values())
        return ", ".join(str(rank) for rank, _ in found.most_common(3))


def read_lora_file(path: str | Path, load: Load) -> LoraFile:
    """Read any of the layouts. `load` reads a file into (state, metadata or None); it must refuse pickled code.

    Raises LoraFileError.
    """
    path = Path(path)
    state, metadata = read_tensors(path, load, LoraFileError)
    try:
        return read_lora_state(state, path.name, metadata)
    except (LoraFileError, ValueError) as error:
        raise LoraFileError(f"{path.name}: {error}") from error


def read_lora_state(state: object, source: str = "in memory", metadata: Mapping[str, str] | None = None) -> LoraFile:
    """The same of what was in a file. Raises LoraFileError."""
    if isinstance(state, (list, tuple)):
        return _of_list(state, source, metadata)
    if not isinstance(state, Mapping):
        raise LoraFileError(f"it holds {type(state).__name__}, expected tensors by name")
    while (inner := next((state[key] for key in CONTAINERS if isinstance(state.get(key), Mapping)), None)) is not None:
        state = inner
    tensors = {key: tensor for key, tensor in state.items() if isinstance(tensor, Tensor)}
    factors, rest = read_factors(tensors)
    scopes: dict[str, dict[str, Factors]] = {scope: {} for scope in SCOPES}
    unmatched = list(rest)
    for stem, pair in factors.items():
        found = scope_of(stem)
        if found is None:
            unmatched.append(stem)
        else:
            scopes[found[0]][found[1]] = pair
    if not any(scopes.values()):
        raise LoraFileError(_no_lora(tensors))
    check_factors(scopes)
    return LoraFile(scopes, tuple(unmatched), source, dict(metadata or {}))


def check_factors(scopes: Mapping[str, Mapping[str, Factors]]) -> None:
    """Raises LoraFileError for numbers that are not finite."""
    bad = [name for part in scopes.values() for name, factors in part.items()
           if not (factors.down.isfinite().all() and factors.up.isfinite().all())]
    if bad:
        raise LoraFileError(f"{len(bad)} layers hold NaN or infinite numbers, e.g. {bad[0]}. The file is damaged or "
                            "its training diverged. Use another one.")


def folded(factors: Factors) -> tuple[Tensor, Tensor]:
    """(down, up) in fp32, alpha / rank in `up`: what layouts without an alpha hold."""
    down = factors.down.float()
    return down, factors.up.float() * (factors.alpha / len(down))


def write_lora(path: Path, factors: Mapping[str, Mapping[str, Factors]], layout: str,
               metadata: Mapping[str, str] | None = None) -> None:
    """Write the factors of some scopes in a layout; complete or not at all. Raises ValueError, OSError."""
    told = {**(metadata or {}), "format": FORMAT, "format_version": VERSION, "layout": layout}
    if layout in (ANIMATEDIFF, DIFFUSERS):
        told["alpha"] = "folded"
    write_atomically(path, state_of(factors, layout), told, "The LoRA")


def state_of(factors: Mapping[str, Mapping[str, Factors]], layout: str) -> dict[str, Tensor]:
    """Tensors by the names of a layout. Raises ValueError where it has no names for a scope."""
    wrong = {ANIMATEDIFF: (SPATIAL, TEXT), DIFFUSERS: (SPATIAL, TEXT), KOHYA: (TEMPORAL,)}[layout]
    if there := [scope for scope in wrong if factors.get(scope)]:
        other = KOHYA if layout != KOHYA else f"{ANIMATEDIFF} or {DIFFUSERS}"
        raise ValueError(f"Files of the layout {layout} hold no {there[0]} layers. Choose {other} for those, and split "
                         "the file if it has both.")
    found: dict[str, Tensor] = {}
    for scope, part in factors.items():
        for name, pair in part.items():
            if layout == KOHYA:
                stem = kohya_stem(name) if scope == SPATIAL else name
                found |= {kohya_key(stem, "down"): pair.down.float(), kohya_key(stem, "up"): pair.up.float(),
                          kohya_key(stem, "alpha"): torch.tensor(float(pair.alpha))}
            else:
                key = animatediff_key if layout == ANIMATEDIFF else diffusers_key
                down, up = folded(pair)
                found |= {key(name, "down"): down.flatten(1), key(name, "up"): up.flatten(1)}
    return {name: tensor.detach().cpu().contiguous().clone() for name, tensor in found.items()}


def read_embedding(state: Mapping[str, object]) -> Tensor:
    """The vectors [n, D] of a textual inversion, as the host finds them. Raises LoraFileError."""
    inner = state.get("string_to_param", state)
    vectors = next((tensor for tensor in inner.values() if isinstance(tensor, Tensor) and tensor.ndim in (1, 2)), None)
    if vectors is None:
        raise LoraFileError("it holds no vectors of a textual inversion. Expected one tensor of [n, 768].")
    return vectors.reshape(-1, vectors.shape[-1]).float()


def write_embedding(path: Path, vectors: Tensor, metadata: Mapping[str, str]) -> None:
    """A textual inversion [n, D] as one tensor, which the host and A1111's tools load (F10). Raises OSError."""
    write_atomically(path, {EMBEDDING: vectors.detach().float().cpu().contiguous()}, dict(metadata), "The embedding")


def _of_list(state: Sequence, source: str, metadata: Mapping[str, str] | None) -> LoraFile:
    """MotionDirector's bare list up, down, up, down ... (F5): names by its order, checked by its shapes."""
    tensors = [tensor for tensor in state if isinstance(tensor, Tensor)]
    names = [f"{part}.{layer}" for part in LIST_PARTS for layer in LIST_LAYERS]
    if len(tensors) != len(state) or len(tensors) != 2 * len(names):
        raise LoraFileError(f"it is a list of {len(state)} entries; MotionDirector's temporal LoRAs have "
                            f"{2 * len(names)} tensors, an up and a down for each layer.")
    up, down = tensors[0], tensors[1]
    if up.ndim != 2 or up.shape[0] != 512 or down.shape != (up.shape[1], 320):
        raise LoraFileError(f"its first pair is {tuple(up.shape)}, {tuple(down.shape)}; MotionDirector's begins with "
                            "(512, r), (r, 320). It is a list of another program.")
    pairs = zip(tensors[1::2], tensors[::2], strict=True)
    factors = {name: Factors(down, up, float(len(down))) for name, (down, up) in zip(names, pairs, strict=True)}
    scopes: dict[str, Mapping[str, Factors]] = {TEMPORAL: factors, SPATIAL: {}, TEXT: {}}
    check_factors(scopes)
    return LoraFile(scopes, (), source, dict(metadata or {}), list_base=True)


def _no_lora(tensors: Mapping[str, Tensor]) -> str:
    """What a state is that holds no LoRA."""
    def has(*parts: str) -> bool:
        return any(part in key for key in tensors for part in parts)

    if has("motion_modules.", "temporal_transformer"):
        return ("This is a whole motion module, no LoRA for one. It goes into models/animatediff_models and is "
                "taken by the node Load Motion Module.")
    if has("model.diffusion_model.", "first_stage_model."):
        return ("This is a full checkpoint of an image model. It goes into models/checkpoints and is taken by the "
                "node Load Checkpoint.")
    if has(EMBEDDING, "string_to_param", "clip_l") and len(tensors) <= 3:
        return ("This is an embedding (textual inversion). It goes into models/embeddings and is used by writing "
                "embedding:NAME in a prompt.")
    if has("hada_w", "lokr_w", "oft_"):
        return "This is a LyCORIS file of another kind than LoRA (LoHa, LoKr, OFT), which is not read here."
    some = ", ".join(list(tensors)[:3]) or "nothing"
    return f"There is no LoRA in it: none of its {len(tensors)} keys are pairs of up and down ({some})."


def named(names: Iterable[str], most: int = 5) -> str:
    """The first names of a list, and how many there are."""
    names = list(names)
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")
