"""Features of pictures on disk, some hundred a file: a cancelled reading goes on, a set grows from run to run."""
from __future__ import annotations

import json
import os
import secrets
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from ..files.atomic_write import write_atomically

FORMAT, VERSION = "frozen_diffusion.features", "1"
SIDE = 96               # pixels of a thumbnail


@dataclass(frozen=True)
class Row:
    """What is kept of a picture."""

    feature: Tensor                     # [D] float16
    size: tuple[int, int]               # width, height
    colour: tuple[float, float, float]  # mean, 0..1
    name: str
    thumbnail: Tensor | None = None     # [SIDE, SIDE, 3] uint8, of pictures that are no files


class FeatureBlocks:
    """Rows by key in a folder, each block a safetensors file that is written once.

    `encoder` and `preparation` belong to every block: rows of others are another folder's, or refused by the reader.
    """

    def __init__(self, folder: Path, encoder: str, preparation: str):
        self.folder, self.encoder, self.preparation = folder, encoder, preparation

    def read(self) -> tuple[dict[str, Row], list[str]]:
        """(rows by key in the order they were written, names of damaged files, which are passed over)."""
        rows, damaged = {}, []
        for path in self.paths():
            try:
                rows.update(_rows_of(path))
            except (OSError, SafetensorError, KeyError, ValueError):
                damaged.append(path.name)
        return rows, damaged

    def paths(self) -> list[Path]:
        """The files, in the order they were written."""
        return sorted(self.folder.glob("[0-9]*.safetensors")) if self.folder.is_dir() else []

    def encoders(self) -> set[str]:
        """Which encoders wrote here."""
        return {told.get("encoder", "") for told in map(_metadata, self.paths()) if told}

    def write(self, rows: Mapping[str, Row]) -> None:
        """Add a block. Raises OSError naming folder and free space."""
        number = 1 + max((int(path.name.partition("_")[0]) for path in self.paths()), default=0)
        told = {"keys": list(rows), "names": [row.name for row in rows.values()]}
        tensors = {"features": torch.stack([row.feature.half() for row in rows.values()]),
                   "sizes": torch.tensor([row.size for row in rows.values()], dtype=torch.int32),
                   "colours": torch.tensor([row.colour for row in rows.values()])}
        if all(row.thumbnail is not None for row in rows.values()):
            tensors["thumbnails"] = torch.stack([row.thumbnail for row in rows.values()])
        metadata = {"format": FORMAT, "format_version": VERSION, "encoder": self.encoder,
                    "preparation": self.preparation, "rows": json.dumps(told)}
        write_atomically(self.folder / f"{number:06}_{secrets.token_hex(4)}.safetensors", tensors, metadata,
                         "A block of features", writer=str(os.getpid()))


def _metadata(path: Path) -> dict[str, str]:
    try:
        with safe_open(str(path), framework="pt") as file:
            return file.metadata() or {}
    except (OSError, SafetensorError):
        return {}


def _rows_of(path: Path) -> Iterator[tuple[str, Row]]:
    with safe_open(str(path), framework="pt") as file:
        told = json.loads(file.metadata()["rows"])
        features, sizes, colours = (file.get_tensor(name) for name in ("features", "sizes", "colours"))
        pictures = file.get_tensor("thumbnails") if "thumbnails" in file.keys() else [None] * len(features)
        parts: Sequence = (told["keys"], told["names"], features, sizes.tolist(), colours.tolist(), pictures)
        return iter([(key, Row(feature, tuple(size), tuple(colour), name, picture))
                     for key, name, feature, size, colour, picture in zip(*parts, strict=True)])
