"""What a file is that is no motion module, and who takes it: told from its keys."""
from __future__ import annotations

from collections.abc import Collection


class MotionFileError(ValueError):
    """A file is not a usable motion module; the message says what it is and what to do."""


def name_other(keys: Collection[str]) -> str | None:
    """What a state dict is if it is a known thing other than a motion module, and who takes it; else None."""
    def has(*parts: str) -> bool:
        return any(part in key for key in keys for part in parts)

    motion = has("temporal", "motion_modules")
    if has("lora_", "_lora", ".lora", "hada_w", "lokr_w"):
        if motion:
            return ("a motion LoRA: it changes a motion module and is none itself. It goes into "
                    "models/animatediff_motion_lora and is taken by a motion LoRA loader")
        return ("an ordinary LoRA for the image model (AnimateDiff's v3 domain adapter is one). It belongs "
                "into models/loras and is taken by the node Load LoRA")
    if has("controlnet_", "input_hint_block", "zero_convs", "control_model."):
        if motion:
            return ("a SparseCtrl model. It is taken by a SparseCtrl loader, for example that of "
                    "ComfyUI-Advanced-ControlNet")
        return ("a ControlNet. It goes into models/controlnet and is taken by the node Load ControlNet "
                "Model")
    if has("model.diffusion_model.", "first_stage_model.", "cond_stage_model."):
        return ("a full checkpoint of an image model. It goes into models/checkpoints and is taken by "
                "the node Load Checkpoint")
    if motion:
        return None
    if has("down_blocks.0.resnets.", "input_blocks.0.0."):
        return ("the U-Net of an image model without motion layers. It goes into models/diffusion_models "
                "and is taken by the node Load Diffusion Model")
    if has("text_model.encoder.", "vision_model.encoder."):
        return "a text or image encoder. It is taken by the nodes Load CLIP and Load CLIP Vision"
    if has("decoder.up.", "decoder.up_blocks."):
        return "a VAE. It goes into models/vae and is taken by the node Load VAE"
    return None
