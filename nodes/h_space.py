"""h-space: inversion, traces and content injection without training."""
from __future__ import annotations

from comfy_api.latest import io, ui

from ..modules.host.h_space import APPLY_TO, CHECKS, NORM_MODES
from ..modules.host.t_edit import DISTANCES
from ..modules.hspace.steps import PRESETS, InjectionSettings

HTrace = io.Custom("FROZEN_H_TRACE")
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
DEEP = ("Record the skips into so many decoder blocks too, from the deepest, for gamma_skips. 3: those beside h; 9 (of "
        "SDXL 6): all but those of full size, which hold the noise itself. 0: h alone, as in the paper.")


def gamma_inputs() -> list:
    """The inputs that every way of injecting shares, after gamma."""
    return [io.Combo.Input("apply_to", options=list(APPLY_TO), tooltip=APPLY),
            io.Combo.Input("norm_mode", options=list(NORM_MODES), tooltip=NORM),
            io.Combo.Input("check", options=list(CHECKS), tooltip=CHECK),
            io.Float.Input("gamma_skips", default=0.0, min=0.0, max=1.0, step=0.01, tooltip=SKIPS)]


def told_of_gamma(gamma: str | None) -> bool | str:
    """True, or what is wrong with a gamma that was typed in; None comes from another node. Before anything runs."""
    from ..modules.hspace.curve import parse_curve
    try:
        return gamma is None or bool(parse_curve(gamma))
    except ValueError as error:
        return str(error)


class FrozenInvertDDIM(io.ComfyNode):
    """From a picture to the noise that gives it back, with a trace of h-space."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="FrozenInvertDDIM",
            display_name="Invert (DDIM)",
            category="frozen/h-space",
            description="Finds the noise from which the model makes this picture again, and records the bottleneck "
                        "features on the way. Works without cfg.",
            inputs=[
                io.Model.Input("model", tooltip="SD1.5, SD2 or SDXL, with LoRAs or a motion module or not."),
                io.Conditioning.Input("positive", tooltip="A prompt that describes the picture, or an empty one. Use "
                                                          "the same one, at cfg 1, to get the picture back."),
                io.Latent.Input("latent", tooltip="The picture, from VAE Encode; or a batch or clip of them."),
                io.Int.Input("steps", default=50, min=2, max=1000,
                             tooltip="Points of the schedule, both ways. 100 for photographs."),
                io.Int.Input("refinements", default=0, min=0, max=10,
                             tooltip="Repetitions of each step that bring the way back closer; each costs as much as "
                                     "the inversion. 0: plain DDIM inversion."),
                io.Int.Input("deep_skips", default=0, min=0, max=12, tooltip=DEEP),
                io.Boolean.Input("check", default=True,
                                 tooltip="Go the way back and show how well it meets the picture. Doubles the time."),
                io.Vae.Input("vae", optional=True, tooltip="For the figure on the picture besides that on the "
                                                           "latents."),
            ],
            outputs=[
                io.Latent.Output(display_name="noise_latent",
                                 tooltip="For a sampler with add_noise off (or Disable Noise)."),
                HTrace.Output(display_name="trace", tooltip="What is injected elsewhere as content."),
                io.Sigmas.Output(display_name="sigmas", tooltip="The same steps downwards, for the sampler."),
                io.Latent.Output(display_name="reconstruction", tooltip="What the way back gives; the picture if check "
                                                                        "is off."),
                io.String.Output(display_name="report", tooltip="Reconstruction in dB; 30 and more is good."),
            ])

    @classmethod
    def execute(cls, model, positive, latent, steps: int, refinements: int, deep_skips: int, check: bool,
                vae=None) -> io.NodeOutput:
        from ..modules.host.inversion import invert, report_text
        from ..modules.host.preview import step_callback
        from ..modules.host.t_edit import vae_pixels
        samples = latent["samples"]
        found = invert(model, positive, samples, steps, deep_skips, refinements, check, step_callback(model, steps))
        again = samples if found.again is None else found.again
        pictures = (vae_pixels(vae, samples), vae_pixels(vae, again)) if vae is not None and check else None
        text = report_text(found, samples, pictures)
        return io.NodeOutput({"samples": found.noise}, found.trace, found.sigmas, {"samples": again}, text,
                             ui=ui.PreviewText(text))


class FrozenRecordHSpace(io.ComfyNode):
    """A sampling run that is recorded."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="FrozenRecordHSpace",
            display_name="Record h-Space",
            category="frozen/h-space",
            description="Samples like SamplerCustomAdvanced and records the bottleneck features of every step: content "
                        "that comes from a prompt, without inversion. With the h-Space Injection Sampler it also plots "
                        "what the injection did.",
            inputs=[
                io.Noise.Input("noise", tooltip="From RandomNoise or DisableNoise."),
                io.Guider.Input("guider", tooltip="From BasicGuider or CFGGuider."),
                io.Sampler.Input("sampler", tooltip="Any sampler; deterministic ones give the cleanest traces."),
                io.Sigmas.Input("sigmas", tooltip="From BasicScheduler or Invert (DDIM)."),
                io.Latent.Input("latent_image", tooltip="An empty latent, or the noise_latent of Invert (DDIM)."),
                io.Int.Input("deep_skips", default=0, min=0, max=12, tooltip=DEEP),
            ],
            outputs=[
                io.Latent.Output(display_name="output", tooltip="The sampled latents."),
                HTrace.Output(display_name="trace", tooltip="What is injected elsewhere as content."),
                io.Image.Output(display_name="plot", tooltip="Angle to the content, |h| / |skip| and dose of every "
                                                             "step of an injection."),
            ])

    @classmethod
    def execute(cls, noise, guider, sampler, sigmas, latent_image, deep_skips: int) -> io.NodeOutput:
        from ..modules.host.inversion import record_run
        from ..modules.host.preview import step_callback
        from ..modules.hspace.report import injection_plot
        samples, trace, report = record_run(noise, guider, sampler, sigmas, latent_image, deep_skips,
                                            step_callback(guider.model_patcher, len(sigmas) - 1))
        return io.NodeOutput({**latent_image, "samples": samples}, trace, injection_plot(report.rows))


class FrozenHSpaceInjectionSampler(io.ComfyNode):
    """A sampler that takes the content of a trace into the picture it makes."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        paper = InjectionSettings()
        return io.Schema(
            node_id="FrozenHSpaceInjectionSampler",
            display_name="h-Space Injection Sampler",
            category="frozen/h-space",
            description="InjectFusion: the picture keeps its colours, background and manner and takes shape and pose "
                        "from the trace. For SamplerCustom or SamplerCustomAdvanced at cfg 1.",
            inputs=[
                HTrace.Input("trace", tooltip="The content, from Invert (DDIM), Record h-Space or Load h-Trace."),
                io.Combo.Input("preset", options=[CUSTOM, *PRESETS],
                               tooltip="custom: the values below. Others set gamma, t_edit, t_boost, omega and leave "
                                       "those below unread. paper 0.3, 400, 200, 0.3; official script: omega 0; "
                                       "painting: gamma 0.4, t_boost 0, omega 0; face part: omega 0, with a mask."),
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
                               tooltip="Factor on the direction to the noisy picture at t >= 950; the released code's "
                                       "example has 0.9985. 1: off."),
                io.Int.Input("replace_steps", default=paper.replace_steps, min=1, max=1000,
                             tooltip="At most so many steps of a whole schedule are injected."),
                io.Boolean.Input("auto_gamma", default=False,
                                 tooltip="Scale gamma by 30 over the number of injected steps, up to 0.6."),
                io.Boolean.Input("shared_encoder", default=False,
                                 tooltip="Run the encoder once, and the decoder on both predictions at once: about a "
                                         "quarter faster, with a decoder's memory for twice the batch. Switch off "
                                         "beside packs that replace the U-Net's forward."),
                io.Float.Input("lead", default=paper.lead, min=0.0, max=1000.0, step=10.0, optional=True,
                               tooltip="Take the content's features from so many timesteps further on, where less "
                                       "noise is in them. 0: as in the paper."),
            ],
            outputs=[io.Sampler.Output(tooltip="For SamplerCustom, SamplerCustomAdvanced or Record h-Space.")])

    @classmethod
    def validate_inputs(cls, gamma: str | None = None) -> bool | str:
        return told_of_gamma(gamma)

    @classmethod
    def execute(cls, trace, preset: str, gamma: str, apply_to: str, norm_mode: str, check: str,
                shared_encoder: bool, **settings) -> io.NodeOutput:
        from ..modules.host.h_space_sampling import InjectionRequest, injection_sampler
        from ..modules.hspace.curve import parse_curve
        if preset == CUSTOM:
            wanted = InjectionSettings(gamma=parse_curve(gamma), **settings)
        else:
            known = PRESETS[preset]
            wanted = InjectionSettings(**{**settings, "gamma": known.gamma, "t_edit": known.t_edit,
                                          "t_boost": known.t_boost, "omega": known.omega})
        return io.NodeOutput(injection_sampler(InjectionRequest(trace, wanted, apply_to, norm_mode, check,
                                                                shared_encoder)))


class FrozenInjectHSpace(io.ComfyNode):
    """The light form: a patch for any sampler."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="FrozenInjectHSpace",
            display_name="Inject h-Space",
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
    def validate_inputs(cls, gamma: str | None = None) -> bool | str:
        return told_of_gamma(gamma)

    @classmethod
    def execute(cls, model, trace, gamma: str, t_edit: float, apply_to: str, norm_mode: str, check: str,
                gamma_skips: float) -> io.NodeOutput:
        from ..modules.host.h_space_sampling import inject_h_space
        from ..modules.hspace.curve import parse_curve
        return io.NodeOutput(inject_h_space(model, trace, parse_curve(gamma), t_edit, apply_to, norm_mode, check,
                                            gamma_skips))


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
            description="Several contents at once: their mean on the sphere, or one beside the other, each in its "
                        "mask. Chain the node for more.",
            inputs=[
                HTrace.Input("trace_a", tooltip="One content."),
                HTrace.Input("trace_b", tooltip="The other."),
                io.Combo.Input("mode", options=["mean", "beside"],
                               tooltip="mean: between the two. beside: both act, each in its mask; where both do, b "
                                       "last."),
                io.Float.Input("weight", default=0.5, min=0.0, max=1.0, step=0.01, tooltip="mean: the share of "
                                                                                           "trace_b."),
            ],
            outputs=[HTrace.Output(display_name="trace", tooltip="Both.")])

    @classmethod
    def execute(cls, trace_a, trace_b, mode: str, weight: float) -> io.NodeOutput:
        from ..modules.hspace.trace import beside, merge_mean
        both = (trace_a, trace_b)
        return io.NodeOutput(merge_mean(both, (1 - weight, weight)) if mode == "mean" else beside(*both))


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
            is_output_node=True)

    @classmethod
    def execute(cls, trace, filename_prefix: str) -> io.NodeOutput:
        from ..modules.host.safetensors_files import save_tensors
        from ..modules.hspace.trace import trace_tensors
        path = save_tensors("h-trace", *trace_tensors(trace), filename_prefix)
        return io.NodeOutput(str(path), ui=ui.PreviewText(f"{path}\n{trace.describe()}"))


class FrozenLoadHTrace(io.ComfyNode):
    """A trace from a file."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="FrozenLoadHTrace",
            display_name="Load h-Trace",
            category="frozen/h-space",
            description="Reads a trace that Save h-Trace wrote.",
            inputs=[io.String.Input("file", default="h_traces/trace_00001_.safetensors",
                                    tooltip="A path inside the output or input folder, or an absolute one.")],
            outputs=[HTrace.Output(display_name="trace", tooltip="For the samplers; refused on another model.")])

    @classmethod
    def fingerprint_inputs(cls, file: str) -> str:
        from ..modules.host.safetensors_files import state_of
        return state_of(file)

    @classmethod
    def execute(cls, file: str) -> io.NodeOutput:
        from ..modules.host.safetensors_files import find_file
        from ..modules.hspace.trace import read_trace
        return io.NodeOutput(read_trace(find_file(file)))


class FrozenCalibrateTimesteps(io.ComfyNode):
    """t_edit and t_boost for a checkpoint."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="FrozenCalibrateTimesteps",
            display_name="Calibrate t_edit",
            category="frozen/h-space",
            description="Inverts some pictures and finds from which timestep on the model still decides content. "
                        "Asyrp's criterion with a distance that needs nothing, or LPIPS if it is installed.",
            inputs=[
                io.Model.Input("model", tooltip="The checkpoint to calibrate."),
                io.Conditioning.Input("positive", tooltip="An empty prompt, or one that fits all pictures."),
                io.Vae.Input("vae", tooltip="The checkpoint's."),
                io.Latent.Input("latent", tooltip="Some pictures of what you work on, from VAE Encode. More give a "
                                                  "steadier answer; the papers took 100."),
                io.Int.Input("steps", default=50, min=2, max=1000, tooltip="Of the inversion."),
                io.Combo.Input("distance", options=list(DISTANCES),
                               tooltip="ssim: shares of the largest distance, ours. lpips: Asyrp's thresholds."),
            ],
            outputs=[
                io.Float.Output(display_name="t_edit", tooltip="For the h-Space Injection Sampler."),
                io.Float.Output(display_name="t_boost", tooltip="For the h-Space Injection Sampler."),
                io.Image.Output(display_name="plot", tooltip="The distances over timesteps."),
            ])

    @classmethod
    def execute(cls, model, positive, vae, latent, steps: int, distance: str) -> io.NodeOutput:
        from ..modules.host.t_edit import calibrate
        from ..modules.hspace.report import timestep_plot
        found = calibrate(model, positive, vae, latent["samples"], steps, distance)
        return io.NodeOutput(found.t_edit, found.t_boost, timestep_plot(found),
                             ui=ui.PreviewText(f"t_edit {found.t_edit:.0f}, t_boost {found.t_boost:.0f}"))


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
        from ..modules.host.h_space_sampling import calibration_sampler
        return io.NodeOutput(calibration_sampler(edited_model, omega, start, end))


NODES = [FrozenInvertDDIM, FrozenRecordHSpace, FrozenHSpaceInjectionSampler, FrozenInjectHSpace, FrozenMaskHSpace,
         FrozenMergeHSpace, FrozenSaveHTrace, FrozenLoadHTrace, FrozenCalibrateTimesteps, FrozenLatentCalibration]
