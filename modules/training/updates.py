"""How a training step changes weights: one update by default, or several, each with a loss and an optimizer of its own.

A GAN has an update of its discriminator, one of its generator, and a lazy regulariser that acts every so many steps
with the discriminator's optimizer.
"""
from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from .optimizer import Kind
from .settings import TrainSettings

Loss = Callable[[Any, torch.Generator], "Tensor | tuple[Tensor, Mapping[str, float]]"]


@dataclass(frozen=True)
class OptimizerSettings:
    """Of one optimizer; None = what the training's settings say. The schedule of the rate is the training's."""

    lr: float | None = None
    betas: tuple[float, float] | None = None
    weight_decay: float | None = None
    kind: Kind | None = None
    grad_clip: float | None = None                      # largest gradient norm; 0 = no clipping


@dataclass(frozen=True)
class Update:
    """One change of weights within a step.

    Attributes:
        loss: of a batch and a generator, see `loop.train`.
        name: in reports and errors, and of its own noise; "" where a training has one update.
        weights: the names of the parameters that it changes begin so, e.g. "generator."; "" = all.
        every: steps between two; it acts in steps 0, every, 2 every ... (lazy regularisation, Karras et al. 2020,
            arXiv 1912.04958, appendix B; the loss has to hold the factor `every`).
        optimizer: updates of the same `weights` share one, whose settings are the first one's.
    """

    loss: Loss
    name: str = ""
    weights: str = ""
    every: int = 1
    optimizer: OptimizerSettings = OptimizerSettings()

    def __post_init__(self):
        if self.every < 1:
            raise ValueError(f"An update acts every 1 or more steps; {self.every} was given for {self.name!r}.")


def of_optimizer(update: Update, settings: TrainSettings) -> dict[str, Any]:
    """The settings of an update's optimizer by the names of `OptimizerSettings`: the training's where it has none."""
    given = {"lr": settings.lr, "betas": settings.betas, "weight_decay": settings.weight_decay,
             "kind": settings.optimizer, "grad_clip": settings.grad_clip}
    return given | {name: value for name, value in asdict(update.optimizer).items() if value is not None}


def parameters_of(update: Update, trained: Mapping[str, nn.Parameter]) -> dict[str, nn.Parameter]:
    """Those of `trained` that an update changes. Raises ValueError if there are none."""
    found = {name: weight for name, weight in trained.items() if name.startswith(update.weights)}
    if not found:
        raise ValueError(f"The update {update.name!r} changes nothing: no trainable parameter's name begins with "
                         f"{update.weights!r}.")
    return found


def check_updates(updates: tuple[Update, ...], trained: Mapping[str, nn.Parameter]) -> None:
    """Raises ValueError unless names differ, the first acts in every step, and each weight has one optimizer."""
    if len({update.name for update in updates}) != len(updates):
        raise ValueError(f"Updates need different names; {[update.name for update in updates]} were given.")
    if updates[0].every != 1:
        raise ValueError(f"The first update acts in every step; {updates[0].name!r} acts every {updates[0].every}.")
    owners = {name: {update.weights for update in updates if name.startswith(update.weights)} for name in trained}
    for name, owner in owners.items():
        if len(owner) != 1:
            raise ValueError(f"The weight {name} belongs to {len(owner)} optimizers ({sorted(owner)}); it needs one.")
