"""Training guide models: no data set, only a checkpoint and prompts."""
from __future__ import annotations

from comfy_api.latest import io

from ..modules.guide.recipe import KINDS, WEIGHTINGS, GuideRecipe
from ..modules.host.schema_extras import for_newer_pages
from .guide import GuideModel
from .training_options import LossMap, options_input, run_inputs


@for_newer_pages(folded=(
    "trajectory_steps", "weighting", "student_steps", "own_states", "pictures"))
class FrozenTrainGuideModel(io.ComfyNode):
    """Trains a guide model on what the MODEL itself predicts."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        recipe = GuideRecipe()
        return io.Schema(
            node_id="FrozenTrainGuideModel",
            display_name="Train Guide Model",
            category="frozen/guidance",
            description="Teaches a small network to do the work of CFG's second pass, from your checkpoint and a list "
                        "of prompts; no pictures are needed. The MODEL is only read. A cancelled training goes on "
                        "where it was when queued again.",
            inputs=[
                io.Model.Input("model", tooltip="SD1.5, SD2 or SDXL image model, with LoRAs or not. Only read."),
                io.Vae.Input("vae", tooltip="Draws the sample sheet."),
                io.Clip.Input("clip", tooltip="Encodes the prompts."),
                GuideModel.Input("guide_model", optional=True,
                                 tooltip="Start from this guide: for another fine-tune (top-up), or for stage 2."),
                io.String.Input("prompts", multiline=True, default="",
                                tooltip="One prompt a line; a few hundred different ones teach a guide best. A path "
                                        "of a .txt file in the input folder is read as such a list."),
                io.String.Input("negatives", multiline=True, default="",
                                tooltip="Negative prompts, one a line, or a .txt file: phrases about a part of the "
                                        "picture, such as a background. With some the guide will read the negative "
                                        "prompt; without, it guides away from the empty one."),
                io.String.Input("pictures", default="",
                                tooltip="A folder of pictures or shards, whose noised pictures are learned from too: "
                                        "for image to image. Empty: none are needed."),
                io.Combo.Input("kind", options=list(KINDS), default=recipe.kind,
                               tooltip="tiny: about 1 % of the base, half the time of CFG. full: a copy of the base's "
                                       "encoder, closer to CFG, about two thirds of its time."),
                io.Boolean.Input("fed", default=recipe.fed,
                                 tooltip="Of a tiny guide: let it read what the base's encoder has found, which guides "
                                         "better. A guide that is trained further keeps what it has."),
                io.Int.Input("steps", default=recipe.steps, min=2, max=1000000, tooltip="Training steps."),
                io.Float.Input("learning_rate", default=recipe.learning_rate, min=1e-7, max=1.0, step=1e-6,
                               tooltip="4e-3 for the tiny guide of a small base, 1e-4 for SD1.5's; full: 2e-5 to "
                                       "1e-3."),
                io.Int.Input("batch_size", default=recipe.batch_size, min=1, max=256, tooltip="States at once."),
                io.Float.Input("g_min", default=recipe.g_min, min=1.0, max=30.0, step=0.5,
                               tooltip="Lowest cfg to learn; 1 is off."),
                io.Float.Input("g_max", default=recipe.g_max, min=1.5, max=30.0, step=0.5,
                               tooltip="Highest cfg to learn."),
                io.Int.Input("trajectories", default=recipe.trajectories, min=1, max=1000000,
                             tooltip="Samplings with real CFG that are learned from, once; they are kept on disk."),
                io.Int.Input("trajectory_steps", default=recipe.trajectory_steps, min=2, max=100,
                             tooltip="States of each."),
                io.Combo.Input("weighting", options=list(WEIGHTINGS), default=recipe.weighting,
                               tooltip="Of the error at different cfg in stage 1. even: as it is, so that high ones "
                                       "count most. by scale: all count alike."),
                io.Int.Input("width", default=512, min=64, max=2048, step=64, tooltip="Pixels, of what is sampled."),
                io.Int.Input("height", default=512, min=64, max=2048, step=64, tooltip="Pixels, of what is sampled."),
                io.Int.Input("student_steps", default=recipe.student_steps, min=0, max=64,
                             tooltip="0: stage 1. Above: stage 2, from guide_model: sample in this many steps."),
                io.Int.Input("sample_every", default=200, min=0, max=100000,
                             tooltip="Show held-out prompts without guidance, with the guide and with real CFG every "
                                     "this many steps; 0 = only at the end."),
                *run_inputs("guide", "guide_training", recipe.seed, "First weights, noise, order"),
                options_input(),
                io.Boolean.Input("own_states", default=recipe.own_states, optional=True,
                                 tooltip="Learn on the states that guide_model comes to by itself, in place of those "
                                         "of real CFG. A round of it after a training brings pictures closer to CFG; "
                                         "give it a checkpoint name of its own."),
            ],
            outputs=[
                GuideModel.Output(display_name="guide_model", tooltip="For Apply and Save Guide Model."),
                LossMap.Output(display_name="loss_map", tooltip="For the node Plot Loss Graph."),
                io.Image.Output(display_name="sample", tooltip="Held-out prompts: without guidance, with the guide, "
                                                               "with real CFG, a row each."),
                io.Image.Output(display_name="plot", tooltip="Guidance unexplained by scale, and the distance to real "
                                                             "CFG, over the training."),
            ],
            hidden=[io.Hidden.unique_id])

    @classmethod
    def execute(cls, model, vae, clip, prompts: str, negatives: str, pictures: str, width: int, height: int,
                checkpoint: str, resume: bool, guide_model=None, options=None, **recipe) -> io.NodeOutput:
        from ..modules.guide.report import training_plot
        from ..modules.host.files import checkpoint_path
        from ..modules.host.guide.prompts import prompts_of
        from ..modules.host.guide.train import HELD_OUT, GuideSubject
        from ..modules.host.train_node import train_in_node
        from ..modules.pictures.frame_sheet import frame_sheet
        from ..modules.training.driver import Driver
        recipe = GuideRecipe(**recipe) if options is None else options.over(GuideRecipe(**recipe))
        subject = GuideSubject(model, vae, clip, prompts_of(prompts), recipe, (width, height), guide_model,
                               negatives=prompts_of(negatives), pictures=pictures.strip() or None)
        training = Driver(subject, checkpoint_path(checkpoint, "guide_training"), resume)
        pictures = train_in_node(training, cls.hidden.unique_id)
        return io.NodeOutput(training.result(), {"loss": training.losses}, frame_sheet(pictures, HELD_OUT),
                             training_plot(subject.history))


NODES = [FrozenTrainGuideModel]
