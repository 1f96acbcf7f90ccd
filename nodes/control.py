"""ControlNet for clips."""
from __future__ import annotations

from comfy_api.latest import io

from ..modules.host.control import control_frames


class FrozenControlFrames(io.ComfyNode):
    """Apply ControlNet to Frames: hints on chosen frames of a clip, each with its own strength."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="FrozenControlFrames",
            display_name="Apply ControlNet to Frames",
            category="frozen/motion",
            description="Lets a ControlNet act on chosen frames only, for example the first and the last one; the "
                        "motion module fills in the frames between. Works inside context windows.",
            inputs=[
                io.Conditioning.Input("positive", tooltip="The prompt."),
                io.Conditioning.Input("negative", tooltip="The negative prompt."),
                io.ControlNet.Input("control_net", tooltip="From the host's Load ControlNet Model."),
                io.Image.Input("image", tooltip="Hint images: one for each listed frame, in the same order, or a "
                                                "single one for all of them."),
                io.Latent.Input("latent", tooltip="The clip's latents; they tell how many frames it has."),
                io.String.Input("frames", default="0, -1",
                                tooltip="Numbers of the frames that get a hint, separated by commas. 0 is the first "
                                        "frame, -1 the last one."),
                io.String.Input("strengths", default="1.0",
                                tooltip="One strength for all listed frames, or one for each, separated by commas."),
                io.Float.Input("start_percent", default=0.0, min=0.0, max=1.0, step=0.001,
                               tooltip="Part of the sampling at which the ControlNet starts to act."),
                io.Float.Input("end_percent", default=1.0, min=0.0, max=1.0, step=0.001,
                               tooltip="Part of the sampling at which it stops."),
            ],
            outputs=[
                io.Conditioning.Output(display_name="positive", tooltip="The prompt with the ControlNet."),
                io.Conditioning.Output(display_name="negative", tooltip="The negative prompt with the ControlNet."),
            ],
        )

    @classmethod
    def execute(cls, positive, negative, control_net, image, latent, frames, strengths, start_percent,
                end_percent) -> io.NodeOutput:
        return io.NodeOutput(*control_frames((positive, negative), control_net, image, frames, strengths,
                                             len(latent["samples"]), start_percent, end_percent))


NODES = [FrozenControlFrames]
