"""The nodes of the pack: one file a method, each with a list `NODES`."""
from comfy_api.latest import ComfyExtension, io


class FrozenDiffusion(ComfyExtension):
    """What the host asks for the nodes of this pack."""

    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        """All node classes. The node files are imported here and no earlier."""
        from ..modules.host.folders import register_weights
        register_weights()
        from . import (
            control,
            customize,
            customize_training,
            demo,
            furrygan,
            furrygan_pictures,
            furrygan_training,
            guide,
            guide_training,
            h_space_injection,
            h_space_inversion,
            h_traces,
            harivo,
            latent_basis,
            metrics,
            motion,
            rulers,
            training,
            training_options,
            video,
        )
        files = (demo, motion, control, harivo, training, training_options, video, guide, guide_training,
                 customize, customize_training, h_space_inversion, h_space_injection, h_traces, latent_basis,
                 metrics, rulers, furrygan, furrygan_pictures, furrygan_training)
        return [node for file in files for node in file.NODES]
