"""Looking at clips."""
from __future__ import annotations

from comfy_api.latest import io, ui

from ..modules.host.schema_extras import for_newer_pages

SHEET, MOVING = "sheet", "moving"


@for_newer_pages("moving preview", "video preview", "loop")
class FrozenFrameSheet(io.ComfyNode):
    """Frame Sheet: the frames of a clip side by side in one picture, or the clip itself, moving in the node."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="FrozenFrameSheet",
            display_name="Frame Sheet (Moving Preview)",
            category="frozen/motion",
            description="Lays the frames of a clip out in rows, so that motion and flicker can be seen at a glance, or "
                        "plays the clip in the node, over and over.",
            inputs=[
                io.Image.Input("frames", tooltip="The clip: a batch of images, first frame first."),
                io.Int.Input("columns", default=8, min=1, max=64, tooltip="Frames in a row."),
                io.Int.Input("every", default=1, min=1, max=64,
                             tooltip="Show every n-th frame only in the sheet; useful for long clips."),
                io.Combo.Input("show", options=[SHEET, MOVING], default=SHEET, optional=True,
                               tooltip="What the node shows. sheet: all frames in one picture. moving: the clip, "
                                       "playing over and over. The output is the sheet in either case."),
                io.Float.Input("fps", default=8.0, min=0.1, max=60.0, step=0.1, optional=True,
                               tooltip="Frames per second of the moving clip."),
            ],
            outputs=[io.Image.Output(display_name="sheet", tooltip="One image with all shown frames; a thin line "
                                                                   "separates them.")],
            is_output_node=True,
        )

    @classmethod
    def execute(cls, frames, columns, every, show: str = SHEET, fps: float = 8.0) -> io.NodeOutput:
        from ..modules.pictures.frame_sheet import frame_sheet
        sheet = frame_sheet(frames[::every], columns)
        if show == SHEET or len(frames) == 1:
            return io.NodeOutput(sheet, ui=ui.PreviewImage(sheet, cls=cls))
        moving = ui.ImageSaveHelper.save_animated_webp(frames, "frozen_moving", io.FolderType.temp, cls, fps,
                                                       lossless=False, quality=90, method=4)
        return io.NodeOutput(sheet, ui=ui.SavedImages([moving], is_animated=True))


class FrozenClipReport(io.ComfyNode):
    """Clip Report: how a clip moves and flickers, as figures and as a plot over its frames."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="FrozenClipReport",
            display_name="Clip Report",
            category="frozen/motion",
            description="Measures flicker and motion of any clip, and shows which neighbouring frames differ most.",
            inputs=[
                io.Image.Input("frames", tooltip="The clip: a batch of images, first frame first."),
                io.Float.Input("fps", default=8.0, min=0.1, max=240.0, step=0.1,
                               tooltip="Frames per second, to tell when the worst pair is on screen."),
                io.Int.Input("columns", default=8, min=1, max=64, tooltip="Frames in a row of the sheet."),
            ],
            outputs=[
                io.Image.Output(display_name="report", tooltip="The plot over the frame sheet."),
                io.String.Output(display_name="text", tooltip="The figures in words."),
                io.Float.Output(display_name="flicker", tooltip="r = d2 / d1: about 1.7 for noise, near 0 for even "
                                                                "motion."),
                io.Float.Output(display_name="span", tooltip="Mean difference of first and last frame: how much moves "
                                                             "in all; small too for motion that returns."),
            ],
            hidden=[io.Hidden.unique_id],
            is_output_node=True,
        )

    @classmethod
    def execute(cls, frames, fps, columns) -> io.NodeOutput:
        from ..modules.clips.flicker import clip_figures
        from ..modules.clips.report import report_picture, report_text
        from ..modules.host.progress import show_text
        figures = clip_figures(frames[..., :3].movedim(-1, 1))
        picture, text = report_picture(frames, figures, columns), report_text(figures, fps)
        shown = {**ui.PreviewImage(picture, cls=cls).as_dict(), **show_text(text, cls.hidden.unique_id).as_dict()}
        return io.NodeOutput(picture, text, figures.r, figures.span, ui=shown)


NODES = [FrozenFrameSheet, FrozenClipReport]
