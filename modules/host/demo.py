"""Sprite world as host objects: MODEL, CLIP, VAE and CLIP_VISION, built from the pack's weights."""
from __future__ import annotations

import functools
import json
import tempfile
from pathlib import Path

import comfy.ldm.modules.attention
import comfy.model_management
import comfy.model_patcher
import comfy.ops
import comfy.sd
import comfy.sd1_clip
import comfy.supported_models
import comfy.supported_models_base
import comfy.taesd.taesd
import comfy.utils
import folder_paths
import torch
from comfy.cldm.cldm import ControlNet
from comfy.clip_vision import ClipVisionModel
from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel
from comfy.patcher_extension import WrappersMP

from ..demo import models
from ..demo.vae import SpriteVAE
from .folders import WEIGHTS
from .progress import take_back_warnings, warn

LARGEST = 256       # pixels a side; beyond it sprites fall to pieces


def read_weights(name: str) -> dict[str, torch.Tensor]:
    """One safetensors file of the pack as fp32 tensors. Raises FileNotFoundError that says how to get it back."""
    path = WEIGHTS / f"{name}.safetensors"
    if not path.is_file():
        raise FileNotFoundError(
            f"The sprite-world file {path.name} is not in {path.parent}: the pack's installation is incomplete. "
            f"Install Frozen Diffusion again.")
    state = comfy.utils.load_torch_file(str(path), safe_load=True)
    return {key: value.float() if value.is_floating_point() else value for key, value in state.items()}


def initialise(module: torch.nn.Module) -> None:
    """Give every layer torch's own initial values: the host's layers start as uninitialised memory."""
    for layer in module.modules():
        for kind in (torch.nn.Linear, torch.nn.Conv2d, torch.nn.GroupNorm, torch.nn.LayerNorm, torch.nn.Embedding):
            if isinstance(layer, kind):
                kind.reset_parameters(layer)


def fresh_unet() -> UNetModel:
    """The sprite-world U-Net before training, in fp32, outputs of residual branches starting at zero."""
    unet = UNetModel(**models.UNET, dtype=torch.float32, operations=comfy.ops.disable_weight_init)
    initialise(unet)
    for name, layer in unet.named_modules():
        if name.endswith(("out_layers.3", "proj_out")) or name == "out.2":
            torch.nn.init.zeros_(layer.weight)
            torch.nn.init.zeros_(layer.bias)
    return unet


def fresh_control(unet: UNetModel) -> ControlNet:
    """A control network for edges before training: `unet`'s encoder, and zero convolutions that add nothing."""
    config = {key: value for key, value in models.UNET.items() if key != "out_channels"}
    control = ControlNet(**config, hint_channels=3, dtype=torch.float32, operations=comfy.ops.disable_weight_init)
    initialise(control)
    control.load_state_dict(unet.state_dict(), strict=False)
    for layer in [*control.zero_convs.modules(), *control.middle_block_out.modules()]:
        if isinstance(layer, torch.nn.Conv2d):
            torch.nn.init.zeros_(layer.weight)
            torch.nn.init.zeros_(layer.bias)
    return control


def build_model(unet_state: dict[str, torch.Tensor], dtype: torch.dtype | None = None):
    """A MODEL around the sprite-world U-Net; `dtype` None keeps fp32."""
    config = comfy.supported_models.SD15({**models.UNET, "dtype": dtype or torch.float32})
    config.set_inference_dtype(dtype or torch.float32, None)
    load, offload = comfy.model_management.get_torch_device(), comfy.model_management.unet_offload_device()
    config.latent_format.latent_rgb_factors, config.latent_format.latent_rgb_factors_bias = models.LATENT_RGB
    config.latent_format.taesd_decoder_name = None      # that of SD1.5 cannot read these latents
    model = config.get_model({}, "", device=offload)
    model.diffusion_model.load_state_dict(unet_state)
    return comfy.model_patcher.ModelPatcher(model.eval(), load_device=load, offload_device=offload)


def build_clip(state: dict[str, torch.Tensor]) -> comfy.sd.CLIP:
    """A CLIP with the host's SD1 tokenizer and a small text model."""
    target = comfy.supported_models_base.ClipTarget(comfy.sd1_clip.SD1Tokenizer, comfy.sd1_clip.SD1ClipModel)
    clip = comfy.sd.CLIP(target, embedding_directory=folder_paths.get_folder_paths("embeddings"),
                         model_options={"clip_l_model_config": models.CLIP_TEXT, "dtype": torch.float32})
    initialise(clip.cond_stage_model)
    clip.cond_stage_model.clip_l.transformer.load_state_dict(unpack_vocabulary(state))
    return clip


def unpack_vocabulary(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Spread the words that the world uses over the tokenizer's whole vocabulary; all others share one vector."""
    state = dict(state)
    rows, ids = state.pop("vocabulary.rows"), state.pop("vocabulary.ids").long()
    table = rows.mean(0).repeat(models.CLIP_TEXT["vocab_size"], 1)
    table[ids] = rows
    return {**state, models.VOCABULARY_KEY: table}


def build_clip_vision(state: dict[str, torch.Tensor]) -> ClipVisionModel:
    """A CLIP_VISION; the host's class takes its configuration as a file only."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "config.json"
        path.write_text(json.dumps(models.CLIP_VISION))
        vision = ClipVisionModel(str(path))
    vision.load_sd(state)
    return vision


def build_vae(state: dict[str, torch.Tensor]) -> comfy.sd.VAE:
    """A VAE whose network is ours: the host's constructor takes a tiny autoencoder of the same geometry first."""
    vae = comfy.sd.VAE(sd=comfy.taesd.taesd.TAESD(latent_channels=4).state_dict())
    network = SpriteVAE().eval()
    network.load_state_dict(state)
    vae.first_stage_model, vae.vae_dtype = network, torch.float32
    vae.patcher = comfy.model_patcher.ModelPatcher(network, load_device=vae.device,
                                                   offload_device=comfy.model_management.vae_offload_device())
    vae.size = comfy.model_management.module_size(network)
    vae.memory_used_encode = lambda shape, dtype: 600 * shape[2] * shape[3] * 4
    vae.memory_used_decode = lambda shape, dtype: 600 * shape[2] * shape[3] * 64 * 4
    return vae


def load_unet(disable_dynamic: bool = False):
    """The sprite-world MODEL, never a dynamic one. It says how it is loaded anew, as newer hosts do for Train LoRA."""
    model = build_model(read_weights("sprite_unet"))
    model.cached_patcher_init = load_unet, ()
    model.add_wrapper_with_key(WrappersMP.OUTER_SAMPLE, "frozen_sprite_world", warn_of_size)
    return model


def warn_of_size(executor, noise: torch.Tensor, *args, **kwargs):
    """OUTER_SAMPLE: say that the world is small. The host's own Empty Latent Image begins at 512x512."""
    take_back_warnings()
    height, width = (8 * side for side in noise.shape[-2:])
    if max(height, width) > LARGEST:
        warn(f"Sprite world draws pictures of 128x128; this one is {width}x{height}, where it draws blobs. Set width "
             "and height of Empty Latent Image to 128.")
    return executor(noise, *args, **kwargs)


def load_sprite_world():
    """(MODEL, CLIP, VAE, CLIP_VISION) of the embedded default."""
    return (load_unet(), build_clip(read_weights("sprite_clip_text")),
            build_vae(read_weights("sprite_vae")), build_clip_vision(read_weights("sprite_clip_vision")))


@functools.cache
def _tokenizer() -> comfy.sd1_clip.SD1Tokenizer:
    return comfy.sd1_clip.SD1Tokenizer()


@functools.lru_cache(maxsize=100_000)
def _token_ids(caption: str) -> tuple[int, ...]:
    return tuple(token for token, _weight in _tokenizer().tokenize_with_weights(caption)["l"][0])


def caption_tokens(captions: list[str]) -> torch.Tensor:
    """[N, 77] token ids of the host's SD1 tokenizer."""
    return torch.tensor([_token_ids(caption) for caption in captions])


@torch.no_grad()
def caption_context(clip: comfy.sd.CLIP, captions: list[str], tokens: int = 77) -> torch.Tensor:
    """[N, tokens, 128] hidden states of a sprite-world CLIP. The text model is causal: a shorter context is exact."""
    ids = caption_tokens(captions)[:, :tokens]
    transformer = clip.cond_stage_model.clip_l.transformer
    embeds = transformer.get_input_embeddings()(ids, out_dtype=torch.float32)
    positions = transformer.text_model.embeddings.position_embedding.weight[:tokens]
    mask = torch.full((tokens, tokens), -torch.inf).triu_(1)
    attention = comfy.ldm.modules.attention.optimized_attention_for_device(embeds.device, mask=True, small_input=True)
    hidden = embeds + positions
    for layer in transformer.text_model.encoder.layers:
        hidden = layer(hidden, mask, attention)
    return transformer.text_model.final_layer_norm(hidden)


def lora_names() -> dict[str, str]:
    """kohya's name -> path in the host's U-Net, for the transformers' layers in sprite world's middle and decoder.

    Sorted: the host's own order comes from sets and changes from process to process, and with it a seeded training.
    The encoder stays as it is, so that motion layers find there what they were trained on.
    """
    paths = comfy.utils.unet_to_diffusers(models.UNET)
    return {"lora_unet_" + name.removesuffix(".weight").replace(".", "_"): path.removesuffix(".weight")
            for name, path in sorted(paths.items())
            if name.endswith(".weight") and "attentions" in name and "norm" not in name
            and not name.startswith("down_blocks")}
