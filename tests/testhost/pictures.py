"""The moving picture of the README, made by the model that the pack ships.

    PYTHONPATH=tests python -m testhost.pictures        writes nodes/web/docs/text_to_video.webp
"""
from __future__ import annotations

from pathlib import Path

import torch

from frozen_diffusion.modules.frame_sheet import to_image
from frozen_diffusion.modules.host.boot import PACK, boot_comfyui

DOCS = PACK / "nodes" / "web" / "docs"
PROMPTS = {      # caption: seed
    "a large dog in the middle of a blue striped background, moving left": 7,
    "a large rocket in the middle of a purple plain background, moving up": 7,
    "a large fish in the middle of a yellow dotted background, circling": 7,
    "a large cat in the middle of a green plain background, growing": 7,
    "a small balloon in the middle of a pink plain background, bouncing": 7,
    "a large star in the middle of a black plain background, spinning": 7}
COLUMNS, FPS = 6, 8


def write_moving(clips: torch.Tensor, path: Path) -> None:
    """Clips [N, F, 3, H, W] in 0..1 side by side as an endless animated WebP."""
    rows = clips.unflatten(0, (-1, COLUMNS)).permute(2, 0, 4, 1, 5, 3).flatten(1, 2).flatten(2, 3)      # [F, H, W, 3]
    frames = [to_image(row) for row in rows]
    frames[0].save(path, save_all=True, append_images=frames[1:], duration=1000 // FPS, loop=0, quality=80, method=6)


def main() -> None:
    boot_comfyui(["--use-pytorch-cross-attention"])
    from bench._sprite_world import generate, load_world, with_motion
    world = load_world()
    model = with_motion(world.model)
    clips = torch.cat([generate(world, model, [caption], seed, steps=20, frames=16)
                       for caption, seed in PROMPTS.items()])
    write_moving(clips, DOCS / "text_to_video.webp")
    print(DOCS / "text_to_video.webp")


if __name__ == "__main__":
    main()
