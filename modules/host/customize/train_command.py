"""`python -m frozen_diffusion.cli train motion-lora`: Customize-A-Video's two stages, without a page."""
from __future__ import annotations

import argparse
from pathlib import Path

from ...customize.recipe import KINDS, AbsorberRecipe, MotionLoRARecipe
from ...data.clips import ClipSettings, ClipSource
from ...data.sources import clips_at
from ...demo.paths import PATH_CLIPS
from ...training import recipe_options

SPRITES, NONE = "sprite-world", "none"
CLIP = ClipSettings()
RENAMED = {"frames": "frames_at_once"}          # of the recipe; --frames is the clips'


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options; defaults are those of the recipes and of the clips' settings."""
    data = parser.add_argument_group("clips")
    data.add_argument("--data", required=True, metavar="DIR",
                      help=f"folder with the clip, or one of {', '.join(map(repr, PATH_CLIPS))}")
    data.add_argument("--frames", type=int, default=CLIP.frames, help="of a clip")
    data.add_argument("--fps", type=float, default=CLIP.fps)
    data.add_argument("--size", default=CLIP.size, help="WxH in pixels")
    data.add_argument("--caption", default="", help="what is to be seen and how it moves; default: the clips' captions")
    data.add_argument("--prompts", type=Path, metavar="FILE",
                      help="held-out prompts with the motion's words, one a line")
    model = parser.add_argument_group("model")
    model.add_argument("--checkpoint", required=True, metavar="FILE",
                       help=f"image model: a checkpoint with VAE and CLIP, or {SPRITES}")
    model.add_argument("--motion-module", metavar="FILE", help=f"to be changed; of {SPRITES}: the shipped one")
    look = parser.add_argument_group("appearance absorber")
    look.add_argument("--absorber", default=NONE, choices=[NONE, *KINDS], help="trained first")
    look.add_argument("--look", default="", metavar="CAPTION", help="what is to be seen, without how it moves")
    look.add_argument("--look-steps", type=int, default=AbsorberRecipe().steps)
    look.add_argument("--look-lr", type=float, default=AbsorberRecipe().learning_rate)
    recipe_options.add_training(parser, MotionLoRARecipe, "motion LoRA", RENAMED)


def main(args: argparse.Namespace) -> int:
    """Train and write the motion LoRA; prints progress, wants a booted host. Returns the exit status."""
    from ..train_command import guarded
    return guarded(lambda: _train(args))


def clips_of(args: argparse.Namespace) -> ClipSource:
    """The source that the options name. Raises ClipFolderError, ValueError."""
    if args.data in PATH_CLIPS:
        return PATH_CLIPS[args.data]()
    width, height = recipe_options.size_of(args.size, CLIP.size)
    return clips_at(args.data, ClipSettings(args.frames, args.fps, width, height))


def _train(args: argparse.Namespace) -> None:
    from ...customize.files import ANIMATEDIFF, write_lora
    from ...customize.names import TEMPORAL
    from ...training.driver import Driver
    from .. import image_model
    from ..folders import SHIPPED
    from ..motion.files import find_motion_file, load_motion_file
    from ..train_command import processes, train, train_to_file
    from .absorb import AbsorberSubject
    from .files import told
    from .train import MotionLoRASubject
    recipe, clips, together = recipe_options.recipe_of(args, MotionLoRARecipe, RENAMED), clips_of(args), processes()
    if together.is_first:
        print(clips.report())
    model, clip, vae = image_model.load_image_model(None if args.checkpoint == SPRITES else Path(args.checkpoint))
    path = args.motion_module or find_motion_file(f"{SHIPPED}sprite_motion.safetensors")
    motion, _ = load_motion_file(path)
    beside = args.out.with_suffix("")
    cache, absorber = beside.with_name(f"{beside.name}_clips"), None
    if args.absorber != NONE:
        look = AbsorberRecipe(kind=args.absorber, steps=args.look_steps, learning_rate=args.look_lr, seed=args.seed)
        stage = Driver(AbsorberSubject(model, vae, clip, clips, look, args.look, cache),
                       beside.with_name(f"{beside.name}_absorber.training.safetensors"), args.resume, together)
        train(stage, beside.with_name(f"{beside.name}_absorber"), together.is_first)
        absorber = stage.result()
    prompts = args.prompts.read_text(encoding="utf-8").splitlines() if args.prompts else []
    subject = MotionLoRASubject(model, vae, clip, motion, clips, recipe, args.caption, prompts, absorber, cache)
    train_to_file(subject, args.out, args.resume, together, lambda made: write_lora(
        args.out, {TEMPORAL: made.factors}, ANIMATEDIFF, told(made.metadata)))
    if together.is_first:
        print(subject.report())
