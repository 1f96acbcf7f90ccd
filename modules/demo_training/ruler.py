"""The ruler of sprite world: what its attributes are measured from and along, made of true pictures."""
from __future__ import annotations

from pathlib import Path

from ..demo.attributes import attribute_text
from ..demo.scenes import drawn_scenes
from ..files.atomic_write import write_atomically
from ..metrics.attributes import parse_attributes
from ..metrics.hcs import TEMPLATED
from ..metrics.ruler_file import ruler_tensors
from .parts import LICENCE, WEIGHTS

PICTURES, SEED = 2000, 0


def train_ruler(runs: Path) -> Path:
    """Nothing is trained: pictures are drawn and encoded."""
    from ..host.demo import load_sprite_world
    from ..host.metrics.clip_pair import HostPair
    from ..host.metrics.image_sets import set_of_images
    from ..host.metrics.report import make_ruler
    _, clip, _, vision = load_sprite_world()
    reference = set_of_images(drawn_scenes(PICTURES, SEED)[1], HostPair(clip, vision), "sprite world")
    ruler = make_ruler(reference, parse_attributes(attribute_text()), TEMPLATED)
    path = WEIGHTS / "rulers" / "sprite_world.safetensors"
    write_atomically(path, *ruler_tensors(ruler), "The ruler")
    path.with_suffix(".md").write_text(
        f"# rulers/sprite_world\n\nThe {len(ruler.names)} attributes of sprite world, measured from the mean of "
        f"{PICTURES} true pictures, for Load Ruler.\n\n| | |\n|---|---|\n| command | `python -m frozen_diffusion.cli "
        f"demo-train ruler` |\n| seed | {SEED} |\n| list | {ruler.list_hash} |\n| licence | {LICENCE} |\n")
    return path
