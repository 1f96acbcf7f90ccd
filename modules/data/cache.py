"""Tensors kept on disk, so that what is computed once is not computed again: features, trajectories, encoded clips."""
from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence
from hashlib import blake2b
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor

from ..files.atomic_write import CheckpointError, write_atomically

Key = tuple[str, ...]
Share = tuple[int, int]
WHOLE: Share = (0, 1)


class TensorCache:
    """Tensors by name, kept in a folder: one safetensors file a piece.

    A piece is known by a key: the names of all that decides its content, e.g. (the encoder, a file's path, size and
    time of change). Its file is named by the key's digest, so a changed input is another piece and an interrupted work
    goes on where it was. Numbers with a fraction are kept in `dtype`, float16 or float32; integers as they are.
    Several processes may read and write one cache at the same time.

    `what` names a piece in errors, e.g. "An encoded clip".
    """

    def __init__(self, folder: Path, what: str, dtype: torch.dtype = torch.float16):
        if dtype not in (torch.float16, torch.float32):
            raise ValueError(f"A cache keeps numbers in float16 or float32; {dtype} was given.")
        self.folder, self.what, self.dtype = folder, what, dtype

    def path(self, key: Key) -> Path:
        """Where the piece is, or would be."""
        return self.folder / f"{digest(*key)}.safetensors"

    def has(self, key: Key) -> bool:
        """Whether the piece is there; one whose file is damaged is not."""
        try:
            with safe_open(str(self.path(key)), framework="pt"):
                return True
        except (OSError, SafetensorError):
            return False

    def missing(self, keys: Sequence[Key], share: Share = WHOLE) -> list[int]:
        """The indices of those of `keys` that have to be made; of equal keys the first.

        With `share` = (index, count), of a process's part only: every count-th key. Processes that were given the same
        keys make each piece once, whatever is there already. Raises ValueError for a share that cannot be.
        """
        seen: set[Key] = set()
        first = [index for index, key in enumerate(keys) if not (key in seen or seen.add(key))]
        return [index for index in part(first, share) if not self.has(keys[index])]

    def read(self, key: Key) -> dict[str, Tensor]:
        """The tensors of a piece, those with a fraction in float32. Raises CheckpointError if it is not there."""
        path = self.path(key)
        try:
            tensors = load_file(str(path))
        except (OSError, SafetensorError) as error:
            raise CheckpointError(f"{path} was made before and cannot be read now ({error}). Start the same run again: "
                                  "it makes what is missing.") from error
        return {name: tensor.float() if tensor.is_floating_point() else tensor for name, tensor in tensors.items()}

    def write(self, key: Key, tensors: Mapping[str, Tensor], piece: str, model: str, advice: str = "") -> None:
        """Keep a piece: `piece` names it and `model` what made it (e.g. "clip 3", "VAE"), for errors.

        Raises ValueError for numbers that are not finite, and says `advice` then; CheckpointError when the disk is
        full.
        """
        kept = {}
        for name, tensor in tensors.items():
            if not tensor.isfinite().all():
                raise ValueError(f"The {model} gave values for {piece} that are not finite. "
                                 + (advice or f"Run the {model} in float32, or leave {piece} out."))
            kept[name] = tensor.to("cpu", self.dtype if tensor.is_floating_point() else None).contiguous()
            if not kept[name].isfinite().all():
                raise ValueError(f"The {model} gave values for {piece} up to {tensor.abs().max().item():.3g}, which "
                                 f"{str(self.dtype).removeprefix('torch.')} cannot hold. Keep this cache in float32.")
        try:
            write_atomically(self.path(key), kept, {}, self.what, writer=secrets.token_hex(4))
        except OSError as error:
            if not self.has(key):           # else another process has just written it
                raise CheckpointError(f"{error} What was made before is kept; the same run goes on from "
                                      "there.") from error


def digest(*names: str) -> str:
    """24 hexadecimal digits that stand for some names."""
    return blake2b("\n".join(names).encode(), digest_size=12).hexdigest()


def part(indices: Sequence[int], share: Share) -> Sequence[int]:
    """Process number index's part of some pieces, for `share` = (index, count)."""
    index, count = share
    if not 0 <= index < count:
        raise ValueError(f"share is {share}; expected (number of the process from 0, number of processes).")
    return indices[index::count]
