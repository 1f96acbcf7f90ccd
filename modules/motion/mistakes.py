"""What a file is that is no motion module, and who takes it: told from its first bytes or from its keys."""
from __future__ import annotations

import json
import struct
import zipfile
from collections.abc import Collection
from pathlib import Path

SAFETENSORS = (".safetensors", ".sft")
ZIP, PICKLE = b"PK\x03\x04", b"\x80"      # how PyTorch's files begin, new and old
WEB_PAGE = (b"<!doctype", b"<html", b"<head", b"<?xml")
AGAIN = "Download it again."


class MotionFileError(ValueError):
    """A file is not a usable motion module; the message says what it is and what to do."""


def check_file(path: Path) -> None:
    """Refuse what can be recognised without loading it. Raises MotionFileError."""
    size = path.stat().st_size
    with path.open("rb") as file:
        head = file.read(512)
    if size == 0:
        raise MotionFileError(f"{path.name} is empty (0 bytes): the download failed. {AGAIN}")
    if head.lstrip().lower().startswith(WEB_PAGE):
        raise MotionFileError(f"{path.name} is a saved web page, not a model: the page about the model was "
                              "downloaded instead of the file. Use the download link of the file itself.")
    if head.startswith(b"version https://git-lfs"):
        raise MotionFileError(f"{path.name} is a Git LFS pointer of {size} bytes, not the model itself. Run "
                              "`git lfs pull` where it was cloned, or download the file from its web page.")
    if path.suffix.lower() in SAFETENSORS:
        check_safetensors(path, size, head)
    elif header_length(head) is not None:
        raise MotionFileError(f"{path.name} is a safetensors file with another ending. Rename it to "
                              f"{path.stem}.safetensors.")
    elif not head.startswith((ZIP, PICKLE)):
        raise MotionFileError(f"{path.name} is no model file: it begins neither like safetensors nor like a "
                              f"PyTorch file. {AGAIN}")
    elif head.startswith(ZIP) and not zipfile.is_zipfile(path):
        raise MotionFileError(f"{path.name} is cut off: {size:,} bytes of a PyTorch file without its end. "
                              f"{AGAIN}")


def header_length(head: bytes) -> int | None:
    """Length of the JSON header if the first bytes of a file look like safetensors, else None."""
    if len(head) < 10 or head[8:9] != b"{":
        return None
    length = struct.unpack("<Q", head[:8])[0]
    return length if length < 100_000_000 else None


def check_safetensors(path: Path, size: int, head: bytes) -> None:
    """Compare the size of a safetensors file with what its header promises. Raises MotionFileError."""
    length = header_length(head)
    if length is None:
        cure = "it is a PyTorch file; rename it to .ckpt" if head.startswith(ZIP) else "it is damaged"
        raise MotionFileError(f"{path.name} does not begin like a safetensors file: {cure}, or get it again.")
    promised = 8 + length
    if promised <= size:
        try:
            entries = [entry for name, entry in read_header(path).items() if name != "__metadata__"]
            promised += max((entry["data_offsets"][1] for entry in entries), default=0)
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise MotionFileError(f"The header of {path.name} is damaged ({error}). {AGAIN}") from error
    if promised > size:
        raise MotionFileError(f"{path.name} is cut off: it has {size:,} bytes and should have at least "
                              f"{promised:,}. {AGAIN}")


def read_header(path: Path) -> dict:
    """The JSON header of a safetensors file: names, shapes and metadata, without the weights.

    Raises ValueError when there is none.
    """
    with path.open("rb") as file:
        length = header_length(file.read(10))
        if length is None:
            raise ValueError(f"{path.name} does not begin like a safetensors file")
        file.seek(8)
        return json.loads(file.read(length))


def name_other(keys: Collection[str]) -> str | None:
    """What a state dict is if it is a known thing other than a motion module, and who takes it; else None."""
    def has(*parts: str) -> bool:
        return any(part in key for key in keys for part in parts)

    motion = has("temporal", "motion_modules")
    if has("lora_", "_lora", ".lora", "hada_w", "lokr_w"):
        if motion:
            return ("a motion LoRA: it changes a motion module and is none itself. It belongs into "
                    "models/animatediff_motion_lora and is taken by a motion LoRA loader")
        return ("an ordinary LoRA for the image model (AnimateDiff's v3 domain adapter is one). It belongs "
                "into models/loras and is taken by the node Load LoRA")
    if has("controlnet_", "input_hint_block", "zero_convs", "control_model."):
        if motion:
            return ("a SparseCtrl model. It is taken by a SparseCtrl loader, for example that of "
                    "ComfyUI-Advanced-ControlNet")
        return ("a ControlNet. It belongs into models/controlnet and is taken by the node Load ControlNet "
                "Model")
    if has("model.diffusion_model.", "first_stage_model.", "cond_stage_model."):
        return ("a full checkpoint of an image model. It belongs into models/checkpoints and is taken by "
                "the node Load Checkpoint")
    if motion:
        return None
    if has("down_blocks.0.resnets.", "input_blocks.0.0."):
        return ("the U-Net of an image model without motion layers. It belongs into models/diffusion_models "
                "and is taken by the node Load Diffusion Model")
    if has("text_model.encoder.", "vision_model.encoder."):
        return "a text or image encoder. It is taken by the nodes Load CLIP and Load CLIP Vision"
    if has("decoder.up.", "decoder.up_blocks."):
        return "a VAE. It belongs into models/vae and is taken by the node Load VAE"
    return None
