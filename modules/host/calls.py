"""The role of a call of the U-Net: which conditioning of the guider each part of its batch follows, and who asked.

The host tells a call only positions in a list, `cond_or_uncond`, and each guider has a list of its own: DualCFGGuider
lists the negative prompt first, PAG a list of one. Guidance nodes call the U-Net again for conditionings that it has
already seen. Both are known where the guider is: its conditionings carry the uuids that the host hands to a call, and
what nodes have hung on the guidance runs inside of functions that can be marked while they run.
"""
from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from uuid import UUID, uuid4

import comfy.model_patcher
from comfy.patcher_extension import WrappersMP

from .context_windows import frames_of_call

KEY = "frozen_calls"            # of the run's `CallRoles` in transformer_options
PROMPT, NEGATIVE = "prompt", "negative"
ROLES = {"positive": PROMPT, "negative": NEGATIVE}      # by the host's word for the type of a prompt
GUIDANCE = ("sampler_pre_cfg_function", "sampler_post_cfg_function")


class CallRoles:
    """What a run knows of its calls.

    Attributes:
        roles: of each conditioning by its uuid: PROMPT, NEGATIVE, or None for one of a kind that is not known.
        extra: whether a call is made at this moment by a guidance function, besides those of the guider.
    """

    def __init__(self, roles: Mapping[UUID, str | None]):
        self.roles, self.extra = dict(roles), False

    @contextmanager
    def of_guidance(self) -> Iterator[None]:
        """Calls inside are extra ones."""
        before, self.extra = self.extra, True
        try:
            yield
        finally:
            self.extra = before


class GuidanceFunction:
    """A function that a node has hung on the guidance; calls of the U-Net inside of it are extra ones."""

    def __init__(self, function: Callable, calls: CallRoles):
        self.function, self.calls = function, calls

    def __call__(self, args: dict):
        with self.calls.of_guidance():
            return self.function(args)

    def __getattr__(self, name: str):
        if name.startswith("__"):           # as copy asks an instance that is not filled yet
            raise AttributeError(name)
        return getattr(self.function, name)


def with_roles(model_options: Mapping, guider) -> dict:
    """A copy of a run's options in which every call of the U-Net can tell its role (`CallRoles`, under KEY).

    To be used from inside a sampler, where the guider's conditionings are complete; applied twice it changes nothing.
    """
    options = comfy.model_patcher.create_model_options_clone(model_options)
    inner, roles = options.setdefault("transformer_options", {}), roles_of(guider)
    calls = inner.get(KEY)
    if calls is None or calls.roles != roles:
        calls = inner[KEY] = CallRoles(roles)
    for name in GUIDANCE:
        if name in options:
            options[name] = [marked(function, calls) for function in options[name]]
    if "sampler_cfg_function" in options:
        options["sampler_cfg_function"] = marked(options["sampler_cfg_function"], calls)
    return options


def without_guidance(model):
    """A clone of the MODEL without the functions that nodes have hung on its guidance: the U-Net's own prediction."""
    model = model.clone()
    for name in (*GUIDANCE, "sampler_cfg_function", "sampler_calc_cond_batch_function", "disable_cfg1_optimization"):
        model.model_options.pop(name, None)
    return model


def know_roles(model) -> None:
    """Let every run of `model`, a clone of ours, give its calls their roles."""
    model.add_wrapper_with_key(WrappersMP.SAMPLER_SAMPLE, KEY, around_sampler)


def around_sampler(executor, guider, sigmas, extra_args: Mapping, *args, **kwargs):
    """SAMPLER_SAMPLE, see the host: `with_roles` for the run."""
    options = with_roles(extra_args["model_options"], guider)
    return executor(guider, sigmas, {**extra_args, "model_options": options}, *args, **kwargs)


@contextmanager
def extra_calls(model_options: Mapping) -> Iterator[None]:
    """Calls of the U-Net inside are extra ones, in a run whose options these are, if it tells roles."""
    calls = model_options["transformer_options"].get(KEY)
    with nullcontext() if calls is None else calls.of_guidance():
        yield


def marked(function: Callable, calls: CallRoles) -> Callable:
    """`function` with its calls of the U-Net marked as extra ones in `calls`, once."""
    already = isinstance(function, GuidanceFunction) and function.calls is calls
    return function if already else GuidanceFunction(function, calls)


def roles_of(guider) -> dict[UUID, str | None]:
    """The role of every conditioning of a guider by its uuid, which becomes its own here.

    A conditioning is what the guider calls its list, else what its `prompt_type` says. For a region that one list has
    and the other has not, the host puts a copy with the same uuid into the other; it gets a new one.
    """
    roles: dict[UUID, str | None] = {}
    for name, conds in getattr(guider, "conds", {}).items():
        for cond in conds or ():
            role = role_of(name, cond)
            if roles.get(cond.get("uuid"), role) != role:
                cond["uuid"] = uuid4()
            roles[cond.get("uuid")] = role
    return roles


def role_of(name: str, cond: Mapping) -> str | None:
    """The role of a conditioning in a guider's list of that name."""
    return ROLES.get(name) or ROLES.get(cond.get("prompt_type"))


def prompts_of(guider) -> list[Mapping]:
    """The conditionings of the prompt that a guider was given, by their options."""
    return [cond for name, conds in getattr(guider, "original_conds", {}).items() for cond in conds or ()
            if role_of(name, cond) == PROMPT]


def unknown_role(what: str) -> ValueError:
    """The error for a call whose role has to be known and is not."""
    return ValueError(
        f"{what} has to know which part of a call follows the prompt, and another node hides it: a guider whose "
        "conditionings are neither a prompt nor a negative prompt, a guidance that brings a conditioning of its own, "
        "or a node that changes the batch of the U-Net. Use CFGGuider, BasicGuider, DualCFGGuider or PerpNegGuider, "
        "or take that node away.")


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
