"""From real pictures to their alpha, as the node Foreground from Image does it, on pictures that no training saw.

Of FROZEN_BENCH_PROMPTS pictures (200) of the emoji world: `miou` with the true alpha, `soft_sad` (mean absolute
difference of both alphas), `seconds` a picture, `warned` (share that the node warns of), `miou_unwarned`, and
`hint_miou`, Mask Hint's in one pass. FROZEN_BENCH_STEPS sets the steps (300). Wants the font fonts-noto-color-emoji.
Name: furry-inversion.
"""
from __future__ import annotations

import os
import statistics
import time

import torch
from bench._furry import held_out, miou
from bench._sprite_world import context, prompts

from frozen_diffusion.modules.furrygan.inversion import GUIDE
from frozen_diffusion.modules.host.folders import WEIGHTS
from frozen_diffusion.modules.host.furrygan.apply import mask_hints
from frozen_diffusion.modules.host.furrygan.files import load_furry
from frozen_diffusion.modules.host.furrygan.invert import AT_ONCE, from_images

STEPS = int(os.environ.get("FROZEN_BENCH_STEPS", 300))


def run() -> dict:
    loaded, count = load_furry(WEIGHTS / "sprite_furry.safetensors"), prompts(200)
    pictures, alphas = held_out(loaded.file.shape.size, count)
    images, masks, warned = ((pictures + 1) / 2).movedim(1, -1), [], []
    began = time.perf_counter()
    with torch.inference_mode():
        for part in images.split(AT_ONCE):
            found = from_images(loaded, part, STEPS, 0, GUIDE)
            masks.append(found.mask)
            warned += ["Do not trust" in _of(found.text, number) for number in range(len(part))]
        seconds = (time.perf_counter() - began) / count
        mask, hint = torch.cat(masks)[:, None], mask_hints(loaded, images)[:, None]
    each, doubted = miou(mask > 0.5, alphas > 0.5), torch.tensor(warned)
    trusted = each[~doubted].tolist()
    return {"figures": {"miou": float(each.mean()), "soft_sad": float((mask - alphas).abs().mean()), "seconds": seconds,
                        "warned": float(doubted.double().mean()),
                        "miou_unwarned": statistics.fmean(trusted) if trusted else float("nan"),
                        "hint_miou": float(miou(hint > 0.5, alphas > 0.5).mean())},
            "context": context(pictures=count, steps=STEPS, guide=GUIDE)}


def _of(text: str, number: int) -> str:
    """The lines about one picture."""
    return text.partition(f"picture {number}:")[2].partition("\npicture ")[0]
