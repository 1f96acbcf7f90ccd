"""A number that may change over a sampling, as users write it: over timesteps, or over percent of it."""
from __future__ import annotations

import math
from bisect import bisect
from dataclasses import dataclass


@dataclass(frozen=True)
class Curve:
    """Straight lines between points (time, value), rising times; constant beyond the ends."""

    points: tuple[tuple[float, float], ...]

    def at(self, time: float) -> float:
        """The value at a time, a timestep or what the points are given in."""
        right = bisect([point[0] for point in self.points], time)
        if right == 0:
            return self.points[0][1]
        if right == len(self.points):
            return self.points[-1][1]
        (before, low), (after, high) = self.points[right - 1:right + 1]
        return low + (high - low) * (time - before) / (after - before)


def parse_curve(text: str, name: str = "gamma", low: float = 0.0, high: float = 1.0, axis: str = "timestep",
                example: str = "999: 0.1, 400: 0.5") -> Curve:
    """"0.3" for a constant, or points such as `example` of `axis` and value.

    Raises ValueError, with the part that is wrong, for anything else and for values outside of `low` to `high`.
    """
    parts = [part.strip() for part in text.replace(";", ",").split(",") if part.strip()]
    if len(parts) == 1 and ":" not in parts[0]:
        parts = [f"0: {parts[0]}"]                  # a constant is a curve of one point
    points: dict[float, float] = {}
    try:
        if not parts:
            raise ValueError("it is empty")
        for part in parts:
            time, value = _point(part, low, high, axis)
            if time in points:
                raise ValueError(f"{axis} {time:g} is given twice")
            points[time] = value
    except ValueError as reason:
        raise ValueError(f"{name} is {text!r}: {reason}. Give one number from {low:g} to {high:g}, e.g. 0.3, or points "
                         f"of {axis} and value, e.g. {example}.") from None
    return Curve(tuple(sorted(points.items())))


def _point(part: str, low: float, high: float, axis: str) -> tuple[float, float]:
    """(timestep, value) of "400: 0.5". Raises ValueError with the reason."""
    time, colon, value = part.partition(":")
    if not colon:
        raise ValueError(f"the part {part!r} has no {axis}")
    numbers = _number(time), _number(value)
    if not low <= numbers[1] <= high:
        raise ValueError(f"the value {value.strip()} is outside of {low:g} to {high:g}")
    return numbers


def _number(text: str) -> float:
    try:
        if math.isfinite(number := float(text)):
            return number
    except ValueError:
        pass
    raise ValueError(f"{text.strip()!r} is no number")
