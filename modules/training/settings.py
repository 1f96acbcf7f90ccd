"""How to train: what the loop is asked for, and the learning rate of each step."""
from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import Literal, get_args

from .optimizer import Kind

MAY_DIFFER = {"steps", "checkpoint_every", "lr", "precision", "grad_clip"}     # from the run that is resumed


@dataclass(frozen=True)
class TrainSettings:
    """How to train. The defaults are AnimateDiff's (harivo.md 3: AdamW, constant rate, clipping at 1)."""

    steps: int
    lr: float = 1e-4
    warmup: int = 0                                     # steps of linear warm-up
    schedule: Literal["constant", "cosine"] = "constant"
    betas: tuple[float, float] = (0.9, 0.999)
    weight_decay: float = 1e-2
    optimizer: Kind = "adamw"                           # muon: for matrices; the rest stays with AdamW
    grad_clip: float = 1.0                              # largest gradient norm; 0 = no clipping
    accumulate: int = 1                                 # draws per step
    seed: int = 0
    precision: Literal["fp32", "bf16"] = "fp32"         # bf16: autocast, the weights stay fp32
    checkpoint_every: int = 500                         # steps; the end and a cancel are always saved

    def __post_init__(self):
        for name, lowest in {"steps": 1, "warmup": 0, "accumulate": 1, "checkpoint_every": 1}.items():
            if getattr(self, name) < lowest:
                raise ValueError(f"{name} must be at least {lowest}; {getattr(self, name)} was given.")
        if not (self.lr > 0 and math.isfinite(self.lr)):
            raise ValueError(f"The learning rate must be positive, e.g. 1e-4; {self.lr} was given.")
        for name, allowed in {"schedule": ("constant", "cosine"), "precision": ("fp32", "bf16"),
                              "optimizer": get_args(Kind)}.items():
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name} must be {' or '.join(allowed)}; {getattr(self, name)!r} was given.")


def settings_of(recipe, **more) -> TrainSettings:
    """The part of a method's recipe that the loop knows: entries of the same name, and its learning_rate.

    more: what the recipe does not say.
    """
    shared = {entry.name: getattr(recipe, entry.name) for entry in fields(TrainSettings) if hasattr(recipe, entry.name)}
    return TrainSettings(lr=recipe.learning_rate, **shared, **more)


def learning_rate(settings: TrainSettings, step: int, lr: float | None = None) -> float:
    """The rate of step `step` (from 0): linear warm-up, then constant or half a cosine down to 0; `lr` or settings'."""
    lr = settings.lr if lr is None else lr
    if step < settings.warmup:
        return lr * (step + 1) / settings.warmup
    if settings.schedule == "constant":
        return lr
    progress = (step - settings.warmup) / max(1, settings.steps - settings.warmup)
    return lr * 0.5 * (1 + math.cos(math.pi * progress))
