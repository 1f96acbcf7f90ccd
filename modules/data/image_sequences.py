"""Pictures as a viewer shows them: sequences of files, and animated WebP and PNG."""
from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from .frames import ALPHA, GREY, LATE, BrokenVideoError, Frame, over_black

PICTURES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff", ".apng")
ANIMATIONS = ("PNG", "WEBP", "GIF")     # formats; several pages of a TIFF are no animation
TRANSPARENT = ("RGBA", "LA", "PA", "RGBa", "La")
UNREADABLE = (OSError, EOFError, SyntaxError, ValueError, Image.DecompressionBombError)
SHORTEST = 0.01                         # seconds: what browsers do not believe of a frame of an animation
USUAL = 0.1                             # and what they show it for instead


def picture_files(folder: Path) -> list[Path]:
    """The pictures directly in a folder in natural order: frame_2 before frame_10."""
    return natural_order(path for path in folder.iterdir()
                         if path.suffix.lower() in PICTURES and path.name[0] != ".")


def natural_order(paths) -> list[Path]:
    """Sorted by name, with numbers by their value."""
    return sorted(paths, key=lambda path: [int(part) if part.isdecimal() else part.lower()
                                           for part in re.split(r"(\d+)", path.name)])


def is_animated(path: Path) -> bool:
    """Whether a picture file moves, whatever its ending says. Of files that cannot be read, a GIF does."""
    try:
        with Image.open(path) as image:
            return image.format in ANIMATIONS and getattr(image, "is_animated", False)
    except UNREADABLE:
        return path.suffix.lower() == ".gif"


def sequence_frames(files: Sequence[Path], fps: float, start: float, conversions: set[str]) -> Iterator[Frame]:
    """Pictures of which `fps` are shown a second, from the one on screen at `start` seconds; read when needed."""
    for index in range(math.floor((start + LATE) * fps), len(files)):
        yield Frame(index / fps, partial(_read, files[index], conversions))


def animation_frames(path: Path, conversions: set[str]) -> Iterator[Frame]:
    """The frames of an animated WebP, PNG or GIF with their own durations. Raises BrokenVideoError."""
    time = 0.0
    try:
        with Image.open(path) as image:
            # A PNG may have a picture for viewers that cannot animate; players do not show it.
            for index in range(1 if image.info.get("default_image") else 0, image.n_frames):
                image.seek(index)
                image.load()
                duration = image.info.get("duration", 0) / 1000
                end = time + (duration if duration > SHORTEST else USUAL)
                yield Frame(time, partial(_scaled, opaque(image, conversions)), end=end)
                time = end
    except UNREADABLE as error:
        raise BrokenVideoError(f"it cannot be decoded: {error}") from error


def opaque(image: Image.Image, conversions: set[str]) -> Image.Image:
    """A picture in 8-bit RGB as a viewer shows it: turned upright, over black where it is transparent.

    Raises BrokenVideoError for numbers whose white is not known.
    """
    image = ImageOps.exif_transpose(image)
    if image.mode == "F":
        raise BrokenVideoError("it holds floating-point numbers, whose white is not known; save it with 8 or 16 bits")
    if image.mode.startswith("I"):
        levels = np.asarray(image).astype(np.int64)
        if levels.min() < 0 or levels.max() > 0xFFFF:
            raise BrokenVideoError("it holds numbers of 32 bits, whose white is not known; save it with 8 or 16 bits")
        conversions.add(GREY)
        return Image.fromarray(((levels + 128) // 257).astype(np.uint8)).convert("RGB")
    if image.mode in TRANSPARENT or "transparency" in image.info:
        pixels = np.asarray(image.convert("RGBA"))
        if pixels[..., 3].min() < 255:
            conversions.add(ALPHA)
            return Image.fromarray(over_black(pixels))
    return image.convert("RGB")


def _read(path: Path, conversions: set[str], *size: int) -> np.ndarray:
    try:
        with Image.open(path) as image:
            picture = opaque(image, conversions)
    except BrokenVideoError as error:
        raise BrokenVideoError(f"the picture {path.name} cannot be used: {error}") from error
    except UNREADABLE as error:
        raise BrokenVideoError(f"the picture {path.name} cannot be read") from error
    return _scaled(picture, *size)


def _scaled(picture: Image.Image, *size: int) -> np.ndarray:
    return np.asarray(picture.resize(size, Image.BOX) if size else picture)
