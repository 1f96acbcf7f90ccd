"""`python -m frozen_diffusion.cli train guide`: the training of the node, without a page."""
from __future__ import annotations

import argparse
from pathlib import Path

from ...guide.recipe import GuideRecipe
from ...training import recipe_options

SPRITES = "sprite-world"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options; defaults are those of the recipe."""
    parser.add_argument("--checkpoint", required=True, metavar="FILE",
                        help=f"image model: a checkpoint with VAE and CLIP, or {SPRITES}")
    parser.add_argument("--prompts", required=True, type=Path, metavar="FILE", help="text file, one prompt a line")
    parser.add_argument("--negatives", type=Path, metavar="FILE",
                        help="text file of negative prompts: the guide will read the negative prompt")
    parser.add_argument("--pictures", metavar="FOLDER", help="pictures or shards, learned from with noise on them too")
    parser.add_argument("--size", default="512x512", help="WxH in pixels of what is sampled")
    parser.add_argument("--start", type=Path, metavar="FILE", help="guide to start from: top-up, or stage 2")
    parser.add_argument("--cache", type=Path, help="where trajectories are kept; default: beside the output")
    recipe_options.add_training(parser, GuideRecipe, "guide model")


def main(args: argparse.Namespace) -> int:
    """Train and write the guide; prints progress, wants a booted host. Returns the exit status."""
    from ..train_command import guarded
    return guarded(lambda: _train(args))


def _train(args: argparse.Namespace) -> None:
    from ...guide.files import write_guide
    from .. import image_model
    from ..train_command import processes, train_to_file
    from .files import load_guide
    from .train import GuideSubject
    size = recipe_options.size_of(args.size, "512x512")
    recipe, together = recipe_options.recipe_of(args, GuideRecipe), processes()
    model, clip, vae = image_model.load_image_model(None if args.checkpoint == SPRITES else Path(args.checkpoint))
    beside = args.out.with_suffix("")
    prompts, negatives = (path.read_text(encoding="utf-8").splitlines() if path else []
                          for path in (args.prompts, args.negatives))
    subject = GuideSubject(model, vae, clip, prompts, recipe, size,
                           load_guide(args.start) if args.start else None,
                           args.cache or beside.with_name(f"{beside.name}_trajectories"), negatives, args.pictures)
    train_to_file(subject, args.out, args.resume, together, lambda loaded: write_guide(
        args.out, loaded.config, loaded.network.state_dict(), loaded.metadata))
