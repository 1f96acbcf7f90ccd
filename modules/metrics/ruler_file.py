"""Rulers as files: months of runs stay comparable, and users share them without sharing pictures."""
from __future__ import annotations

import json
from pathlib import Path

from safetensors import safe_open

from ..files.checks import check_file, check_format
from .hcs import Ruler

FORMAT, VERSION = "frozen_diffusion.ruler", "1"


class RulerFileError(ValueError):
    """A file that is no ruler."""


def ruler_tensors(ruler: Ruler) -> tuple[dict, dict[str, str]]:
    """(tensors, metadata) for a safetensors file."""
    told = {"names": list(ruler.names), "groups": list(ruler.groups), "images": ruler.images,
            "encoder": ruler.encoder, "text_centre": ruler.text_centre, "list_hash": ruler.list_hash,
            "colour": list(ruler.colour)}
    return ({"directions": ruler.directions.float(), "centre": ruler.centre.float()},
            {"format": FORMAT, "format_version": VERSION, "ruler": json.dumps(told)})


def read_ruler(path: Path) -> Ruler:
    """Raises RulerFileError for what Save Ruler did not write."""
    check_file(path, RulerFileError)
    with safe_open(str(path), framework="pt") as file:
        metadata = file.metadata()
        check_format(path, metadata, FORMAT, VERSION, "ruler", "Save Ruler", RulerFileError)
        try:
            told = json.loads(metadata["ruler"])
            directions, centre = file.get_tensor("directions"), file.get_tensor("centre")
            ruler = Ruler(tuple(told["names"]), tuple(told["groups"]), directions.double(), centre.double(),
                          int(told["images"]), told["encoder"], told["text_centre"], told["list_hash"],
                          tuple(told["colour"]))
        except (KeyError, TypeError, ValueError, RuntimeError) as error:
            raise RulerFileError(f"{path.name} is a ruler whose content is damaged ({error}). Save it "
                                 "again.") from error
    if len(ruler.names) != len(directions) or centre.shape != directions.shape[1:] or not (
            directions.isfinite().all() and centre.isfinite().all()):
        raise RulerFileError(f"{path.name} is a ruler whose numbers do not fit its {len(ruler.names)} names. Save it "
                             "again.")
    return ruler
