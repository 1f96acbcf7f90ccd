"""Motion LoRAs, absorbers and other LoRA files in the host's folders."""
from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import comfy.utils
import folder_paths

from ...customize.absorber import Absorber
from ...customize.files import (
    ANIMATEDIFF,
    KOHYA,
    LoraFile,
    LoraFileError,
    named,
    read_lora_file,
    write_embedding,
    write_lora,
)
from ...customize.names import SPATIAL, TEMPORAL
from ...motion.motion_lora import SUM_LIMIT, MotionLoRA, by_block, fitting, strength_curve
from ..files import next_file
from ..folders import WEIGHTS, listed, register_models, shipped_file
from ..motion.apply import LoadedMotion

FOLDER = "animatediff_motion_lora"          # where users of AnimateDiff have theirs
SHIPPED_FOLDER = WEIGHTS / "motion_loras"


def register_folder() -> None:
    """Make the host know the folder, with the endings of model files."""
    register_models(FOLDER)


def list_motion_loras() -> list[str]:
    """Names for the loader: those in models/animatediff_motion_lora first, then the pack's own."""
    register_folder()
    return listed(FOLDER, SHIPPED_FOLDER)


def list_loras() -> list[str]:
    """Names of all files that Convert LoRA takes: motion LoRAs, then those in models/loras."""
    return [*list_motion_loras(), *folder_paths.get_filename_list("loras")]


def find_lora(name: str) -> Path:
    """The file behind a name of either list. Raises FileNotFoundError."""
    register_folder()
    if (shipped := shipped_file(name, SHIPPED_FOLDER)) is not None:
        return shipped
    for folder in (FOLDER, "loras"):
        if (path := folder_paths.get_full_path(folder, name)) is not None:
            return Path(path)
    return Path(folder_paths.get_full_path_or_raise(FOLDER, name))


def load_lora(path: Path) -> LoraFile:
    """Read a LoRA file of any layout. Raises LoraFileError."""
    return read_lora_file(path, lambda name: comfy.utils.load_torch_file(name, safe_load=True, return_metadata=True))


def motion_lora_of(file: LoraFile) -> MotionLoRA:
    """The motion LoRA in a file. Raises LoraFileError for one without, naming the loader that takes it."""
    if file.list_base:
        raise LoraFileError(f"{file.source} is a MotionDirector list for ModelScope or ZeroScope; its layers are of a "
                            "video model that is not here. Train a motion LoRA on your AnimateDiff module instead.")
    if not file.temporal:
        raise LoraFileError(f"{file.source} changes {file.counts()} of the image model and none of a motion module: "
                            "it is an ordinary LoRA (AnimateDiff's v3 domain adapter is one). It goes into "
                            "models/loras and is taken by the node Load LoRA.")
    return MotionLoRA(file.source, file.temporal, metadata=file.metadata)


def with_motion_lora(motion: LoadedMotion, lora: MotionLoRA, strength: float, fade_after: float = 1.0, curve: str = "",
                     blocks: str = "") -> tuple[LoadedMotion, str]:
    """(the motion module with the LoRA on it, what was applied in words). Raises ValueError where it does not fit."""
    there, missing = fitting(motion.module, lora.factors, lora.name)
    lines = [f"{lora.name}: {len(there)} of {len(lora.factors)} layers applied to {motion.source} "
             f"({motion.config.kind})"]
    if missing:
        lines.append(f"Warning: {len(missing)} layers are not in this motion module, e.g. {missing[0]}. A LoRA for "
                     "AnimateDiff v2 does little on v1 and v3: use the module that it was made for.")
    schedule = lora.metadata.get("beta_schedule")
    if schedule not in (None, motion.config.beta_schedule):
        lines.append(f"Warning: it was trained with beta schedule {schedule}, and this motion module has "
                     f"{motion.config.beta_schedule}: motion will be weak and washed out.")
    if caption := lora.metadata.get("caption"):
        lines.append(f"trained on: {caption}")
    total = sum(abs(other.strength) for other in motion.loras) + abs(strength)
    if motion.loras and total > SUM_LIMIT:
        lines.append(f"Warning: strengths of {len(motion.loras) + 1} motion LoRAs add up to {total:g}; above "
                     f"{SUM_LIMIT:g} clips break as a rule. Start at 0.8 each.")
    if strength == 0:
        return motion, "\n".join([*lines, "strength is 0: nothing is changed"])
    placed = replace(lora, factors=by_block(there, blocks), strength=strength, curve=strength_curve(fade_after, curve))
    return replace(motion, loras=(*motion.loras, placed)), "\n".join(lines)


def load_report(file: LoraFile) -> str:
    """What was in a file, in a line or two."""
    lines = [f"{file.source}: {file.counts()}, rank {file.ranks()}"]
    if file.temporal and file.spatial:
        lines.append(f"The {len(file.spatial)} layers of the image model are not applied here: Convert LoRA splits the "
                     "file, and Load LoRA takes that part.")
    if file.unmatched:
        lines.append(f"{len(file.unmatched)} keys were not understood: {named(file.unmatched)}")
    return "\n".join(lines)


def save_motion_lora(lora: MotionLoRA, prefix: str, layout: str = ANIMATEDIFF) -> Path:
    """Write a motion LoRA into the output folder under the next free number. Raises OSError."""
    path = next_file(prefix)
    write_lora(path, {TEMPORAL: lora.factors}, layout, told(lora.metadata))
    return path


def save_absorber(absorber: Absorber, prefix: str) -> list[Path]:
    """Write the S-LoRA (for Load LoRA) and the embedding of an absorber, whichever it has. Raises OSError."""
    paths = []
    if absorber.factors:
        paths.append(next_file(f"{prefix}_s_lora"))
        write_lora(paths[-1], {SPATIAL: absorber.factors}, KOHYA, told(absorber.metadata))
    if absorber.vectors is not None:
        paths.append(next_file(f"{prefix}_embedding"))
        write_embedding(paths[-1], absorber.vectors, told(absorber.metadata))
    return paths


def told(metadata: Mapping[str, str]) -> dict[str, str]:
    """Metadata without what was not said."""
    return {key: str(value) for key, value in metadata.items() if value not in (None, "")}
