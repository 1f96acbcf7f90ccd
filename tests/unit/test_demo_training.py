"""What makes the shipped weights: how they are published, and the badly captioned pictures."""
from __future__ import annotations

import random

import torch
from safetensors import safe_open

from frozen_diffusion.modules.demo.world import caption, random_scene
from frozen_diffusion.modules.demo_training import lora, parts
from frozen_diffusion.modules.training.settings import TrainSettings


def test_published_weights_hold_what_they_are(tmp_path, monkeypatch):
    """Half precision, metadata of the file's own beside ours, and a card with command, recipe and figures."""
    monkeypatch.setattr(parts, "WEIGHTS", tmp_path)
    path = parts.publish("some/weights", {"w": torch.full((2,), 0.1), "n": torch.tensor([3])}, "What it is.",
                         "a command", TrainSettings(steps=7), 1.5, {"right": 0.25}, {"format": "ours", "scale": "2"})
    with safe_open(path, "pt") as file:
        assert file.get_tensor("w").dtype == torch.float16 and file.get_tensor("n").dtype == torch.int64
        told = file.metadata()
    assert (told["format"], told["scale"], told["what"], told["command"]) == ("ours", "2", "What it is.", "a command")
    card = path.with_suffix(".md").read_text()
    assert "`a command`" in card and "| right | 0.25 |" in card and '"steps": 7' in card


def test_half_of_webs_captions_are_of_other_pictures():
    rng = random.Random(1)
    scenes = [random_scene(rng) for _ in range(40)]
    index = list(range(40)) * 10
    drawn = lora.badly_captioned(scenes, index, 3, 0)
    assert drawn == lora.badly_captioned(scenes, index, 3, 0) and len(drawn) == 400
    sprites = [scene.sprite for scene in scenes]
    said = [text for text in drawn if text]
    assert 300 < len(said) < 390                        # a tenth is empty
    right = sum(sprites[number] in text for number, text in zip(index, drawn, strict=True) if text)
    assert 0.4 < right / len(said) < 0.65 and caption(scenes[0])
