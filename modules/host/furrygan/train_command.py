"""`python -m frozen_diffusion.cli train furrygan`: a FurryGAN from a folder of plain pictures, without a page."""
from __future__ import annotations

import argparse

import comfy.model_management

from ...data.images import ImageSettings, ImageSource
from ...data.sources import images_at
from ...demo.emoji import EmojiPictures
from ...files.atomic_write import write_atomically
from ...furrygan.files import furry_tensors
from ...furrygan.recipe import FurryRecipe
from ...furrygan.training import FurrySubject
from ...training import recipe_options
from ..train_command import guarded, processes, train_to_file

EMOJI, COUNT = "emoji-world", 11_000


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options; defaults are those of the recipe."""
    parser.add_argument("--data", required=True, metavar="DIR",
                        help=f"folder or shards of pictures of one kind of thing, cropped to it; or {EMOJI}")
    recipe_options.add_training(parser, FurryRecipe, "FurryGAN")


def main(args: argparse.Namespace) -> int:
    """Train and write the FurryGAN; prints progress, wants a booted host. Returns the exit status."""
    return guarded(lambda: _train(args))


def pictures_of(data: str, size: int) -> ImageSource:
    """The source that the option names, each picture cut to a square; small ones are left aside.

    Raises ImageFolderError.
    """
    if data == EMOJI:
        return EmojiPictures(COUNT, ImageSettings(size, size))
    return images_at(data, ImageSettings(size, size, min_side=size // 2, alpha=True),
                     comfy.model_management.throw_exception_if_processing_interrupted)


def _train(args: argparse.Namespace) -> None:
    recipe, together = recipe_options.recipe_of(args, FurryRecipe), processes()
    source = pictures_of(args.data, recipe.size)
    if together.is_first:
        print(source.report())
    subject = FurrySubject(source, recipe, comfy.model_management.get_torch_device(), together.count)
    train_to_file(subject, args.out, args.resume, together, lambda made: write_atomically(
        args.out, *furry_tensors(made), "The FurryGAN"))
