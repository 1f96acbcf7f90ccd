"""A training made of its subject: what is kept on disk first, then the loop with its checkpoints, then the result."""
from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .checkpoint import CheckpointStore
from .loop import StepRecord, train
from .processes import Processes
from .subject import Subject

UNNAMED = "trained here"        # what comes out of a training without a checkpoint
FULL_MEMORY = ("The device ran out of memory while training. The cheapest remedies first: smaller pictures or clips, "
               "fewer frames or a smaller batch at once, gradient_checkpointing on (Training Options). The checkpoint "
               "is kept, and the same training goes on from it.")


class Driver:
    """A `Training`. With `resume`, a checkpoint at that path is continued, else it is set aside as NAME.previous."""

    def __init__(self, subject: Subject, checkpoint: Path | None = None, resume: bool = True,
                 processes: Processes | None = None):
        self.subject, self.checkpoint, self.resume = subject, checkpoint, resume
        self.processes = processes or Processes()
        self.steps, self.sample_every = subject.settings.steps, subject.sample_every
        self.losses: list[float] = []

    def encode(self) -> Iterator[tuple[int, int]]:
        """See `Training`; each process makes its share, and goes on when all have done theirs."""
        yield from self.subject.encode((self.processes.index, self.processes.count))
        self.processes.wait()

    def records(self) -> Iterator[StepRecord]:
        """See `Training`. Raises CheckpointError, NonFiniteError, ValueError, torch.OutOfMemoryError."""
        subject = self.subject
        subject.prepare()
        store = self.store()
        self.losses = store.losses() if store else []
        steps = train(subject.trained, subject.loss(), subject.batch, subject.settings, store, subject.ema,
                      subject.rate, subject.memory, subject.decay, self.processes)
        with contextlib.closing(steps):
            try:
                for record in steps:
                    self.losses.append(record.loss)
                    yield record
            except torch.OutOfMemoryError as error:
                raise torch.OutOfMemoryError(FULL_MEMORY) from error

    def store(self) -> CheckpointStore | None:
        """Where checkpoints go; what is not to be resumed has been set aside."""
        if self.checkpoint is None:
            return None
        store = CheckpointStore(self.checkpoint, assumed=self.subject.assumed, current_key=self.subject.current_key)
        if store.exists() and not self.resume and self.processes.is_first:
            store.path.replace(store.path.with_suffix(".previous.safetensors"))
        self.processes.wait()
        store.provenance = self.subject.provenance(store.facts()["about"] if store.exists() else {})
        return store

    def sample(self) -> Tensor:
        """See `Training`."""
        return self.subject.sample()

    def result(self) -> Any:
        """See `Training`."""
        return self.subject.result(self.checkpoint.stem if self.checkpoint else UNNAMED, len(self.losses))
