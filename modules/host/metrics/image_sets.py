"""Sets of pictures as features: from a folder, from an IMAGE batch, or grown under a name over many runs."""
from __future__ import annotations

import re
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path

import comfy.model_management
import folder_paths
import torch
from PIL import Image
from torch import Tensor

from ...data.cache import digest
from ...data.caption_tables import CaptionTableError
from ...data.captions import read_captions
from ...data.frames import BrokenVideoError
from ...data.image_folder import ImageFolderError
from ...files.provenance import same_model
from ...metrics.feature_blocks import SIDE, FeatureBlocks, Row
from ...metrics.folder import (
    GENERAL,
    GONE,
    PictureFiles,
    for_encoder,
    list_pictures,
    open_picture,
    state_of_file,
    thumbnail,
)
from ...metrics.hcs import finite_rows
from ...pictures.frame_sheet import to_image
from ..files import cache_folder
from .clip_pair import ClipPair, interruptible

ROOTS = "frozen_diffusion_images"       # in extra_model_paths.yaml: further folders that may be read
BATCH, GPU_BATCH = 64, 256
BROKEN_SHARE = 0.01                     # of features that are not finite, above which the encoder is broken
UNREADABLE = "could not be read"
Progress = Generator[tuple[int, int], None, "ImageSet"]     # (done, total) now and then; returns the set


@dataclass(frozen=True)
class ImageSet:
    """N pictures as features of one encoder.

    Attributes:
        name: for people.
        rows: what is kept of each picture.
        pair: the encoder.
        show: gives picture number n as a thumbnail [SIDE, SIDE, 3] uint8, or None if it is gone.
        captions: of the pictures, "" without.
        notes: what was left out, and why.
    """
    name: str
    rows: tuple[Row, ...]
    pair: ClipPair
    show: Callable[[int], Tensor | None]
    captions: tuple[str, ...]
    notes: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def features(self) -> Tensor:
        """[N, D]."""
        return torch.stack([row.feature for row in self.rows]).float()

    @property
    def colour(self) -> tuple[float, float, float]:
        """Mean of all pictures."""
        return tuple(torch.tensor([row.colour for row in self.rows]).mean(0).tolist())

    @property
    def subfolders(self) -> dict[str, list[int]]:
        """Pictures by the first folder of their names; {} where all lie together."""
        found: dict[str, list[int]] = {}
        for number, row in enumerate(self.rows):
            found.setdefault(row.name.rpartition("/")[0].partition("/")[0], []).append(number)
        return found if len(found) > 1 else {}

    def report(self) -> str:
        """In words."""
        widths = sorted({row.size for row in self.rows})
        sizes = (f"{widths[0][0]}x{widths[0][1]}" if len(widths) == 1 else
                 f"{len(widths)} sizes from {widths[0][0]}x{widths[0][1]} to {widths[-1][0]}x{widths[-1][1]}")
        return "\n".join([f"{len(self)} pictures of {self.name}, {sizes}, as seen by {self.pair.name}",
                          *self.pair.notes, *self.notes])


def set_of_folder(folder: Path, pair: ClipPair, subfolders: bool = True, how: str = GENERAL,
                  allowed: Callable[[Path], bool] = lambda path: True) -> Progress:
    """Read a folder file by file. Features are kept on disk, by the file's state; a cancel loses none.

    Raises ImageFolderError for a folder without a usable picture.
    """
    files = list_pictures(folder, subfolders, allowed)
    cache = FeatureBlocks(cache_folder("features") / digest(pair.identity, how, str(pair.size), str(folder.resolve())),
                          pair.identity, how)
    known, _ = cache.read()
    found: dict[str, tuple[Path, Row]] = {}
    waiting: dict[str, tuple[Path, Row, Tensor]] = {}
    unkept, done = "", 0

    def encode() -> None:
        nonlocal unkept
        if waiting:
            features = pair.images(torch.stack([pixels for _, _, pixels in waiting.values()])).half()
            made = {key: (path, Row(feature, row.size, row.colour, row.name))
                    for (key, (path, row, _)), feature in zip(waiting.items(), features, strict=True)}
            found.update(made)
            waiting.clear()
            try:
                good = {key: row for key, (_, row) in made.items() if row.feature.isfinite().all()}
                if good and not unkept:
                    cache.write(good)
            except OSError as error:
                unkept = f"features could not be kept for the next time: {error}"

    for path in files.paths:
        interruptible()
        try:
            key = state_of_file(path)
            if key in known:
                found[key] = path, known[key]
            else:
                picture = open_picture(path, how)
                if state_of_file(path) != key:
                    files.leave_aside(GONE, path)
                    continue
                waiting[key] = path, _row(picture, files.name(path)), for_encoder(picture, pair.size)
        except FileNotFoundError:
            files.leave_aside(GONE, path)
        except (BrokenVideoError, OSError):
            files.leave_aside(UNREADABLE, path)
        done += 1
        if len(waiting) >= _batch():
            encode()
            yield done, len(files.paths)
    encode()
    yield done, len(files.paths)
    if not found:
        raise ImageFolderError(f"No usable picture in {folder}, of {len(files.paths)} found: "
                               f"{'; '.join(files.notes())}.")
    order = {path: number for number, path in enumerate(files.paths)}
    kept = sorted(found.values(), key=lambda entry: order[entry[0]])
    return _file_set(folder, files, kept, pair, how, unkept)


def _file_set(folder: Path, files: PictureFiles, kept: Sequence[tuple[Path, Row]], pair: ClipPair, how: str,
              unkept: str) -> ImageSet:
    kept, notes = _finite(kept, lambda entry: entry[1])
    paths = [path for path, _ in kept]
    # The name of today: the same file may have been read under another folder.
    rows = tuple(Row(row.feature, row.size, row.colour, files.name(path)) for path, row in kept)
    texts = [text for path in paths if (text := path.with_suffix(".txt")).is_file()]
    try:
        captions, told = read_captions(folder, paths, texts, interruptible, "picture")
    except CaptionTableError as error:
        captions, told = {}, [f"captions are not used: {error}"]

    def show(number: int) -> Tensor | None:
        try:
            return thumbnail(open_picture(paths[number], how), SIDE)
        except (BrokenVideoError, OSError):
            return None

    return ImageSet(folder.name, rows, pair, show, tuple(captions.get(path, "") for path in paths),
                    tuple([*files.notes(), *notes, *([unkept] if unkept else []),
                           *(told if captions or not texts else [])]))


def set_of_images(images: Tensor, pair: ClipPair, name: str = "a batch") -> ImageSet:
    """Of an IMAGE batch [N, H, W, 3 or 4], prepared as saved files would be."""
    rows = rows_of_images(images, pair)
    kept, notes = _finite(list(rows.values()), lambda row: row)
    return ImageSet(name, tuple(kept), pair, lambda number: kept[number].thumbnail, ("",) * len(kept), tuple(notes))


def rows_of_images(images: Tensor, pair: ClipPair) -> dict[str, Row]:
    """Rows by a digest of the pixels: equal pictures of a batch stay apart by their number."""
    rows: dict[str, Row] = {}
    images = images.cpu()
    for start in range(0, len(images), _batch()):
        interruptible()
        pictures = [_picture_of(image) for image in images[start:start + _batch()]]
        features = pair.images(torch.stack([for_encoder(picture, pair.size) for picture in pictures])).half()
        features[~images[start:start + _batch()].isfinite().flatten(1).all(1)] = torch.nan      # black pictures
        for number, (picture, feature) in enumerate(zip(pictures, features, strict=True), start):
            key, again = blake2b(picture.tobytes(), digest_size=12).hexdigest(), 0
            while f"{key}.{again}" in rows:
                again += 1
            plain = _row(picture, f"picture {number + 1}")
            rows[f"{key}.{again}"] = Row(feature, plain.size, plain.colour, plain.name, thumbnail(picture, SIDE))
    return rows


def grown_set(name: str, images: Tensor | None, pair: ClipPair) -> ImageSet:
    """The set of that name, with the pictures of a batch added to it; those that it holds already are not added again.

    Raises ValueError for a name that is none, a set of another encoder, or one that does not exist yet; OSError if it
    cannot be written.
    """
    folder = named_folder(name)
    blocks = FeatureBlocks(folder, pair.identity, GENERAL)
    for encoder in blocks.encoders():
        if not same_model(encoder, pair.identity):
            raise ValueError(f"The set {name!r} was made with another CLIP pair ({encoder}, now {pair.identity}): "
                             "features of two encoders cannot be mixed. Connect the same pair, or take another name.")
    rows, damaged = blocks.read()
    notes = [f"damaged files of the set, passed over: {', '.join(damaged)}"] if damaged else []
    if images is not None:
        given = rows_of_images(images, pair)
        good, dropped = _finite(list(given.items()), lambda entry: entry[1])
        notes += dropped
        new = {key: row for key, row in good if key not in rows}
        if new:
            blocks.write(new)
            rows.update(new)
        notes.append(f"{len(new)} pictures added to the set {name}"
                     + (f"; {len(good) - len(new)} were in it already" if len(new) < len(good) else ""))
    if not rows:
        raise ValueError(f"There is no set {name!r} yet. Connect images: they begin it.")
    kept, dropped = _finite(list(rows.values()), lambda row: row)
    return ImageSet(name, tuple(kept), pair, lambda number: kept[number].thumbnail, ("",) * len(kept),
                    tuple([*notes, *dropped]))


def named_folder(name: str) -> Path:
    """Where a set of that name is. Raises ValueError if it is no plain name."""
    if not re.fullmatch(r"\w[\w .-]*", name):
        raise ValueError(f"The name of the set is {name!r}; use letters, digits, spaces, dots, dashes and underscores, "
                         "e.g. 'my model'.")
    return cache_folder("image_sets") / name


def readable_folder(text: str) -> Path:
    """The folder that a text of the page names: below input, output or temp, or a folder that the user allowed.

    Raises ValueError for others: the page may be open to more people than the disk is.
    """
    name = text.strip().strip("\"'").strip().replace("\\", "/").rstrip("/") or "."
    if not text.strip():
        raise ValueError("No folder was given. Write the folder of your pictures into the field folder, or connect "
                         "images.")
    roots = _roots()
    tried = [Path(name).expanduser()] if Path(name).expanduser().is_absolute() else [root / name for root in roots]
    found = next((path for path in tried if path.is_dir()), None)
    if found is None:
        raise ValueError(f"There is no folder {text.strip()!r}. Looked for {', '.join(map(str, tried))}.")
    if not may_be_read(found.resolve()):
        raise ValueError(f"The folder {found} lies outside of the folders that may be read: "
                         f"{', '.join(map(str, roots))}. Put your pictures there, or name your folder in "
                         f"extra_model_paths.yaml under {ROOTS}.")
    return found


def may_be_read(path: Path) -> bool:
    """Whether a resolved path lies below a folder that may be read."""
    return any(path.is_relative_to(root.resolve()) for root in _roots())


def _roots() -> list[Path]:
    own = folder_paths.get_folder_paths(ROOTS) if ROOTS in folder_paths.folder_names_and_paths else []
    return list(map(Path, (folder_paths.get_input_directory(), folder_paths.get_output_directory(),
                           folder_paths.get_temp_directory(), *own)))


def _finite(rows: list, row_of: Callable) -> tuple[list, list[str]]:
    """Those whose features are numbers, and a note. Raises ValueError where more than a hundredth are not."""
    good = finite_rows(torch.stack([row_of(entry).feature for entry in rows])).tolist()
    lost = good.count(False)
    if lost > BROKEN_SHARE * len(rows):
        raise ValueError(f"The encoder gave no numbers for {lost} of {len(rows)} pictures. Run it in float32, or leave "
                         f"the broken pictures out, e.g. {row_of(rows[good.index(False)]).name}.")
    kept = [entry for entry, fine in zip(rows, good, strict=True) if fine]
    return kept, [f"{lost} pictures left out: the encoder gave no numbers for them"] if lost else []


def _row(picture: Image.Image, name: str) -> Row:
    """What is known of a picture before it is encoded."""
    red, green, blue = (part / 255 for part in picture.resize((1, 1), Image.Resampling.BOX).getpixel((0, 0)))
    return Row(torch.zeros(0), picture.size, (red, green, blue), name)


def _picture_of(image: Tensor) -> Image.Image:
    """One picture of an IMAGE batch, over white where it is transparent."""
    if image.shape[-1] == 4:
        image = image[..., :3] * image[..., 3:] + 1 - image[..., 3:]
    return to_image(image[..., :3].nan_to_num(0.0))


def _batch() -> int:
    return BATCH if comfy.model_management.get_torch_device().type == "cpu" else GPU_BATCH
