"""Running a training inside a node: progress bar, live loss and sample clips in the page."""
from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from datetime import timedelta

from comfy.utils import ProgressBar
from torch import Tensor

from ..training.loop import StepRecord
from ..training.subject import Training
from .progress import preview, report_progress

TERMS = ("denoising", "trs", "dc")      # as the total loss reports them


def train_in_node(training: Training, node_id: str | None) -> Tensor:
    """Encode, train, sample. Returns the last sample, [F, H, W, 3].

    An interrupt of the host ends it between two steps; the checkpoint is written first.
    """
    with contextlib.closing(training.encode()) as pieces:
        for done, total in pieces:
            ProgressBar(total, node_id).update_absolute(done)
            report_progress(f"encoding clips and captions: {done} of {total}", node_id)
    bar = ProgressBar(training.steps, node_id)
    with contextlib.closing(training.records()) as records:
        for record, text in progress_lines(records, training.steps):
            report_progress(text, node_id)
            show = training.sample_every and record.step % training.sample_every == 0
            bar.update_absolute(record.step, preview=preview(training.sample()) if show else None)
    frames = training.sample()
    bar.update_absolute(training.steps, preview=preview(frames))
    return frames


def progress_lines(records: Iterator[StepRecord], steps: int) -> Iterator[tuple[StepRecord, str]]:
    """Each record with a line about it: the loss is a running mean over some 50 steps.

    Shares of the gradient are measured now and then; the last one stays in the line.
    """
    mean, known = None, {}
    for record in records:
        mean = record.loss if mean is None else mean + 0.04 * (record.loss - mean)
        known |= record.extras
        left = timedelta(seconds=round(record.seconds * (steps - record.step)))
        yield record, (f"step {record.step} of {steps}, loss {mean:.4f}{terms_text(known)}, "
                       f"gradient {record.grad_norm:.2f}, {record.seconds:.2f} s a step, {left} left")


def terms_text(known: Mapping[str, float]) -> str:
    """The terms of the loss, each with its gradient's norm as a share of the denoising loss's, once measured."""
    def share(name: str) -> str:
        return f" (gradient {known[key]:.1%} of denoising's)" if (key := f"{name} share") in known else ""

    return "".join(f", {name} {known[name]:.4f}{share(name)}" for name in TERMS if name in known)
