"""The latent basis: directions of one latent that change the picture most, found without training."""
from __future__ import annotations

from comfy_api.latest import io

from ..modules.basis.basis import BLOCKS, MIDDLE
from ..modules.basis.directions import IN_H, IN_X, SPACES
from ..modules.host.basis.compute import SOLVERS
from ..modules.host.basis.edit import METHODS
from ..modules.host.schema_extras import for_newer_pages

LatentBasis = io.Custom("FROZEN_LATENT_BASIS")
ClipPair, Ruler = io.Custom("FROZEN_CLIP_PAIR"), io.Custom("FROZEN_RULER")      # of the metrics
NOISY = ("A latent that is still noisy: sampled (or inverted) down to where sigmas begins. One picture, no batch.")
SIGMAS = "The noise levels that are still to come, e.g. low_sigmas of SplitSigmas; the first is the latent's."
PROMPT = "Prompt of the U-Net. The papers take an empty one; a text draws the directions towards it."
BASIS = "From Compute Latent Basis, Load Basis and the like."
BLOCK = ("The U-Net's block whose output is h. middle: the bottleneck, the papers'. input, output: numbered as in the "
         "host; SDXL has 9 of each, SD1.5 and SD2 12.")
MORE = 6                # further bases of a node that takes many


def further_bases() -> list:
    """Optional inputs for more bases."""
    return [LatentBasis.Input(f"basis_{number}", optional=True, tooltip="Another one.")
            for number in range(2, MORE + 2)]


def given(first, others: dict) -> list:
    """The bases that are connected, in the order of their names."""
    return [first, *(others[name] for name in sorted(others) if others[name] is not None)]


@for_newer_pages("slider", "edit directions")
class FrozenComputeLatentBasis(io.ComfyNode):
    """The directions that move h-space most."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="FrozenComputeLatentBasis",
            display_name="Compute Latent Basis",
            category="frozen/latent basis",
            description="Finds orthonormal directions in a noisy latent that change the U-Net's bottleneck most. "
                        "Each is a two-sided slider for Edit along Basis. Needs no training and no text.",
            inputs=[
                io.Model.Input("model", tooltip="SD1.5, SD2 or SDXL, with LoRAs or not; fp16 will do. Only read."),
                io.Conditioning.Input("positive", tooltip=PROMPT),
                io.Latent.Input("latent", tooltip=NOISY),
                io.Sigmas.Input("sigmas", tooltip=SIGMAS),
                io.Int.Input("rank", default=4, min=1, max=64, tooltip="How many directions."),
                io.Combo.Input("solver", options=list(SOLVERS),
                               tooltip="lanczos: few products, exact pairs. official: the released iteration with its "
                                       "defects, to compare."),
                io.Float.Input("tolerance", default=1e-3, min=1e-6, max=0.1, step=1e-4, round=1e-6,
                               tooltip="lanczos: largest residual, as a share of the first singular value."),
                io.Int.Input("seed", default=0, min=0, max=2**32 - 1, control_after_generate=False,
                             tooltip="Of the solver's start. The directions hardly depend on it."),
                io.Combo.Input("mask_space", options=[IN_H, IN_X],
                               tooltip="h: look at the bottleneck in the mask only. x: change the latent in the mask "
                                       "only."),
                io.Mask.Input("mask", optional=True, tooltip="A region. Without: the whole picture."),
                LatentBasis.Input("start", optional=True,
                                  tooltip="A basis of a near timestep, seed or prompt to start from; saves products."),
                io.Combo.Input("block", options=list(BLOCKS), default=MIDDLE, optional=True, tooltip=BLOCK),
                io.Float.Input("network_timestep", default=-1.0, min=-1.0, max=999.0, step=1.0, optional=True,
                               tooltip="What the U-Net is given instead of the latent's own timestep, to tell apart "
                                       "what the latent and what the network changes. -1: its own."),
            ],
            outputs=[LatentBasis.Output(display_name="basis", tooltip="The directions, strongest first."),
                     io.Image.Output(display_name="plot", tooltip="Spectrum, frequencies and the directions as "
                                                                  "pictures."),
                     io.String.Output(display_name="report", tooltip="Products, residuals, singular values.")],
            hidden=[io.Hidden.unique_id])

    @classmethod
    def execute(cls, model, positive, latent, sigmas, rank: int, solver: str, tolerance: float, seed: int,
                mask_space: str, mask=None, start=None, block: str = MIDDLE, network_timestep: float = -1.0
                ) -> io.NodeOutput:
        from ..modules.basis.report import angle_in_words, basis_picture, basis_text
        from ..modules.host.basis.compute import BasisRequest, compute_basis
        from ..modules.host.progress import report_progress, show_text
        node = cls.hidden.unique_id
        request = BasisRequest(rank, solver, tolerance, seed, mask_space, block,
                               network_timestep if network_timestep >= 0 else None)
        basis, last = compute_basis(model, positive, latent["samples"], sigmas, request, mask, start,
                                    lambda text: report_progress(text, node))
        text = basis_text([basis]) + "\n" + angle_in_words(last.angle, last.residuals, last.converged)
        if len(basis.V) < rank:
            text += f"\nrank {rank} was asked for; this latent has no more than {len(basis.V)} directions"
        return io.NodeOutput(basis, basis_picture([basis]), text, ui=show_text(text, node))


@for_newer_pages("slider", "edit", "attribute")
class FrozenEditAlongBasis(io.ComfyNode):
    """A latent moved along directions."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="FrozenEditAlongBasis",
            display_name="Edit along Basis (Sliders)",
            category="frozen/latent basis",
            description="Moves a noisy latent along a direction, by several strengths at once. Sample the result "
                        "with the same sigmas, prompt and cfg to see the pictures.",
            inputs=[
                io.Model.Input("model", tooltip="The model of the basis."),
                io.Conditioning.Input("positive", tooltip="As for the basis."),
                io.Latent.Input("latent", tooltip=NOISY),
                io.Sigmas.Input("sigmas", tooltip=SIGMAS),
                LatentBasis.Input("basis", tooltip=BASIS),
                io.Int.Input("direction", default=0, min=-1, max=63, tooltip="Which one. -1: each, one after the "
                                                                             "other."),
                io.Float.Input("strength", default=16.0, min=-256.0, max=256.0, step=0.5,
                               tooltip="How far the latent moves, in the U-Net's scale. Guidance: steps x gamma, at "
                                       "gamma 1. addition: exactly. normalised: at most. The papers go 16; the length "
                                       "of a 512 px latent is about 128, of a sprite-world latent 32."),
                io.Int.Input("count", default=3, min=1, max=33,
                             tooltip="So many strengths from -strength to strength in one batch. 1: strength alone."),
                io.Combo.Input("method", options=list(METHODS),
                               tooltip="x-space guidance (the second paper): by how the predicted noise changes. "
                                       "addition: x + strength v. normalised: as in the first paper, the predicted "
                                       "picture keeps its contrast; the move is shortened until the latent stays a "
                                       "noisy picture, and the report tells how far it went."),
                io.Int.Input("steps", default=16, min=0, max=256, tooltip="Of the guidance; two calls of the U-Net "
                                                                          "each."),
                io.Float.Input("eta", default=1.0, min=0.01, max=100.0, step=0.1,
                               tooltip="Guidance: how far along v the noise is looked at. 1: the paper's."),
                io.Boolean.Input("keep_norm", default=False,
                                 tooltip="Give the latent its length back: strong edits stay pictures, and get "
                                         "weaker."),
                io.Boolean.Input("by_noise", default=True, optional=True,
                                 tooltip="Guidance: strength times the released code's gamma, 0.5 from timestep 850 "
                                         "up, 1 from 650 up, 2 below. Off: strength alone."),
                LatentBasis.Input("complement", optional=True,
                                  tooltip="Keep the rest of the picture: the basis of the inverted mask, with about 5 "
                                          "directions. They are taken out of the edit's direction."),
            ],
            outputs=[io.Latent.Output(display_name="latent", tooltip="Directions x strengths as a batch, still noisy."),
                     io.String.Output(display_name="report", tooltip="What was done, and warnings.")],
            hidden=[io.Hidden.unique_id])

    @classmethod
    def execute(cls, model, positive, latent, sigmas, basis, by_noise: bool = True, complement=None, **request
                ) -> io.NodeOutput:
        from ..modules.host.basis.edit import EditRequest, edit
        from ..modules.host.progress import show_text
        wanted = EditRequest(**request, by_noise=by_noise)
        samples, text = edit(model, positive, latent["samples"], sigmas, basis, wanted, complement)
        return io.NodeOutput({"samples": samples}, text, ui=show_text(text, cls.hidden.unique_id))


class FrozenTransportBasis(io.ComfyNode):
    """A direction carried to another latent."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="FrozenTransportBasis",
            display_name="Transport Basis",
            category="frozen/latent basis",
            description="Carries one direction of a basis to another picture, timestep or prompt through h-space.",
            inputs=[
                LatentBasis.Input("basis", tooltip="Where the direction was found."),
                io.Int.Input("direction", default=0, min=0, max=63, tooltip="Which one."),
                LatentBasis.Input("target", tooltip="The other latent's basis; more directions carry more (the "
                                                    "paper: 50)."),
                io.Combo.Input("space", options=list(SPACES), default=IN_H, optional=True,
                               tooltip="h: carry what the direction does to h, the papers' way. x: project the "
                                       "direction of the latent itself; also between bases of different blocks."),
            ],
            outputs=[LatentBasis.Output(display_name="basis", tooltip="One direction, for Edit along Basis at the "
                                                                      "target."),
                     io.Float.Output(display_name="coverage",
                                     tooltip="0 to 1: how much of the direction exists there. Below 0.3 little is "
                                             "left."),
                     io.String.Output(display_name="report", tooltip="Coverage and distances in words.")],
            hidden=[io.Hidden.unique_id])

    @classmethod
    def execute(cls, basis, direction: int, target, space: str = IN_H) -> io.NodeOutput:
        from ..modules.basis.directions import carry
        from ..modules.basis.report import transport_text
        from ..modules.host.progress import show_text
        carried, found = carry(basis, direction, target, space)
        text = transport_text(basis, target, found)
        return io.NodeOutput(carried, found.coverage, text, ui=show_text(text, cls.hidden.unique_id))


class FrozenGlobalBasis(io.ComfyNode):
    """The mean of several bases."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="FrozenGlobalBasis",
            display_name="Global Basis",
            category="frozen/latent basis",
            description="The mean of the bases of several latents at one timestep: directions that they share. Carry "
                        "one to a latent to use it. Works at high noise.",
            inputs=[LatentBasis.Input("basis", tooltip=BASIS), *further_bases()],
            outputs=[LatentBasis.Output(display_name="basis", tooltip="For Transport Basis and Save Basis.")])

    @classmethod
    def execute(cls, basis, **others) -> io.NodeOutput:
        from ..modules.basis.directions import mean_basis
        return io.NodeOutput(mean_basis(given(basis, others)))


class FrozenPromptDirection(io.ComfyNode):
    """A named slider out of two prompts."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="FrozenPromptDirection",
            display_name="Prompt Direction",
            category="frozen/latent basis",
            description="The direction in which the latent would have to move for h-space to look as with another "
                        "prompt.",
            inputs=[
                io.Model.Input("model", tooltip="SD1.5, SD2 or SDXL. Only read."),
                io.Conditioning.Input("positive_a", tooltip="What the picture is, e.g. a small dog."),
                io.Conditioning.Input("positive_b", tooltip="What it should become, e.g. a large dog."),
                io.Latent.Input("latent", tooltip=NOISY),
                io.Sigmas.Input("sigmas", tooltip=SIGMAS),
                LatentBasis.Input("basis", optional=True,
                                  tooltip="Stay within these directions: more natural edits. Without: the steepest "
                                          "way."),
                io.Combo.Input("block", options=list(BLOCKS), default=MIDDLE, optional=True, tooltip=BLOCK),
            ],
            outputs=[LatentBasis.Output(display_name="basis", tooltip="One direction, for Edit along Basis."),
                     io.String.Output(display_name="report", tooltip="Its coverage.")],
            hidden=[io.Hidden.unique_id])

    @classmethod
    def execute(cls, model, positive_a, positive_b, latent, sigmas, basis=None, block: str = MIDDLE) -> io.NodeOutput:
        from ..modules.host.basis.compute import direction_between
        from ..modules.host.progress import show_text
        found, text = direction_between(model, positive_a, positive_b, latent["samples"], sigmas, basis, block)
        return io.NodeOutput(found, text, ui=show_text(text, cls.hidden.unique_id))


class FrozenBasisReport(io.ComfyNode):
    """Figures and pictures of bases."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="FrozenBasisReport",
            display_name="Basis Report",
            category="frozen/latent basis",
            description="Spectrum with gaps, frequencies, pictures of the directions and a contact sheet of edits; "
                        "with several bases the distances of their tangent spaces, beside that of random ones.",
            inputs=[LatentBasis.Input("basis", tooltip=BASIS), *further_bases(),
                    io.Image.Input("edits", optional=True,
                                   tooltip="The decoded pictures of Edit along Basis with direction -1, for a contact "
                                           "sheet."),
                    ClipPair.Input("clip_pair", optional=True,
                                   tooltip="With ruler and edits: which attribute each direction changes, how purely."),
                    Ruler.Input("ruler", optional=True, tooltip="The attributes, e.g. from Load Ruler.")],
            outputs=[io.Image.Output(display_name="plot", tooltip="Everything as one picture."),
                     io.String.Output(display_name="report", tooltip="The figures.")],
            hidden=[io.Hidden.unique_id])

    @classmethod
    def execute(cls, basis, edits=None, clip_pair=None, ruler=None, **others) -> io.NodeOutput:
        from ..modules.basis.report import basis_picture, basis_text
        from ..modules.host.metrics.edits import direction_lines
        from ..modules.host.progress import show_text
        bases = given(basis, others)
        text = basis_text(bases)
        if None not in (edits, clip_pair, ruler):
            text += "\n" + direction_lines(edits, len(basis.V), clip_pair, ruler)
        return io.NodeOutput(basis_picture(bases, edits), text, ui=show_text(text, cls.hidden.unique_id))


class FrozenSaveBasis(io.ComfyNode):
    """A basis into a file."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="FrozenSaveBasis",
            display_name="Save Basis",
            category="frozen/latent basis",
            description="Writes a basis into the output folder, with noise level, residuals and the identity of its "
                        "model.",
            inputs=[LatentBasis.Input("basis", tooltip=BASIS),
                    io.String.Input("filename_prefix", default="latent_bases/basis",
                                    tooltip="Name in the output folder.")],
            outputs=[io.String.Output(display_name="path", tooltip="The file that was written.")],
            hidden=[io.Hidden.unique_id],
            is_output_node=True)

    @classmethod
    def execute(cls, basis, filename_prefix: str) -> io.NodeOutput:
        from ..modules.basis.basis import basis_tensors
        from ..modules.host.files import save_tensors
        from ..modules.host.progress import show_text
        path = save_tensors("latent basis", *basis_tensors(basis), filename_prefix)
        return io.NodeOutput(str(path), ui=show_text(str(path), cls.hidden.unique_id))


class FrozenLoadBasis(io.ComfyNode):
    """A basis from a file."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        from ..modules.basis.basis import FORMAT
        from ..modules.host.files import saved_files
        return io.Schema(
            node_id="FrozenLoadBasis",
            display_name="Load Basis",
            category="frozen/latent basis",
            description="Reads a basis that Save Basis wrote.",
            inputs=[io.Combo.Input("file", options=saved_files(FORMAT, "latent_bases/basis_00001_.safetensors"),
                                   tooltip="A file that Save Basis wrote into the output folder, or that you put "
                                           "into the input folder; the newest first.")],
            outputs=[LatentBasis.Output(display_name="basis", tooltip="Its directions.")])

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
        from ..modules.basis.basis import read_basis
        from ..modules.host.files import find_file
        return io.NodeOutput(read_basis(find_file(file)))


NODES = [FrozenComputeLatentBasis, FrozenEditAlongBasis, FrozenTransportBasis, FrozenGlobalBasis, FrozenPromptDirection,
         FrozenBasisReport, FrozenSaveBasis, FrozenLoadBasis]
