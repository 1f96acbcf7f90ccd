"""The part of a sampling in which a node acts."""
from __future__ import annotations


def check_percents(start: float, end: float) -> None:
    """Raises ValueError unless start_percent and end_percent name a part of the sampling."""
    if start > end:
        raise ValueError(f"start_percent is {start} and end_percent {end}; the start must not come after the end.")
