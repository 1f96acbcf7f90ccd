"""The parts of one call of the U-Net: the host puts several conditionings into one batch, and windows of a clip."""
from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from uuid import UUID

from .calls import KEY, PROMPT, unknown_role
from .context_windows import frames_of_call


@dataclass(frozen=True)
class Chunk:
    """Rows of one call of the U-Net that follow one conditioning.

    Attributes:
        role: PROMPT, NEGATIVE or None; see `calls`.
        rows: in the batch of the call.
        items: which pictures of the sampled batch they are.
        conditioning: its uuid, None if the call does not say.
        extra: whether a guidance function made the call, not the guider.
    """
    role: str | None
    rows: slice
    items: tuple[int, ...]
    conditioning: UUID | None = None
    extra: bool = False

    def of_prompt(self, what: str) -> bool:
        """Whether they follow the prompt. Raises ValueError, for `what`, where that is not known."""
        if self.role is None:
            raise unknown_role(what)
        return self.role == PROMPT


def chunks_of(rows: int, options: Mapping) -> list[Chunk]:
    """The parts of a call with so many rows, in their order.

    Raises ValueError for a batch that does not divide into them, or into the frames of a context window.
    """
    kinds = options.get("cond_or_uncond") or [0]
    each, rest = divmod(rows, len(kinds))
    if rest:
        raise ValueError(f"The U-Net was called with {rows} rows for {len(kinds)} conditionings: another node changes "
                         "the batch inside of the model. Take it away.")
    items = frames_of_call(each, options)
    calls, uuids = options.get(KEY), options.get("uuids") or []
    known = uuids if len(uuids) == len(kinds) else [None] * len(kinds)      # a node has added rows of its own
    return [Chunk(None if calls is None else calls.roles.get(uuid), slice(number * each, (number + 1) * each), items,
                  uuid, calls is not None and calls.extra) for number, uuid in enumerate(known)]
