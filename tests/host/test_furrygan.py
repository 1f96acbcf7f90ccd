"""FurryGAN on the command line: a folder of pictures in, a file out."""
from __future__ import annotations

import argparse

import torch
from metrics_examples import write_pictures

from frozen_diffusion.modules.furrygan.files import read_furry_file
from frozen_diffusion.modules.host.furrygan import train_command

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
