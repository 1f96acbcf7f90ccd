"""h-space: traces, the recorded bottleneck features: where they act, several at once, and their files."""
from __future__ import annotations

from comfy_api.latest import io

HTrace = io.Custom("FROZEN_H_TRACE")


class FrozenMaskHSpace(io.ComfyNode):
    """Where a trace acts, and how strongly."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="FrozenMaskHSpace",
            display_name="Mask h-Trace",
            category="frozen/h-space",
            description="Lets a trace act in a region only. The bottleneck has few cells (8x8 at 512 pixels), so "
                        "regions are coarse.",
            inputs=[
                HTrace.Input("trace", tooltip="The content."),
                io.Mask.Input("mask", tooltip="White: here. One mask, or one for each picture of the batch."),
                io.Float.Input("threshold", default=0.0, min=0.0, max=1.0, step=0.01,
                               tooltip="0: soft edges. Else a cell of h is in if its mean is above."),
                io.Float.Input("strength", default=1.0, min=0.0, max=3.0, step=0.05,
                               tooltip="Factor on the sampler's gamma."),
            ],
            outputs=[HTrace.Output(display_name="trace", tooltip="The trace with its region.")])

    @classmethod
    def execute(cls, trace, mask, threshold: float, strength: float) -> io.NodeOutput:
        from ..modules.hspace.trace import masked
        return io.NodeOutput(masked(trace, mask, threshold, strength))


class FrozenMergeHSpace(io.ComfyNode):
    """Two traces as one."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="FrozenMergeHSpace",
            display_name="Merge h-Traces",
            category="frozen/h-space",
            description="Several contents at once: their mean on the sphere, one beside the other, each in its mask, "
                        "or as a batch. Chain the node for more.",
            inputs=[
                HTrace.Input("trace_a", tooltip="One content."),
                HTrace.Input("trace_b", tooltip="The other."),
                io.Combo.Input("mode", options=["mean", "beside", "batch"],
                               tooltip="mean: between the two. beside: both act, each in its mask; where both do, b "
                                       "last. batch: the pictures of both one after another, for h-Space Grid or a "
                                       "batch of latents."),
                io.Float.Input("weight", default=0.5, min=0.0, max=1.0, step=0.01, tooltip="mean: the share of "
                                                                                           "trace_b."),
            ],
            outputs=[HTrace.Output(display_name="trace", tooltip="Both.")])

    @classmethod
    def execute(cls, trace_a, trace_b, mode: str, weight: float) -> io.NodeOutput:
        from ..modules.hspace.trace import beside, merge_batch, merge_mean
        both = (trace_a, trace_b)
        if mode == "mean":
            return io.NodeOutput(merge_mean(both, (1 - weight, weight)))
        return io.NodeOutput(merge_batch(both) if mode == "batch" else beside(*both))


class FrozenSaveHTrace(io.ComfyNode):
    """A trace into a file."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="FrozenSaveHTrace",
            display_name="Save h-Trace",
            category="frozen/h-space",
            description="Writes a trace into the output folder, with the identity of its model.",
            inputs=[HTrace.Input("trace", tooltip="What to write."),
                    io.String.Input("filename_prefix", default="h_traces/trace", tooltip="Name in the output folder.")],
            outputs=[io.String.Output(display_name="path", tooltip="The file that was written.")],
            hidden=[io.Hidden.unique_id],
            is_output_node=True)

    @classmethod
    def execute(cls, trace, filename_prefix: str) -> io.NodeOutput:
        from ..modules.host.files import save_tensors
        from ..modules.host.progress import show_text
        from ..modules.hspace.trace import trace_tensors
        path = save_tensors("h-trace", *trace_tensors(trace), filename_prefix)
        return io.NodeOutput(str(path), ui=show_text(f"{path}\n{trace.describe()}", cls.hidden.unique_id))


class FrozenLoadHTrace(io.ComfyNode):
    """A trace from a file."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        from ..modules.host.files import saved_files
        from ..modules.hspace.trace import FORMAT
        return io.Schema(
            node_id="FrozenLoadHTrace",
            display_name="Load h-Trace",
            category="frozen/h-space",
            description="Reads a trace that Save h-Trace wrote.",
            inputs=[io.Combo.Input("file", options=saved_files(FORMAT, "h_traces/trace_00001_.safetensors"),
                                   tooltip="A file that Save h-Trace wrote into the output folder, or that you put "
                                           "into the input folder; the newest first.")],
            outputs=[HTrace.Output(display_name="trace", tooltip="For the samplers; refused on another model.")])

    @classmethod
    def validate_inputs(cls, file: str, input_types: dict) -> bool:
        """Any path is taken, also by wire: workflows of before the list have paths of their own."""
        return True

    @classmethod
    def fingerprint_inputs(cls, file: str) -> str:
        from ..modules.host.files import state_of
        return state_of(file)

    @classmethod
    def execute(cls, file: str) -> io.NodeOutput:
        from ..modules.host.files import find_file
        from ..modules.hspace.trace import read_trace
        return io.NodeOutput(read_trace(find_file(file)))


NODES = [FrozenMaskHSpace, FrozenMergeHSpace, FrozenSaveHTrace, FrozenLoadHTrace]
