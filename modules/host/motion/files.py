"""Motion files in the host's folders and in the pack's weights."""
from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import comfy.utils
import folder_paths

from ...motion.detect import describe
from ...motion.files import MotionReport, is_our_file, read_motion_file, write_motion_file
from ..files import next_file
from ..folders import WEIGHTS, listed, register_models, shipped_file
from .apply import LoadedMotion, hold_motion

FOLDER = "animatediff_models"       # users have their motion modules there


def register_folder() -> None:
    """Make the host know the folder, as other motion packs do, with the endings of model files."""
    register_models(FOLDER)


def list_motion_files() -> list[str]:
    """Names for the loader: those in the host's folders first, then the pack's own."""
    register_folder()
    return listed(FOLDER, WEIGHTS, is_our_file)


def find_motion_file(name: str) -> Path:
    """The file behind a name of the list. Raises FileNotFoundError."""
    register_folder()
    return shipped_file(name, WEIGHTS) or Path(folder_paths.get_full_path_or_raise(FOLDER, name))


def load_motion_file(path: str | Path) -> tuple[LoadedMotion, MotionReport]:
    """Read a motion module of any family. Raises MotionFileError."""
    path = Path(path)
    config, state, report, metadata = read_motion_file(
        path, lambda name: comfy.utils.load_torch_file(name, safe_load=True, return_metadata=True))
    return hold_motion(config, state, path.name, metadata), report


def report_text(loaded: LoadedMotion, report: MotionReport) -> str:
    """What was loaded, in a few lines."""
    config = loaded.config
    trained = f", trained on clips of {config.frames} frames" if config.frames else ""
    lines = [f"{loaded.source}: {config.kind}", describe(config),
             f"{report.tensors} tensors, {report.parameters / 1e6:.1f} M parameters",
             f"beta schedule {config.beta_schedule}, groupnorm {config.groupnorm}, {config.fps:g} fps{trained}"]
    if report.dropped:
        lines.append(f"{len(report.dropped)} tensors that are no motion weights were left out")
    return "\n".join(lines + [f"Warning: {warning}" for warning in report.warnings])


def save_motion(loaded: LoadedMotion, prefix: str, metadata: Mapping[str, str]) -> Path:
    """Write a motion module into the host's output folder under the next free number; returns the path.

    Raises OSError when it cannot be written, and leaves nothing behind then.
    """
    path = next_file(prefix)
    told = {**loaded.metadata, **{key: text for key, text in metadata.items() if text}}
    write_motion_file(path, loaded.module, told)
    return path
