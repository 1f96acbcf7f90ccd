"""Training FurryGANs, by the node and on the command line: a folder of pictures in, a file out."""
from __future__ import annotations

import argparse
from dataclasses import replace

import folder_paths
import pytest
import torch
from furry_examples import furry_file
from metrics_examples import write_pictures

from frozen_diffusion.modules.files import atomic_write
from frozen_diffusion.modules.files.atomic_write import CheckpointError
from frozen_diffusion.modules.furrygan import training
from frozen_diffusion.modules.furrygan.files import read_furry_file
from frozen_diffusion.modules.host.furrygan import train_command
from frozen_diffusion.modules.host.furrygan.files import hold_furry
from frozen_diffusion.modules.training.options import TrainingOptions

SMALL = ["--size", "16", "--style", "16", "--cap", "16", "--budget", "256", "--batch", "4", "--steps", "3",
         "--ramp", "2", "--sample-every", "0"]


def run(*words: str) -> int:
    parser = argparse.ArgumentParser()
    train_command.add_arguments(parser)
    return train_command.main(parser.parse_args(list(words)))


def test_a_folder_becomes_a_furrygan(comfy, tmp_path, capsys):
    write_pictures(tmp_path / "pictures", 64)
    (tmp_path / "pictures" / "p_9.png").write_bytes(b"")
    write_pictures(tmp_path / "pictures", 1, 5, "jpg")
    out = tmp_path / "furry.safetensors"
    assert run("--data", str(tmp_path / "pictures"), "--out", str(out), *SMALL) == 0
    told = capsys.readouterr().out
    assert "64 pictures of 16x16" in told and "p_9.png" in told
    found = read_furry_file(out)
    assert found.shape.size == 16 and found.metadata["steps"] == "3" and found.discriminator is not None
    assert all(torch.isfinite(value).all() for value in found.generator.values())
    assert (tmp_path / "furry_000003.png").is_file()


def test_what_cannot_be_trained_ends_in_a_sentence(comfy, tmp_path, capsys):
    out = str(tmp_path / "furry.safetensors")
    assert run("--data", str(tmp_path / "none"), "--out", out, *SMALL) == 1
    assert "There is no folder" in capsys.readouterr().out
    write_pictures(tmp_path / "few", 3)
    assert run("--data", str(tmp_path / "few"), "--out", out, *SMALL) == 1
    assert "There are 3 pictures" in capsys.readouterr().out


SETTINGS = {"steps": 3, "learning_rate": 2e-3, "batch_size": 4, "size": "32", "channels": 16, "phi": 0.35, "flip": True,
            "sample_every": 0, "checkpoint": "furry", "resume": True, "seed": 0}


@pytest.fixture
def train(comfy, tmp_path, monkeypatch):
    """Train FurryGAN with small networks: (furrygan, loss map, sample, report)."""
    monkeypatch.setattr(folder_paths, "get_output_directory", lambda: str(tmp_path / "output"))
    return lambda source="folder", folder="", **changes: comfy.run(
        "FrozenTrainFurryGAN", source=source, folder=str(folder), **SETTINGS | changes)


def test_the_node_trains_and_says_what_it_decided(comfy, train, tmp_path):
    made, losses, sample, report = train("sprite world", phi=0.0)
    assert len(losses["loss"]) == 3 and sample.shape[0] == 1 and "11000 pictures of the sprite world, 32x32" in report
    assert "The subject fills about" in report and "phi is" in report
    drawn = comfy.run("FrozenGenerateForeground", furrygan=made, seed=0, batch_size=1, psi_foreground=1.0,
                      psi_background=1.0, background_seed=-1, mix_rows="none", mix_seed=0, clean_mask=True)
    assert torch.isfinite(drawn[4]).all()
    again = train("sprite world", phi=0.0, steps=5)[1]["loss"]
    assert again[:3] == losses["loss"] and len(again) == 5          # it went on
    whole = train("sprite world", phi=0.0, steps=5, checkpoint="whole")
    assert whole[1]["loss"] == again


@pytest.mark.fault("F4")
def test_training_goes_on_from_a_whole_file_only(comfy, train):
    with pytest.raises(ValueError, match="has no discriminator: files that hold the averaged generator only"):
        train("sprite world", furrygan=hold_furry(replace(furry_file(), discriminator=None), "small"))
    wide = hold_furry(furry_file(), "other")
    with pytest.raises(ValueError, match=r"to start from is Shape\(size=32, style=32"):
        train("sprite world", furrygan=wide)
    first = train("sprite world")[0]
    on = train("sprite world", furrygan=first, checkpoint="on", steps=1)[0]
    for name, weight in on.file.generator.items():       # one step from there, not from new weights
        assert (weight - first.file.generator[name]).abs().max() < 0.1


def test_wrong_pictures_are_named(train, tmp_path):
    with pytest.raises(ValueError, match="No folder was given"):
        train()
    write_pictures(tmp_path / "few", 63)
    with pytest.raises(ValueError, match="There are 63 pictures; a GAN needs 64"):
        train(folder=tmp_path / "few")
    write_pictures(tmp_path / "same", 1)
    first = next((tmp_path / "same").iterdir())
    for number in range(70):
        (tmp_path / "same" / f"copy_{number}.png").write_bytes(first.read_bytes())
    with pytest.raises(ValueError, match="are the same one"):
        train(folder=tmp_path / "same")
    with pytest.raises(ValueError, match="multiple of 4"):
        train("sprite world", batch_size=6)


def test_two_trainings_under_one_name_are_told_apart(train):
    train("sprite world", steps=1)
    with pytest.raises(CheckpointError, match="was made with phi '0.35', this run has '0.5'"):
        train("sprite world", phi=0.5)


def test_a_full_disk_keeps_the_last_checkpoint(train, tmp_path, monkeypatch):
    train("sprite world", steps=2)
    path = tmp_path / "output" / "furrygan_training" / "furry.safetensors"
    before = path.read_bytes()

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(atomic_write, "save_file", full)
        with pytest.raises(CheckpointError, match="The previous one there is intact"):
            train("sprite world", steps=4)
    assert path.read_bytes() == before and len(train("sprite world", steps=4)[1]["loss"]) == 4


def test_inverted_masks_begin_anew_with_another_seed(train, tmp_path, monkeypatch):
    monkeypatch.setattr(training, "GUARDED", (1,))
    calls = []

    def guard(mask, step):
        calls.append(step)
        if len(calls) < 2:
            raise training.InvertedMaskError("The masks show the surroundings.")

    monkeypatch.setattr(training, "check_orientation", guard)
    often = TrainingOptions(checkpoint_every=1)
    made, losses, _, report = train("sprite world", options=often)
    assert "The masks show the surroundings. It began anew with seed 1." in report and len(losses["loss"]) == 3
    assert made.file.metadata["attempt"] == "1" and len(calls) == 2
    folder = tmp_path / "output" / "furrygan_training"
    assert {path.name for path in folder.iterdir()} == {"furry.safetensors", "furry.inverted.safetensors"}
    assert train("sprite world", steps=4, options=often)[1]["loss"][:3] == losses["loss"]      # goes on with that seed
    calls.clear()
    monkeypatch.setattr(training, "ATTEMPTS", 1)
    with pytest.raises(training.InvertedMaskError):
        train("sprite world", checkpoint="lost")
