"""Sets of pictures for attribute metrics: folders of all kinds, caches, and what is put in wrongly."""
from __future__ import annotations

import os

import comfy.model_management
import folder_paths
import pytest
import torch
from metrics_examples import odd_pictures, pictures, write_pictures
from PIL import Image

from frozen_diffusion.modules.data.image_folder import ImageFolderError
from frozen_diffusion.modules.host.metrics import image_sets
from frozen_diffusion.modules.metrics.feature_blocks import FeatureBlocks
from frozen_diffusion.modules.metrics.folder import for_encoder, open_picture

pytestmark = pytest.mark.usefixtures("own_folders")


def test_a_folder_a_batch_and_a_grown_set_are_one(image_set, tmp_path):
    """M2 and M4 too: fewer pictures than a batch; read once, then from disk."""
    write_pictures(tmp_path / "input" / "a", 6)
    folder, told = image_set("a")
    batch, _ = image_set(images=pictures(6))
    image_set(images=pictures(6)[:4], append_to="mine")
    grown, added = image_set(images=pictures(6)[4:], append_to="mine")
    assert "6 pictures of a, 128x128" in told and "2 pictures added to the set mine" in added
    assert torch.allclose(folder.features, batch.features, atol=2e-3)
    assert torch.equal(grown.features, batch.features)
    assert image_set(append_to="mine")[0].features.shape == (6, 128)
    assert "were in it already" in image_set(images=pictures(6)[:1], append_to="mine")[1]


def test_a_second_reading_comes_from_disk_and_sees_changes(image_set, tmp_path, monkeypatch, pair):
    paths = write_pictures(tmp_path / "input" / "a", 5)
    first, _ = image_set("a")
    read = []
    monkeypatch.setattr(image_sets, "open_picture", lambda path, how: read.append(path.name) or open_picture(path, how))
    again, _ = image_set("a")
    assert read == [] and torch.equal(first.features, again.features)
    Image.new("RGB", (128, 128), "blue").save(paths[2])
    os.utime(paths[2], ns=(1, 1))
    changed, _ = image_set("a")
    assert read == ["p_2.png"] and not torch.equal(changed.features[2], first.features[2])


def test_a_cancel_leaves_a_usable_cache(image_set, tmp_path, monkeypatch):
    write_pictures(tmp_path / "input" / "a", 6)
    monkeypatch.setattr(image_sets, "BATCH", 2)
    calls = []

    def cancel():
        calls.append(None)
        if len(calls) > 5:
            raise comfy.model_management.InterruptProcessingException
    monkeypatch.setattr(image_sets, "interruptible", cancel)
    with pytest.raises(comfy.model_management.InterruptProcessingException):
        image_set("a")
    read = []
    monkeypatch.setattr(image_sets, "interruptible", lambda: None)
    monkeypatch.setattr(image_sets, "open_picture", lambda path, how: read.append(path.name) or open_picture(path, how))
    assert len(image_set("a")[0]) == 6 and read == ["p_4.png", "p_5.png"]


def test_pictures_of_every_kind_are_read_as_a_viewer_shows_them(image_set, tmp_path):
    """M1: also sizes and codecs."""
    wanted = odd_pictures(tmp_path / "input" / "odd")
    for name, picture in wanted.items():
        found = open_picture(tmp_path / "input" / "odd" / name, "general")
        assert (found.size, found.tobytes()) == (picture.size, picture.tobytes()), name
    turned = open_picture(tmp_path / "input" / "odd" / "turned.png", "general")
    assert turned.size == (30, 40)
    assert open_picture(tmp_path / "input" / "odd" / "turned.png", "paper parity").size == (40, 30)
    found, told = image_set("odd")
    assert len(found) == 7 and "1 could not be read: broken.png" in told
    assert len(image_set("odd", reading="paper parity")[0]) == 7


def test_the_encoders_cut_is_openais():
    assert for_encoder(Image.new("RGB", (300, 100)), 32).shape == (3, 32, 32)
    assert for_encoder(Image.new("RGB", (10, 2000)), 32).shape == (3, 32, 32)
    half = Image.new("RGB", (64, 32), "black")
    half.paste("white", (32, 0, 64, 32))
    cut = for_encoder(half, 32).float()
    assert cut[:, :, :15].max() < 3 and cut[:, :, 17:].min() > 252


@pytest.mark.parametrize("folder, told", [
    ("", "No folder was given"), ("nowhere", "There is no folder 'nowhere'"), ("../../..", "outside of the folders"),
    ("/etc", "outside of the folders"), ("linked", "outside of the folders")])
def test_folders_that_may_not_be_read(image_set, tmp_path, folder, told):
    (tmp_path / "input" / "linked").symlink_to("/usr")
    with pytest.raises(ValueError, match=told):
        image_set(folder)


def test_a_linked_file_that_leads_out_is_left_aside_and_an_allowed_folder_is_read(image_set, tmp_path, monkeypatch):
    write_pictures(tmp_path / "input" / "a", 2)
    outside = write_pictures(tmp_path / "elsewhere", 3)
    (tmp_path / "input" / "a" / "z.png").symlink_to(outside[0])
    found, told = image_set("a")
    assert len(found) == 2 and "1 left aside, links that lead out" in told
    monkeypatch.setitem(folder_paths.folder_names_and_paths, image_sets.ROOTS, ([str(tmp_path / "elsewhere")], set()))
    assert len(image_set(str(tmp_path / "elsewhere"))[0]) == 3 and len(image_set("a")[0]) == 3


def test_paths_as_people_paste_them(image_set, tmp_path):
    """M6."""
    write_pictures(tmp_path / "input" / "style 1" / "b", 2)
    for text in ('"style 1"', " style 1\\b ", "style 1/", "'style 1\\'"):
        assert len(image_set(text)[0]) == 2


def test_subfolders_are_a_switch_and_scored_each(image_set, attributes, report, tmp_path):
    """M5."""
    for name, count in (("cats", 4), ("dogs", 5)):
        write_pictures(tmp_path / "input" / "a" / name, count, len(name) + count)
    write_pictures(tmp_path / "input" / "b", 6, 3)
    with pytest.raises(ImageFolderError, match="switch subfolders on"):
        image_set("a", subfolders=False)
    generated, reference = image_set("a")[0], image_set("b")[0]
    text = report(reference, generated, attributes()[0])[1]
    assert "SaD of each sub-folder (pictures; fewer, higher by chance): cats " in text


def test_a_folder_that_changes_while_it_is_read(image_set, tmp_path, monkeypatch):
    paths = write_pictures(tmp_path / "input" / "a", 5)

    def opened(path, how):
        if path == paths[1]:
            paths[3].unlink()
        picture = open_picture(path, how)
        if path == paths[2]:
            path.write_bytes(path.read_bytes() + b" ")
        return picture
    monkeypatch.setattr(image_sets, "open_picture", opened)
    found, told = image_set("a")
    assert len(found) == 3 and "2 left aside, changed or removed" in told


def test_names_that_are_no_utf8(image_set, tmp_path):
    write_pictures(tmp_path / "input" / "a", 2)
    raw = os.fsencode(tmp_path / "input" / "a") + b"/\xff\xfe.png"
    with open(raw, "wb") as file:
        file.write((tmp_path / "input" / "a" / "p_0.png").read_bytes())
    found, told = image_set("a")
    assert len(found) == 3 and "\ufffd" in "".join(row.name for row in found.rows)
    told.encode()
    assert len(image_set("a")[0]) == 3


def test_a_full_disk_costs_the_cache_and_nothing_else(image_set, tmp_path, monkeypatch):
    write_pictures(tmp_path / "input" / "a", 3)

    def full(self, rows):
        raise OSError(28, "No space left on device")
    monkeypatch.setattr(FeatureBlocks, "write", full)
    found, told = image_set("a")
    assert len(found) == 3 and "could not be kept for the next time" in told
    with pytest.raises(OSError, match="No space left"):
        image_set(images=pictures(2), append_to="mine")


def test_the_same_disk_really_full(pair, small_disk):
    blocks = FeatureBlocks(small_disk / "set", "encoder", "general")
    rows = image_sets.rows_of_images(pictures(60), pair)
    with pytest.raises(OSError, match="could not be written"):
        blocks.write(rows)
    assert blocks.read() == ({}, []) and not list(small_disk.rglob("*.part"))


def test_a_set_of_another_encoder_is_refused(image_set, pair, monkeypatch):
    image_set(images=pictures(2), append_to="mine")
    monkeypatch.setattr(pair, "identity", "0.0:1.0")
    with pytest.raises(ValueError, match="made with another CLIP pair"):
        image_set(append_to="mine")


def test_inputs_that_contradict_each_other(image_set, tmp_path):
    write_pictures(tmp_path / "input" / "a", 2)
    with pytest.raises(ValueError, match="Both a folder and images"):
        image_set("a", images=pictures(2))
    with pytest.raises(ValueError, match="There is no set 'new' yet"):
        image_set(append_to="new")
    with pytest.raises(ValueError, match="use letters, digits"):
        image_set(images=pictures(1), append_to="../x")


def test_damaged_blocks_are_named_and_passed_over(image_set, tmp_path):
    image_set(images=pictures(3), append_to="mine")
    image_set(images=pictures(3, 5), append_to="mine")
    block = sorted((tmp_path / "user").rglob("*.safetensors"))[0]
    block.write_bytes(block.read_bytes()[:50])
    found, told = image_set(append_to="mine")
    assert len(found) == 3 and f"passed over: {block.name}" in told


def test_black_pictures_of_nan_are_left_out_or_too_many(image_set):
    images = pictures(150)
    images[7] = torch.nan
    found, told = image_set(images=images)
    assert len(found) == 149 and "1 pictures left out" in told
    images[:9] = torch.nan
    with pytest.raises(ValueError, match="no numbers for 9 of 150 pictures"):
        image_set(images=images)
