"""Progress and reports under a node: text, and pictures in the host's progress bar."""
from __future__ import annotations

import logging
import sys

from comfy_api.latest import ui
from comfy_execution.utils import get_executing_context
from PIL import Image
from torch import Tensor

from ..pictures.frame_sheet import frame_sheet, to_image

PREVIEW_SIDE = 1024         # pixels, the longer side of a sample sheet in the page
SHEET_COLUMNS = 8
_warned: dict[str, tuple[str, list[str]]] = {}      # by node: the prompt in which it ran, and what was said under it


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
    logging.warning("Frozen Diffusion: %s", text)
    running = get_executing_context()
    if running is not None:
        said = warnings_under(running.node_id)
        if (line := f"Warning: {text}") not in said:
            said = [*said, line]
            _warned[running.node_id] = running.prompt_id, said
            report_progress("\n".join(said), running.node_id)


def warnings_under(node_id: str | None) -> list[str]:
    """What was said under a node in the prompt that is running."""
    running = get_executing_context()
    prompt, said = _warned.get(node_id, ("", []))
    return said if running is not None and prompt == running.prompt_id else []


def take_back_warnings() -> None:
    """Blank what an earlier prompt said under the node that is running. The page takes no empty text."""
    running = get_executing_context()
    if running is not None and running.node_id in _warned and not warnings_under(running.node_id):
        del _warned[running.node_id]
        report_progress("\N{ZERO WIDTH SPACE}", running.node_id)


def show_text(text: str, node_id: str | None) -> ui.PreviewText:
    """A node's report: text that stays under the node, and its `ui` for those who read results from the server.

    The page draws the first and keeps the second to itself; the server's history has the second only. Warnings of the
    same run stand above it.
    """
    text = "\n".join([*warnings_under(node_id), text])
    report_progress(text, node_id)
    return ui.PreviewText(text)
