"""The embedded default: a small trained world that every template runs on."""
from __future__ import annotations

from comfy_api.latest import io


class FrozenLoadSpriteWorld(io.ComfyNode):
    """Load Sprite World: a checkpoint loader for the pack's own small Stable-Diffusion-shaped model."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="FrozenLoadSpriteWorld",
            display_name="Load Sprite World",
            category="frozen/demo",
            description="A tiny trained image model (128x128) of 24 sprites that comes with the pack: templates run on "
                        "it at once, on a CPU. Replace it by Load Checkpoint to use your own SD1.5 model.",
            inputs=[],
            outputs=[
                io.Model.Output(tooltip="The frozen U-Net: SD1.5's topology, narrower. Latents of 16x16 for 128x128."),
                io.Clip.Output(tooltip="Text model; it knows captions such as: a small dog on the left of a blue "
                                       "striped background, moving right"),
                io.Vae.Output(tooltip="Autoencoder: 8x smaller, 4 channels, as SD1.5's."),
                io.ClipVision.Output(tooltip="Image model in one space with the text model."),
            ],
        )

    @classmethod
    def execute(cls) -> io.NodeOutput:
        from ..modules.host.demo import load_sprite_world
        return io.NodeOutput(*load_sprite_world())


class FrozenSpriteScenes(io.ComfyNode):
    """Scenes of sprite world with their true pictures, and what a sampler needs to draw the same."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="FrozenSpriteScenes",
            display_name="Sprite World Scenes",
            category="frozen/demo",
            description="Scenes of sprite world drawn at random: their true pictures, and their captions as a "
                        "CONDITIONING with a row for each, so that a sampler draws the same scenes. For metrics.",
            inputs=[
                io.Clip.Input("clip", tooltip="From Load Sprite World."),
                io.Int.Input("count", default=128, min=1, max=2000, tooltip="How many scenes: one batch."),
                io.Int.Input("seed", default=0, min=0, max=2**32 - 1, control_after_generate=False,
                             tooltip="Which scenes."),
            ],
            outputs=[
                io.Image.Output(display_name="pictures", tooltip="What the captions say, truly drawn."),
                io.Conditioning.Output(display_name="prompts", tooltip="A row a scene: for positive of a sampler."),
                io.Latent.Output(display_name="latent", tooltip="Empty, of that many pictures."),
                io.String.Output(display_name="captions", tooltip="One a line."),
            ],
        )

    @classmethod
    def execute(cls, clip, count: int, seed: int) -> io.NodeOutput:
        from ..modules.demo.scenes import drawn_scenes
        from ..modules.host.demo_scenes import conditioning_of, empty_latent
        captions, pictures = drawn_scenes(count, seed)
        return io.NodeOutput(pictures, conditioning_of(clip, captions), empty_latent(count), "\n".join(captions))


NODES = [FrozenLoadSpriteWorld, FrozenSpriteScenes]
