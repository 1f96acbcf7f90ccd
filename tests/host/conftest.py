"""Tests that need the host. It is booted before they are collected, so they may import comfy at the top."""
import subprocess

import pytest

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


@pytest.fixture
def small_disk(tmp_path):
    """A real file system of one megabyte."""
    folder = tmp_path / "small"
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", folder], capture_output=True)
    if mounted.returncode:
        pytest.skip("mounting a small file system needs root")
    yield folder
    subprocess.run(["umount", folder], check=True)
