"""Checkpoints of a training: one safetensors file, replaced atomically, with all that a resumed run needs."""
from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor

from ..files.atomic_write import write_atomically

FORMAT = "frozen_diffusion.training.1"


class CheckpointError(RuntimeError):
    """A checkpoint could not be written, read, or does not belong to this run."""


class CheckpointStore:
    """The newest checkpoint of one run.

    Args:
        path: where it is kept, e.g. "runs/motion.safetensors".
        about: what the run is about (names of the model and the data, say). A checkpoint made for something
            else is refused when resuming.
        assumed: what a checkpoint was made with that is older than an entry of `about` and does not hold it.
    """

    def __init__(self, path: str | Path, about: Mapping[str, str] | None = None,
                 assumed: Mapping[str, str] | None = None):
        self.path = Path(path)
        self.about, self.assumed = dict(about or {}), dict(assumed or {})

    def exists(self) -> bool:
        return self.path.is_file()

    def save(self, tensors: Mapping[str, Tensor], facts: Mapping[str, object]) -> None:
        """Write beside the old checkpoint, force it to the disk, then take the old one's place.

        Raises CheckpointError when it cannot be written; the previous checkpoint is intact then.
        """
        metadata = {"format": FORMAT, "facts": json.dumps({**facts, "about": self.about})}
        plain = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
        save_atomically(self.path, plain, metadata, "The checkpoint")

    def facts(self) -> dict:
        """What was said about the checkpoint when it was saved. CheckpointError if it is none of ours."""
        try:
            with safe_open(str(self.path), framework="pt") as file:
                metadata = file.metadata() or {}
        except (OSError, SafetensorError) as error:
            raise CheckpointError(
                f"{self.path} cannot be read as a training checkpoint ({error}). Delete it to start afresh, "
                "or give another checkpoint name.") from error
        if metadata.get("format") != FORMAT:
            raise CheckpointError(
                f"{self.path} is a safetensors file but not a training checkpoint of this pack "
                f"(expected format {FORMAT!r}, found {metadata.get('format')!r}). Give another name.")
        return json.loads(metadata["facts"])

    def losses(self) -> list[float]:
        """The losses of the steps before the checkpoint; none if there is no checkpoint."""
        if not self.exists():
            return []
        self.facts()
        with safe_open(str(self.path), framework="pt") as file:
            return file.get_tensor("losses").tolist()

    def load(self) -> tuple[dict[str, Tensor], dict]:
        """The tensors and the facts. Raises CheckpointError if the file is none of ours or of another run."""
        facts = self.facts()
        made = self.assumed | facts["about"]
        for name, value in self.about.items():
            if made.get(name) != value:
                raise CheckpointError(
                    f"The checkpoint {self.path} was made with {name} {made.get(name)!r}, this run "
                    f"has {value!r}. Use the same, or give another checkpoint name.")
        return load_file(str(self.path)), facts


def save_atomically(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str], what: str) -> None:
    """Write `what` to `path`, which holds either the old file or the whole new one.

    Raises CheckpointError (full disk, no permission); nothing is left behind then.
    """
    try:
        write_atomically(path, tensors, metadata, what)
    except OSError as error:
        kept = ("The previous one there is intact, and the same training goes on from it." if path.is_file()
                else "There was none before, so the same training begins anew.")
        raise CheckpointError(f"{error} {kept}") from error
