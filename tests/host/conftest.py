"""Tests that need the host. It is booted before they are collected, so they may import comfy at the top."""
import pytest
from clip_examples import moving, write_video
from metrics_examples import WORDS

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


@pytest.fixture(scope="module")
def pair(comfy):
    """Sprite world's CLIP pair."""
    from frozen_diffusion.modules.host.demo import load_sprite_world
    from frozen_diffusion.modules.host.metrics.clip_pair import HostPair
    _, clip, _, vision = load_sprite_world()
    return HostPair(clip, vision)


@pytest.fixture
def own_folders(tmp_path, monkeypatch):
    """Caches, input, output and temp of each test are its own."""
    import folder_paths
    for kind in ("user", "input", "output", "temp"):
        (tmp_path / kind).mkdir()
        monkeypatch.setattr(folder_paths, f"get_{kind}_directory", lambda kind=kind: str(tmp_path / kind))


@pytest.fixture
def image_set(comfy, pair):
    """The node Image Set: (set, report)."""
    def run(folder="", images=None, append_to="", subfolders=True, reading="general"):
        return comfy.run("FrozenImageSet", clip_pair=pair, folder=folder, subfolders=subfolders, reading=reading,
                         append_to=append_to, images=images)
    return run


@pytest.fixture
def attributes(comfy):
    """The node Attributes: (list, report)."""
    def run(text=WORDS, source="text below", image_set=None, template="a photo of {}"):
        return comfy.run("FrozenAttributes", source=source, text=text, template=template, count=20,
                         image_set=image_set)
    return run


@pytest.fixture
def report(comfy):
    """The node Attribute Report: its outputs."""
    def run(reference, generated, listed=None, **more):
        more = {"preset": "general", "method": "auto", "chance": False, "seed": 0, **more}
        return comfy.run("FrozenAttributeReport", reference=reference, generated=generated, attributes=listed, **more)
    return run
