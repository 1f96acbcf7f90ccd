"""What a file of ours tells of how it was made."""
from __future__ import annotations

from collections.abc import Mapping, Sequence

ORIGIN = ("prompt", "latent")


def about_all(abouts: Sequence[Mapping[str, str]]) -> dict[str, str]:
    """What the first tells, but of prompt and latent only what is true of all: for what is made of several."""
    first = abouts[0]
    return {key: told for key, told in first.items()
            if key not in ORIGIN or all(about.get(key) == told for about in abouts)}
