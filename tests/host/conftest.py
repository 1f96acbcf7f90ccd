"""Tests that need the host. It is booted before they are collected, so they may import comfy at the top."""
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
