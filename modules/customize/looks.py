"""Looks at a motion LoRA while it is trained: what was measured, and the LoRA as it was (customize_a_video.md 9)."""
from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from ..data.cache import TensorCache
from ..training.lora_keys import Factors
from .meters import best_snapshot

LEAK, ALIKE = 0.15, 0.002                       # of the meters: what a person is told about
METERS = ("fidelity", "leakage", "diversity")


@dataclass(frozen=True)
class Look:
    """One look: after so many draws of the training, what METERS said, and the LoRA then."""
    draws: int
    measured: Mapping[str, float]
    factors: Mapping[str, Factors]


class Looks:
    """The looks of a training, kept on disk, so that one that is resumed knows those before.

    Args:
        name: of all that decides how the training goes; trainings of one name are the same.
    """

    def __init__(self, folder: Path, name: str):
        self.cache, self.name = TensorCache(folder, "A look at the training", torch.float32), name
        self.known: dict[int, Look] = {}

    def keep(self, look: Look) -> None:
        """Raises ValueError for numbers that are not finite, CheckpointError when the disk is full."""
        tensors = {"measured": torch.tensor([look.measured[name] for name in METERS])}
        for path, pair in look.factors.items():
            tensors |= {f"{path} down": pair.down, f"{path} up": pair.up, f"{path} alpha": torch.tensor(pair.alpha)}
        self.cache.write(self.key(look.draws), tensors, "this look", "motion LoRA")
        self.known[look.draws] = look

    def find(self, draws: int) -> list[Look]:
        """Those up to so many draws, in order, on disk or not."""
        for number in range(1, draws + 1):
            if number not in self.known and self.cache.has(self.key(number)):
                self.known[number] = self.read(number)
        return [look for number, look in sorted(self.known.items()) if number <= draws]

    def read(self, draws: int) -> Look:
        tensors = self.cache.read(self.key(draws))
        measured = dict(zip(METERS, tensors.pop("measured").tolist(), strict=True))
        paths = [name.removesuffix(" down") for name in tensors if name.endswith(" down")]
        return Look(draws, measured, {path: Factors(tensors[f"{path} down"], tensors[f"{path} up"],
                                                    float(tensors[f"{path} alpha"])) for path in paths})

    def key(self, draws: int) -> tuple[str, ...]:
        return "look", self.name, str(draws)


def chosen(looks: Sequence[Look]) -> int:
    """The look that is kept, see `best_snapshot`; -1 of none."""
    return best_snapshot([look.measured["fidelity"] for look in looks])


def looks_report(looks: Sequence[Look], notes: Sequence[str], absorbed: bool) -> str:
    """The looks and what was kept, in words."""
    lines = [f"Note: {note}" for note in dict.fromkeys(notes)]
    for number, look in enumerate(looks, 1):
        lines.append(f"look {number}: fidelity {look.measured['fidelity']:.2f} (1 = moves alike), leakage "
                     f"{look.measured['leakage']:.2f} (0 = nothing of the look), diversity "
                     f"{look.measured['diversity']:.3f}")
    if not looks:
        return "\n".join([*lines, "no prompts to look at were given: the last step is kept"])
    lines.append(f"kept: {snapshot_of(looks)}, the earliest that moves nearly as well as the best")
    last = looks[-1].measured
    if last["leakage"] > LEAK and not absorbed:
        lines.append("Warning: the clip's look comes along. Train an absorber first, take fewer steps, or keep "
                     "fade_after at 0.5 when sampling.")
    if last["diversity"] < ALIKE:
        lines.append("Warning: all seeds give nearly the same clip: it is over-trained. Take fewer steps, or a "
                     "strength of 0.7.")
    return "\n".join(lines)


def snapshot_of(looks: Sequence[Look]) -> str:
    """Which look is kept, for the file."""
    return f"look {chosen(looks) + 1} of {len(looks)}"
