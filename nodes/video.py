"""Looking at clips."""
from __future__ import annotations

from comfy_api.latest import io, ui


class FrozenFrameSheet(io.ComfyNode):
    """Frame Sheet: the frames of a clip side by side in one picture."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="FrozenFrameSheet",
            display_name="Frame Sheet",
            category="frozen/motion",
            description="Lays the frames of a clip out in rows, so that motion and flicker can be seen at a glance.",
            inputs=[
                io.Image.Input("frames", tooltip="The clip: a batch of images, first frame first."),
                io.Int.Input("columns", default=8, min=1, max=64, tooltip="Frames in a row."),
                io.Int.Input("every", default=1, min=1, max=64,
                             tooltip="Show every n-th frame only; useful for long clips."),
            ],
            outputs=[io.Image.Output(display_name="sheet", tooltip="One image with all shown frames; a thin line "
                                                                   "separates them.")],
            is_output_node=True,
        )

    @classmethod
    def execute(cls, frames, columns, every) -> io.NodeOutput:
        from ..modules.frame_sheet import frame_sheet
        sheet = frame_sheet(frames[::every], columns)
        return io.NodeOutput(sheet, ui=ui.PreviewImage(sheet, cls=cls))


NODES = [FrozenFrameSheet]
