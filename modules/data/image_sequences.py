"""Pictures as a viewer shows them: single files, sequences of files, and animated WebP and PNG."""
from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from .frames import ALPHA, GREY, LATE, BrokenVideoError, Frame, over_black
from .tar_files import TarMember

PICTURES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff", ".apng")
ANIMATIONS = ("PNG", "WEBP", "GIF")     # formats; several pages of a TIFF are no animation
TRANSPARENT = ("RGBA", "LA", "PA", "RGBa", "La")
UNREADABLE = (OSError, EOFError, SyntaxError, ValueError, Image.DecompressionBombError)
SHORTEST = 0.01                         # seconds: what browsers do not believe of a frame of an animation
USUAL = 0.1                             # and what they show it for instead
ENDS = {"JPEG": b"\xff\xd9", "PNG": b"IEND\xaeB`\x82"}      # of whole files; what follows it is no picture


def picture_files(folder: Path) -> list[Path]:
    """The pictures directly in a folder in natural order: frame_2 before frame_10."""
    return natural_order(path for path in folder.iterdir()
                         if path.suffix.lower() in PICTURES and path.name[0] != ".")


def natural_order(paths) -> list[Path]:
    """Sorted by name, with numbers by their value."""
    return sorted(paths, key=lambda path: [int(part) if part.isdecimal() else part.lower()
                                           for part in re.split(r"(\d+)", path.name)])


def is_animated(path: Path | TarMember) -> bool:
    """Whether a picture file moves, whatever its ending says. Of files that cannot be read, a GIF does."""
    try:
        with _opened(path) as image:
            return _moves(image)
    except UNREADABLE:
        return path.suffix.lower() == ".gif"


def look_at(path: Path | TarMember) -> tuple[int, bool]:
    """(short side in pixels, whether it moves) of a picture file, without decoding it where its end is as it should be.

    Raises BrokenVideoError for a file that cannot be read as a picture.
    """
    try:
        with _opened(path) as image:
            if not _moves(image):
                if image.mode.startswith(("F", "I")):       # whose white may not be known
                    opaque(image, set())
                elif image.format not in ENDS or not _ends_with(path, ENDS[image.format]):
                    image.load()
            return min(image.size), _moves(image)
    except BrokenVideoError:
        raise
    except UNREADABLE as error:
        raise BrokenVideoError("cannot be read as a picture") from error


def read_picture(path: Path | TarMember, alpha: bool = False) -> np.ndarray:
    """[H, W, 3] uint8 as a viewer shows it; with `alpha` [H, W, 4], not over black. Raises BrokenVideoError."""
    return np.asarray(_picture(path, set(), with_alpha if alpha else opaque))


def sequence_frames(files: Sequence[Path], fps: float, start: float, conversions: set[str]) -> Iterator[Frame]:
    """Pictures of which `fps` are shown a second, from the one on screen at `start` seconds; read when needed."""
    for index in range(math.floor((start + LATE) * fps), len(files)):
        yield Frame(index / fps, partial(_read, files[index], conversions))


def animation_frames(path: Path | TarMember, conversions: set[str]) -> Iterator[Frame]:
    """The frames of an animated WebP, PNG or GIF with their own durations. Raises BrokenVideoError."""
    time = 0.0
    try:
        with _opened(path) as image:
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


def with_alpha(image: Image.Image, conversions: set[str]) -> Image.Image:
    """As `opaque`, but with its transparency as a fourth channel."""
    if image.mode.startswith(("F", "I")) or not (image.mode in TRANSPARENT or "transparency" in image.info):
        return opaque(image, conversions).convert("RGBA")
    return ImageOps.exif_transpose(image).convert("RGBA")


@contextmanager
def _opened(path: Path | TarMember) -> Iterator[Image.Image]:
    if isinstance(path, Path):
        with Image.open(path) as image:
            yield image
    else:
        with path.open() as file, Image.open(file) as image:
            yield image


def _moves(image: Image.Image) -> bool:
    return image.format in ANIMATIONS and getattr(image, "is_animated", False)


def _ends_with(path: Path | TarMember, end: bytes) -> bool:
    with path.open("rb") as file:
        file.seek(-len(end), 2)
        return file.read() == end


def _read(path: Path, conversions: set[str], *size: int) -> np.ndarray:
    return _scaled(_picture(path, conversions, opaque), *size)


def _picture(path: Path | TarMember, conversions: set[str], shown: Callable[..., Image.Image]) -> Image.Image:
    try:
        with _opened(path) as image:
            return shown(image, conversions)
    except BrokenVideoError as error:
        raise BrokenVideoError(f"the picture {path.name} cannot be used: {error}") from error
    except UNREADABLE as error:
        raise BrokenVideoError(f"the picture {path.name} cannot be read") from error


def _scaled(picture: Image.Image, *size: int) -> np.ndarray:
    return np.asarray(picture.resize(size, Image.BOX) if size else picture)
