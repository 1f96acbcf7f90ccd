"""Checkpoints of a training: one safetensors file, replaced atomically, with all that a resumed run needs."""
from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor

from ..files.atomic_write import CheckpointError, save_atomically

FORMAT = "frozen_diffusion.training.1"


class CheckpointStore:
    """The newest checkpoint of one run.

    Args:
        path: where it is kept, e.g. "runs/motion.safetensors".
        about: what the run is about (names of the model and the data, say). A checkpoint made for something
            else is refused when resuming.
        assumed: what a checkpoint was made with that is older than an entry of `provenance` and does not hold it.
        current_key: what a tensor of an older checkpoint is called now; str leaves all names as they are.
    """

    def __init__(self, path: str | Path, provenance: Mapping[str, str] | None = None,
                 assumed: Mapping[str, str] | None = None, current_key: Callable[[str], str] = str):
        self.path, self.current_key = Path(path), current_key
        self.provenance, self.assumed = dict(provenance or {}), dict(assumed or {})

    def exists(self) -> bool:
        return self.path.is_file()

    def save(self, tensors: Mapping[str, Tensor], facts: Mapping[str, object]) -> None:
        """Write beside the old checkpoint, force it to the disk, then take the old one's place.

        Raises CheckpointError when it cannot be written; the previous checkpoint is intact then.
        """
        metadata = {"format": FORMAT, "facts": json.dumps({**facts, "about": self.provenance})}
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
        for name, value in self.provenance.items():
            if made.get(name) != value:
                raise CheckpointError(
                    f"The checkpoint {self.path} was made with {name} {made.get(name)!r}, this run "
                    f"has {value!r}. Use the same, or give another checkpoint name.")
        return {self.current_key(name): tensor for name, tensor in load_file(str(self.path)).items()}, facts
