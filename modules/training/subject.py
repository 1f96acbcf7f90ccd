"""What a training is, for those who run one, and what a method has to give for it.

A runner (a node by host/train_node.py, the command line by host/train_command.py) sees a `Training`. A method gives a
`Subject`; `driver.Driver` makes a Training of it.
"""
from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Protocol

from torch import Tensor, nn

from .ema import MovingAverage
from .loop import StepRecord
from .settings import TrainSettings
from .updates import Loss, Update


class Training(Protocol):
    """`encode`, then `records`; `sample` and `result` once `records` has begun.

    Attributes:
        steps: of the whole training.
        sample_every: steps between two samples that a runner shows; 0 = only at the end.
        losses: of all steps so far, those before a resume included.
    """

    steps: int
    sample_every: int
    losses: list[float]

    def encode(self) -> Iterator[tuple[int, int]]:
        """Make ready what is kept on disk; yields (pieces done, pieces in all)."""

    def records(self) -> Iterator[StepRecord]:
        """Train; see `loop.train`. Closing it, or an exception, leaves a checkpoint to resume from."""

    def sample(self) -> Tensor:
        """What the averaged weights make at this moment, as pictures [N, H, W, 3] in 0..1."""

    def result(self) -> Any:
        """What the training gives, e.g. a MOTION_MODULE."""


class Subject(Protocol):
    """What is trained: parameters, loss, batches, rates, samples, result. It knows no loop and no checkpoint.

    Attributes:
        settings, sample_every: how the loop runs.
        assumed: what checkpoints were made with that are older than an entry of `provenance`.
        current_key: what a tensor of an older checkpoint is called now; str where names have stayed.
        trained, ema, memory: see `loop.train`; there once `prepare` was called. `memory` may be None.
    """

    settings: TrainSettings
    sample_every: int
    assumed: Mapping[str, str]
    current_key: Callable[[str], str]
    trained: nn.Module
    ema: MovingAverage | None
    memory: nn.Module | None

    def encode(self, share: tuple[int, int] = (0, 1)) -> Iterator[tuple[int, int]]:
        """Make ready what is kept on disk, or share number i of n of it; yields (pieces done, pieces in all)."""

    def prepare(self) -> None:
        """Make room on the device and build what is trained."""

    def loss(self) -> Loss | Sequence[Update]:
        """For the loop, after `prepare`."""

    def batch(self, draw: int) -> Any:
        """Number `draw`, see `loop.train`."""

    def rate(self, name: str) -> float:
        """Factor on the learning rate of a weight of `trained`."""

    def decay(self, name: str) -> float:
        """Factor on the weight decay of a weight of `trained`."""

    def provenance(self, then: Mapping[str, str]) -> dict[str, str]:
        """What a checkpoint has to agree on to be resumed here. `then`: what the one at hand says, {} if there is
        none; an entry of it that means the same in other words is given back as it is."""

    def sample(self) -> Tensor:
        """Of the averaged weights: pictures [N, H, W, 3] in 0..1."""

    def result(self, name: str, steps: int) -> Any:
        """Of the averaged weights after so many steps, as an object of that name."""
