"""The CLIP pair of sprite world: text and image in one space, trained contrastively on rendered pictures."""
from __future__ import annotations

import random
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

from ..demo import models, world
from ..demo.pool import Pool, draw_pool, signed
from ..seeding import batch_indices, seed_for
from ..training.checkpoint import CheckpointStore
from ..training.ema import MovingAverage
from ..training.loop import train
from ..training.settings import TrainSettings
from .parts import follow, publish

SETTINGS = TrainSettings(steps=1100, lr=1.5e-3, warmup=100, schedule="cosine", betas=(0.9, 0.98), weight_decay=0.02,
                         seed=2, precision="bf16", checkpoint_every=300)
BATCH, LENGTH = 128, 32             # pairs a step; tokens kept in training (the text model is causal, captions fit)
ATTRIBUTES = {"sprite": world.SPRITES, "size": world.SIZES, "place": world.POSITIONS, "colour": world.COLOURS,
              "texture": world.TEXTURES, "motion": (None, *world.MOTIONS)}


def labels(scenes: list[world.Scene]) -> dict[str, torch.Tensor]:
    """Index of every attribute's value, [N] each."""
    return {name: torch.tensor([values.index(getattr(scene, name)) for scene in scenes])
            for name, values in ATTRIBUTES.items()}


class ClipPair(nn.Module):
    """transformers' CLIP, whose weights the host's classes take unchanged, and attribute heads for training only."""

    def __init__(self):
        super().__init__()
        from transformers import CLIPConfig, CLIPModel
        self.clip = CLIPModel(CLIPConfig(text_config=dict(models.CLIP_TEXT), vision_config=dict(models.CLIP_VISION),
                                         projection_dim=models.CONTEXT))
        self.heads = nn.ModuleDict({name: nn.Linear(models.CONTEXT, len(values))
                                    for name, values in ATTRIBUTES.items()})

    def loss(self, pixels: torch.Tensor, tokens: torch.Tensor, truth: dict[str, torch.Tensor]):
        """Symmetric contrastive loss plus a tenth of the attributes' cross-entropy, which speeds the start.

        Motion is asked of the text alone: a single frame does not show it.
        """
        text = self.clip.get_text_features(input_ids=tokens)
        image = self.clip.get_image_features(pixel_values=pixels)
        logits = F.normalize(image, dim=-1) @ F.normalize(text, dim=-1).T * self.clip.logit_scale.exp().clamp(max=100)
        target = torch.arange(len(tokens))
        contrastive = (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2
        attributes = sum(F.cross_entropy(head(text), truth[name]) for name, head in self.heads.items())
        attributes = attributes + sum(F.cross_entropy(self.heads[name](image), truth[name])
                                      for name in ATTRIBUTES if name != "motion")
        accuracy = (logits.argmax(1) == target).float().mean().item()
        return contrastive + 0.1 * attributes, {"accuracy": accuracy}


@torch.no_grad()
def retrieval(pair: ClipPair, pool: Pool, tokenize, groups: int = 5) -> dict[str, float]:
    """Which of 100 captions belongs to a picture and the other way round, over `groups` hundreds of unlike scenes."""
    right = {"retrieval_image_to_text": 0.0, "retrieval_text_to_image": 0.0}
    unlike = list({scene: index for index, scene in enumerate(pool.scenes)}.values())
    for group in range(groups):
        index = unlike[100 * group:100 * group + 100]
        text = pair.clip.get_text_features(input_ids=tokenize([world.caption(pool.scenes[i]) for i in index]))
        image = pair.clip.get_image_features(pixel_values=signed(pool.pixels[index]))
        logits = F.normalize(image, dim=-1) @ F.normalize(text, dim=-1).T
        right["retrieval_image_to_text"] += (logits.argmax(1) == torch.arange(100)).float().mean().item() / groups
        right["retrieval_text_to_image"] += (logits.argmax(0) == torch.arange(100)).float().mean().item() / groups
    return right


def vocabulary(tokenize) -> torch.Tensor:
    """The token ids that captions of the world use, sorted."""
    rng = random.Random(0)
    captions = [world.caption(world.random_scene(rng, clip=bool(i % 2)), rng) for i in range(4000)]
    return tokenize(["", *captions]).unique()


def pack(pair: ClipPair, ids: torch.Tensor) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """(text file, vision file): transformers' names, the vocabulary reduced to the rows of `ids`."""
    state = {key: value for key, value in pair.clip.state_dict().items() if "position_ids" not in key}
    text = {key: value for key, value in state.items() if key.startswith(("text_model.", "text_projection."))}
    text |= {"vocabulary.rows": text.pop(models.VOCABULARY_KEY)[ids], "vocabulary.ids": ids.to(torch.int32)}
    return text, {key: value for key, value in state.items() if key.startswith(("vision_model.", "visual_projection."))}


def train_clip(runs: Path) -> Path:
    from ..host.demo import caption_tokens

    pool, held_out = draw_pool(12288, 4096, seed=21, frames_per_clip=2), draw_pool(640, 0, seed=22)
    truth = labels(list(pool.scenes))
    torch.manual_seed(SETTINGS.seed)
    pair = ClipPair()
    ema = MovingAverage(pair, 0.995)

    def batches(draw: int):
        index = batch_indices(len(pool), BATCH, SETTINGS.seed, draw)
        rng = random.Random(seed_for("captions", SETTINGS.seed, draw))
        captions = [world.caption(pool.scenes[i], rng) for i in index]
        return index, caption_tokens(captions)[:, :LENGTH]

    def loss(batch, generator: torch.Generator):
        index, tokens = batch
        shift = torch.rand(len(index), 3, 1, 1, generator=generator) * 0.06 - 0.03
        return pair.loss(signed(pool.pixels[index]) + shift, tokens, {k: v[index] for k, v in truth.items()})

    hours = follow(train(pair, loss, batches, SETTINGS, CheckpointStore(runs / "clip.safetensors"), ema),
                   SETTINGS.steps)
    command = "python -m frozen_diffusion.cli demo-train clip"
    with ema.applied(pair):
        figures = retrieval(pair.eval(), held_out, caption_tokens)
        text, vision = pack(pair, vocabulary(caption_tokens))
        publish("sprite_clip_vision", vision, "CLIP vision model of sprite world.", command, SETTINGS, hours, figures)
        return publish("sprite_clip_text", text, "CLIP text model of sprite world.", command, SETTINGS, hours, figures)
