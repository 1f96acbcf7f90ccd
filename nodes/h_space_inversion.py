"""h-space: from pictures to noise and to traces, by inversion or by recording a run, and what to inject when."""
from __future__ import annotations

from comfy_api.latest import io

from ..modules.host.hspace.t_edit import DISTANCES
from ..modules.hspace.trace import PRECISIONS
from .h_traces import HTrace

DEEP = ("Record the skips into this many decoder blocks too, from the deepest, for gamma_skips. 3: those beside h; 9 "
        "(of SDXL 6): all but those of full size, which hold the noise itself. 0: h alone, as in the paper.")
PRECISION = "Of the recorded features. fp16: half of the memory, rounded to 2e-4 of a number. fp32: as they are."


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
                             tooltip="Points of the schedule, both ways. 100 for photographs. Unread if sigmas are "
                                     "connected."),
                io.Int.Input("refinements", default=0, min=0, max=10,
                             tooltip="Repetitions of each step that bring the way back closer; each step keeps the "
                                     "best of them. Each costs as much as the inversion. 0: plain DDIM inversion."),
                io.Int.Input("deep_skips", default=0, min=0, max=12, tooltip=DEEP),
                io.Boolean.Input("check", default=True,
                                 tooltip="Go the way back and show how well it meets the picture. Doubles the time."),
                io.Vae.Input("vae", optional=True, tooltip="For the figure on the picture besides that on the "
                                                           "latents."),
                io.Sigmas.Input("sigmas", optional=True,
                                tooltip="Invert over these noise levels, rising or falling, instead of steps: those of "
                                        "BasicScheduler, say. With 0 at their end the latent is a picture; without, it "
                                        "is taken to be at their lowest level already."),
                io.Float.Input("depth", default=1.0, min=0.01, max=1.0, step=0.01, optional=True,
                               tooltip="How far into the noise, as a share of the timesteps; 1: all the way. Less "
                                       "keeps more of the picture; the sigmas output then begins there."),
                io.Combo.Input("trace_precision", options=list(PRECISIONS), optional=True, tooltip=PRECISION),
            ],
            outputs=[
                io.Latent.Output(display_name="noise_latent",
                                 tooltip="For a sampler with add_noise off (or Disable Noise)."),
                HTrace.Output(display_name="trace", tooltip="What is injected elsewhere as content."),
                io.Sigmas.Output(display_name="sigmas", tooltip="The same levels downwards, for the sampler."),
                io.Latent.Output(display_name="reconstruction", tooltip="What the way back gives; the picture if check "
                                                                        "is off."),
                io.String.Output(display_name="report", tooltip="Reconstruction in dB; 30 and more is good."),
            ],
            hidden=[io.Hidden.unique_id])

    @classmethod
    def execute(cls, model, positive, latent, steps: int, refinements: int, deep_skips: int, check: bool, vae=None,
                sigmas=None, depth: float = 1.0, trace_precision: str = "fp16") -> io.NodeOutput:
        from ..modules.host.hspace.inversion import invert, report_text
        from ..modules.host.preview import step_callback
        from ..modules.host.progress import show_text
        from ..modules.host.vae import vae_pixels
        samples = latent["samples"]
        found = invert(model, positive, samples, steps, deep_skips, refinements, check, step_callback(model, steps),
                       depth, sigmas, PRECISIONS[trace_precision])
        again = samples if found.again is None else found.again
        pictures = (vae_pixels(vae, samples), vae_pixels(vae, again)) if vae is not None and check else None
        text = report_text(found, samples, pictures)
        return io.NodeOutput({"samples": found.noise}, found.trace, found.sigmas, {"samples": again}, text,
                             ui=show_text(text, cls.hidden.unique_id))


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
                io.Combo.Input("trace_precision", options=list(PRECISIONS), optional=True, tooltip=PRECISION),
            ],
            outputs=[
                io.Latent.Output(display_name="output", tooltip="The sampled latents."),
                HTrace.Output(display_name="trace", tooltip="What is injected elsewhere as content."),
                io.Image.Output(display_name="plot", tooltip="Angle to the content, |h| / |skip| and dose of every "
                                                             "step of an injection."),
            ])

    @classmethod
    def execute(cls, noise, guider, sampler, sigmas, latent_image, deep_skips: int,
                trace_precision: str = "fp16") -> io.NodeOutput:
        from ..modules.host.hspace.inversion import record_run
        from ..modules.host.preview import step_callback
        from ..modules.hspace.report import injection_plot
        samples, trace, report = record_run(noise, guider, sampler, sigmas, latent_image, deep_skips,
                                            step_callback(guider.model_patcher, len(sigmas) - 1),
                                            PRECISIONS[trace_precision])
        return io.NodeOutput({**latent_image, "samples": samples}, trace, injection_plot(report.rows))


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
                io.String.Output(display_name="report", tooltip="Both in words."),
            ],
            hidden=[io.Hidden.unique_id])

    @classmethod
    def execute(cls, model, positive, vae, latent, steps: int, distance: str) -> io.NodeOutput:
        from ..modules.host.hspace.t_edit import calibrate
        from ..modules.host.progress import show_text
        from ..modules.hspace.report import timestep_plot
        found = calibrate(model, positive, vae, latent["samples"], steps, distance)
        text = f"t_edit {found.t_edit:.0f}, t_boost {found.t_boost:.0f}"
        return io.NodeOutput(found.t_edit, found.t_boost, timestep_plot(found), text,
                             ui=show_text(text, cls.hidden.unique_id))


NODES = [FrozenInvertDDIM, FrozenRecordHSpace, FrozenCalibrateTimesteps]
