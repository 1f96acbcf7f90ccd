"""One file that holds a whole CLIP, run by transformers under the host's device management."""
from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from pathlib import Path

import comfy.model_management
import comfy.model_patcher
import comfy.sd1_clip
import comfy.utils
import folder_paths
import torch
from torch import Tensor

from ...files.checks import check_file
from ...metrics.clip_keys import CLIPFileError, clip_config, clip_name, whole_clip
from .clip_pair import TEXTS_AT_ONCE, ClipPairError, check_pair, identity_of

FOLDERS = ("clip_vision", "text_encoders")
MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


class FullCLIP:
    """A CLIP file of Hugging Face's or OpenAI's layout. Nothing is downloaded: the tokenizer is the host's.

    Raises CLIPFileError for a file that lacks a tower or a projection, ClipPairError for one that fails the probe.
    """

    def __init__(self, path: Path, activation: str = "auto", probe: bool = True):
        from transformers import CLIPConfig, CLIPModel
        state = whole_clip(_read(path), path.name)
        config = clip_config(state, activation)
        with torch.inference_mode(False), torch.device("meta"):
            model = CLIPModel(CLIPConfig(**config)).eval()
        with torch.inference_mode(False):
            # Weights stay as they are in the file; what transformers computes itself is made anew off the meta device.
            lost = model.load_state_dict(state, strict=False, assign=True)
            missing = [name for name in lost.missing_keys if "position_ids" not in name and name != "logit_scale"]
            if missing:
                raise CLIPFileError(f"{path.name} is cut: {len(missing)} weights of the CLIP are missing, e.g. "
                                    f"{missing[0]}. Get it again.")
            model.logit_scale.data = torch.zeros(()) if model.logit_scale.is_meta else model.logit_scale.data
            for name, buffer in list(model.named_buffers()):
                if buffer.is_meta:
                    owner = model.get_submodule(name.rpartition(".")[0])
                    setattr(owner, name.rpartition(".")[2], torch.arange(buffer.shape[-1])[None])
            model.requires_grad_(False)
        load = comfy.model_management.text_encoder_device()
        offload = comfy.model_management.text_encoder_offload_device()
        dtype = torch.float32 if load.type == "cpu" else torch.float16
        held = torch.nn.ModuleDict({"clip": model.to(offload, dtype)})       # the host sets what transformers computes
        self.patcher = comfy.model_patcher.ModelPatcher(held, load_device=load, offload_device=offload)
        self.model, self.config = model, config
        self.size, self.width = config["vision_config"]["image_size"], config["projection_dim"]
        self.name = f"{clip_name(config)} of {path.name}"
        self.identity = identity_of(model, {"activation": config["vision_config"]["hidden_act"]})
        self.notes: list[str] = []
        if probe:
            check_pair(self)

    @torch.inference_mode()
    def images(self, pixels: Tensor) -> Tensor:
        self._load()
        device, dtype = self.patcher.load_device, self.model.visual_projection.weight.dtype
        mean, std = (torch.tensor(value, device=device)[:, None, None] for value in (MEAN, STD))
        values = (pixels.to(device).float() / 255 - mean) / std
        pooled = self.model.vision_model(pixel_values=values.to(dtype)).pooler_output
        return self.model.visual_projection(pooled).float().cpu()

    @torch.inference_mode()
    def texts(self, texts: Sequence[str]) -> Tensor:
        self._load()
        tokens, found = torch.tensor([self._tokens(text) for text in texts]), []
        for part in tokens.split(TEXTS_AT_ONCE):
            part = part.to(self.patcher.load_device)
            last = self.model.text_model(input_ids=part).last_hidden_state
            end = (part == self.config["text_config"]["eos_token_id"]).int().argmax(1)
            found.append(self.model.text_projection(last[torch.arange(len(part)), end]).float().cpu())
        return torch.cat(found)

    def _tokens(self, text: str) -> list[int]:
        ids = _tokenizer()(text)["input_ids"]
        length = self.config["text_config"]["max_position_embeddings"]
        if len(ids) > length:
            raise ClipPairError(f"The text {text[:60]!r}... has {len(ids)} tokens; the CLIP reads {length}. Shorten "
                                "it: cut off, it would mean something else.")
        return ids + [ids[-1]] * (length - len(ids))

    def _load(self) -> None:
        comfy.model_management.load_models_gpu([self.patcher], force_full_load=True)


def clip_files() -> list[str]:
    """What the loader lists: files of models/clip_vision and models/text_encoders."""
    return sorted({name for folder in FOLDERS for name in folder_paths.get_filename_list(folder)})


def find_clip_file(name: str) -> Path:
    """Raises FileNotFoundError naming the folders."""
    for folder in FOLDERS:
        if path := folder_paths.get_full_path(folder, name):
            return Path(path)
    raise FileNotFoundError(f"There is no CLIP file {name!r}. Put a file of a whole CLIP into models/clip_vision.")


def _read(path: Path) -> dict[str, Tensor]:
    check_file(path, CLIPFileError)
    try:
        return comfy.utils.load_torch_file(str(path), safe_load=True)
    except Exception as error:          # torch names no kind for the archives it refuses
        logging.debug("reading %s", path, exc_info=True)
        raise CLIPFileError(f"{path.name} cannot be read as weights ({str(error).splitlines()[0][:120]}). OpenAI's own "
                            ".pt files are programs, not weights; get a .safetensors file of the same CLIP.") from error


def _tokenizer():
    from transformers import CLIPTokenizer
    return CLIPTokenizer.from_pretrained(os.path.join(os.path.dirname(comfy.sd1_clip.__file__), "sd1_tokenizer"))
