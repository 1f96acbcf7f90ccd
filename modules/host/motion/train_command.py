"""`python -m frozen_diffusion.cli train motion`: the training of the node, without a page."""
from __future__ import annotations

import argparse
import contextlib
import dataclasses
from pathlib import Path

from ...data.clip_folder import ClipFolderError, find_clips
from ...data.clips import ClipSettings, ClipSource
from ...demo.clips import SpriteClips
from ...demo.world import MOTIONS
from ...motion.recipe import MotionRecipe

SPRITES = "sprite-world"
SPRITE_CLIPS = 512
RENAMED = {"frames": "frames_at_once"}       # of the recipe; --frames is the clips'


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options; defaults are those of the recipe and of the clips' settings."""
    clip, recipe = ClipSettings(), MotionRecipe()
    data = parser.add_argument_group("clips")
    data.add_argument("--data", required=True, metavar="DIR", help=f"folder of videos, or {SPRITES}")
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
    model.add_argument("--out", required=True, type=Path, metavar="FILE", help="motion module to write")
    model.add_argument("--resume", action=argparse.BooleanOptionalAction, default=True,
                       help="go on from OUT's checkpoint if there is one")

    training = parser.add_argument_group("training")
    shorts = {"learning_rate": "--lr", "batch_size": "--batch"}
    for field in dataclasses.fields(recipe):
        name = RENAMED.get(field.name, field.name)
        option = shorts.get(name, "--" + name.replace("_", "-"))
        value, switch = getattr(recipe, field.name), argparse.BooleanOptionalAction
        kind = {"action": switch} if isinstance(value, bool) else {"type": type(value)}
        training.add_argument(option, dest=name, default=value, help=f"default: {value!r}", **kind)


def main(args: argparse.Namespace) -> int:
    """Train and write the motion module; prints progress, wants a booted host. Returns the exit status."""
    import torch
    try:
        with torch.inference_mode():        # as the host runs its nodes
            return _train(args)
    except KeyboardInterrupt:
        print("stopped; the same command goes on from here")
        return 130
    except (ClipFolderError, ValueError, RuntimeError, OSError) as error:
        print(f"error: {error}")
        return 1


def clips_of(args: argparse.Namespace) -> ClipSource:
    """The source that the options name. Raises ClipFolderError, ValueError."""
    width, _, height = args.size.lower().partition("x")
    if not (width.isdigit() and height.isdigit()):
        raise ValueError(f"--size is {args.size!r}; expected WIDTHxHEIGHT, e.g. 256x256.")
    settings = ClipSettings(args.frames, args.fps, int(width), int(height), args.stride, args.max_clips,
                            args.mirror, args.keep_still)
    if args.data == SPRITES:
        motions = tuple(args.motions.split(",")) if args.motions else MOTIONS
        return SpriteClips(settings.max_clips or SPRITE_CLIPS, settings, args.seed, motions)
    if args.motions:
        raise ValueError(f"--motions is for --data {SPRITES}; the clips of a folder move as they do. Leave it out.")
    return find_clips(Path(args.data), settings)


def recipe_of(args: argparse.Namespace) -> MotionRecipe:
    """The options as a recipe."""
    names = [field.name for field in dataclasses.fields(MotionRecipe)]
    return MotionRecipe(**{name: getattr(args, RENAMED.get(name, name)) for name in names})


def _train(args: argparse.Namespace) -> int:
    from ...motion.files import write_motion_file
    from ..image_model import load_image_model
    from ..progress import preview
    from ..train_node import progress_lines
    from .files import load_motion_file
    from .train import MotionTraining
    recipe, clips = recipe_of(args), clips_of(args)
    print(clips.report())
    model, clip, vae = load_image_model(None if args.checkpoint == SPRITES else Path(args.checkpoint))
    warm = load_motion_file(args.warm_start)[0] if args.warm_start else None
    beside = args.out.with_suffix("")
    checkpoint, cache = args.out.with_suffix(".training.safetensors"), f"{beside.name}_clips"
    training = MotionTraining(model, vae, clip, clips, recipe, warm, checkpoint, args.resume,
                              args.cache or beside.with_name(cache))
    for done, total in training.encode():
        if done % 50 == 0 or done == total:
            print(f"encoded {done} of {total}", flush=True)

    def show(step: int) -> None:
        path = beside.with_name(f"{beside.name}_{step:06}.png")
        preview(training.sample())[1].save(path)
        print(f"sample: {path}", flush=True)

    with contextlib.closing(training.records()) as records:
        for record, text in progress_lines(records, recipe.steps):
            if record.step % 10 == 0 or record.step == recipe.steps:
                print(text, flush=True)
            if recipe.sample_every and record.step % recipe.sample_every == 0:
                show(record.step)
    show(recipe.steps)
    loaded = training.result()
    write_motion_file(args.out, loaded.module, loaded.metadata)
    print(f"written: {args.out}")
    return 0
