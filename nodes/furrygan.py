"""FurryGAN: pictures that come already cut out, with a soft alpha."""
from __future__ import annotations

from comfy_api.latest import io

from ..modules.furrygan.directions import ALL, PARTS
from ..modules.furrygan.sampling import ROWS
from ..modules.host.schema_extras import for_newer_pages

FurryGAN = io.Custom("FROZEN_FURRYGAN")
Styles = io.Custom("FROZEN_FURRY_STYLES")
SEEDS = {"min": 0, "max": 2**63 - 1, "control_after_generate": True}
OWN = -1            # background seed: the background that belongs to the foreground
MASK_TIP = ("1 = foreground, as Image Composite Masked wants it. Join Image with Alpha wants the opposite: put Invert "
            "Mask between, or take rgba.")


def layer_outputs() -> list:
    """What every node that draws layers gives."""
    return [
        io.Image.Output(display_name="foreground", tooltip="A whole picture, with the subject."),
        io.Image.Output(display_name="background", tooltip="Seen only where the mask is not: a blur behind it."),
        io.Image.Output(display_name="composite", tooltip="The foreground before the background."),
        io.Mask.Output(display_name="mask", tooltip=MASK_TIP),
        io.Image.Output(display_name="rgba", tooltip="The foreground with its alpha as a fourth channel, for Save "
                                                     "Image. Many nodes take three channels only: give them "
                                                     "foreground and mask."),
    ]


def layers_of(cutouts) -> tuple:
    """In the order of `layer_outputs`."""
    return cutouts.foreground, cutouts.background, cutouts.composite, cutouts.mask, cutouts.rgba


def psi_inputs() -> list:
    """Truncation of both layers."""
    return [
        io.Float.Input("psi_foreground", default=0.7, min=0.0, max=1.2, step=0.05,
                       tooltip="1: as varied as the training pictures. Less: more usual, with better masks; 0: always "
                               "the mean one. Above 1: stranger, and often broken."),
        io.Float.Input("psi_background", default=0.7, min=0.0, max=1.2, step=0.05, tooltip="The same for backgrounds."),
    ]


class FrozenLoadFurryGAN(io.ComfyNode):
    """A FurryGAN out of a file."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        from ..modules.host.furrygan.files import list_furries
        return io.Schema(
            node_id="FrozenLoadFurryGAN",
            display_name="Load FurryGAN",
            category="frozen/furrygan",
            description="Loads a generator of cut-outs: of the pack, of models/furrygan, or of output/furrygan. It "
                        "reads files of Save FurryGAN and checkpoints (.pt) of the official training.",
            inputs=[io.Combo.Input("furrygan_file", options=list_furries(),
                                   tooltip="Files of models/furrygan and output/furrygan; frozen-diffusion/ are the "
                                           "pack's own.")],
            outputs=[
                FurryGAN.Output(display_name="furrygan", tooltip="For Generate Foreground and the other nodes."),
                io.String.Output(display_name="report", tooltip="Size, parameters, what it was trained on."),
            ],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def fingerprint_inputs(cls, furrygan_file: str) -> str:
        from ..modules.host.files import state_of
        from ..modules.host.furrygan.files import find_furry
        return state_of(furrygan_file, find_furry)

    @classmethod
    def execute(cls, furrygan_file: str) -> io.NodeOutput:
        from ..modules.host.furrygan.files import find_furry, furry_text, load_furry
        from ..modules.host.progress import show_text
        loaded = load_furry(find_furry(furrygan_file))
        text = furry_text(loaded)
        return io.NodeOutput(loaded, text, ui=show_text(text, cls.hidden.unique_id))


class FrozenSaveFurryGAN(io.ComfyNode):
    """A FurryGAN as a file."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="FrozenSaveFurryGAN",
            display_name="Save FurryGAN",
            category="frozen/furrygan",
            description="Writes a FurryGAN as .safetensors, also one that was read from an official .pt.",
            is_output_node=True,
            inputs=[
                FurryGAN.Input("furrygan", tooltip="From Train FurryGAN or Load FurryGAN."),
                io.String.Input("filename_prefix", default="furrygan/furrygan",
                                tooltip="Inside the output folder; Load FurryGAN lists output/furrygan."),
                io.Boolean.Input("with_discriminator", default=True,
                                 tooltip="It is needed to train on, for Mask Hint and for Foreground from Image. "
                                         "Without it the file is about a third of the size."),
            ],
            outputs=[io.String.Output(display_name="path", tooltip="Of the written file.")],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def execute(cls, furrygan, filename_prefix: str, with_discriminator: bool) -> io.NodeOutput:
        from ..modules.host.furrygan.files import save_furry
        from ..modules.host.progress import show_text
        path = str(save_furry(furrygan, filename_prefix, with_discriminator))
        return io.NodeOutput(path, ui=show_text(path, cls.hidden.unique_id))


@for_newer_pages("cut out", "transparent", "alpha", "rgba", folded=(
    "mix_rows", "mix_seed", "clean_mask"))
class FrozenGenerateForeground(io.ComfyNode):
    """Cut-outs from a seed."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="FrozenGenerateForeground",
            display_name="Generate Foreground (Cut Out)",
            category="frozen/furrygan",
            description="Draws subjects that are already cut out, with soft edges. Picture k of a seed is the same in "
                        "any batch.",
            inputs=[
                FurryGAN.Input("furrygan", tooltip="From Load FurryGAN."),
                io.Int.Input("seed", default=0, **SEEDS, tooltip="Which subjects."),
                io.Int.Input("batch_size", default=4, min=1, max=1024, tooltip="How many."),
                *psi_inputs(),
                io.Int.Input("background_seed", default=OWN, min=OWN, max=2**63 - 1, control_after_generate=False,
                             tooltip="-1: the background that belongs to each subject. Else: backgrounds of that "
                                     "seed."),
                io.Combo.Input("mix_rows", options=list(ROWS), default="none",
                               tooltip="Take a part of the style from the subjects of mix_seed: their pose and shape, "
                                       "their middle sizes, or their colours and texture; the last row is colours and "
                                       "mask alone."),
                io.Int.Input("mix_seed", default=1, min=0, max=2**63 - 1, control_after_generate=False,
                             tooltip="Whose part it is."),
                io.Boolean.Input("clean_mask", default=True,
                                 tooltip="Leave out specks apart from the subject and the faint veil around it: "
                                         "below 0.15 is nothing, above 0.85 is whole. Off: exactly the "
                                         "paper's mask."),
            ],
            outputs=[
                *layer_outputs(),
                Styles.Output(display_name="styles", tooltip="For Foreground Slider and Foreground Walk."),
                io.String.Output(display_name="report", tooltip="How much the masks cover."),
            ],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def execute(cls, furrygan, seed: int, batch_size: int, psi_foreground: float, psi_background: float,
                background_seed: int, mix_rows: str, mix_seed: int, clean_mask: bool) -> io.NodeOutput:
        from ..modules.furrygan.sampling import mixed
        from ..modules.host.furrygan.apply import cut_outs, report, styles_of
        from ..modules.host.progress import show_text
        psi = psi_foreground, psi_background
        styles = styles_of(furrygan, seed, batch_size, psi, None if background_seed == OWN else background_seed)
        if mix_rows != "none":
            styles = mixed(styles, styles_of(furrygan, mix_seed, batch_size, psi), mix_rows)
        cutouts = cut_outs(furrygan, styles, clean_mask, cls.hidden.unique_id)
        text = report(cutouts)
        return io.NodeOutput(*layers_of(cutouts), styles, text, ui=show_text(text, cls.hidden.unique_id))


class FrozenForegroundWalk(io.ComfyNode):
    """A loop in which one subject becomes another, and comes back."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="FrozenForegroundWalk",
            display_name="Foreground Walk (Transparent Loop)",
            category="frozen/furrygan",
            description="Frames of a closed loop through several subjects; colours and alpha change together. Save "
                        "rgba with Save Animated WEBP.",
            inputs=[
                FurryGAN.Input("furrygan", tooltip="From Load FurryGAN."),
                Styles.Input("styles", tooltip="The subjects that the loop passes, two at least, in their order."),
                io.Int.Input("frames", default=32, min=2, max=1024, tooltip="Of the whole loop."),
                io.Boolean.Input("hold_background", default=True,
                                 tooltip="Keep the first one's background. Off: it walks too."),
                io.Boolean.Input("clean_mask", default=True, tooltip="As in Generate Foreground."),
            ],
            outputs=[*layer_outputs(), Styles.Output(display_name="styles", tooltip="Of the frames.")],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def execute(cls, furrygan, styles, frames: int, hold_background: bool, clean_mask: bool) -> io.NodeOutput:
        from ..modules.furrygan.walk import closed_loop
        from ..modules.host.furrygan.apply import cut_outs
        loop = closed_loop(styles, frames, hold_background)
        return io.NodeOutput(*layers_of(cut_outs(furrygan, loop, clean_mask, cls.hidden.unique_id)), loop)


class FrozenForegroundSlider(io.ComfyNode):
    """A direction of the generator's own, as a slider."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="FrozenForegroundSlider",
            display_name="Foreground Slider",
            category="frozen/furrygan",
            description="Moves subjects, or their backgrounds, along a direction that the generator's style layers "
                        "change most. Nobody named these directions: try the first ten. The other layer stays as it "
                        "is.",
            inputs=[
                FurryGAN.Input("furrygan", tooltip="From Load FurryGAN."),
                Styles.Input("styles", tooltip="From Generate Foreground, another slider, or Foreground from Image."),
                io.Combo.Input("layer", options=list(PARTS), default="foreground", tooltip="What moves."),
                io.Combo.Input("rows", options=[ALL, *list(ROWS)[1:]], default=ALL,
                               tooltip="all, or a part: pose and shape, middle sizes, colours and texture, or the last "
                                       "row, colours and mask."),
                io.Int.Input("direction", default=0, min=0, max=1023, tooltip="0: the strongest."),
                io.Float.Input("amount", default=2.0, min=-10.0, max=10.0, step=0.1,
                               tooltip="In standard deviations of what is usual; beyond 3 pictures break."),
                io.Boolean.Input("clean_mask", default=True, tooltip="As in Generate Foreground."),
            ],
            outputs=[*layer_outputs(), Styles.Output(display_name="styles", tooltip="For another slider.")],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def execute(cls, furrygan, styles, layer: str, rows: str, direction: int, amount: float, clean_mask: bool
                ) -> io.NodeOutput:
        from ..modules.furrygan.directions import moved
        from ..modules.host.furrygan.apply import cut_outs
        furrygan.on_device()
        styles = moved(furrygan.generator, styles, layer, rows, direction, amount)
        return io.NodeOutput(*layers_of(cut_outs(furrygan, styles, clean_mask, cls.hidden.unique_id)), styles)


NODES = [FrozenLoadFurryGAN, FrozenSaveFurryGAN, FrozenGenerateForeground, FrozenForegroundWalk, FrozenForegroundSlider]
