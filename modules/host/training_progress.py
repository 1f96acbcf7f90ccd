"""Running a training inside a node: progress bar, live loss and sample clips in the page."""
from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator, Mapping
from datetime import timedelta

from comfy.utils import ProgressBar
from PIL import Image
from torch import Tensor

from ..pictures.frame_sheet import frame_sheet, to_image
from ..training.loop import StepRecord
from .training import MotionTraining

PREVIEW_SIDE = 1024         # pixels, the longer side of a sample sheet in the page
SHEET_COLUMNS = 8
TERMS = ("denoising", "trs", "dc")      # as the total loss reports them


def train_in_node(training: MotionTraining, node_id: str | None) -> Tensor:
    """Encode, train, sample. Returns the last sample, [F, H, W, 3].

    An interrupt of the host ends it between two steps; the checkpoint is written first.
    """
    with contextlib.closing(training.encode()) as pieces:
        for done, total in pieces:
            ProgressBar(total, node_id).update_absolute(done)
            say(f"encoding clips and captions: {done} of {total}", node_id)
    recipe = training.recipe
    bar = ProgressBar(recipe.steps, node_id)
    with contextlib.closing(training.records()) as records:
        for record, text in spoken(records, recipe.steps):
            say(text, node_id)
            show = recipe.sample_every and record.step % recipe.sample_every == 0
            bar.update_absolute(record.step, preview=preview(training.sample()) if show else None)
    frames = training.sample()
    bar.update_absolute(recipe.steps, preview=preview(frames))
    return frames


def spoken(records: Iterator[StepRecord], steps: int) -> Iterator[tuple[StepRecord, str]]:
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


def preview(frames: Tensor) -> tuple[str, Image.Image, int]:
    """A clip [F, H, W, 3] as the host's progress bar takes pictures."""
    return "JPEG", to_image(frame_sheet(frames, SHEET_COLUMNS)[0]), PREVIEW_SIDE


def say(text: str, node_id: str | None) -> None:
    """A line of text under the node; nothing where no page listens, as in tests and on the command line."""
    server = getattr(getattr(sys.modules.get("server"), "PromptServer", None), "instance", None)
    if server is not None and node_id is not None:
        server.send_progress_text(text, node_id)
