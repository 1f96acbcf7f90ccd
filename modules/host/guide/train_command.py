"""`python -m frozen_diffusion.cli train guide`: the training of the node, without a page."""
from __future__ import annotations

import argparse
from pathlib import Path

from ...guide.recipe import GuideRecipe
from ...training import recipe_options
from ...training.processes import launch_settings

SPRITES = "sprite-world"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options; defaults are those of the recipe."""
    parser.add_argument("--checkpoint", required=True, metavar="FILE",
                        help=f"image model: a checkpoint with VAE and CLIP, or {SPRITES}")
    parser.add_argument("--prompts", required=True, type=Path, metavar="FILE", help="text file, one prompt a line")
    parser.add_argument("--size", default="512x512", help="WxH in pixels of what is sampled")
    parser.add_argument("--start", type=Path, metavar="FILE", help="guide to start from: top-up, or stage 2")
    parser.add_argument("--out", required=True, type=Path, metavar="FILE", help="guide model to write")
    parser.add_argument("--cache", type=Path, help="where trajectories are kept; default: beside the output")
    parser.add_argument("--resume", action=argparse.BooleanOptionalAction, default=True,
                        help="go on from OUT's checkpoint if there is one")
    recipe_options.add_recipe(parser.add_argument_group("training"), GuideRecipe)
    try:
        parser.set_defaults(**launch_settings())
    except ValueError as error:
        parser.error(str(error))


def main(args: argparse.Namespace) -> int:
    """Train and write the guide; prints progress, wants a booted host. Returns the exit status."""
    from ..train_command import guarded
    return guarded(lambda: _train(args))


def _train(args: argparse.Namespace) -> None:
    from ...guide.files import write_guide
    from ...training.driver import Driver
    from .. import image_model
    from ..train_command import processes, train
    from .files import load_guide
    from .train import GuideSubject
    width, _, height = args.size.lower().partition("x")
    if not (width.isdigit() and height.isdigit()):
        raise ValueError(f"--size is {args.size!r}; expected WIDTHxHEIGHT, e.g. 512x512.")
    recipe, together = recipe_options.recipe_of(args, GuideRecipe), processes()
    model, clip, vae = image_model.load_image_model(None if args.checkpoint == SPRITES else Path(args.checkpoint))
    beside = args.out.with_suffix("")
    prompts = args.prompts.read_text(encoding="utf-8").splitlines()
    subject = GuideSubject(model, vae, clip, prompts, recipe, (int(width), int(height)),
                           load_guide(args.start) if args.start else None,
                           args.cache or beside.with_name(f"{beside.name}_trajectories"))
    training = Driver(subject, args.out.with_suffix(".training.safetensors"), args.resume, together)
    train(training, beside, together.is_first)
    if together.is_first:
        loaded = training.result()
        write_guide(args.out, loaded.config, loaded.network.state_dict(), loaded.metadata)
        print(f"written: {args.out}")
