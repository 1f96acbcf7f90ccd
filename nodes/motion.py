"""Nodes for motion modules: load, apply, save."""
from __future__ import annotations

from comfy_api.latest import io

from ..modules.host.motion.apply import EVERY_STEP, MAPPING_MODES, OFFICIAL, POOLED, apply_motion
from ..modules.host.motion.files import (
    find_motion_file,
    list_motion_files,
    load_motion_file,
    report_text,
    save_motion,
)
from ..modules.host.motion.schedule import AUTO, CHOICES
from ..modules.host.progress import show_text
from ..modules.host.schema_extras import for_newer_pages

MotionModuleType = io.Custom("FROZEN_MOTION_MODULE")


@for_newer_pages("animate", "animatediff", "video")
class FrozenLoadMotionModule(io.ComfyNode):
    """A motion module from a file of any AnimateDiff family, or of this pack."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="FrozenLoadMotionModule",
            display_name="Load Motion Module (AnimateDiff)",
            category="frozen/motion",
            description="Reads a motion module: AnimateDiff v1, v2, v3 and SDXL, HotshotXL, AnimateLCM, "
                        "PIA's motion part, diffusers' MotionAdapter, and modules trained with this pack.",
            inputs=[
                io.Combo.Input(
                    "motion_file", options=list_motion_files(),
                    tooltip="A file in models/animatediff_models, or one that comes with this pack."),
            ],
            outputs=[
                MotionModuleType.Output(display_name="motion_module", tooltip="For the node Apply Motion Module."),
                io.String.Output(display_name="report", tooltip="Family, clip length, schedule, warnings."),
            ],
            hidden=[io.Hidden.unique_id])

    @classmethod
    def fingerprint_inputs(cls, motion_file: str) -> tuple[int, int]:
        """Load again when the file was replaced."""
        stat = find_motion_file(motion_file).stat()
        return stat.st_mtime_ns, stat.st_size

    @classmethod
    def execute(cls, motion_file: str) -> io.NodeOutput:
        loaded, report = load_motion_file(find_motion_file(motion_file))
        text = report_text(loaded, report)
        return io.NodeOutput(loaded, text, ui=show_text(text, cls.hidden.unique_id))


@for_newer_pages("animate", "animatediff", "video", "harivo")
class FrozenApplyMotionModule(io.ComfyNode):
    """A MODEL that samples a batch of latents as a clip."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="FrozenApplyMotionModule",
            display_name="Apply Motion Module (HARIVO, Video)",
            category="frozen/motion",
            description="Makes an image model sample its batch as the frames of a clip. The image model's "
                        "own weights stay as they are.",
            inputs=[
                io.Model.Input(
                    "model",
                    tooltip="The image model. LoRA may be applied before or after this node."),
                MotionModuleType.Input(
                    "motion_module",
                    tooltip="From Load Motion Module or Train Motion Module."),
                io.Float.Input(
                    "strength", default=1.0, min=0.0, max=2.0, step=0.01,
                    tooltip="How much the motion layers add. 1: as trained. 0: the image model, unchanged."),
                io.Int.Input(
                    "frames_per_clip", default=0, min=0, max=4096,
                    tooltip="Frames of one clip when the batch holds several. 0: the batch is one clip."),
                io.Float.Input(
                    "start_percent", default=0.0, min=0.0, max=1.0, step=0.001,
                    tooltip="Where in the sampling the motion layers begin to act."),
                io.Float.Input(
                    "end_percent", default=1.0, min=0.0, max=1.0, step=0.001,
                    tooltip="Where in the sampling the motion layers cease to act."),
                io.Combo.Input(
                    "beta_schedule", options=CHOICES, default=AUTO,
                    tooltip="Noise schedule. auto: the one the motion module was trained with. keep: the "
                            "model's own."),
                io.Combo.Input(
                    "groupnorm", options=[OFFICIAL, POOLED], default=OFFICIAL,
                    tooltip="Norms of the image model. official: over all frames of a clip for AnimateDiff "
                            "v1, else frame by frame. pooled: over all frames, which can reduce flicker."),
                io.Combo.Input(
                    "mapping", options=list(MAPPING_MODES), default=EVERY_STEP, optional=True,
                    tooltip="When HARIVO's mapping network acts, if the motion module has one."),
                io.Boolean.Input(
                    "frame_tokens", default=True, optional=True,
                    tooltip="HARIVO's frame tokens, if the motion module makes them."),
                io.Float.Input(
                    "fps", default=0.0, min=0.0, max=120.0, step=0.1, optional=True,
                    tooltip="Frames per second of the clip: frame tokens go by seconds. 0: as trained."),
                io.Boolean.Input(
                    "negative_tokens", default=True, optional=True,
                    tooltip="Whether the negative prompt gets HARIVO's frame tokens too, as trained. Off: cfg "
                            "amplifies them."),
            ],
            outputs=[io.Model.Output(tooltip="The model with motion, for the sampler and its scheduler.")])

    @classmethod
    def execute(cls, model, motion_module, **settings) -> io.NodeOutput:
        return io.NodeOutput(apply_motion(model, motion_module, **settings))


class FrozenSaveMotionModule(io.ComfyNode):
    """A motion module written in this pack's format, which AnimateDiff loaders read too."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="FrozenSaveMotionModule",
            display_name="Save Motion Module",
            category="frozen/motion",
            description="Writes a motion module as safetensors into the output folder, with what is known "
                        "about it.",
            inputs=[
                MotionModuleType.Input(
                    "motion_module",
                    tooltip="The motion module to save."),
                io.String.Input(
                    "filename_prefix", default="motion_modules/motion",
                    tooltip="Subfolder and beginning of the file name; a number is added."),
                io.String.Input(
                    "licence", default="",
                    tooltip="Licence of the weights, kept in the file. Empty: as the module came."),
                io.String.Input(
                    "train_data", default="",
                    tooltip="What it was trained on, kept in the file. Empty: as the module came."),
            ],
            outputs=[io.String.Output(display_name="path", tooltip="The file that was written.")],
            hidden=[io.Hidden.unique_id],
            is_output_node=True)

    @classmethod
    def execute(cls, motion_module, filename_prefix: str, licence: str, train_data: str) -> io.NodeOutput:
        metadata = {"licence": licence, "train_data": train_data}
        path = str(save_motion(motion_module, filename_prefix, metadata))
        return io.NodeOutput(path, ui=show_text(path, cls.hidden.unique_id))


NODES = [FrozenLoadMotionModule, FrozenApplyMotionModule, FrozenSaveMotionModule]
