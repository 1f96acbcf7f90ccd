"""Clip datasets in the host: its input folder, its progress bar, its interrupt."""
from __future__ import annotations

from pathlib import Path

import folder_paths
import torch
from comfy.model_management import throw_exception_if_processing_interrupted
from torch import Tensor

from ..data.clip_folder import ClipFolder
from ..data.clips import ClipSettings, ClipSource
from ..data.sources import clips_at

PREVIEW_CLIPS, PREVIEW_FRAMES = 4, 8


def input_folder(folder: str) -> Path:
    """An absolute path as it is; a relative one inside the host's input folder."""
    return Path(folder_paths.get_input_directory(), folder.strip().strip('"')).expanduser()


def clips_of_folder(folder: str, settings: ClipSettings) -> ClipFolder:
    """The clips of a folder or of shards. Raises ValueError if none is named, ClipFolderError if it has no clip."""
    if not folder.strip():
        raise ValueError("No folder was given. Write the folder of your videos into the field folder, or "
                         "choose sprite world as the source.")
    return clips_at(input_folder(folder), settings, throw_exception_if_processing_interrupted)


def preview_rows(clips: ClipSource) -> Tensor:
    """Some clips, one a row: [1, rows * H, columns * W, 3] in 0..1."""
    count = min(PREVIEW_CLIPS, len(clips))
    rows = []
    for index in range(count):
        pixels = clips.pixels(index * len(clips) // count)                      # [F, 3, H, W]
        shown = torch.linspace(0, len(pixels) - 1, min(PREVIEW_FRAMES, len(pixels))).round().long()
        rows.append(pixels[shown].permute(2, 0, 3, 1).flatten(1, 2))            # [H, columns * W, 3]
    return torch.cat(rows)[None].float() / 255
