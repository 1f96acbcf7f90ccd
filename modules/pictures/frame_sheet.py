"""A clip as one picture."""
from __future__ import annotations

import torch
import torch.nn.functional as F
from einops import rearrange
from PIL import Image

GAP, GREY = 2, 0.5      # pixels between frames, their colour


def frame_sheet(frames: torch.Tensor, columns: int) -> torch.Tensor:
    """[N, H, W, C] frames -> [1, rows * (H + 2) - 2, columns * (W + 2) - 2, C], row by row; empty places are grey."""
    columns = min(columns, len(frames))
    padded = F.pad(frames, (0, 0, 0, GAP, 0, GAP), value=GREY)
    missing = -len(frames) % columns
    padded = torch.cat([padded, torch.full_like(padded[:1], GREY).repeat(missing, 1, 1, 1)])
    sheet = rearrange(padded, "(rows columns) h w c -> 1 (rows h) (columns w) c", columns=columns)
    return sheet[:, :-GAP, :-GAP]


def to_image(picture: torch.Tensor) -> Image.Image:
    """[H, W, 3] in 0..1 as a picture."""
    return Image.fromarray((picture.clamp(0, 1) * 255).round().to(torch.uint8).cpu().numpy())
