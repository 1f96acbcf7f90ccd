"""What a picture to train on or to measure is, and what a source of pictures offers."""
from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

FITS = ("crop", "pad")


@dataclass(frozen=True)
class ImageSettings:
    """What a picture is: width x height pixels, and which pictures to take."""

    width: int = 256
    height: int = 256
    fit: str = "crop"           # crop: scaled to cover the size, centre cropped; pad: all of it, the rest black
    subfolders: bool = True     # look into subfolders too
    max_images: int = 0         # taken evenly from all; 0 = all
    min_side: int = 0           # skip pictures whose short side has fewer pixels
    alpha: bool = False         # keep transparency as a fourth channel, instead of showing it over black

    def __post_init__(self):
        for name in ("width", "height"):
            if (pixels := getattr(self, name)) < 8:
                raise ValueError(f"{name} must be at least 8 pixels; {pixels} was given.")
        if self.fit not in FITS:
            raise ValueError(f"fit must be one of {', '.join(FITS)}; {self.fit!r} was given.")

    @property
    def size(self) -> str:
        return f"{self.width}x{self.height}"


class ImageSource(Protocol):
    """Pictures by number. `key` names a picture's pixels for a cache: the same key, the same pixels."""

    settings: ImageSettings

    def __len__(self) -> int: ...
    def caption(self, index: int) -> str: ...
    def pixels(self, index: int) -> Tensor: ...             # [3, H, W] uint8; with alpha [4, H, W]
    def key(self, index: int) -> str: ...
    def name(self, index: int) -> str: ...                  # its file, for people
    def report(self) -> str: ...
