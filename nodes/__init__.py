"""The nodes of the pack: one file a method, each with a list `NODES`."""
from importlib import import_module
from pathlib import Path

from comfy_api.latest import ComfyExtension, io

FILES = ("demo", "motion", "control", "training", "video")      # the order of the node list


class FrozenDiffusion(ComfyExtension):
    """What the host asks for the nodes of this pack."""

    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        """All node classes. A node file is imported here and no earlier."""
        from ..modules.host.folders import register_weights
        register_weights()
        present = [name for name in FILES if Path(__file__).with_name(f"{name}.py").is_file()]
        return [node for name in present for node in import_module(f".{name}", __package__).NODES]
