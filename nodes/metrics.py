"""Attribute metrics (SaD, PaD, HCS): sets of pictures, attributes, reports, scores, rulers."""
from __future__ import annotations

from comfy_api.latest import io

from ..modules.host.schema_extras import for_newer_pages
from ..modules.metrics.attributes import SHIPPED, TEMPLATE
from ..modules.metrics.clip_keys import ACTIVATIONS
from ..modules.metrics.divergence import METHODS, PRESETS
from ..modules.metrics.folder import GENERAL, PAPER_PARITY

CLIPPair = io.Custom("FROZEN_CLIP_PAIR")
ImageSet = io.Custom("FROZEN_IMAGE_SET")
Attributes = io.Custom("FROZEN_ATTRIBUTES")
Ruler = io.Custom("FROZEN_RULER")
TEXT, SPRITES, CAPTIONS = "text below", "sprite world", "captions of an image set"
BELIEFS = ("Scores are what the encoder believes, not truth; words for people carry the biases of CLIP.")


class FrozenCLIPPair(io.ComfyNode):
    """The host's CLIP and CLIP_VISION as one pair."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="FrozenCLIPPair",
            display_name="CLIP Pair (Metrics)",
            category="frozen/metrics",
            description="Takes a CLIP and a CLIP_VISION as the encoders of the attribute metrics. They must be of the "
                        "same CLIP; a probe with eight colours tells.",
            inputs=[
                io.Clip.Input("clip", tooltip="Text encoder with its projection: of SDXL, of SD2, of a full CLIP-L "
                                              "file, or of Load Sprite World. Without LoRAs."),
                io.ClipVision.Input("clip_vision", tooltip="Picture encoder of the same CLIP: ViT-bigG for SDXL, ViT-H "
                                                           "for SD2, ViT-L for CLIP-L."),
            ],
            outputs=[CLIPPair.Output(display_name="clip_pair", tooltip="For Image Set and Score Images.")],
        )

    @classmethod
    def execute(cls, clip, clip_vision) -> io.NodeOutput:
        from ..modules.host.metrics.clip_pair import HostPair
        return io.NodeOutput(HostPair(clip, clip_vision))


class FrozenLoadCLIPPair(io.ComfyNode):
    """One file of a whole CLIP."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        from ..modules.host.metrics.full_clip import clip_files
        return io.Schema(
            node_id="FrozenLoadCLIPPair",
            display_name="Load CLIP Pair (Metrics)",
            category="frozen/metrics",
            description="Loads one file with both towers of a CLIP, in the layout of Hugging Face or OpenAI: B/32 (the "
                        "paper's), B/16, L/14, L/14-336, H/14, bigG/14. Nothing is downloaded.",
            inputs=[
                io.Combo.Input("clip_file", options=clip_files(),
                               tooltip="Files of models/clip_vision and models/text_encoders, e.g. model.safetensors "
                                       "of openai/clip-vit-base-patch32."),
                io.Combo.Input("activation", options=list(ACTIVATIONS), default="auto",
                               tooltip="auto: as OpenAI trained B and L, as LAION trained H and bigG. gelu: LAION's B "
                                       "and L, whose shapes are OpenAI's."),
            ],
            outputs=[CLIPPair.Output(display_name="clip_pair", tooltip="For Image Set and Score Images.")],
        )

    @classmethod
    def execute(cls, clip_file: str, activation: str) -> io.NodeOutput:
        from ..modules.host.metrics.full_clip import FullCLIP, find_clip_file
        return io.NodeOutput(FullCLIP(find_clip_file(clip_file), activation))


class FrozenImageSet(io.ComfyNode):
    """Pictures as features: a folder, a batch, or a set that grows from run to run."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="FrozenImageSet",
            display_name="Image Set (Metrics)",
            category="frozen/metrics",
            description="Reads pictures for the attribute metrics: file by file out of a folder of any size, or an "
                        "IMAGE batch, or a named set to which every run adds. Features are kept on disk.",
            is_output_node=True,
            inputs=[
                CLIPPair.Input("clip_pair", tooltip="From CLIP Pair or Load CLIP Pair."),
                io.String.Input("folder", default="",
                                tooltip="A folder inside ComfyUI's input, output or temp folder. Leave it empty where "
                                        "images are connected."),
                io.Boolean.Input("subfolders", default=True,
                                 tooltip="Read sub-folders too. The report then scores each by itself."),
                io.Combo.Input("reading", options=[GENERAL, PAPER_PARITY], default=GENERAL,
                               tooltip="Of files. general: upright by EXIF, transparency over white. paper parity: as "
                                       "the official code, both ignored."),
                io.String.Input("append_to", default="",
                                tooltip="Name of a set on disk to which images are added, so that many runs make one "
                                        "set. Without images: the set as it is."),
                io.Image.Input("images", optional=True, tooltip="Pictures instead of a folder."),
            ],
            outputs=[
                ImageSet.Output(display_name="image_set", tooltip="For Attribute Report and Score Images."),
                io.String.Output(display_name="report", tooltip="How many pictures, and what was left out, and why."),
            ],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def fingerprint_inputs(cls, folder: str, subfolders: bool, append_to: str, images=None, **_) -> str:
        from ..modules.host.metrics.image_set_input import state_of_input
        return state_of_input(folder, subfolders, append_to)

    @classmethod
    def execute(cls, clip_pair, folder: str, subfolders: bool, reading: str, append_to: str, images=None
                ) -> io.NodeOutput:
        from ..modules.host.metrics.image_set_input import read_input
        from ..modules.host.progress import show_text
        found = read_input(clip_pair, folder, subfolders, reading, append_to, images, cls.hidden.unique_id)
        text = found.report()
        return io.NodeOutput(found, text, ui=show_text(text, cls.hidden.unique_id))


class FrozenAttributes(io.ComfyNode):
    """What is asked of the pictures, in words."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="FrozenAttributes",
            display_name="Attributes (Metrics)",
            category="frozen/metrics",
            description="The list of attributes that pictures are scored by. Every score depends on the whole list: "
                        "compare runs with one list only.",
            inputs=[
                io.Combo.Input("source", options=[TEXT, SPRITES, CAPTIONS, *SHIPPED], default=TEXT,
                               tooltip="text below; sprite world's own list; the most frequent words of an image set's "
                                       "captions; or the lists of the paper's code."),
                io.String.Input("text", multiline=True, default="a dog\na cat\nsmiling\noutdoors\nat night",
                                tooltip="One attribute a line, or parted by commas. `name: text | text` "
                                        "averages several phrasings. A line that ends in a colon is the heading of "
                                        "a group that excludes each other, e.g. colours:"),
                io.String.Input("template", default=TEMPLATE,
                                tooltip="Put around names without phrasings; {} is the name."),
                io.Int.Input("count", default=20, min=2, max=100, tooltip="How many words of captions are taken."),
                ImageSet.Input("image_set", optional=True,
                               tooltip="Whose captions are read (NAME.txt beside pictures)."),
            ],
            outputs=[
                Attributes.Output(display_name="attributes", tooltip="For Attribute Report and Score Images."),
                io.String.Output(display_name="report", tooltip="The list, and what was left out."),
            ],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def execute(cls, source: str, text: str, template: str, count: int, image_set=None) -> io.NodeOutput:
        from ..modules.demo.attributes import attribute_text
        from ..modules.host.progress import show_text
        from ..modules.metrics.attributes import attributes_of_captions, parse_attributes
        if source == CAPTIONS:
            if image_set is None:
                raise ValueError("Connect the image_set whose captions are to be read, or choose another source.")
            found = attributes_of_captions(image_set.captions, count, template)
        else:
            found = parse_attributes({TEXT: text, SPRITES: attribute_text() if source == SPRITES else ""}.get(
                source, SHIPPED.get(source)), template)
        report = found.report()
        return io.NodeOutput(found, report, ui=show_text(report, cls.hidden.unique_id))


@for_newer_pages("metric", "attribute", "evaluate")
class FrozenAttributeReport(io.ComfyNode):
    """SaD and PaD of one or two generated sets against a reference, as a picture."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="FrozenAttributeReport",
            display_name="Attribute Report (SaD, PaD)",
            category="frozen/metrics",
            description="Which attributes, and which pairs of them, a generated set has too often or too seldom, "
                        f"beside what chance alone would give. {BELIEFS}",
            inputs=[
                ImageSet.Input("reference", tooltip="What pictures should be like: photos, a training set, a model's "
                                                    "earlier output. Not necessarily what the model was trained on."),
                ImageSet.Input("generated", tooltip="The pictures to be judged."),
                Attributes.Input("attributes", optional=True, tooltip="From Attributes. Not needed with a ruler."),
                ImageSet.Input("generated_b", optional=True,
                               tooltip="A second generated set: the report compares both."),
                Ruler.Input("ruler", optional=True,
                            tooltip="Score with a saved ruler, so that reports of different days are comparable."),
                io.Combo.Input("preset", options=list(PRESETS), default="general",
                               tooltip="general: the text centre of the paper's formula, a range that fits, what "
                                       "chance gives. paper parity: as the official code, for published numbers."),
                io.Combo.Input("method", options=list(METHODS), default="auto",
                               tooltip="auto: exact to rounding for some thousand pictures, else by bins (0.1 %). "
                                       "exact: scipy, slow; so is paper parity. gaussian: one normal a set, for very "
                                       "few pictures."),
                io.Boolean.Input("chance", default=True,
                                 tooltip="Test what chance alone would give. Off: scores at once."),
                io.Int.Input("seed", default=0, min=0, max=2**32 - 1, control_after_generate=False,
                             tooltip="Of the draws of that test."),
            ],
            outputs=[
                io.Image.Output(display_name="picture", tooltip="Bars, worst pairs, extreme pictures."),
                io.String.Output(display_name="report", tooltip="In words."),
                io.String.Output(display_name="csv", tooltip="A row for every attribute and pair."),
                io.String.Output(display_name="json", tooltip="The same, with settings and what makes it comparable."),
                Ruler.Output(display_name="ruler", tooltip="For Save Ruler and Score Images."),
            ],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def execute(cls, reference, generated, preset: str, method: str, chance: bool, seed: int, attributes=None,
                generated_b=None, ruler=None) -> io.NodeOutput:
        from ..modules.host.metrics.report import attribute_report, named_sets, ruler_of, settings_of
        from ..modules.host.metrics.report_node import ticker
        from ..modules.host.progress import show_text
        settings = settings_of(preset, method, chance)
        ruler = ruler_of(reference, attributes, ruler, settings.text_centre)
        found = attribute_report(reference, named_sets(generated, generated_b), ruler, settings, seed,
                                 ticker(cls.hidden.unique_id))
        return io.NodeOutput(found.picture, found.text, found.csv, found.json, found.ruler,
                             ui=show_text(found.text, cls.hidden.unique_id))


@for_newer_pages("metric", "clip score")
class FrozenScoreImages(io.ComfyNode):
    """HCS of single pictures, or of the frames of a clip."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="FrozenScoreImages",
            display_name="Score Images (HCS)",
            category="frozen/metrics",
            description="Scores every picture by every attribute: above 0 more of it than the reference's mean. For a "
                        f"clip, curves over its frames. {BELIEFS}",
            inputs=[
                io.Image.Input("images", tooltip="Pictures, or the frames of one clip."),
                CLIPPair.Input("clip_pair", tooltip="The pair that the ruler or the reference was made with."),
                Ruler.Input("ruler", optional=True, tooltip="From Load Ruler or Attribute Report; or connect reference "
                                                            "and attributes."),
                ImageSet.Input("reference", optional=True, tooltip="Whose mean is 0, where there is no ruler."),
                Attributes.Input("attributes", optional=True, tooltip="What is scored, where there is no ruler."),
                io.Mask.Input("mask", optional=True, tooltip="Score the masked subject only, before the reference's "
                                                             "mean colour."),
                io.Boolean.Input("as_clip", default=False,
                                 tooltip="On: the pictures are frames in their order; curves, drift, flicker and "
                                         "temporal SaD."),
            ],
            outputs=[
                io.Image.Output(display_name="picture", tooltip="A map of scores, or the curves of a clip."),
                io.String.Output(display_name="report", tooltip="In words."),
                io.String.Output(display_name="csv", tooltip="A row a picture, a column an attribute."),
            ],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def execute(cls, images, clip_pair, as_clip: bool, ruler=None, reference=None, attributes=None, mask=None
                ) -> io.NodeOutput:
        from ..modules.host.metrics.report import ruler_of, scores_of_images
        from ..modules.host.progress import show_text
        from ..modules.metrics.scores import scores_picture, scores_text
        from ..modules.metrics.trajectory import score_table
        ruler = ruler_of(reference, attributes, ruler)
        scores = scores_of_images(images, clip_pair, ruler, mask)
        text = scores_text(scores, ruler.names, as_clip)
        names = [f"{'frame' if as_clip else 'picture'} {number + 1}" for number in range(len(scores))]
        return io.NodeOutput(scores_picture(scores, ruler.names, as_clip), text,
                             score_table(scores, ruler.names, names), ui=show_text(text, cls.hidden.unique_id))


class FrozenEditPurity(io.ComfyNode):
    """How much an edit changes what it should, and how much else."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="FrozenEditPurity",
            display_name="Edit Purity (Metrics)",
            category="frozen/metrics",
            description="Compares the same pictures before and after an edit (LoRA, content injection, a direction): "
                        f"which attribute moves, and how much all others do. {BELIEFS}",
            inputs=[
                io.Image.Input("before", tooltip="Pictures without the edit."),
                io.Image.Input("after", tooltip="The same with it: same prompts, same seeds, same order."),
                CLIPPair.Input("clip_pair", tooltip="The pair that the ruler was made with."),
                Ruler.Input("ruler", tooltip="From Load Ruler or Attribute Report."),
                io.String.Input("target", default="",
                                tooltip="The attribute that the edit means; empty: the one that moves most."),
            ],
            outputs=[
                io.Float.Output(display_name="purity", tooltip="1: nothing else moves; .5: all others as much."),
                io.String.Output(display_name="report", tooltip="What moves, in HCS."),
            ],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def execute(cls, before, after, clip_pair, ruler, target: str) -> io.NodeOutput:
        from ..modules.host.metrics.edits import edit_purity
        from ..modules.host.progress import show_text
        purity, text = edit_purity(before, after, clip_pair, ruler, target.strip())
        return io.NodeOutput(purity, text, ui=show_text(text, cls.hidden.unique_id))


NODES = [FrozenCLIPPair, FrozenLoadCLIPPair, FrozenImageSet, FrozenAttributes, FrozenAttributeReport, FrozenScoreImages,
         FrozenEditPurity]
