"""A number that may change over timesteps, as users write it."""
from __future__ import annotations

import math
from bisect import bisect
from dataclasses import dataclass


@dataclass(frozen=True)
class Curve:
    """Straight lines between points (timestep, value), rising timesteps; constant beyond the ends."""

    points: tuple[tuple[float, float], ...]

    def at(self, time: float) -> float:
        """The value at a timestep."""
        right = bisect([point[0] for point in self.points], time)
        if right == 0:
            return self.points[0][1]
        if right == len(self.points):
            return self.points[-1][1]
        (before, low), (after, high) = self.points[right - 1:right + 1]
        return low + (high - low) * (time - before) / (after - before)


def parse_curve(text: str, name: str = "gamma", low: float = 0.0, high: float = 1.0) -> Curve:
    """"0.3" for a constant, or points "999: 0.1, 400: 0.5" of timestep and value.

    Raises ValueError for anything else, and for values outside of `low` to `high`.
    """
    points = {}
    try:
        parts = [part for part in text.replace(";", ",").split(",") if part.strip()]
        for part in parts:
            time, colon, value = part.partition(":")
            points[float(time) if colon else 0.0] = float(value if colon else time)
    except ValueError:
        points = {}
    good = [low <= value <= high and math.isfinite(time) for time, value in points.items()]
    if not points or not all(good) or (len(points) < len(parts)):
        raise ValueError(f"{name} is {text!r}. Give one number from {low:g} to {high:g}, e.g. 0.3, or points of "
                         "timestep and value, e.g. 999: 0.1, 400: 0.5.")
    return Curve(tuple(sorted(points.items())))
