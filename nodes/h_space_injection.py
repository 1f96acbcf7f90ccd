"""h-space: content injection without training (InjectFusion), as a sampler and as a patch of a MODEL."""
from __future__ import annotations

from comfy_api.latest import io, ui

from ..modules.host.hspace.capture import APPLY_TO, CHECKS, NONE, NORM_MODES
from ..modules.host.schema_extras import for_newer_pages
from ..modules.hspace.steps import PRESETS, InjectionSettings
from .h_traces import HTrace

CUSTOM = "custom"
GAMMA = ("Weight of the content. 0.3: the paper's; above 0.6 pictures suffer. One number, or points of timestep and "
         "value: 999: 0.1, 400: 0.5.")
T_EDIT = "Injection acts from the start down to this timestep (1000: start, 0: end)."
APPLY = "Which predictions are changed. both: with and without the prompt, so that cfg does not multiply the edit."
NORM = "With a mask: masked matches the content's norm inside it (the paper); none leaves it (the released code)."
CHECK = ("model: refuses traces of other models, resizes other sizes. strict: also refuses other sizes and steps. "
         "shapes only: takes any model with the same channels.")
SKIPS = ("Deep skips: blends the skips that the trace recorded too, with this weight. Latent models keep much content "
         "there. Needs a trace with deep_skips. 0: off, as in the paper.")


def gamma_inputs() -> list:
    """The inputs that every way of injecting shares, after gamma."""
    return [io.Combo.Input("apply_to", options=list(APPLY_TO), tooltip=APPLY),
            io.Combo.Input("norm_mode", options=list(NORM_MODES), tooltip=NORM),
            io.Combo.Input("check", options=list(CHECKS), tooltip=CHECK),
            io.Float.Input("gamma_skips", default=0.0, min=0.0, max=1.0, step=0.01, tooltip=SKIPS)]


@for_newer_pages("style", "style transfer", "content", folded=(
    "norm_mode", "check", "dt_lambda", "replace_steps", "auto_gamma", "shared_encoder", "lead",
    "dt_end"))
class FrozenHSpaceInjectionSampler(io.ComfyNode):
    """A sampler that takes the content of a trace into the picture it makes."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        paper = InjectionSettings()
        return io.Schema(
            node_id="FrozenHSpaceInjectionSampler",
            display_name="h-Space Injection Sampler (Content, Style)",
            category="frozen/h-space",
            description="InjectFusion: the picture keeps its colours, background and manner and takes shape and pose "
                        "from the trace. For SamplerCustom or SamplerCustomAdvanced at cfg 1.",
            inputs=[
                HTrace.Input("trace", tooltip="The content, from Invert (DDIM), Record h-Space or Load h-Trace."),
                io.Combo.Input("preset", options=[CUSTOM, *PRESETS],
                               tooltip="custom: the values below. Others set gamma, t_edit, t_boost, omega and leave "
                                       "those below unread. paper 0.3, 400, 200, 0.3; painting: gamma 0.4, t_boost 0, "
                                       "omega 0; face part: omega 0, with a mask. official script: InjectFusion's "
                                       "released script at its defaults, omega 0; only apply_to, check, dt_lambda, "
                                       "dt_end, replace_steps and shared_encoder are read. Needs 50 or 1000 steps."),
                io.String.Input("gamma", default="0.3", tooltip=GAMMA),
                io.Float.Input("t_edit", default=paper.t_edit, min=0.0, max=1001.0, step=1.0, tooltip=T_EDIT),
                io.Float.Input("t_boost", default=paper.t_boost, min=0.0, max=1000.0, step=1.0,
                               tooltip="From this timestep down new noise improves quality. 0: off, and "
                                       "deterministic."),
                io.Float.Input("omega", default=paper.omega, min=0.0, max=1.0, step=0.01,
                               tooltip="Latent calibration: 0 off; more keeps more of the original's look. Costs a "
                                       "third call on injected steps."),
                io.Combo.Input("mode", options=["asymmetric", "symmetric"],
                               tooltip="asymmetric: only the predicted picture is changed (the paper). symmetric: the "
                                       "whole step, several times weaker."),
                *gamma_inputs(),
                io.Float.Input("dt_lambda", default=paper.dt_lambda, min=0.9, max=1.1, step=0.0005, round=0.0001,
                               tooltip="Factor on the direction to the noisy picture on injected steps at or above "
                                       "dt_end; the released code's example has 0.9985. 1: off. Acts with omega 0."),
                io.Int.Input("replace_steps", default=paper.replace_steps, min=1, max=1000,
                             tooltip="Of more steps than that only this many may be injected, evenly spread; all if "
                                     "there are no more. official script: the points of its grid."),
                io.Boolean.Input("auto_gamma", default=False,
                                 tooltip="Scale gamma by 30 over the number of injected steps, up to 0.6."),
                io.Boolean.Input("shared_encoder", default=False,
                                 tooltip="Run the encoder once, and the decoder on both predictions at once: about a "
                                         "quarter faster, with a decoder's memory for twice the batch. Switch off "
                                         "beside packs that replace the U-Net's forward."),
                io.Float.Input("lead", default=paper.lead, min=0.0, max=1000.0, step=10.0, optional=True,
                               tooltip="Take the content's features from this many timesteps further on, where less "
                                       "noise is in them. 0: as in the paper."),
                io.Float.Input("dt_end", default=paper.dt_end, min=0.0, max=1000.0, step=1.0, optional=True,
                               tooltip="dt_lambda acts down to this timestep."),
            ],
            outputs=[io.Sampler.Output(tooltip="For SamplerCustom, SamplerCustomAdvanced or Record h-Space.")])

    @classmethod
    def execute(cls, trace, preset: str, gamma: str, apply_to: str, norm_mode: str, check: str,
                shared_encoder: bool, **settings) -> io.NodeOutput:
        from ..modules.curve import parse_curve
        from ..modules.host.hspace.sampling import InjectionRequest, injection_sampler
        from ..modules.hspace.steps import with_preset
        if preset == CUSTOM:
            wanted = InjectionSettings(gamma=parse_curve(gamma), **settings)
        else:
            wanted = with_preset(preset, settings)
        if wanted.released:
            norm_mode = NONE        # the script's mask
        return io.NodeOutput(injection_sampler(InjectionRequest(trace, wanted, apply_to, norm_mode, check,
                                                                shared_encoder)))


class FrozenInjectHSpace(io.ComfyNode):
    """The light form: a patch for any sampler."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="FrozenInjectHSpace",
            display_name="Inject h-Space (Style Transfer)",
            category="frozen/h-space",
            description="Injects a trace in every call of the model, under any sampler. Weak: five times (20 steps) to "
                        "twelve times (50 steps) less content than the h-Space Injection Sampler.",
            inputs=[
                io.Model.Input("model", tooltip="SD1.5, SD2 or SDXL."),
                HTrace.Input("trace", tooltip="The content."),
                io.String.Input("gamma", default="0.6", tooltip=GAMMA),
                io.Float.Input("t_edit", default=400.0, min=0.0, max=1001.0, step=1.0, tooltip=T_EDIT),
                *gamma_inputs(),
            ],
            outputs=[io.Model.Output(tooltip="The model with the injection, for any sampler.")])

    @classmethod
    def execute(cls, model, trace, gamma: str, t_edit: float, apply_to: str, norm_mode: str, check: str,
                gamma_skips: float) -> io.NodeOutput:
        from ..modules.curve import parse_curve
        from ..modules.host.hspace.sampling import inject_h_space
        return io.NodeOutput(inject_h_space(model, trace, parse_curve(gamma), t_edit, apply_to, norm_mode, check,
                                            gamma_skips))


class FrozenHSpaceGrid(io.ComfyNode):
    """Every content in every style."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="FrozenHSpaceGrid",
            display_name="h-Space Grid",
            category="frozen/h-space",
            description="Injects each content of a trace into each picture of a batch of latents, with the h-Space "
                        "Injection Sampler, and lays the results out: a row for each content, a column for each style.",
            inputs=[
                io.Noise.Input("noise", tooltip="DisableNoise for inverted latents; RandomNoise for empty ones."),
                io.Guider.Input("guider", tooltip="From BasicGuider or CFGGuider, at cfg 1 for inverted latents."),
                io.Sampler.Input("sampler", tooltip="From h-Space Injection Sampler, with a trace of one or more "
                                                    "contents: that of a batch, or several by Merge h-Traces (batch)."),
                io.Sigmas.Input("sigmas", tooltip="From Invert (DDIM)."),
                io.Latent.Input("latent_image", tooltip="The styles: the noise_latent of Invert (DDIM), of one picture "
                                                        "or a batch."),
                io.Vae.Input("vae", tooltip="Decodes the results."),
                io.Image.Input("content_images", optional=True, tooltip="The contents, shown left of their rows."),
                io.Image.Input("style_images", optional=True, tooltip="The styles, shown above their columns."),
            ],
            outputs=[
                io.Latent.Output(display_name="output", tooltip="All results, row by row."),
                io.Image.Output(display_name="images", tooltip="The same as pictures."),
                io.Image.Output(display_name="sheet", tooltip="All of them in one picture."),
            ],
            is_output_node=True)

    @classmethod
    def execute(cls, noise, guider, sampler, sigmas, latent_image, vae, content_images=None,
                style_images=None) -> io.NodeOutput:
        from ..modules.host.hspace.grid import contents_of, sample_grid
        from ..modules.host.preview import step_callback
        from ..modules.hspace.report import grid_sheet
        steps = len(contents_of(sampler)) * (len(sigmas) - 1)
        samples = sample_grid(noise, guider, sampler, sigmas, latent_image, step_callback(guider.model_patcher, steps))
        images = vae.decode(samples)
        sheet = grid_sheet(images, len(latent_image["samples"]), content_images, style_images)
        return io.NodeOutput({"samples": samples}, images, sheet, ui=ui.PreviewImage(sheet, cls=cls))


class FrozenLatentCalibration(io.ComfyNode):
    """Latent calibration for other edits of a U-Net."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="FrozenLatentCalibration",
            display_name="Latent Calibration Sampler",
            category="frozen/h-space",
            description="Lets the patches of another MODEL (Inject h-Space, FreeU, attention edits) act by moving the "
                        "latent instead of the network: more of the original stays. Three calls on each edited step.",
            inputs=[
                io.Model.Input("edited_model", tooltip="The sampled MODEL with the edits. The guider gets the one "
                                                       "without."),
                io.Float.Input("omega", default=0.3, min=0.0, max=1.0, step=0.01,
                               tooltip="0: as much of the edit as can be; 1: almost none."),
                io.Float.Input("start", default=1000.0, min=0.0, max=1000.0, step=1.0, tooltip="Timestep where it "
                                                                                               "begins."),
                io.Float.Input("end", default=400.0, min=0.0, max=1000.0, step=1.0, tooltip="Timestep where it ends."),
            ],
            outputs=[io.Sampler.Output(tooltip="For SamplerCustom or SamplerCustomAdvanced.")])

    @classmethod
    def execute(cls, edited_model, omega: float, start: float, end: float) -> io.NodeOutput:
        from ..modules.host.hspace.sampling import calibration_sampler
        return io.NodeOutput(calibration_sampler(edited_model, omega, start, end))


NODES = [FrozenHSpaceInjectionSampler, FrozenInjectHSpace, FrozenHSpaceGrid, FrozenLatentCalibration]
