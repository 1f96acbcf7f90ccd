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


NODES = [FrozenLoadSpriteWorld]
