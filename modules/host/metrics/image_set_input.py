"""The inputs of the node Image Set: which of its sources is meant, read with progress in the page."""
from __future__ import annotations

import contextlib
from pathlib import Path

from comfy.utils import ProgressBar
from torch import Tensor

from ...metrics.folder import state_of_folder
from ..progress import report_progress
from .clip_pair import ClipPair
from .image_sets import (
    ImageSet,
    grown_set,
    may_be_read,
    named_folder,
    readable_folder,
    set_of_folder,
    set_of_images,
)


def read_input(pair: ClipPair, folder: str, subfolders: bool, reading: str, append_to: str, images: Tensor | None,
               node_id: str | None) -> ImageSet:
    """A named set where a name is given, else the images, else the folder. Raises ValueError for none or two."""
    if folder.strip() and (images is not None or append_to.strip()):
        raise ValueError("Both a folder and images or a named set are given, and it is not clear which is meant. Empty "
                         "one of the fields.")
    if append_to.strip():
        return grown_set(append_to.strip(), images, pair)
    if images is not None:
        return set_of_images(images, pair)
    return _with_progress(set_of_folder(readable_folder(folder), pair, subfolders, reading, may_be_read), node_id)


def _with_progress(reading, node_id: str | None) -> ImageSet:
    bar = None
    with contextlib.closing(reading):
        while True:
            try:
                done, total = next(reading)
            except StopIteration as end:
                return end.value
            bar = bar or ProgressBar(total, node_id)
            bar.update_absolute(done, total)
            report_progress(f"{done} of {total} pictures", node_id)


def state_of_input(folder: str, subfolders: bool, append_to: str) -> str:
    """What changes when the pictures on disk do, for the host's cache."""
    if append_to.strip():
        try:
            return str(sorted(path.name for path in named_folder(append_to.strip()).glob("*.safetensors")))
        except ValueError:
            return ""
    if not folder.strip():
        return ""
    try:
        return state_of_folder(Path(readable_folder(folder)), subfolders)
    except ValueError:
        return "missing"
