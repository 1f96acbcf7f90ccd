"""Training FurryGANs: from a folder of plain pictures, without a mask."""
from __future__ import annotations

from comfy_api.latest import io

from .furrygan import FurryGAN
from .training_options import LossMap, options_input, run_inputs

FOLDER, SPRITES = "folder", "sprite world"


class FrozenTrainFurryGAN(io.ComfyNode):
    """Trains a FurryGAN on pictures of one kind of thing."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="FrozenTrainFurryGAN",
            display_name="Train FurryGAN",
            category="frozen/furrygan",
            description="Learns to draw one kind of thing already cut out, from a folder of plain pictures of it; no "
                        "masks are needed. The size and steps of the paper take days on a GPU; 32 or 64 pixels and "
                        "128 channels or less suit icons and a processor. A cancelled training goes on when queued "
                        "again.",
            inputs=[
                io.Combo.Input("source", options=[FOLDER, SPRITES], default=FOLDER,
                               tooltip="Your pictures, or close-ups of sprite world's sprites, to try it."),
                io.String.Input("folder", default="",
                                tooltip="A folder of pictures or shards: thousands, of one kind of thing, which fills "
                                        "60 % of them and more. An absolute path, or one inside ComfyUI's input "
                                        "folder."),
                FurryGAN.Input("furrygan", optional=True,
                               tooltip="Start from this one, which must have the same size and channels, and its "
                                       "discriminator."),
                io.Int.Input("steps", default=300_000, min=1, max=10_000_000,
                             tooltip="The paper's: 300,000. At 32 pixels 8,000 give good masks."),
                io.Float.Input("learning_rate", default=2e-3, min=1e-6, max=0.1, step=1e-5, tooltip="The paper's: "
                                                                                                    "0.002."),
                io.Int.Input("batch_size", default=16, min=4, max=256, step=4,
                             tooltip="A multiple of 4; half of the fakes are composites."),
                io.Combo.Input("size", options=["32", "64", "128", "256", "512", "1024"], default="256",
                               tooltip="Side of the pictures in pixels. Smaller files are enlarged, those below half "
                                       "of it are left aside."),
                io.Int.Input("channels", default=512, min=16, max=1024, step=16,
                             tooltip="Width of the networks. 512: the official one. 48 suits 32 pixels."),
                io.Float.Input("phi", default=0.35, min=0.0, max=0.95, step=0.01,
                               tooltip="Share of a picture that is foreground at least. It must lie between the share "
                                       "of the background and that of the subject. 0: from an estimate of how much "
                                       "the subject fills."),
                io.Boolean.Input("flip", default=True, tooltip="Mirror half of the pictures."),
                io.Int.Input("sample_every", default=500, min=0, max=100000,
                             tooltip="Show composites, foregrounds, backgrounds and masks so often; 0 = only at the "
                                     "end."),
                *run_inputs("furrygan", "furrygan_training", 0, "First weights, order, codes"),
                options_input(),
            ],
            outputs=[
                FurryGAN.Output(display_name="furrygan", tooltip="For Generate Foreground and Save FurryGAN."),
                LossMap.Output(display_name="loss_map", tooltip="For the node Plot Loss Graph: the discriminator's."),
                io.Image.Output(display_name="sample", tooltip="Composites, foregrounds, backgrounds, masks, a row "
                                                               "each."),
                io.String.Output(display_name="report", tooltip="What pictures were found, and what was decided for "
                                                                "you."),
            ],
            hidden=[io.Hidden.unique_id])

    @classmethod
    def fingerprint_inputs(cls, source: str, folder: str, **settings) -> str:
        from ..modules.host.furrygan.train import state_of_pictures
        return state_of_pictures(folder) if source == FOLDER else ""

    @classmethod
    def execute(cls, source: str, folder: str, checkpoint: str, resume: bool, size: str, furrygan=None, options=None,
                **recipe) -> io.NodeOutput:
        from ..modules.furrygan.recipe import recipe_for
        from ..modules.furrygan.training import SHOWN, FurrySubject, GuardedTraining
        from ..modules.host.files import checkpoint_path
        from ..modules.host.furrygan.files import hold_furry
        from ..modules.host.furrygan.train import device, drawn_pictures, folder_pictures
        from ..modules.host.progress import show_text
        from ..modules.host.train_node import train_in_node
        from ..modules.pictures.frame_sheet import frame_sheet
        recipe = recipe_for(int(size), **recipe)
        recipe = recipe if options is None else options.over(recipe)
        pictures = drawn_pictures(recipe.size) if source == SPRITES else folder_pictures(folder, recipe.size)
        subject = FurrySubject(pictures, recipe, device(), start=furrygan.file if furrygan else None)
        training = GuardedTraining(subject, checkpoint_path(checkpoint, "furrygan_training"), resume)
        sample = train_in_node(training, cls.hidden.unique_id)
        text = "\n".join([pictures.report(), *subject.notes])
        return io.NodeOutput(hold_furry(training.result(), checkpoint), {"loss": training.losses},
                             frame_sheet(sample, SHOWN), text, ui=show_text(text, cls.hidden.unique_id))


NODES = [FrozenTrainFurryGAN]
