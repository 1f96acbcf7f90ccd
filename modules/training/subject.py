"""What a training is, for those who run one: a node, the command line, a test.

A method's training is a small object of this shape. One runner drives it in a node (host/train_node.py), one on the
command line (host/train_command.py); neither knows what is trained.
"""
from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Protocol

from torch import Tensor

from .loop import StepRecord


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
        ...

    def records(self) -> Iterator[StepRecord]:
        """Train; see `loop.train`. Closing it, or an exception, leaves a checkpoint to resume from."""
        ...

    def sample(self) -> Tensor:
        """What the averaged weights make at this moment, as pictures [N, H, W, 3] in 0..1."""
        ...

    def result(self) -> Any:
        """What the training gives, e.g. a MOTION_MODULE."""
        ...
