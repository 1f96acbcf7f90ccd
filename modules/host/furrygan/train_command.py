"""`python -m frozen_diffusion.cli train furrygan`: a FurryGAN from a folder of plain pictures, without a page."""
from __future__ import annotations

import argparse
from pathlib import Path

from ...demo.emoji import EMOJI, SPRITE
from ...files.atomic_write import write_atomically
from ...furrygan.files import furry_tensors
from ...furrygan.recipe import FurryRecipe
from ...furrygan.training import FurrySubject, GuardedTraining
from ...training import recipe_options
from ..train_command import guarded, processes, train_to_file
from .train import device, drawn_pictures, folder_pictures

WORLDS = {"emoji-world": EMOJI, "sprite-world": SPRITE}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options; defaults are those of the recipe."""
    parser.add_argument("--data", required=True, metavar="DIR",
                        help=f"folder or shards of pictures of one kind of thing, cropped to it; or "
                             f"{' or '.join(WORLDS)}")
    recipe_options.add_training(parser, FurryRecipe, "FurryGAN")


def main(args: argparse.Namespace) -> int:
    """Train and write the FurryGAN; prints progress, wants a booted host. Returns the exit status."""
    return guarded(lambda: _train(args))


def _train(args: argparse.Namespace) -> None:
    recipe, together = recipe_options.recipe_of(args, FurryRecipe), processes()
    source = (drawn_pictures(recipe.size, WORLDS[args.data]) if args.data in WORLDS
              else folder_pictures(str(Path(args.data).absolute()), recipe.size))
    if together.is_first:
        print(source.report())
    subject = FurrySubject(source, recipe, device(), together.count)
    train_to_file(subject, args.out, args.resume, together, lambda made: write_atomically(
        args.out, *furry_tensors(made), "The FurryGAN"), GuardedTraining)
    if together.is_first:
        print("\n".join(subject.notes))
