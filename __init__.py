"""Frozen Diffusion: research-grade parts that plug into a frozen text-to-image model in ComfyUI.

The host reads two names here. Nothing is imported at module level, so that the host starts no slower.
"""

WEB_DIRECTORY = "nodes/web"     # help pages: nodes/web/docs/<node_id>.md


async def comfy_entrypoint():
    """Called by the host once at start; returns the extension that lists the nodes."""
    from .nodes import FrozenDiffusion
    return FrozenDiffusion()
