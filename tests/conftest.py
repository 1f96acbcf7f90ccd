"""Fixtures of the whole suite. What needs the host is imported inside the fixture that starts it."""
import subprocess
from pathlib import Path

import pytest

from frozen_diffusion.modules.host.boot import find_comfyui
from testhost.server import version_of

ROOT = Path(__file__).resolve().parents[1]


def pytest_report_header():
    """Which ComfyUI the tests run against."""
    comfyui = find_comfyui()
    return f"ComfyUI: {version_of(comfyui)} in {comfyui}"


def pytest_collection_modifyitems(items):
    """Write the rows of a test's `fault` marks into the report that `bench faults` reads."""
    for item in items:
        item.user_properties += [("fault", row) for mark in item.iter_markers("fault") for row in mark.args]


@pytest.fixture(scope="session")
def comfy(tmp_path_factory):
    """ComfyUI imported in this process with the pack's nodes: see testhost.inprocess.HostInProcess."""
    from testhost.inprocess import start
    return start(tmp_path_factory.mktemp("comfyui"))


@pytest.fixture(scope="session")
def tiny_sd15(comfy):
    """The function testhost.models.tiny_sd15."""
    from testhost.models import tiny_sd15
    return tiny_sd15


@pytest.fixture(scope="session")
def tiny_sdxl(comfy):
    """The function testhost.models.tiny_sdxl."""
    from testhost.models import tiny_sdxl
    return tiny_sdxl


@pytest.fixture(scope="session")
def server(tmp_path_factory):
    """A real ComfyUI server with the pack loaded by the host's own loader: see testhost.server.Server."""
    from testhost.server import Server
    with Server(tmp_path_factory.mktemp("server")) as running:
        yield running


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
