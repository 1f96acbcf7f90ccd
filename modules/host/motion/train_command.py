"""`python -m frozen_diffusion.cli train motion`: the training of the node, without a page."""
from __future__ import annotations

import argparse
from pathlib import Path

from ...data.clips import ClipSettings, ClipSource
from ...data.sources import clips_at
from ...demo.clips import SpriteClips
from ...demo.world import MOTIONS
from ...motion.recipe import MotionRecipe
from ...training import recipe_options

SPRITES = "sprite-world"
SPRITE_CLIPS = 512
RENAMED = {"frames": "frames_at_once"}       # of the recipe; --frames is the clips'


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options; defaults are those of the recipe and of the clips' settings."""
    clip = ClipSettings()
    data = parser.add_argument_group("clips")
    data.add_argument("--data", required=True, metavar="DIR",
                      help=f"folder of videos or of shards, 'clips/{{000..010}}.tar' (quoted), or {SPRITES}")
    data.add_argument("--frames", type=int, default=clip.frames, help="of a clip")
    data.add_argument("--fps", type=float, default=clip.fps)
    data.add_argument("--size", default=clip.size, help=f"WxH in pixels; {SPRITES}: 128x128")
    data.add_argument("--stride", type=float, default=clip.stride, help="seconds between starts, 0 = apart")
    data.add_argument("--max-clips", type=int, default=0, help=f"0 = all; {SPRITES}: {SPRITE_CLIPS}")
    data.add_argument("--mirror", action="store_true", help="mirror half of the clips")
    data.add_argument("--keep-still", action="store_true", help="keep clips in which nothing moves")
    data.add_argument("--motions", metavar="WORD,...",
                      help=f"{SPRITES}: of its clips, drawn as often as named; default: all alike")
    data.add_argument("--cache", type=Path, help="where encoded clips are kept; default: beside the output")

    model = parser.add_argument_group("model")
    model.add_argument("--checkpoint", required=True, metavar="FILE",
                       help=f"image model: a checkpoint with VAE and CLIP, or {SPRITES}")
    model.add_argument("--warm-start", metavar="FILE", help="motion module of any family to start from")
    recipe_options.add_training(parser, MotionRecipe, "motion module", RENAMED)


def main(args: argparse.Namespace) -> int:
    """Train and write the motion module; prints progress, wants a booted host. Returns the exit status."""
    from ..train_command import guarded
    return guarded(lambda: _train(args))


def clips_of(args: argparse.Namespace) -> ClipSource:
    """The source that the options name. Raises ClipFolderError, ValueError."""
    width, height = recipe_options.size_of(args.size, ClipSettings().size)
    settings = ClipSettings(args.frames, args.fps, width, height, args.stride, args.max_clips,
                            args.mirror, args.keep_still)
    if args.data == SPRITES:
        motions = tuple(args.motions.split(",")) if args.motions else MOTIONS
        return SpriteClips(settings.max_clips or SPRITE_CLIPS, settings, args.seed, motions)
    if args.motions:
        raise ValueError(f"--motions is for --data {SPRITES}; the clips of a folder move as they do. Leave it out.")
    return clips_at(args.data, settings)


def recipe_of(args: argparse.Namespace) -> MotionRecipe:
    """The options as a recipe."""
    return recipe_options.recipe_of(args, MotionRecipe, RENAMED)


def _train(args: argparse.Namespace) -> None:
    from ...motion.files import write_motion_file
    from .. import image_model
    from ..train_command import processes, train_to_file
    from .files import load_motion_file
    from .train import MotionSubject
    recipe, clips, together = recipe_of(args), clips_of(args), processes()
    if together.is_first:
        print(clips.report())
    model, clip, vae = image_model.load_image_model(None if args.checkpoint == SPRITES else Path(args.checkpoint))
    warm = load_motion_file(args.warm_start)[0] if args.warm_start else None
    beside = args.out.with_suffix("")
    subject = MotionSubject(model, vae, clip, clips, recipe, warm,
                            args.cache or beside.with_name(f"{beside.name}_clips"))
    train_to_file(subject, args.out, args.resume, together,
                  lambda loaded: write_motion_file(args.out, loaded.module, loaded.metadata))
