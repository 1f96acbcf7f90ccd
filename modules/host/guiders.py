"""A guider of ours for runs without guidance, and what the hooks on its prompt allow."""
from __future__ import annotations

import comfy.samplers

from .progress import warn
from .weights import weight_hooks


def guider_of(model, positive) -> comfy.samplers.CFGGuider:
    """A guider without guidance: the prompt alone.

    A guidance on the MODEL that needs the negative prompt's prediction even at cfg 1 (SAG, NAG) gets the prompt's.
    """
    guider, positive = comfy.samplers.CFGGuider(model), with_own_keyframes(positive)
    guider.inner_set_conds({"positive": positive})
    if model.model_options.get("disable_cfg1_optimization"):
        guider.inner_set_conds({"negative": positive})
        warn("A guidance node on the MODEL asks for a negative prompt where there is none; it gets the prompt itself. "
             "Connect the MODEL from before that node to go without it.")
    guider.set_cfg(1.0)
    return guider


def options_of(conditioning) -> list[dict]:
    """What a CONDITIONING says of its prompts besides their text."""
    return [options for _, options in conditioning]


def with_own_keyframes(positive) -> list:
    """A CONDITIONING whose hooks have keyframes of their own, at their beginning.

    The host goes through keyframes while it samples, and keeps the place for the next run that begins at the same noise
    level, whoever shares them.
    """
    groups, keyframes = {}, {}

    def own(group):
        if id(group) not in groups:
            groups[id(group)] = group.clone()
            for hook in groups[id(group)].hooks:
                shared = hook.hook_keyframe
                hook.hook_keyframe = keyframes.setdefault(id(shared), shared.clone())
        return groups[id(group)]

    return [[text, {**options, "hooks": own(options["hooks"])} if options.get("hooks") is not None else options]
            for text, options in positive]


def check_keyframes(positive) -> None:
    """Raises ValueError for LoRA hooks that change along a run, which the host can follow downwards only."""
    if any(len(hook.hook_keyframe.keyframes) > 1 for hook in weight_hooks(options_of(positive))):
        raise ValueError("The prompt has a LoRA hook with keyframes. They change the LoRA's strength from high noise "
                         "to low, and an inversion goes the other way. Use the hook without keyframes, or Load LoRA.")
