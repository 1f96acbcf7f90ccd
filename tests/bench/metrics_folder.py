"""Reading a large folder: 5000 PNGs of 512x512, encoded by a CLIP of B/32's size with random weights.

`images_per_second` of reading and encoding; `over_decode` = its time over that of decoding and scaling alone;
`cached_seconds` of the second run. FROZEN_BENCH_PROMPTS sets the number of pictures (5000). Name: metrics-folder.
"""
from __future__ import annotations

import tempfile
import time
from pathlib import Path

import folder_paths
import torch
from bench._sprite_world import prompts
from PIL import Image
from safetensors.torch import save_file

from frozen_diffusion.modules.demo.scenes import drawn_scenes
from frozen_diffusion.modules.host.metrics.full_clip import FullCLIP
from frozen_diffusion.modules.host.metrics.image_sets import ImageSet, set_of_folder
from frozen_diffusion.modules.metrics.folder import GENERAL, for_encoder, open_picture
from frozen_diffusion.modules.pictures.frame_sheet import to_image
from frozen_diffusion.modules.seeding import stream

SIDE, DIFFERENT, SAMPLE = 512, 50, 500      # pixels; pictures that are rendered; pictures that are only decoded


def write_folder(folder: Path, count: int) -> None:
    """Sprites, enlarged, with noise as photos have it, so that PNGs are not small."""
    sprites = [to_image(picture).resize((SIDE, SIDE)) for picture in drawn_scenes(DIFFERENT, 0)[1]]
    for number in range(count):
        noise = 255 * torch.rand(SIDE, SIDE, 1, generator=stream("grain", number % DIFFERENT))
        grain = Image.fromarray(noise.expand(-1, -1, 3).to(torch.uint8).numpy())
        Image.blend(sprites[number % DIFFERENT], grain, 0.08).save(folder / f"{number}.png", compress_level=1)


def read(folder: Path, pair: FullCLIP) -> tuple[float, ImageSet]:
    began, reading = time.perf_counter(), set_of_folder(folder, pair)
    while True:
        try:
            next(reading)
        except StopIteration as end:
            return time.perf_counter() - began, end.value


def run() -> dict:
    from transformers import CLIPConfig, CLIPModel
    count = prompts(5000)
    with tempfile.TemporaryDirectory() as place:
        folder, user = Path(place, "pictures"), folder_paths.get_user_directory()
        folder.mkdir()
        write_folder(folder, count)
        state = {key: value.contiguous() for key, value in CLIPModel(CLIPConfig()).state_dict().items()}
        save_file(state, Path(place, "clip.safetensors"))
        pair = FullCLIP(Path(place, "clip.safetensors"), probe=False)
        folder_paths.set_user_directory(place)
        try:
            began = time.perf_counter()
            for path in sorted(folder.iterdir())[:SAMPLE]:
                for_encoder(open_picture(path, GENERAL), pair.size)
            decode = (time.perf_counter() - began) / min(SAMPLE, count) * count
            whole, found = read(folder, pair)
            again, _ = read(folder, pair)
        finally:
            folder_paths.set_user_directory(user)
    figures = {"images_per_second": len(found) / whole, "over_decode": whole / decode, "cached_seconds": again}
    return {"figures": figures, "context": {"pictures": len(found), "decode_seconds": decode, "encoder": pair.name}}
