"""Progress of an attribute report in the page, and the user's cancel."""
from __future__ import annotations

from collections.abc import Callable

from ..progress import report_progress
from .clip_pair import interruptible


def ticker(node_id: str | None) -> Callable[[str], None]:
    """Says what comes next under the node; raises the host's exception after a cancel."""
    told = ""

    def tick(part: str) -> None:
        nonlocal told
        interruptible()
        if part != told:
            told = part
            report_progress(part, node_id)

    return tick
