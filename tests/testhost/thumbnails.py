"""The pictures of the template browser: workflows/NAME.jpg, each made from its template's own result.

    PYTHONPATH=tests python -m testhost.pictures thumbnails [NAME ...]
"""
from __future__ import annotations

import io
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import av
import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont, ImageSequence

from frozen_diffusion.modules.host.boot import PACK
from frozen_diffusion.modules.pictures.frame_sheet import frame_sheet, to_image

from .server import Server
from .template_results import keyed, with_embedded_files
from .templates import TEMPLATES, named
from .templates.write import workflow_of
from .workflow import api_graph

SIDE, GAP, LABEL, BYTES = 512, 6, 34, 60_000     # pixels; at most so many bytes
SECONDS = 3600


def pictures_of(file: Path) -> list[Image.Image]:
    """The frames of a video, or a picture; a preview that moves comes as its frame sheet."""
    if file.suffix != ".mp4":
        frames = frames_of(Image.open(file))
        return [laid_out(frames)] if len(frames) > 1 else frames
    with av.open(str(file)) as video:
        return [frame.to_image() for frame in video.decode(video=0)]


def frames_of(picture: Image.Image) -> list[Image.Image]:
    """A picture, or the frames of one that moves."""
    return [frame.convert("RGB") for frame in ImageSequence.Iterator(picture)]


def laid_out(frames: Sequence[Image.Image]) -> Image.Image:
    """Sixteen frames of a clip as one picture, four in a row."""
    shown = frames[::-(-len(frames) // 16)]
    pixels = torch.from_numpy(np.stack([np.asarray(frame) for frame in shown])).float() / 255
    return to_image(frame_sheet(pixels, 4)[0])


def chosen(item: str, shown: Mapping[str, list[Image.Image]]) -> list[Image.Image]:
    """The pictures of a node's key, or one of them: "save", "save 5"."""
    key, _, number = item.rpartition(" ")
    return shown[item] if item in shown else [shown[key][int(number)]]


def tile(rows: Sequence[tuple[str, Sequence[Image.Image]]]) -> Image.Image:
    """Rows of pictures under their labels, as large as they can be on a white square."""
    heights = [(SIDE - GAP * (len(row) - 1)) / sum(one.width / one.height for one in row) for _, row in rows]
    labels = sum(LABEL for label, _ in rows if label)
    shrink = min(1.0, (SIDE - labels - GAP * (len(rows) - 1)) / sum(heights))
    square, font = Image.new("RGB", (SIDE, SIDE), "white"), ImageFont.load_default(25)
    draw = ImageDraw.Draw(square)
    y = (SIDE - labels - GAP * (len(rows) - 1) - shrink * sum(heights)) / 2
    for (label, row), height in zip(rows, heights, strict=True):
        if label:
            draw.text((SIDE / 2, y + LABEL / 2), label, "black", font, anchor="mm")
            y += LABEL
        high = round(height * shrink)
        sized = [one.resize((round(high * one.width / one.height), high), Image.Resampling.LANCZOS) for one in row]
        x = (SIDE - sum(one.width for one in sized) - GAP * (len(sized) - 1)) // 2
        for one in sized:
            square.paste(one, (x, round(y)))
            x += one.width + GAP
        y += high + GAP
    return square


def jpeg(picture: Image.Image) -> bytes:
    """A picture in the best quality that keeps it under BYTES."""
    for quality in range(92, 40, -4):
        data = io.BytesIO()
        picture.save(data, "JPEG", quality=quality, optimize=True)
        if data.tell() <= BYTES:
            break
    return data.getvalue()


def run_whole(server: Server, name: str) -> dict[str, list[Image.Image]]:
    """What the nodes of a template show, by key: run as the page would, with sprite world for the user's own files."""
    template, info = TEMPLATES[name](), server.object_info()
    graph = keyed(api_graph(workflow_of(name, info), info), list(template.graph))
    for key, text in template.sprite_prompts.items():
        graph[key]["inputs"]["text"] = text
    for node in graph.values():
        if node["class_type"] == "FrozenTrainMotionModule":
            node["inputs"]["resume"] = False
    shown = server.submit(with_embedded_files(graph), seconds=SECONDS)
    return {key: [picture for file in server.files({key: outputs}) for picture in pictures_of(file)]
            for key, outputs in shown.items()}


def make_thumbnails(names: Sequence[str] = ()) -> Iterator[tuple[Path, float]]:
    """Write NAME.jpg of the named templates, or of all; yields each path and the seconds that its template took."""
    with tempfile.TemporaryDirectory() as folder, Server(Path(folder)) as server:
        for name in [named(name) for name in names] or TEMPLATES:
            server.call("/free", {"free_memory": True})      # else nodes that two templates share run once
            began = time.monotonic()
            shown = run_whole(server, name)
            seconds = time.monotonic() - began
            rows = [(label, [picture for item in items for picture in chosen(item, shown)])
                    for label, *items in TEMPLATES[name]().thumbnail]
            path = PACK / "workflows" / f"{name}.jpg"
            path.write_bytes(jpeg(tile(rows)))
            yield path, seconds
