"""FurryGAN on pictures of the user's own, and pairs for segmenters."""
from __future__ import annotations

from comfy_api.latest import io

from ..modules.host.schema_extras import for_newer_pages
from .furrygan import MASK_TIP, FurryGAN, Styles


@for_newer_pages("alpha", "matte", "remove background", "cut out")
class FrozenForegroundFromImage(io.ComfyNode):
    """The alpha of a picture, by finding what the generator would have made it of."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="FrozenForegroundFromImage",
            display_name="Foreground from Image (Alpha Matte)",
            category="frozen/furrygan",
            description="Searches the styles with which the generator draws your picture; their mask cuts it out. It "
                        "works for pictures like those it was trained on, and says when it does not. A reconstruction: "
                        "the paper has no projector.",
            inputs=[
                FurryGAN.Input("furrygan", tooltip="From Load FurryGAN, with discriminator."),
                io.Image.Input("image", tooltip="The square middle of each picture is taken; a subject that fills it, "
                                                "as in the training pictures, works best."),
                io.Int.Input("steps", default=300, min=10, max=5000, tooltip="Of the search for the foreground; 100 "
                                                                             "more are for the background."),
                io.Float.Input("guide", default=0.1, min=0.0, max=10.0, step=0.05,
                               tooltip="How much the mask is drawn to what the discriminator sees (Mask Hint)."),
                io.Int.Input("seed", default=0, min=0, max=2**63 - 1, control_after_generate=False,
                             tooltip="Of the noise."),
            ],
            outputs=[
                io.Image.Output(display_name="cutout", tooltip="Your own pixels with alpha, four channels."),
                io.Mask.Output(display_name="mask", tooltip=MASK_TIP),
                io.Image.Output(display_name="foreground", tooltip="As the generator draws it, at its own size."),
                io.Image.Output(display_name="background", tooltip="As the generator draws it."),
                io.Image.Output(display_name="composite", tooltip="As the generator draws it: compare it with the "
                                                                  "picture."),
                Styles.Output(display_name="styles", tooltip="For Foreground Slider and Foreground Walk."),
                io.String.Output(display_name="report", tooltip="How near the picture was reached, whether the mask "
                                                                "agrees with Mask Hint, and warnings."),
            ],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def execute(cls, furrygan, image, steps: int, guide: float, seed: int) -> io.NodeOutput:
        from ..modules.host.furrygan.invert import from_images
        from ..modules.host.progress import show_text
        found = from_images(furrygan, image, steps, seed, guide, cls.hidden.unique_id)
        layers = found.layers
        return io.NodeOutput(found.cutout, found.mask, layers.foreground, layers.background, layers.composite,
                             found.styles, found.text, ui=show_text(found.text, cls.hidden.unique_id))


class FrozenMaskHint(io.ComfyNode):
    """Where the subject is, in one pass."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="FrozenMaskHint",
            display_name="Mask Hint",
            category="frozen/furrygan",
            description="Where the subject of any picture is, as FurryGAN's discriminator sees it: 16x16, made larger. "
                        "Quick and coarse; for pictures like those of the training.",
            inputs=[
                FurryGAN.Input("furrygan", tooltip="From Load FurryGAN, with discriminator."),
                io.Image.Input("image", tooltip="Of any size; it is looked at squeezed into a square."),
            ],
            outputs=[io.Mask.Output(display_name="mask", tooltip="Of the picture's size. " + MASK_TIP)],
        )

    @classmethod
    def execute(cls, furrygan, image) -> io.NodeOutput:
        from ..modules.host.furrygan.apply import mask_hints
        return io.NodeOutput(mask_hints(furrygan, image))


@for_newer_pages("halo", "fringe", "alpha")
class FrozenDecontaminateEdges(io.ComfyNode):
    """The subject's own colours at soft edges."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="FrozenDecontaminateEdges",
            display_name="Decontaminate Edges",
            category="frozen/furrygan",
            description="Takes the old background out of the colours of soft edges, so that a cut-out has no halo "
                        "before another one. For any picture and mask.",
            inputs=[
                io.Image.Input("image", tooltip="The picture that the mask belongs to."),
                io.Mask.Input("mask", tooltip="1 = foreground. A mask of Load Image is the opposite: put Invert Mask "
                                              "between."),
            ],
            outputs=[
                io.Image.Output(display_name="image", tooltip="The subject's colours, also outside of it: for Image "
                                                              "Composite Masked."),
                io.Image.Output(display_name="rgba", tooltip="With the mask as alpha."),
            ],
        )

    @classmethod
    def execute(cls, image, mask) -> io.NodeOutput:
        from ..modules.host.furrygan.apply import without_halo
        return io.NodeOutput(*without_halo(image, mask))


class FrozenSegmentationPairs(io.ComfyNode):
    """Pictures with masks, as files."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="FrozenSegmentationPairs",
            display_name="Segmentation Pairs",
            category="frozen/furrygan",
            description="Writes pictures and their masks into images/ and masks/ of a new folder, to train a segmenter "
                        "on.",
            is_output_node=True,
            inputs=[
                FurryGAN.Input("furrygan", tooltip="From Load FurryGAN."),
                io.Int.Input("count", default=100, min=1, max=1000000, tooltip="Pairs."),
                io.Int.Input("seed", default=0, min=0, max=2**63 - 1, control_after_generate=False,
                             tooltip="Pair k of a seed is always the same."),
                io.Float.Input("psi", default=1.0, min=0.0, max=1.2, step=0.05,
                               tooltip="1: as varied as the training pictures. 0.7: better masks."),
                io.String.Input("filename_prefix", default="furrygan/pairs", tooltip="Inside the output folder."),
            ],
            outputs=[io.String.Output(display_name="path", tooltip="Of the folder.")],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def execute(cls, furrygan, count: int, seed: int, psi: float, filename_prefix: str) -> io.NodeOutput:
        from ..modules.host.furrygan.pairs import write_pairs
        from ..modules.host.progress import show_text
        folder = str(write_pairs(furrygan, count, seed, psi, filename_prefix, cls.hidden.unique_id))
        return io.NodeOutput(folder, ui=show_text(folder, cls.hidden.unique_id))


NODES = [FrozenForegroundFromImage, FrozenMaskHint, FrozenDecontaminateEdges, FrozenSegmentationPairs]
