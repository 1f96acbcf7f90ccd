"""Motion LoRAs: loading, applying, saving, converting, and looking at a clip before learning from it."""
from __future__ import annotations

from comfy_api.latest import io, ui

from ..modules.customize.files import LAYOUTS
from ..modules.host.customize.files import find_lora, list_loras, list_motion_loras
from ..modules.host.progress import show_text
from ..modules.host.schema_extras import for_newer_pages
from ..modules.motion.motion_lora import FADE_AFTER
from .motion import MotionModuleType

MotionLoRAType = io.Custom("FROZEN_MOTION_LORA")
AbsorberType = io.Custom("FROZEN_ABSORBER")
NONE = "none"


def strength_inputs() -> list:
    """How strong a motion LoRA is, and when and where."""
    return [
        io.Float.Input("strength", default=1.0, min=-10.0, max=10.0, step=0.05,
                       tooltip="1: as learned. 0: off, bit for bit. Below 0 the motion is inverted, as far as it can "
                               "be. Of several start at 0.8 each."),
        io.Float.Input("fade_after", default=FADE_AFTER, min=0.0, max=1.0, step=0.01,
                       tooltip="Part of the sampling after which the LoRA is off: by half of it the motion is "
                               "decided, and the look of the clip that it was learned from stays away. 1: on to the "
                               "end."),
        io.String.Input("curve", default="", optional=True,
                        tooltip="In place of fade_after: strength over the sampling, e.g. 0: 1, 0.4: 1, 0.7: 0."),
        io.String.Input("blocks", default="", optional=True,
                        tooltip="Strength of parts of the U-Net, e.g. down 1, mid 0, up 0.5, or by level: up.3 0.5. "
                                "Empty: all 1."),
    ]


@for_newer_pages("motion lora", "camera", "pan", "zoom")
class FrozenLoadMotionLoRA(io.ComfyNode):
    """A motion module with a motion LoRA of a file on it."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="FrozenLoadMotionLoRA",
            display_name="Load Motion LoRA (Camera Moves)",
            category="frozen/customize",
            description="Puts a motion LoRA on a motion module: AnimateDiff's camera LoRAs, those of MotionDirector "
                        "nodes and of diffusers, and those trained with this pack. Several of them in a row add up.",
            inputs=[
                MotionModuleType.Input("motion_module", tooltip="From Load Motion Module, or with a LoRA on it."),
                io.Combo.Input("lora_file", options=list_motion_loras(),
                               tooltip="A file in models/animatediff_motion_lora, or one that comes with this pack."),
                *strength_inputs(),
            ],
            outputs=[MotionModuleType.Output(display_name="motion_module", tooltip="For Apply Motion Module."),
                     io.String.Output(display_name="report", tooltip="What was applied, and warnings.")],
            hidden=[io.Hidden.unique_id])

    @classmethod
    def fingerprint_inputs(cls, lora_file: str, **_) -> str:
        status = find_lora(lora_file).stat()
        return f"{status.st_mtime_ns} {status.st_size}"

    @classmethod
    def execute(cls, motion_module, lora_file: str, strength: float, fade_after: float, curve: str = "",
                blocks: str = "") -> io.NodeOutput:
        from ..modules.host.customize.files import load_lora, load_report, motion_lora_of, with_motion_lora
        file = load_lora(find_lora(lora_file))
        made, told = with_motion_lora(motion_module, motion_lora_of(file), strength, fade_after, curve, blocks)
        text = f"{load_report(file)}\n{told}"
        return io.NodeOutput(made, text, ui=show_text(text, cls.hidden.unique_id))


class FrozenApplyMotionLoRA(io.ComfyNode):
    """A motion module with a motion LoRA that was trained in this graph."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="FrozenApplyMotionLoRA",
            display_name="Apply Motion LoRA",
            category="frozen/customize",
            description="Puts a motion LoRA from Train Motion LoRA on a motion module, without a file.",
            inputs=[MotionModuleType.Input("motion_module", tooltip="The one that it was trained on."),
                    MotionLoRAType.Input("motion_lora", tooltip="From Train Motion LoRA."), *strength_inputs()],
            outputs=[MotionModuleType.Output(display_name="motion_module", tooltip="For Apply Motion Module."),
                     io.String.Output(display_name="report", tooltip="What was applied, and warnings.")],
            hidden=[io.Hidden.unique_id])

    @classmethod
    def execute(cls, motion_module, motion_lora, strength: float, fade_after: float, curve: str = "",
                blocks: str = "") -> io.NodeOutput:
        from ..modules.host.customize.files import with_motion_lora
        made, told = with_motion_lora(motion_module, motion_lora, strength, fade_after, curve, blocks)
        return io.NodeOutput(made, told, ui=show_text(told, cls.hidden.unique_id))


class FrozenSaveMotionLoRA(io.ComfyNode):
    """A motion LoRA into a file."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="FrozenSaveMotionLoRA",
            display_name="Save Motion LoRA",
            category="frozen/customize",
            description="Writes a motion LoRA into the output folder. Put the file in models/animatediff_motion_lora; "
                        "Load Motion LoRA and AnimateDiff-Evolved list it.",
            inputs=[MotionLoRAType.Input("motion_lora", tooltip="From Train Motion LoRA."),
                    io.String.Input("filename_prefix", default="motion_loras/motion",
                                    tooltip="Folder and name below the output folder; a number is added.")],
            outputs=[io.String.Output(display_name="path", tooltip="Where it was written.")],
            hidden=[io.Hidden.unique_id], is_output_node=True)

    @classmethod
    def execute(cls, motion_lora, filename_prefix: str) -> io.NodeOutput:
        from ..modules.host.customize.files import save_motion_lora
        path = str(save_motion_lora(motion_lora, filename_prefix))
        return io.NodeOutput(path, ui=show_text(f"saved: {path}", cls.hidden.unique_id))


class FrozenSaveAbsorber(io.ComfyNode):
    """An appearance absorber into files."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="FrozenSaveAbsorber",
            display_name="Save Appearance Absorber",
            category="frozen/customize",
            description="Writes what an absorber has learned: its S-LoRA as a LoRA file for Load LoRA, its textual "
                        "inversion as an embedding.",
            inputs=[AbsorberType.Input("absorber", tooltip="From Train Appearance Absorber."),
                    io.String.Input("filename_prefix", default="absorbers/look",
                                    tooltip="Folder and name below the output folder; a number is added.")],
            outputs=[io.String.Output(display_name="paths", tooltip="Where they were written.")],
            hidden=[io.Hidden.unique_id], is_output_node=True)

    @classmethod
    def execute(cls, absorber, filename_prefix: str) -> io.NodeOutput:
        from ..modules.customize.absorber import joined
        from ..modules.host.customize.files import save_absorber
        paths = "\n".join(str(path) for each in joined(absorber) for path in save_absorber(each, filename_prefix))
        return io.NodeOutput(paths, ui=show_text(f"saved: {paths}", cls.hidden.unique_id))


class FrozenJoinAbsorbers(io.ComfyNode):
    """Absorbers of several clips, in their order."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="FrozenJoinAbsorbers",
            display_name="Join Absorbers",
            category="frozen/customize",
            description="Puts an absorber for each of several clips of one motion together: while Train Motion LoRA "
                        "learns from a clip, that clip's own absorber is at work. Chain it for more than two.",
            inputs=[AbsorberType.Input("first", tooltip="Of the first clip, or of the first ones (joined)."),
                    AbsorberType.Input("second", tooltip="Of the next clip, or of the next ones.")],
            outputs=[AbsorberType.Output(display_name="absorber", tooltip="For Train Motion LoRA, with the dataset of "
                                                                          "all clips.")])

    @classmethod
    def execute(cls, first, second) -> io.NodeOutput:
        from ..modules.customize.absorber import joined
        return io.NodeOutput(joined(first, second))


class FrozenConvertLoRA(io.ComfyNode):
    """A LoRA file in another layout, of another rank or strength, split, or added to another."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="FrozenConvertLoRA",
            display_name="Convert LoRA",
            category="frozen/customize",
            description="Reads a LoRA of any layout and writes it in another one: for AnimateDiff, for diffusers, or "
                        "as the host's Load LoRA wants it. It can shrink it, scale it, add another, and take one part "
                        "of a mixed file.",
            inputs=[
                io.Combo.Input("lora_file", options=list_loras(), tooltip="A motion LoRA or an ordinary one."),
                io.Combo.Input("add", options=[NONE, *list_loras()], default=NONE,
                               tooltip="A second LoRA, whose change is added."),
                io.Float.Input("scale", default=1.0, min=-10.0, max=10.0, step=0.05,
                               tooltip="Factor on the change of the first."),
                io.Float.Input("add_scale", default=1.0, min=-10.0, max=10.0, step=0.05,
                               tooltip="Factor on the change of the second; -1 subtracts it."),
                io.Int.Input("rank", default=0, min=0, max=1024,
                             tooltip="0: as it is. Else the nearest LoRA of this rank: smaller files. The report says "
                                     "how much of the change is kept."),
                io.Combo.Input("layout", options=list(LAYOUTS), default=LAYOUTS[0],
                               tooltip="AnimateDiff and diffusers: the motion's part. kohya: the image model's part, "
                                       "for Load LoRA."),
                io.String.Input("filename_prefix", default="motion_loras/converted",
                                tooltip="Folder and name below the output folder; a number is added."),
            ],
            outputs=[io.String.Output(display_name="path", tooltip="Where it was written."),
                     io.String.Output(display_name="report", tooltip="What was read and what was kept.")],
            hidden=[io.Hidden.unique_id], is_output_node=True)

    @classmethod
    def execute(cls, lora_file: str, add: str, scale: float, add_scale: float, rank: int, layout: str,
                filename_prefix: str) -> io.NodeOutput:
        from ..modules.host.customize.convert import convert
        files = [find_lora(name) for name in (lora_file, add) if name != NONE]
        path, report = convert(files, (scale, add_scale), rank, layout, filename_prefix)
        return io.NodeOutput(str(path), report, ui=show_text(report, cls.hidden.unique_id))


class FrozenReferenceNoise(io.ComfyNode):
    """First noise that remembers a clip."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="FrozenReferenceNoise",
            display_name="Reference Noise",
            category="frozen/customize",
            description="The first noise of a clip for SamplerCustomAdvanced: an inverted clip, fresh noise, or both. "
                        "The more of the inverted clip, the closer the layout stays to it.",
            inputs=[
                io.Model.Input("model", tooltip="The one that was inverted with and that samples, motion module "
                                                "applied."),
                io.Latent.Input("noise_latent", tooltip="From Invert (DDIM) at depth 1, best with an empty prompt and "
                                                        "without motion LoRA."),
                io.Float.Input("share", default=1.0, min=0.0, max=1.0, step=0.01,
                               tooltip="1: the inverted clip alone, for precise edits. 0: fresh noise. 0.1 to 0.5: "
                                       "the clip's motion with a layout of its own."),
                io.Int.Input("noise_seed", default=0, min=0, max=0xFFFFFFFFFFFFFFFF, control_after_generate=True,
                             tooltip="Of the fresh noise."),
            ],
            outputs=[io.Noise.Output(tooltip="For SamplerCustomAdvanced, with an empty latent of as many frames.")])

    @classmethod
    def execute(cls, model, noise_latent, share: float, noise_seed: int) -> io.NodeOutput:
        from ..modules.host.customize.reference_noise import reference_noise
        return io.NodeOutput(reference_noise(model, noise_latent["samples"], share, noise_seed))


class FrozenClipDoctor(io.ComfyNode):
    """What is wrong with a clip, and which part of it to learn from."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="FrozenClipDoctor",
            display_name="Clip Doctor",
            category="frozen/customize",
            description="Looks through a clip before a motion is learned from it: cuts, doubled frames, stills, and "
                        "the seconds with most motion.",
            inputs=[
                io.Image.Input("frames", tooltip="The clip: a batch of images, first frame first."),
                io.Float.Input("fps", default=8.0, min=0.1, max=240.0, step=0.1, tooltip="Frames per second."),
                io.Float.Input("seconds", default=2.0, min=0.1, max=60.0, step=0.1,
                               tooltip="Length of the part to find."),
            ],
            outputs=[
                io.Image.Output(display_name="frames", tooltip="The part with most motion and no cut in it."),
                io.String.Output(display_name="report", tooltip="What was found."),
                io.Image.Output(display_name="picture", tooltip="Motion over the clip, with the part marked."),
            ],
            hidden=[io.Hidden.unique_id], is_output_node=True)

    @classmethod
    def execute(cls, frames, fps: float, seconds: float) -> io.NodeOutput:
        from ..modules.customize.clip_doctor import diagnose, diagnosis_plot
        found = diagnose(frames[..., :3], fps, seconds)
        picture = diagnosis_plot(found)
        shown = {**ui.PreviewImage(picture, cls=cls).as_dict(),
                 **show_text(found.text(), cls.hidden.unique_id).as_dict()}
        return io.NodeOutput(frames[found.start:found.end], found.text(), picture, ui=shown)


NODES = [FrozenLoadMotionLoRA, FrozenApplyMotionLoRA, FrozenSaveMotionLoRA, FrozenSaveAbsorber, FrozenJoinAbsorbers,
         FrozenConvertLoRA, FrozenReferenceNoise, FrozenClipDoctor]
