"""Motion LoRAs on a motion module: low-rank changes of its temporal layers, of a strength that may change while a clip
is sampled (customize_a_video.md 2.5, 9, 11).
"""
from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from torch import nn

from ..curve import Curve, parse_curve
from ..training.lora import LoRASet, attach_factors, layer_at
from ..training.lora_keys import Factors

FADE_AFTER = 0.5            # of the sampling: a motion is decided by then, and the look of its clip is not yet
SUM_LIMIT = 1.5             # of strengths, above which clips break as a rule
BLOCK = re.compile(r"(down|mid|up)(?:\.(\d))?")


@dataclass(frozen=True)
class MotionLoRA:
    """One motion LoRA and how strong it is.

    Attributes:
        name: of its file or training, for messages.
        factors: by the path of the layer in a motion module.
        strength: factor on the change; below 0 the motion is inverted, as far as it can be.
        curve: factor on it over the sampling, 0 at its begin and 1 at its end.
        metadata: of the file: captions, beta schedule and the like.
    """
    name: str
    factors: Mapping[str, Factors]
    strength: float = 1.0
    curve: Curve = Curve(((0.0, 1.0),))
    metadata: Mapping[str, str] = field(default_factory=dict)

    def scale_at(self, percent: float) -> float:
        """Its strength at this part of the sampling."""
        return self.strength * self.curve.at(percent)


class MotionLoRAs:
    """The motion LoRAs of a run, beside the layers of a motion module: their hooks are in it until `detach`.

    Raises ValueError for factors that do not fit.
    """

    def __init__(self, module: nn.Module, loras: Sequence[MotionLoRA], device):
        self.loras = loras
        paths = {path: path for lora in loras for path in lora.factors}
        self.sets: list[LoRASet] = []
        try:
            for lora in loras:
                self.sets.append(attach_factors(module, paths, lora.factors).to(device).requires_grad_(False))
        except BaseException:
            self.detach()
            raise

    def at(self, percent: float) -> None:
        """Set every LoRA's strength for this part of the sampling; at 0 layers give what they give without it."""
        for lora, beside in zip(self.loras, self.sets, strict=True):
            beside.set_scale(lora.scale_at(percent))

    def detach(self) -> None:
        """Leave the motion module as it was."""
        for beside in self.sets:
            beside.detach()


def strength_curve(fade_after: float, curve: str = "") -> Curve:
    """1 until this part of the sampling and 0 after it, or what a user writes: points of percent (0 to 1) and value."""
    if curve.strip():
        return parse_curve(curve, "curve", -10.0, 10.0, "part of the sampling (0 to 1)", "0: 1, 0.5: 1, 0.8: 0")
    if fade_after >= 1:
        return Curve(((0.0, 1.0),))
    return Curve(((fade_after, 1.0), (fade_after + 1e-6, 0.0)))


def fitting(module: nn.Module, factors: Mapping[str, Factors], name: str) -> tuple[dict[str, Factors], list[str]]:
    """(the factors whose layers the module has, the names of the others).

    Raises ValueError naming the first layer of another size, or if none is there.
    """
    layers = dict(module.named_modules())
    there = {path: pair for path, pair in factors.items() if path in layers}
    for path, pair in there.items():
        weight = layer_at(module, path).weight
        given = (len(pair.up), pair.down[0].numel())
        if given != (len(weight), weight[0].numel()):
            raise ValueError(f"{name} is for a motion module of another family: its layer {path} is of size {given}, "
                             f"that of the module {(len(weight), weight[0].numel())}. Load a motion module of the "
                             "family that it was made for.")
    if not there:
        raise ValueError(f"None of the {len(factors)} layers that {name} changes is in this motion module, e.g. "
                         f"{next(iter(factors), 'none')}. Load a motion module of the family that it was made for.")
    return there, [path for path in factors if path not in there]


def by_block(factors: Mapping[str, Factors], text: str) -> dict[str, Factors]:
    """Factors times the strength of their block: "down 0.5, mid 0, up.3 1"; blocks that are not named stay at 1.

    Raises ValueError for a part that cannot be read.
    """
    strengths: dict[str, float] = {}
    for part in filter(None, (part.strip() for part in text.replace(";", ",").split(","))):
        block, _, number = part.replace("=", " ").replace(":", " ").partition(" ")
        try:
            strength = float(number)
        except ValueError:
            strength = None
        if strength is None or not BLOCK.fullmatch(block):
            raise ValueError(f"blocks is {text!r}: {part!r} is no block with its strength. Write e.g. down 0.5, mid 0, "
                             "up 1, or a level by its number: up.3 0.5.")
        strengths[block] = strength
    found = {}
    for path, pair in factors.items():
        part, _, level = path.partition("_block")
        level = level.removeprefix("s.").partition(".")[0] if part != "mid" else ""
        scale = strengths.get(f"{part}.{level}", strengths.get(part, 1.0))
        found[path] = pair if scale == 1 else pair._replace(up=pair.up * scale)
    return found


def parameters(factors: Mapping[str, Factors]) -> int:
    """How many numbers a LoRA has."""
    return sum(pair.down.numel() + pair.up.numel() for pair in factors.values())
