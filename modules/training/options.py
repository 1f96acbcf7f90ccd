"""Expert settings that every training shares, as one object on a socket."""
from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

from .optimizer import Kind


@dataclass(frozen=True)
class TrainingOptions:
    """How to train, beside what a trainer's own inputs say. The names are those of recipes.

    The defaults are AnimateDiff's where a paper says (harivo.md 3); they are checked where the recipe takes them.
    """

    schedule: str = "constant"          # or "cosine"
    warmup: int = 0                     # steps
    optimizer: Kind = "adamw"           # or "muon"
    weight_decay: float = 1e-2
    grad_clip: float = 1.0              # largest gradient norm, 0 = no clipping
    accumulate: int = 1                 # batches a step
    ema: float = 0.999
    precision: str = "fp32"             # or "bf16"
    gradient_checkpointing: bool = True
    checkpoint_every: int = 200         # steps

    def over(self, recipe: Any) -> Any:
        """The recipe with these settings in place of its own, of those that it has. Raises ValueError as it does."""
        known = {field.name for field in dataclasses.fields(recipe)}
        return dataclasses.replace(recipe, **{name: value for name, value in dataclasses.asdict(self).items()
                                              if name in known})
