"""What a training says while it runs: a line a step."""
from __future__ import annotations

from collections.abc import Iterator, Mapping
from datetime import timedelta

from .loop import StepRecord

SHARE = " share"        # after a term's name: its gradient's norm as a share of the first term's


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
    """The terms of a loss in their order, each with its share of the gradient, once measured."""
    terms = [name for name in known if not name.endswith(SHARE)]

    def share(name: str) -> str:
        return f" (gradient {known[key]:.1%} of {terms[0]}'s)" if (key := name + SHARE) in known else ""

    return "".join(f", {name} {known[name]:.4f}{share(name)}" for name in terms)
