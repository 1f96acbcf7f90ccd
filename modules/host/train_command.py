"""Running a training on the command line: lines of progress, sample pictures, an exit status."""
from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import comfy.model_management
import torch

from ..training.driver import Driver
from ..training.processes import Processes, launched
from ..training.progress import progress_lines
from ..training.subject import Subject, Training
from .progress import preview

ENCODED_EVERY, STEPS_EVERY = 50, 10         # pieces and steps between two lines


def processes() -> Processes:
    """Those of this launch, on the host's kind of device."""
    return launched(comfy.model_management.get_torch_device())


def guarded(train: Callable[[], None]) -> int:
    """Run a training as the host runs its nodes; an error is a sentence. Returns the exit status."""
    try:
        with torch.inference_mode():
            train()
    except KeyboardInterrupt:
        print("stopped; the same command goes on from here")
        return 130
    except (ValueError, RuntimeError, OSError) as error:
        print(f"error: {error}")
        return 1
    return 0


def train_to_file(subject: Subject, out: Path, resume: bool, together: Processes, write: Callable[[Any], None],
                  driver: type[Driver] = Driver) -> None:
    """Train a subject, with its checkpoint and samples beside `out`, and `write` what comes out."""
    training = driver(subject, out.with_suffix(".training.safetensors"), resume, together)
    train(training, out.with_suffix(""), together.is_first)
    if together.is_first:
        write(training.result())
        print(f"written: {out}")


def train(training: Training, beside: Path, talks: bool = True) -> None:
    """Encode, train, and write samples as BESIDE_STEP.png. `talks`: whether this process prints and writes."""
    for done, total in training.encode():
        if talks and (done % ENCODED_EVERY == 0 or done == total):
            print(f"encoded {done} of {total}", flush=True)
    with contextlib.closing(training.records()) as records:
        for record, text in progress_lines(records, training.steps):
            if not talks:
                continue
            if record.step % STEPS_EVERY == 0 or record.step == training.steps:
                print(text, flush=True)
            if training.sample_every and record.step % training.sample_every == 0:
                show(training, beside, record.step)
    if talks:
        show(training, beside, training.steps)


def show(training: Training, beside: Path, step: int) -> None:
    """Write a sample."""
    path = beside.with_name(f"{beside.name}_{step:06}.png")
    preview(training.sample())[1].save(path)
    print(f"sample: {path}", flush=True)
