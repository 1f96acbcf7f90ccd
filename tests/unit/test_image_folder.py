"""Folders of pictures as data, with files as people have them."""
from __future__ import annotations

import os
from dataclasses import replace

import numpy as np
import pytest
import torch
from clip_examples import pattern, write_video
from PIL import Image

from frozen_diffusion.modules.data import image_sequences
from frozen_diffusion.modules.data.frames import BrokenVideoError, fit
from frozen_diffusion.modules.data.image_folder import ImageFolderError, find_images
from frozen_diffusion.modules.data.images import ImageSettings

SMALL = ImageSettings(32, 32)


def grey(level: int, size=(64, 48)) -> Image.Image:
    return Image.new("RGB", size, (level, level, level))


def names(found) -> list[str]:
    return [found.name(index) for index in range(len(found))]


def test_pictures_by_number_in_natural_order(tmp_path):
    (tmp_path / "sub" / "deep").mkdir(parents=True)
    (tmp_path / ".thumbnails").mkdir()
    for index, name in enumerate(("a_10.png", "a_2.jpg", "sub/b.webp", "sub/deep/c.bmp", "sub/deep/d.gif",
                                  ".thumbnails/t.png", ".hidden.png")):
        grey(20 * index + 20).save(tmp_path / name)
    found = find_images(tmp_path, SMALL)
    assert names(found) == ["a_2.jpg", "a_10.png", "sub/b.webp", "sub/deep/c.bmp", "sub/deep/d.gif"]
    levels = [found.pixels(index).float().mean().item() for index in range(5)]
    assert levels == pytest.approx([40, 20, 60, 80, 100], abs=1.5) and found.pixels(0).shape == (3, 32, 32)
    assert "5 pictures of 32x32" in found.report() and "no picture has a caption" in found.report()
    assert names(find_images(tmp_path, replace(SMALL, subfolders=False))) == ["a_2.jpg", "a_10.png"]
    few = find_images(tmp_path, replace(SMALL, max_images=2))
    assert names(few) == ["a_2.jpg", "sub/b.webp"] and "3 pictures left out by the limit of 2" in few.report()


def test_pictures_are_read_when_asked_for(tmp_path, monkeypatch):
    """Looking through a folder decodes none that is whole."""
    for name in ("a.png", "b.jpg"):
        grey(50).save(tmp_path / name)
    with monkeypatch.context() as patch:
        patch.setattr("PIL.ImageFile.ImageFile.load", lambda image: pytest.fail("decoded"))
        found = find_images(tmp_path, SMALL)
    opened, plain = [], Image.open
    monkeypatch.setattr(image_sequences.Image, "open", lambda path: opened.append(path) or plain(path))
    assert found.pixels(1).shape == (3, 32, 32) and opened == [tmp_path / "b.jpg"]


def test_pictures_are_as_a_viewer_shows_them(tmp_path):
    """Turned upright, CMYK, palettes and 16 bits in RGB, transparency over black."""
    turned = np.zeros((48, 64, 3), np.uint8)
    turned[:, :32] = 200                                        # left half; turned clockwise it is the upper one
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(turned).save(tmp_path / "1.png", exif=exif)
    Image.new("CMYK", (64, 48), (0, 255, 255, 0)).save(tmp_path / "2.jpg")
    Image.fromarray(np.full((48, 64), 0x8080, np.uint16)).save(tmp_path / "3.png")
    Image.new("P", (64, 48), 1).save(tmp_path / "4.png")
    clear = Image.new("RGBA", (64, 48), (255, 0, 0, 0))
    clear.paste((0, 200, 0, 255), (16, 0, 48, 48))
    clear.save(tmp_path / "5.png")
    found = find_images(tmp_path, ImageSettings(48, 48))
    assert len(found) == 5
    upright = found.pixels(0).float().mean((0, 2))
    assert upright[:16].mean() > 195 and upright[-16:].mean() < 5
    red = found.pixels(1).float().mean((1, 2))
    assert red[0] > 240 and red[1:].max() < 15
    assert found.pixels(2).float().mean().item() == pytest.approx(128, abs=1)
    green = found.pixels(4)
    assert green[:, :, :4].max() == 0 and green[1, :, 16:32].float().mean().item() == pytest.approx(200, abs=1)


def test_transparency_may_be_kept(tmp_path):
    """With the colours weighted by it: what is hidden does not shine through at the edge. Opaque pictures are so."""
    edge = np.zeros((64, 64, 4), np.uint8)
    edge[..., 0] = 255                                          # hidden red
    edge[:, 32:] = (0, 200, 0, 255)
    Image.fromarray(edge).save(tmp_path / "edge.png")
    grey(90).convert("P").save(tmp_path / "palette.png")
    found = find_images(tmp_path, replace(SMALL, alpha=True))
    pixels = found.pixels(0)
    assert pixels.shape == (4, 32, 32) and pixels[3, :, :12].max() == 0 and pixels[3, :, 20:].min() == 255
    shown = pixels[:, pixels[3] > 20]
    assert shown[0].max() <= 2 and (shown[1].float() - 200).abs().max() <= 3
    assert found.pixels(1)[3].min() == 255
    assert find_images(tmp_path, SMALL).pixels(0).shape == (3, 32, 32)
    assert find_images(tmp_path, SMALL).key(0) != found.key(0)


def test_crop_covers_the_size_and_pad_keeps_all(tmp_path):
    wide = np.full((32, 96, 3), 100, np.uint8)
    wide[:, 32:64] = 200                                        # the middle third
    Image.fromarray(wide).save(tmp_path / "a.png")
    crop = find_images(tmp_path, SMALL).pixels(0)
    assert torch.equal(crop, fit(wide, 32, 32)) and crop.float().mean().item() == pytest.approx(200, abs=3)
    pad = find_images(tmp_path, ImageSettings(48, 48, fit="pad")).pixels(0).float().mean(0)
    assert pad[:16].max() == 0 and pad[32:].max() == 0
    assert pad[16:32, 20:28].mean().item() == pytest.approx(200, abs=3)
    assert pad[16:32, :12].mean().item() == pytest.approx(100, abs=3)
    wider = find_images(tmp_path, ImageSettings(128, 32, fit="pad")).pixels(0)
    assert wider[..., :16].max() == 0 and wider[..., 112:].max() == 0
    assert torch.equal(wider[..., 16:112], torch.from_numpy(wide).permute(2, 0, 1))


def test_captions_of_texts_tables_and_folders(tmp_path):
    (tmp_path / "cats").mkdir()
    for name in ("a.png", "b.png", "cats/c.png", "cats/d.png"):
        grey(50).save(tmp_path / name)
    (tmp_path / "a.txt").write_text("its own\ntext")
    (tmp_path / "metadata.jsonl").write_text('{"file_name": "cats/c.png", "text": "a cat, of the table"}\n'
                                             '{"file_name": "a.png", "text": "unused"}\n'
                                             '{"image": "gone.png", "text": "x"}\n')
    (tmp_path / "cats" / "caption.txt").write_bytes("a cat, é".encode("cp1252"))
    (tmp_path / "typo.txt").write_text("of no picture")
    found = find_images(tmp_path, SMALL)
    assert [found.caption(index) for index in range(4)] == ["its own text", "", "a cat, of the table", "a cat, é"]
    for line in ("b.png: no caption", "metadata.jsonl: rows that name no picture: 3 (gone.png)",
                 "typo.txt: text that belongs to no picture", "cats/caption.txt: captions not in UTF-8"):
        assert line in found.report()
    (tmp_path / "caption.txt").write_text("a picture")
    assert [find_images(tmp_path, SMALL).caption(index) for index in range(4)] == [
        "its own text", "a picture", "a cat, of the table", "a cat, é"]


def test_files_that_are_not_used_are_named(tmp_path):
    noisy = Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8))
    for name in ("good.png", "half.jpg", "half.png"):
        noisy.save(tmp_path / name)
    for name in ("half.jpg", "half.png"):
        data = (tmp_path / name).read_bytes()
        (tmp_path / name).write_bytes(data[:len(data) // 2])
    (tmp_path / "longer.jpg").write_bytes(b"")
    noisy.save(tmp_path / "longer.jpg")
    with (tmp_path / "longer.jpg").open("ab") as file:          # as phones append a video
        file.write(b"more" * 50)
    (tmp_path / "text.png").write_text("no picture")
    grey(1, (20, 90)).save(tmp_path / "small.png")
    Image.fromarray(np.random.rand(40, 40).astype(np.float32)).save(tmp_path / "float.tif")
    grey(1).save(tmp_path / "moves.webp", save_all=True, append_images=[grey(200)])
    write_video(tmp_path / "video.mp4", [pattern(0)] * 3)
    (tmp_path / "phone.heic").write_bytes(b"x")
    found = find_images(tmp_path, replace(SMALL, min_side=32))
    assert names(found) == ["good.png", "longer.jpg"] and found.pixels(1).shape == (3, 32, 32)
    for line in ("half.jpg, half.png, text.png: skipped, cannot be read as a picture",
                 "float.tif: skipped, it holds floating-point numbers", "small.png: left aside, for their short side "
                 "has less than 32 pixels", "moves.webp: left aside, for these are videos or animations",
                 "video.mp4: left aside, for these are videos", "phone.heic: left aside, for such files are not read"):
        assert line in found.report()


def test_nothing_usable_is_an_error_that_says_what_was_found(tmp_path):
    with pytest.raises(ImageFolderError, match="There is no folder .*nowhere"):
        find_images(tmp_path / "nowhere", SMALL)
    with pytest.raises(ImageFolderError, match="it is empty. Expected picture files .*.png"):
        find_images(tmp_path, SMALL)
    (tmp_path / "readme.md").write_text("hello")
    with pytest.raises(ImageFolderError, match="No picture in .*: it holds readme.md"):
        find_images(tmp_path, SMALL)
    grey(1).save(tmp_path / "a.png")
    with pytest.raises(ImageFolderError, match="No usable picture in .*, of 1 found: a.png: left aside, for their"):
        find_images(tmp_path, replace(SMALL, min_side=64))
    for name in ("a.csv", "b.csv"):
        (tmp_path / name).write_text("file,caption\n")
    with pytest.raises(ImageFolderError, match="several .csv files"):
        find_images(tmp_path, SMALL)


def test_keys_change_with_file_and_settings(tmp_path):
    path = tmp_path / "a.png"
    grey(1).save(path)
    os.utime(path, ns=(10 ** 18, 10 ** 18))
    found = find_images(tmp_path, SMALL)
    assert found.key(0) == f"picture|{path.resolve()}|1|{path.stat().st_size}|{10 ** 18}|32x32|crop"
    others = {find_images(tmp_path, settings).key(0) for settings in (
        replace(SMALL, width=64), replace(SMALL, fit="pad"), replace(SMALL, alpha=True))}
    os.utime(path, ns=(10 ** 18, 10 ** 18 + 1))
    assert len({found.key(0), *others}) == 4
    path.write_bytes(path.read_bytes()[:50])
    with pytest.raises(BrokenVideoError, match="a.png cannot be read. Remove the file and build the dataset again"):
        found.pixels(0)


def test_tick_can_stop_the_search(tmp_path):
    grey(1).save(tmp_path / "a.png")

    def stop():
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        find_images(tmp_path, SMALL, stop)


@pytest.mark.parametrize("wrong", [{"width": 4}, {"height": 0}, {"fit": "squash"}])
def test_wrong_settings(wrong):
    with pytest.raises(ValueError, match="was given"):
        ImageSettings(**wrong)
