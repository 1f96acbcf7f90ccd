"""Tests that need the host. It is booted before they are collected, so they may import comfy at the top."""
import pytest
from clip_examples import moving, write_video

from frozen_diffusion.modules.host.boot import boot_comfyui

boot_comfyui()


@pytest.fixture(scope="module")
def base(tiny_sd15):
    """One image model for all tests of a file: each must leave it as it was."""
    return tiny_sd15()


@pytest.fixture
def unloaded():
    """The host's models leave the device after the test."""
    from comfy.model_management import unload_all_models
    yield
    unload_all_models()


SETTINGS = {"frames": 8, "fps": 8.0, "width": 64, "height": 64, "stride": 0.0, "max_clips": 0, "mirror": False,
            "keep_still": False, "seed": 0}


@pytest.fixture
def dataset(comfy, tmp_path):
    """The node Clip Dataset: (clips, report) of the folder of the test."""
    return lambda folder=str(tmp_path), **changes: comfy.run("FrozenClipDataset", source="folder", folder=folder,
                                                             **SETTINGS | changes)[:2]


@pytest.fixture(scope="module")
def video(tmp_path_factory):
    """A second of a moving square."""
    path = tmp_path_factory.mktemp("video") / "a.mp4"
    write_video(path, moving(25))
    return path
