"""Rulers of the attribute metrics as files."""
from __future__ import annotations

from comfy_api.latest import io

Ruler = io.Custom("FROZEN_RULER")


class FrozenSaveRuler(io.ComfyNode):
    """A ruler as a file."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="FrozenSaveRuler",
            display_name="Save Ruler (Metrics)",
            category="frozen/metrics",
            description="Writes what scores are measured with: the reference's mean, the attributes, which encoder. It "
                        "holds no picture.",
            is_output_node=True,
            inputs=[
                Ruler.Input("ruler", tooltip="From Attribute Report."),
                io.String.Input("filename_prefix", default="rulers/ruler", tooltip="Inside the output folder."),
            ],
            outputs=[io.String.Output(display_name="path", tooltip="Of the written file, for Load Ruler.")],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def execute(cls, ruler, filename_prefix: str) -> io.NodeOutput:
        from ..modules.host.files import save_tensors
        from ..modules.host.progress import show_text
        from ..modules.metrics.ruler_file import ruler_tensors
        path = str(save_tensors("ruler", *ruler_tensors(ruler), filename_prefix))
        return io.NodeOutput(path, ui=show_text(path, cls.hidden.unique_id))


class FrozenLoadRuler(io.ComfyNode):
    """A ruler out of a file."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        from ..modules.host.metrics.rulers import ruler_names
        return io.Schema(
            node_id="FrozenLoadRuler",
            display_name="Load Ruler (Metrics)",
            category="frozen/metrics",
            description="Reads a ruler that Save Ruler wrote, or the one of sprite world.",
            inputs=[io.Combo.Input("ruler_file", options=ruler_names(),
                                   tooltip="frozen-diffusion/sprite_world, or files of output/rulers.")],
            outputs=[
                Ruler.Output(display_name="ruler", tooltip="For Score Images and Attribute Report."),
                io.String.Output(display_name="report", tooltip="What it measures with."),
            ],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def fingerprint_inputs(cls, ruler_file: str) -> str:
        from ..modules.host.files import state_of
        from ..modules.host.metrics.rulers import find_ruler
        return state_of(ruler_file, find_ruler)

    @classmethod
    def execute(cls, ruler_file: str) -> io.NodeOutput:
        from ..modules.host.metrics.rulers import find_ruler, ruler_text
        from ..modules.host.progress import show_text
        from ..modules.metrics.ruler_file import read_ruler
        ruler = read_ruler(find_ruler(ruler_file))
        text = ruler_text(ruler)
        return io.NodeOutput(ruler, text, ui=show_text(text, cls.hidden.unique_id))


NODES = [FrozenSaveRuler, FrozenLoadRuler]
