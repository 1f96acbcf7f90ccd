"""Running a training inside a node: progress bar, live loss and sample clips in the page."""
from __future__ import annotations

import contextlib

from comfy.utils import ProgressBar
from torch import Tensor

from ..training.progress import progress_lines
from ..training.subject import Training
from .progress import preview, report_progress


def train_in_node(training: Training, node_id: str | None) -> Tensor:
    """Encode, train, sample. Returns the last sample, pictures [N, H, W, 3].

    An interrupt of the host ends it between two steps; the checkpoint is written first.
    """
    with contextlib.closing(training.encode()) as pieces:
        for done, total in pieces:
            ProgressBar(total, node_id).update_absolute(done)
            report_progress(f"encoding: {done} of {total}", node_id)
    bar = ProgressBar(training.steps, node_id)
    with contextlib.closing(training.records()) as records:
        for record, text in progress_lines(records, training.steps):
            report_progress(text, node_id)
            show = training.sample_every and record.step % training.sample_every == 0
            bar.update_absolute(record.step, preview=preview(training.sample()) if show else None)
    frames = training.sample()
    bar.update_absolute(training.steps, preview=preview(frames))
    return frames
