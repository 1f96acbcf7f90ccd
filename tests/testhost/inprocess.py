"""The host in this process: what a test needs to call nodes as the host's executor calls them."""
from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import frozen_diffusion
from frozen_diffusion.modules.host.boot import boot_comfyui

from .server import finish
from .workflow import DYNAMIC, default_of, inputs_of, is_widget


@dataclass(frozen=True)
class HostInProcess:
    """An imported ComfyUI with the nodes of the pack registered."""

    folder: Path                    # of the ComfyUI
    nodes: ModuleType               # the host's nodes.py
    folder_paths: ModuleType        # the host's folder_paths.py
    pack: list[type]                # our node classes

    def node(self, node: str | type) -> type:
        """The class of a node, by its id (the host's main nodes and ours) or given as the class itself."""
        return node if isinstance(node, type) else self.nodes.NODE_CLASS_MAPPINGS[node]

    def run(self, node: str | type, **inputs) -> tuple:
        """Execute one node, under inference mode as the host does; returns the values of its outputs.

        Nodes of the host get the defaults of their widgets, as from the page: newer hosts have more of them. Ours do
        not, since a prompt sent by hand may leave them out.
        """
        import torch
        node = self.node(node)
        if node not in self.pack:
            inputs = {**page_defaults(node), **inputs}
        with torch.inference_mode():
            if hasattr(node, "GET_SCHEMA"):
                output = node.PREPARE_CLASS_CLONE(None).EXECUTE_NORMALIZED(**inputs)
                return tuple(output.result or ())
            output = getattr(node(), node.FUNCTION)(**inputs)
            return tuple(output.get("result", ()) if isinstance(output, dict) else output)


def page_defaults(node: type) -> dict:
    """The values that the page sends for a node which has just been added, by input name."""
    listed = node.INPUT_TYPES()
    schema = {"input": listed, "input_order": {part: list(inputs) for part, inputs in listed.items()}}
    return {name: default_of(kind, options) for name, kind, options in inputs_of(schema)
            if is_widget(kind, options) and kind != DYNAMIC}


def start(output: Path) -> HostInProcess:
    """Import the host, send its output to `output` and register the pack's nodes.

    The classes registered are those of the importable package `frozen_diffusion`, so that what a test imports
    and what it runs are the same objects; that the host's own loader takes the pack is proven on the server.
    """
    folder = boot_comfyui()
    import folder_paths

    import nodes
    for kind in ("output", "temp", "input"):
        (output / kind).mkdir(parents=True, exist_ok=True)
        getattr(folder_paths, f"set_{kind}_directory")(str(output / kind))

    async def listed():
        extension = await frozen_diffusion.comfy_entrypoint()
        return await extension.get_node_list()

    pack = finish(listed())
    nodes.NODE_CLASS_MAPPINGS.update({node.GET_SCHEMA().node_id: node for node in pack})
    return HostInProcess(folder, nodes, folder_paths, pack)
