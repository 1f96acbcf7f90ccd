"""Nodes of HARIVO that work with any motion module: smoother sampling, first noise, what a clip measures."""
from __future__ import annotations

from comfy_api.latest import io

from ..modules.clips.noise import KINDS
from ..modules.host.clip_noise import ClipNoise, FreeInit
from ..modules.host.motion.mitigating_gradient import MODES, mitigate_gradient
from ..modules.host.schema_extras import for_newer_pages
from ..modules.motion.mitigating_gradient import DEFAULT_ALPHA

FRAMES_PER_CLIP = "Frames of one clip when the batch holds several. 0: the batch is one clip."


@for_newer_pages("flicker", "smooth", "temporal consistency")
class FrozenMitigatingGradient(io.ComfyNode):
    """A MODEL that smooths the predicted clip along time at every step."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="FrozenMitigatingGradient",
            display_name="Mitigating Gradient (Anti-Flicker)",
            category="frozen/motion",
            description="HARIVO's guidance against flicker, for any motion module and sampler. It takes fine texture "
                        "that changes from frame to frame out of the predicted clip.",
            inputs=[
                io.Model.Input("model", tooltip="A model with a motion module."),
                io.Float.Input("alpha", default=DEFAULT_ALPHA, min=-200.0, max=1000.0, step=1.0,
                               tooltip="Guidance scale. 40: the paper's. 20 for 512 px personalised models. 150 is "
                                       "plainly too smooth. 0: off."),
                io.Combo.Input("mode", options=list(MODES),
                               tooltip="fast: no backward pass, under 1 % of the time. exact: the gradient through the "
                                       "U-Net, two to three times the time and several times the memory."),
                io.Int.Input("order", default=1, min=1, max=2,
                             tooltip="1: lessens every change along time. 2: lessens acceleration, even motion stays."),
                io.Float.Input("start_percent", default=0.0, min=0.0, max=1.0, step=0.001,
                               tooltip="Where in the sampling it begins to act."),
                io.Float.Input("end_percent", default=1.0, min=0.0, max=1.0, step=0.001,
                               tooltip="Where in the sampling it ceases to act."),
                io.Int.Input("frames_per_clip", default=0, min=0, max=4096, tooltip=FRAMES_PER_CLIP),
                io.String.Input("locked_frames", default="",
                                tooltip="Frames that keep their values exactly, e.g. 0, -1 for the first and the last; "
                                        "their neighbours are still drawn to them."),
            ],
            outputs=[io.Model.Output(tooltip="The model with the guidance, for the sampler.")])

    @classmethod
    def execute(cls, model, **settings) -> io.NodeOutput:
        return io.NodeOutput(mitigate_gradient(model, **settings))


class FrozenClipNoise(io.ComfyNode):
    """First noise whose frames belong together."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="FrozenClipNoise",
            display_name="Clip Noise",
            category="frozen/motion",
            description="The first noise of a clip for SamplerCustomAdvanced: independent frames, or frames that have "
                        "something in common.",
            inputs=[
                io.Int.Input("noise_seed", default=0, min=0, max=0xFFFFFFFFFFFFFFFF, control_after_generate=True,
                             tooltip="Same seed, same noise."),
                io.Combo.Input("kind", options=list(KINDS),
                               tooltip="iid: independent frames, the host's own noise. pyoco mixed: all frames share a "
                                       "part. pyoco progressive: each frame goes on from the one before. freenoise: a "
                                       "window of frames repeated in shuffled order, for long clips."),
                io.Float.Input("alpha", default=0.5, min=0.0, max=10.0, step=0.05,
                               tooltip="PYoCo: how much frames have in common; neighbours correlate by a^2/(1+a^2) "
                                       "(mixed) or a/sqrt(1+a^2). Modules trained on independent noise tolerate "
                                       "about 0.5."),
                io.Int.Input("window", default=16, min=1, max=4096,
                             tooltip="FreeNoise: frames until the noise repeats; the motion module's clip length."),
                io.Int.Input("frames_per_clip", default=0, min=0, max=4096, tooltip=FRAMES_PER_CLIP),
            ],
            outputs=[io.Noise.Output(tooltip="For SamplerCustomAdvanced.")])

    @classmethod
    def execute(cls, noise_seed: int, kind: str, alpha: float, window: int, frames_per_clip: int) -> io.NodeOutput:
        return io.NodeOutput(ClipNoise(noise_seed, kind, alpha, window, frames_per_clip))


@for_newer_pages("smooth", "flicker")
class FrozenFreeInit(io.ComfyNode):
    """A sampler that starts again from the low frequencies of its own result."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="FrozenFreeInit",
            display_name="FreeInit Sampler (Smoother Video)",
            category="frozen/motion",
            description="Samples the clip several times; each time the first noise keeps the low frequencies of the "
                        "last result, in space and time. Steadier clips for as many times the time.",
            inputs=[
                io.Sampler.Input("sampler", tooltip="The sampler that does each pass, from KSamplerSelect."),
                io.Int.Input("iterations", default=3, min=1, max=10, tooltip="Passes. 1: the sampler by itself."),
                io.Combo.Input("filter", options=["butterworth", "gaussian", "ideal"],
                               tooltip="How sharply low frequencies are parted from high ones."),
                io.Float.Input("spatial_cutoff", default=0.25, min=0.0, max=1.0, step=0.01,
                               tooltip="Low frequencies in the picture, as a fraction of the highest."),
                io.Float.Input("temporal_cutoff", default=0.25, min=0.0, max=1.0, step=0.01,
                               tooltip="Low frequencies along time, as a fraction of the highest."),
                io.Int.Input("frames_per_clip", default=0, min=0, max=4096, tooltip=FRAMES_PER_CLIP),
            ],
            outputs=[io.Sampler.Output(tooltip="For SamplerCustomAdvanced.")])

    @classmethod
    def execute(cls, sampler, iterations: int, filter: str, spatial_cutoff: float, temporal_cutoff: float,
                frames_per_clip: int) -> io.NodeOutput:
        return io.NodeOutput(FreeInit(sampler, iterations, filter, spatial_cutoff, temporal_cutoff, frames_per_clip))


NODES = [FrozenMitigatingGradient, FrozenClipNoise, FrozenFreeInit]
