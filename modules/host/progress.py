"""Progress and reports under a node: text, and pictures in the host's progress bar."""
from __future__ import annotations

import logging
import sys

from comfy_api.latest import ui
from comfy_execution.utils import ExecutionContext, get_executing_context
from PIL import Image
from torch import Tensor

from ..pictures.frame_sheet import frame_sheet, to_image

PREVIEW_SIDE = 1024         # pixels, the longer side of a sample sheet in the page
SHEET_COLUMNS = 8
_warned: tuple[ExecutionContext | None, list[str]] = None, []       # the node that runs, and what was said under it


def preview(frames: Tensor) -> tuple[str, Image.Image, int]:
    """A clip [F, H, W, 3] as the host's progress bar takes pictures."""
    return "JPEG", to_image(frame_sheet(frames, SHEET_COLUMNS)[0]), PREVIEW_SIDE


def report_progress(text: str, node_id: str | None) -> None:
    """A line of text under the node; nothing where no page listens, as in tests and on the command line.

    The page takes it for HTML. A zero-width space behind "<" keeps what files say of themselves from being markup.
    """
    server = getattr(getattr(sys.modules.get("server"), "PromptServer", None), "instance", None)
    if server is not None and node_id is not None:
        server.send_progress_text(text.replace("<", "<\N{ZERO WIDTH SPACE}"), node_id)


def warn(text: str) -> None:
    """A sentence into the log, and under the node that is running: the one that warns, or the sampler it acts in."""
    global _warned
    logging.warning("Frozen Diffusion: %s", text)
    running = get_executing_context()
    if running is not None:
        _warned = running, [*(_warned[1] if _warned[0] == running else ()), f"Warning: {text}"]
        report_progress("\n".join(_warned[1]), running.node_id)


def show_text(text: str, node_id: str | None) -> ui.PreviewText:
    """A node's report: text that stays under the node, and its `ui` for those who read results from the server.

    The page draws the first and keeps the second to itself; the server's history has the second only.
    """
    report_progress(text, node_id)
    return ui.PreviewText(text)
