"""What a FurryGAN is trained on, and where."""
from __future__ import annotations

import torch
from comfy.model_management import get_torch_device, throw_exception_if_processing_interrupted

from ...data.clip_folder import folder_state
from ...data.image_folder import ImageFolder
from ...data.images import ImageSettings
from ...data.sources import images_at
from ...demo.emoji import SPRITE, EmojiPictures
from ..clip_dataset import input_folder

COUNT = 11_000          # pictures of a drawn world


def device() -> torch.device:
    """The host's."""
    return get_torch_device()


def drawn_pictures(size: int, world: str = SPRITE) -> EmojiPictures:
    """Close-ups of a drawn world."""
    return EmojiPictures(COUNT, ImageSettings(size, size), world=world)


def folder_pictures(folder: str, size: int) -> ImageFolder:
    """The pictures of a folder or of shards, each cut to a square; small ones are left aside.

    Raises ValueError if none is named, ImageFolderError.
    """
    if not folder.strip():
        raise ValueError("No folder was given. Write the folder of your pictures into the field folder, or choose "
                         "sprite world as the source.")
    return images_at(input_folder(folder), ImageSettings(size, size, min_side=size // 2, alpha=True),
                     throw_exception_if_processing_interrupted)


def state_of_pictures(folder: str) -> str:
    """What changes when a picture does."""
    return folder_state(input_folder(folder))
