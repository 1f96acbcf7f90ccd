"""Which weights does a MODEL have, with all that nodes put over them, and how a file names it.

The host changes weights in four ways: patches (LoRA, merges), functions around a weight (the MODEL that Train LoRA
hands out), hooks on prompts (Create Hook LoRA), and layers that are replaced while a run lasts (LoRA in bypass mode).
The first three are read here; where the last one is met, reading is refused.
"""
from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from hashlib import blake2b
from weakref import WeakKeyDictionary

import comfy.hooks
import comfy.lora
import comfy.model_management
import comfy.ops
import torch
from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel
from torch import Tensor, nn

from ..files.provenance import same_model, tells_weights
from .clips import MOTION, has_motion_module
from .progress import warn

PREFIX = "diffusion_model."
COMPILED = "_orig_mod."     # in the names of a compiled network's weights
BYPASS = "bypass"           # in the name under which the host injects adapters that leave the weights as they are
IDENTITIES: WeakKeyDictionary = WeakKeyDictionary()         # of models, by the host's names of their patches
SAMPLE = 16                 # numbers of a tensor that go into an identity


def is_readable(model) -> bool:
    """Whether the layers of a MODEL are those that its weights tell."""
    return not any(BYPASS in name for name in model.injections)


def check_readable(model) -> None:
    """Raises ValueError for a MODEL that is not `is_readable`."""
    if not is_readable(model):
        raise ValueError("The MODEL has a LoRA in bypass mode, which is not in its weights, so that they cannot be "
                         "read here. Load the LoRA without bypass (Load LoRA).")


def check_copyable(model) -> None:
    """Raises ValueError for a MODEL of which a copy of the weights would be another network."""
    check_readable(model)
    others = [name for name in model.injections if name != MOTION]
    others += [name for name, value in model.object_patches.items()
               if f"{name}.".startswith(PREFIX) and not hasattr(value, "_orig_mod")]     # of torch.compile
    if others:
        raise ValueError(f"Another node has put layers of its own into the MODEL ({', '.join(others)}), which a copy "
                         "of its weights would not have. Connect the MODEL from before that node.")


def merged_weights(model, keys: Iterable[str] | None = None, hooked: Mapping[str, list] | None = None
                   ) -> dict[str, Tensor]:
    """Weights of the U-Net by their names, None = all, in fp32 on the CPU, with all that changes them; reads only.

    Args:
        hooked: patches of the hooks of a prompt by key, as the host combines them.

    Raises ValueError for a MODEL whose weights do not tell the network (`check_copyable`).
    """
    check_copyable(model)
    with torch.inference_mode(False), torch.no_grad():
        stored = stored_weights(model)
        return {key: _merged(key, stored, (hooked or {}).get(key, []), model.weight_wrapper_patches.get(key, []))
                for key in (stored if keys is None else keys) if key in stored}


def _merged(key: str, stored: Mapping[str, list], hooked: list, functions: list[Callable]) -> Tensor:
    """A weight in fp32 as a layer would use it, as a new tensor. stored: [(weight, conversion), *patches] by key."""
    (weight, convert), *patches = stored[key]
    merged = convert(weight.detach().to("cpu", copy=True), inplace=True).float()
    merged = comfy.lora.calculate_weight(patches, merged, key)
    merged = comfy.lora.calculate_weight(hooked, merged, key, original_weights=dict(stored))
    for function in functions:
        own = next(function.parameters(), merged) if isinstance(function, nn.Module) else merged
        merged = function(merged.to(own.device)).to("cpu", torch.float32)
    return merged


def stored_weights(model) -> dict[str, list]:
    """[(weight, conversion), *patches] of the host by key, also where another node has put a compiled U-Net."""
    found = {}
    for key, ((weight, convert), *patches) in model.get_key_patches(PREFIX).items():
        if COMPILED in key:             # the host keeps what belongs to it under the plain name
            key = key.replace(COMPILED, "")
            weight, patches = getattr(model.backup.get(key), "weight", weight), model.patches.get(key, [])
        found[key] = [(weight, convert), *patches]
    return found


def model_identity(model) -> str:
    """A name of the U-Net's weights with what changes them, the same on every machine, in fp32, fp16 and bf16.

    Compare by `about.same_model`. Raises ValueError where the weights cannot be read.
    """
    check_readable(model)
    known = IDENTITIES.setdefault(model.model, {})
    if model.patches_uuid not in known:
        weights, changes, changed = Sketch(), Sketch(), False
        with torch.inference_mode(False), torch.no_grad():
            for key, ((weight, _), *patches) in sorted(stored_weights(model).items()):
                weights.take((key, weight))
                if over := [*patches, *model.weight_wrapper_patches.get(key, [])]:
                    changes.take((key, over))
                    changed = True
        known[model.patches_uuid] = "+".join(part.name() for part in (weights, *[changes] * changed))
    return known[model.patches_uuid]


def weight_hooks(conds: Iterable[Mapping]) -> list[comfy.hooks.WeightHook]:
    """The hooks that change the U-Net's weights for conditionings, given by their options."""
    groups = [cond["hooks"] for cond in conds if cond.get("hooks") is not None]
    found = dict.fromkeys(hook for group in groups for hook in group.get_type(comfy.hooks.EnumHookType.Weight))
    return [hook for hook in found if hook.weights and hook._strength_model]


def hooks_identity(conds: Iterable[Mapping]) -> str:
    """A name of what `weight_hooks` finds, "" if nothing."""
    sketch, hooks = Sketch(), weight_hooks(conds)
    for hook in hooks:
        keyframes = [(keyframe.strength, keyframe.start_percent) for keyframe in hook.hook_keyframe.keyframes]
        sketch.take((hook._strength_model, keyframes, sorted(hook.weights.items(), key=lambda entry: str(entry[0]))))
    return sketch.name() if hooks else ""


def same_hooks(one: str, other: str) -> bool:
    """Whether two of `hooks_identity` are of the same hooks."""
    return one == other or bool(one and other) and same_model(one, other)


def weights_told(model, conds: Iterable[Mapping]) -> dict[str, str]:
    """What a file keeps of the weights that a run with these conditionings has: "model", and "hooks" if there are.

    Of a MODEL that cannot be named (LoRA in bypass mode) there is no "model", with a warning.
    """
    told, hooks = {}, hooks_identity(conds)
    if is_readable(model):
        told["model"] = model_identity(model)
    else:
        warn("The MODEL has a LoRA in bypass mode, so that what is recorded does not name it; whether it is used with "
             "the same MODEL is not checked.")
    return told | ({"hooks": hooks} if hooks else {})


class Sketch:
    """A short name of many tensors from a few numbers of each: the signs, which no precision changes, and the size.

    Half precision makes nothing of the smallest numbers. So there are two digests, of every other number each, of which
    one may differ.
    """

    def __init__(self):
        self.digests, self.squares, self.count = (blake2b(digest_size=6), blake2b(digest_size=6)), 0.0, 0

    def take(self, value) -> None:
        """Tensors, the host's patches and adapters, modules, texts and numbers; of nested ones all."""
        if isinstance(value, Tensor):
            flat = value.detach().reshape(-1)
            numbers = flat[::max(1, len(flat) // SAMPLE)][:SAMPLE].float().cpu()
            self.squares, self.count = self.squares + numbers.double().square().sum().item(), self.count + len(numbers)
            for digest, part in zip(self.digests, (numbers[::2], numbers[1::2]), strict=True):
                digest.update((part > 0).numpy().tobytes())
        elif isinstance(value, (list, tuple)):
            for part in value:
                self.take(part)
        elif isinstance(value, nn.Module):      # a function around a weight
            plain = {name: part for name, part in vars(value).items() if isinstance(part, (int, float, str))}
            self.take((type(value).__name__, sorted(plain.items()), sorted(value.state_dict().items())))
        elif hasattr(value, "weights"):         # the host's adapters
            self.take((type(value).__name__, value.weights))
        else:
            plain = value is None or isinstance(value, (str, int, float))
            for digest in self.digests:
                digest.update((repr(value) if plain else type(value).__name__).encode())

    def name(self) -> str:
        size = math.sqrt(self.squares / max(1, self.count))
        return ".".join(digest.hexdigest() for digest in self.digests) + f":{size:.5g}"


def fingerprint(*tensors: Tensor | None) -> str:
    """A name of latents or encoded prompts, by which a file tells what it was made from."""
    digest = blake2b(digest_size=8)
    for tensor in tensors:
        digest.update(b"" if tensor is None else tensor.detach().half().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def check_trainable(model) -> None:
    """Raises ValueError for a MODEL that is no SD1.5 or SDXL image model, or that carries a motion module."""
    unet = model.model.diffusion_model
    if type(unet) is not UNetModel or unet.in_channels != 4:
        raise ValueError(f"Training needs a text-to-image model of the SD1.5 or SDXL family; the MODEL is a "
                         f"{type(unet).__name__} with {getattr(unet, 'in_channels', '?')} input channels.")
    if has_motion_module(model):
        raise ValueError("The MODEL already has a motion module. Connect the MODEL from before Apply Motion "
                         "Module; give the motion module itself to start from it.")


def copy_unet(model) -> UNetModel:
    """The U-Net of the MODEL `model` in fp32 on the CPU, with all that changes its weights merged in, frozen.

    Reads the weights wherever the host keeps them at the moment, and writes nothing. Raises ValueError for a MODEL that
    training cannot use (`check_trainable`), or whose weights cannot be read (`merged_weights`).
    """
    check_trainable(model)
    config = {**model.model.model_config.unet_config, "dtype": torch.float32}
    weights = merged_weights(model)
    with torch.inference_mode(False), torch.no_grad():
        copy = UNetModel(**config, device="meta", operations=comfy.ops.disable_weight_init)
        copy.load_state_dict({key.removeprefix(PREFIX): weight for key, weight in weights.items()}, assign=True)
    return copy.eval().requires_grad_(False)


def frozen_unet(model, low_precision: bool = False) -> UNetModel:
    """`copy_unet` on the host's device; with low_precision its matrices are kept in bfloat16."""
    unet = copy_unet(model)
    with torch.inference_mode(False):
        if low_precision:
            for parameter in unet.parameters():
                if parameter.ndim > 1:
                    parameter.data = parameter.data.bfloat16()
        return unet.to(comfy.model_management.get_torch_device())


def size_vector(base, pooled: Tensor | None, height: int, width: int) -> Tensor | None:
    """SDXL's vector of pooled text and size [B, D] on the host's device, for latents of that size; None for others."""
    device = comfy.model_management.get_torch_device()
    vector = base.encode_adm(pooled_output=pooled, device=device, height=8 * height, width=8 * width,
                             prompt_type="positive")
    return None if vector is None else vector.to(device)


def identity_as(model, known: str | None) -> str:
    """`model_identity`, in the words of a file's if those are of the same weights."""
    name = model_identity(model)
    return known if known is not None and tells_weights(known) and same_model(known, name) else name
