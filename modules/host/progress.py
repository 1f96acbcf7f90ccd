"""Progress under a node: a line of text, and pictures in the host's progress bar."""
from __future__ import annotations

import sys

from PIL import Image
from torch import Tensor

from ..pictures.frame_sheet import frame_sheet, to_image

PREVIEW_SIDE = 1024         # pixels, the longer side of a sample sheet in the page
SHEET_COLUMNS = 8


def preview(frames: Tensor) -> tuple[str, Image.Image, int]:
    """A clip [F, H, W, 3] as the host's progress bar takes pictures."""
    return "JPEG", to_image(frame_sheet(frames, SHEET_COLUMNS)[0]), PREVIEW_SIDE


def report_progress(text: str, node_id: str | None) -> None:
    """A line of text under the node; nothing where no page listens, as in tests and on the command line."""
    server = getattr(getattr(sys.modules.get("server"), "PromptServer", None), "instance", None)
    if server is not None and node_id is not None:
        server.send_progress_text(text, node_id)
