"""Guide models: guidance in one pass."""
from __future__ import annotations

from comfy_api.latest import io

from ..modules.host.guide.apply import CONSTANT, MODES, ONE_PASS, SCHEDULES
from ..modules.host.guide.files import find_guide, guide_text, list_guides, load_guide, save_guide
from ..modules.host.progress import show_text
from ..modules.host.schema_extras import for_newer_pages

GuideModel = io.Custom("FROZEN_GUIDE_MODEL")


class FrozenLoadGuideModel(io.ComfyNode):
    """A guide model from a file."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="FrozenLoadGuideModel",
            display_name="Load Guide Model",
            category="frozen/guidance",
            description="Loads a guide model: a small network with which one pass gives what CFG gives in two.",
            inputs=[io.Combo.Input("guide_file", options=list_guides(),
                                   tooltip="The pack's own guides, and files in models/guide_models.")],
            outputs=[GuideModel.Output(display_name="guide_model", tooltip="For Apply Guide Model."),
                     io.String.Output(display_name="report", tooltip="What was loaded.")],
            hidden=[io.Hidden.unique_id])

    @classmethod
    def fingerprint_inputs(cls, guide_file: str) -> str:
        status = find_guide(guide_file).stat()
        return f"{status.st_mtime_ns} {status.st_size}"

    @classmethod
    def execute(cls, guide_file: str) -> io.NodeOutput:
        loaded = load_guide(find_guide(guide_file))
        return io.NodeOutput(loaded, guide_text(loaded), ui=show_text(guide_text(loaded), cls.hidden.unique_id))


@for_newer_pages("guidance", "cfg", "faster", "speed")
class FrozenApplyGuideModel(io.ComfyNode):
    """A MODEL whose sampler's cfg costs one pass."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="FrozenApplyGuideModel",
            display_name="Apply Guide Model (Faster CFG Guidance)",
            category="frozen/guidance",
            description="One pass a step instead of CFG's two: the sampler's cfg keeps its meaning, a small network "
                        "does the work of the second pass. Works on every fine-tune and LoRA of the guide's base.",
            inputs=[
                io.Model.Input("model", tooltip="SD1.5, SD2 or SDXL; LoRAs, ControlNet and motion modules as usual."),
                GuideModel.Input("guide_model", tooltip="From Load or Train Guide Model, for this family."),
                io.Float.Input("guidance", default=0.0, min=0.0, max=30.0, step=0.1,
                               tooltip="Scale of the guide. 0: the sampler's cfg. Needed where the sampler's cfg does "
                                       "not tell it: BasicGuider, DualCFGGuider, PerpNegGuider, mode hybrid."),
                io.Float.Input("strength", default=1.0, min=0.0, max=2.0, step=0.01,
                               tooltip="Factor on what the guide adds. 0: off. It is no second cfg; leave it at 1."),
                io.Float.Input("start_percent", default=0.0, min=0.0, max=1.0, step=0.001,
                               tooltip="Part of the sampling in which the guide acts. Outside of it there is no "
                                       "guidance."),
                io.Float.Input("end_percent", default=1.0, min=0.0, max=1.0, step=0.001,
                               tooltip="See start_percent."),
                io.Combo.Input("schedule", options=list(SCHEDULES), default=CONSTANT,
                               tooltip="Of the scale over the steps. cosine: falls from cfg to 1 (off) at the end."),
                io.Combo.Input("mode", options=list(MODES), default=ONE_PASS,
                               tooltip="one pass: only a negative-aware guide reads the negative prompt. hybrid: the "
                                       "sampler's cfg is real CFG beside the guide, with the negative prompt, at two "
                                       "passes a step; try cfg 1.5."),
                io.String.Input("scales", default="",
                                tooltip="Scales of the pictures of a batch, one each, e.g. 2, 5, 8, in place of "
                                        "guidance; of a video, of its frames. Empty: the same for all."),
                io.Boolean.Input("extrapolate", default=False,
                                 tooltip="Let cfg go beyond the scales that the guide was trained on."),
                io.Boolean.Input("allow_distilled", default=False,
                                 tooltip="Apply it to a MODEL that is distilled already (LCM and the like), which "
                                         "burns the picture as a rule."),
            ],
            outputs=[io.Model.Output(tooltip="The MODEL with the guide. Use it with any sampler.")])

    @classmethod
    def execute(cls, model, guide_model, guidance: float, strength: float, start_percent: float, end_percent: float,
                schedule: str, mode: str, scales: str, extrapolate: bool, allow_distilled: bool) -> io.NodeOutput:
        from ..modules.host.guide.apply import GuideSettings, apply_guide, scales_of
        settings = GuideSettings(guidance, strength, (start_percent, end_percent), schedule, mode, extrapolate,
                                 scales_of(scales))
        return io.NodeOutput(apply_guide(model, guide_model, settings, allow_distilled))


class FrozenSaveGuideModel(io.ComfyNode):
    """A guide model into a file."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="FrozenSaveGuideModel",
            display_name="Save Guide Model",
            category="frozen/guidance",
            description="Writes a guide model into the output folder. Put the file in models/guide_models; Load Guide "
                        "Model lists it.",
            inputs=[
                GuideModel.Input("guide_model", tooltip="From Train Guide Model."),
                io.String.Input("filename_prefix", default="guide_models/guide",
                                tooltip="Folder and name below the output folder; a number is added."),
            ],
            outputs=[io.String.Output(display_name="path", tooltip="Where it was written.")],
            hidden=[io.Hidden.unique_id], is_output_node=True)

    @classmethod
    def execute(cls, guide_model, filename_prefix: str) -> io.NodeOutput:
        path = str(save_guide(guide_model, filename_prefix))
        return io.NodeOutput(path, ui=show_text(f"saved: {path}", cls.hidden.unique_id))


class FrozenGuideReport(io.ComfyNode):
    """A sampling run with a report of what the guide did and saved."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="FrozenGuideReport",
            display_name="Guide Report",
            category="frozen/guidance",
            description="Samples like SamplerCustomAdvanced and tells what the guide did: time of a step beside real "
                        "CFG, how much it added, and what it warns of.",
            inputs=[
                io.Noise.Input("noise", tooltip="From RandomNoise."),
                io.Guider.Input("guider", tooltip="CFGGuider on a MODEL with a guide."),
                io.Sampler.Input("sampler", tooltip="Any sampler."),
                io.Sigmas.Input("sigmas", tooltip="From BasicScheduler or Stage-2 Sigmas."),
                io.Latent.Input("latent_image", tooltip="What is sampled, e.g. an empty latent."),
            ],
            outputs=[
                io.Latent.Output(display_name="output", tooltip="The sampled latents."),
                io.String.Output(display_name="report", tooltip="Time of a step beside real CFG's, and warnings."),
                io.Image.Output(display_name="plot", tooltip="How much the guide added at every step."),
            ],
            hidden=[io.Hidden.unique_id])

    @classmethod
    def execute(cls, noise, guider, sampler, sigmas, latent_image) -> io.NodeOutput:
        from ..modules.guide.report import residual_plot
        from ..modules.host.guide.report import guided_run
        from ..modules.host.preview import step_callback
        run = guided_run(noise, guider, sampler, sigmas, latent_image,
                         step_callback(guider.model_patcher, len(sigmas) - 1))
        return io.NodeOutput({**latent_image, "samples": run.samples}, run.text(), residual_plot(run.report.rows),
                             ui=show_text(run.text(), cls.hidden.unique_id))


class FrozenStage2Sigmas(io.ComfyNode):
    """The noise levels that a guide of stage 2 is for."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="FrozenStage2Sigmas",
            display_name="Stage-2 Sigmas",
            category="frozen/guidance",
            description="The noise levels of a guide that was taught to take few steps. Use them with sampler euler.",
            inputs=[GuideModel.Input("guide_model", tooltip="A guide of stage 2.")],
            outputs=[io.Sigmas.Output(display_name="sigmas", tooltip="For SamplerCustomAdvanced or Guide Report.")])

    @classmethod
    def execute(cls, guide_model) -> io.NodeOutput:
        import torch
        if not guide_model.config.sigmas:
            raise ValueError(f"{guide_model.source} is a guide of stage 1, for any sampler and number of steps. Use "
                             "BasicScheduler for it.")
        return io.NodeOutput(torch.tensor(guide_model.config.sigmas))


NODES = [FrozenLoadGuideModel, FrozenApplyGuideModel, FrozenSaveGuideModel, FrozenGuideReport, FrozenStage2Sigmas]
