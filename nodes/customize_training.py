"""Customize-A-Video: a clip's look learned away, then its motion."""
from __future__ import annotations

from comfy_api.latest import io

from ..modules.customize.focus import FOCUSES, WHOLE
from ..modules.customize.recipe import FAITHFUL, FAST, KINDS, PLAIN_LOSS, AbsorberRecipe, MotionLoRARecipe
from ..modules.host.progress import show_text
from ..modules.host.schema_extras import for_newer_pages
from .customize import AbsorberType, MotionLoRAType
from .motion import MotionModuleType
from .training_options import LossMap, options_input, run_inputs

ClipsType = io.Custom("FROZEN_CLIP_DATASET")


@for_newer_pages(folded=(
    "embedding_rate", "vectors", "native_scale"))
class FrozenTrainAbsorber(io.ComfyNode):
    """Trains an appearance absorber on the frames of a clip."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        recipe = AbsorberRecipe()
        return io.Schema(
            node_id="FrozenTrainAbsorber",
            display_name="Train Appearance Absorber",
            category="frozen/customize",
            description="Learns what a clip looks like, frame by frame, so that the motion LoRA that is trained next "
                        "does not have to. It is thrown away afterwards. The MODEL is only read.",
            inputs=[
                io.Model.Input("model", tooltip="SD1.5 or SDXL image model, without motion module. Only read."),
                io.Vae.Input("vae", tooltip="Encodes the frames."),
                io.Clip.Input("clip", tooltip="Encodes the caption."),
                ClipsType.Input("clips", tooltip="From Clip Dataset: the clip, or several of one look."),
                io.String.Input("caption", multiline=True, default="",
                                tooltip="What is to be seen, without how it moves: a large panda on a yellow "
                                        "background."),
                io.Combo.Input("kind", options=list(KINDS), default=recipe.kind,
                               tooltip="S-LoRA: of the spatial attentions. textual inversion: a word for the look. "
                                       "both: each by itself, used together. joint: both in one."),
                io.Int.Input("steps", default=recipe.steps, min=1, max=100000, tooltip="Training steps."),
                io.Float.Input("learning_rate", default=recipe.learning_rate, min=1e-7, max=1.0, step=1e-5,
                               tooltip="Of the S-LoRA: 3e-3 for a small base, 1e-4 for SD1.5."),
                io.Float.Input("embedding_rate", default=recipe.embedding_rate, min=1e-7, max=1.0, step=1e-5,
                               tooltip="Of the textual inversion: 2e-2 for a small base, 5e-3 for SD1.5."),
                io.Int.Input("rank", default=recipe.rank, min=1, max=256, tooltip="Of the S-LoRA."),
                io.Int.Input("vectors", default=recipe.vectors, min=1, max=32, tooltip="Of the textual inversion."),
                io.Int.Input("batch_size", default=recipe.batch_size, min=1, max=64, tooltip="Frames at once."),
                io.Int.Input("crops", default=recipe.crops, min=0, max=4096,
                             tooltip="Parts of frames that are learned from, so that the look is learned and not where "
                                     "things are. 0: whole frames, which steals the motion when trained long."),
                io.Boolean.Input("native_scale", default=recipe.native_scale,
                                 tooltip="Off: parts are enlarged to the frame's size. On: they stay as they are."),
                io.Int.Input("sample_every", default=100, min=0, max=100000,
                             tooltip="Show the frames and how the model sees them so often; 0 = only at the end."),
                *run_inputs("absorber", "customize_training", recipe.seed, "Crops, noise, first weights"),
                options_input(),
                io.Int.Input("clip_number", default=0, min=0, max=1000000, optional=True,
                             tooltip="0: all clips have one look. 1, 2 and so on: learn from this clip alone; Join "
                                     "Absorbers then puts one for each clip together."),
            ],
            outputs=[
                AbsorberType.Output(display_name="absorber", tooltip="For Train Motion LoRA."),
                LossMap.Output(display_name="loss_map", tooltip="For the node Plot Loss Graph."),
                io.Image.Output(display_name="sample", tooltip="Frames above, what the model makes of them with the "
                                                               "absorber below."),
                io.String.Output(display_name="report", tooltip="How much of the loss the absorber takes away, by "
                                                                "noise level."),
            ],
            hidden=[io.Hidden.unique_id])

    @classmethod
    def execute(cls, model, vae, clip, clips, caption: str, checkpoint: str, resume: bool, options=None,
                clip_number: int = 0, **recipe) -> io.NodeOutput:
        from ..modules.host.customize.absorb import SHOWN, AbsorberSubject
        from ..modules.host.files import checkpoint_path
        from ..modules.host.train_node import train_in_node
        from ..modules.pictures.frame_sheet import frame_sheet
        from ..modules.training.driver import Driver
        recipe = AbsorberRecipe(**recipe) if options is None else options.over(AbsorberRecipe(**recipe))
        subject = AbsorberSubject(model, vae, clip, clips, recipe, caption, clip_number=clip_number)
        training = Driver(subject, checkpoint_path(checkpoint, "customize_training"), resume)
        pictures = train_in_node(training, cls.hidden.unique_id)
        text = "\n".join(f"{name}: {share:.0%} of the loss" for name, share in subject.measured.items())
        return io.NodeOutput(training.result(), {"loss": training.losses}, frame_sheet(pictures, SHOWN), text,
                             ui=show_text(text, cls.hidden.unique_id))


class FrozenTrainMotionLoRA(io.ComfyNode):
    """Trains a motion LoRA on a clip."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        recipe = MotionLoRARecipe()
        return io.Schema(
            node_id="FrozenTrainMotionLoRA",
            display_name="Train Motion LoRA",
            category="frozen/customize",
            description="Learns how the things in a short clip move, as a small LoRA of a motion module: any other "
                        "subject can then move like it. MODEL and motion module are only read.",
            inputs=[
                io.Model.Input("model", tooltip="SD1.5 or SDXL image model, without motion module. A LoRA or "
                                                "checkpoint of the clip's look works as an absorber."),
                io.Vae.Input("vae", tooltip="Encodes the frames."),
                io.Clip.Input("clip", tooltip="Encodes the captions."),
                MotionModuleType.Input("motion_module", tooltip="From Load Motion Module. Only read."),
                ClipsType.Input("clips", tooltip="From Clip Dataset: one clip, or several of one motion."),
                AbsorberType.Input("absorber", optional=True,
                                   tooltip="From Train Appearance Absorber: keeps the clip's look out. From Join "
                                           "Absorbers: one for each clip."),
                io.String.Input("caption", multiline=True, default="",
                                tooltip="What is to be seen and how it moves, the motion best by a word of its own: a "
                                        "large panda on a yellow background, zorbling. Empty: the clips' captions."),
                io.String.Input("prompts", multiline=True, default="",
                                tooltip="Prompts of other subjects with the same motion words, one a line. They are "
                                        "looked at while it trains, and the earliest good LoRA is kept. Empty: the "
                                        "last one is."),
                io.Combo.Input("recipe", options=[FAST, FAITHFUL], default=FAST,
                               tooltip="fast: noise levels and weights that were measured to work in minutes. "
                                       "faithful: the paper's plain loss, with 300 steps and more."),
                io.Int.Input("steps", default=recipe.steps, min=1, max=100000,
                             tooltip="fast: 80 to 150. faithful: 300, of people and animals 500."),
                io.Float.Input("learning_rate", default=recipe.learning_rate, min=1e-7, max=1.0, step=1e-5,
                               tooltip="fast on a small base: 1e-2. AnimateDiff on SD1.5: 5e-4."),
                io.Int.Input("rank", default=recipe.rank, min=1, max=256, tooltip="Of the LoRA: 4 is enough."),
                io.Int.Input("frames", default=recipe.frames, min=0, max=64,
                             tooltip="Frames at once, drawn from all over the clip; 0 = all of them, which wants more "
                                     "memory."),
                io.Int.Input("sample_every", default=recipe.sample_every, min=0, max=100000,
                             tooltip="Steps between two looks at the prompts; 0 = only at the end."),
                *run_inputs("motion_lora", "customize_training", recipe.seed, "First weights, noise, frames"),
                options_input(),
                io.Combo.Input("learn_from", options=list(FOCUSES), default=WHOLE, optional=True,
                               tooltip="the subject alone: its motion without the camera's. all but the subject: the "
                                       "camera's without the subject's."),
                io.Mask.Input("mask", optional=True,
                              tooltip="Where the subject is: one for all frames, or one for each. Without: what "
                                      "differs from the clip's median frame."),
            ],
            outputs=[
                MotionLoRAType.Output(display_name="motion_lora", tooltip="For Apply and Save Motion LoRA."),
                LossMap.Output(display_name="loss_map", tooltip="For the node Plot Loss Graph."),
                io.Image.Output(display_name="sample", tooltip="The clip above, the prompts below, a clip a row."),
                io.String.Output(display_name="report", tooltip="Fidelity, leakage and diversity of each look, and "
                                                                "what was kept."),
            ],
            hidden=[io.Hidden.unique_id])

    @classmethod
    def execute(cls, model, vae, clip, motion_module, clips, caption: str, prompts: str, recipe: str, checkpoint: str,
                resume: bool, absorber=None, options=None, learn_from: str = WHOLE, mask=None, **values
                ) -> io.NodeOutput:
        from ..modules.host.customize.train import MotionLoRASubject
        from ..modules.host.files import checkpoint_path
        from ..modules.host.train_node import train_in_node
        from ..modules.pictures.frame_sheet import frame_sheet
        from ..modules.training.driver import Driver
        plain = {name: value for name, value in PLAIN_LOSS.items() if recipe == FAITHFUL and name not in values}
        settings = MotionLoRARecipe(**values, **plain)
        settings = settings if options is None else options.over(settings)
        subject = MotionLoRASubject(model, vae, clip, motion_module, clips, settings, caption.strip(),
                                    prompts.splitlines(), absorber, focus=learn_from, mask=mask)
        training = Driver(subject, checkpoint_path(checkpoint, "customize_training"), resume)
        pictures = train_in_node(training, cls.hidden.unique_id)
        result = training.result()
        text = subject.report()
        return io.NodeOutput(result, {"loss": training.losses}, frame_sheet(pictures, subject.clip_frames), text,
                             ui=show_text(text, cls.hidden.unique_id))


NODES = [FrozenTrainAbsorber, FrozenTrainMotionLoRA]
