"""WebDataset shards as a source of clips and of pictures: plain .tar files, read in place."""
from __future__ import annotations

import argparse
import io
import json
import os
import tarfile
from dataclasses import replace

import numpy as np
import pytest
import torch
from clip_examples import moving, pattern, write_video
from PIL import Image

from frozen_diffusion.modules.data import sources
from frozen_diffusion.modules.data.clip_folder import ClipFolderError, find_clips, folder_state
from frozen_diffusion.modules.data.clips import ClipSettings
from frozen_diffusion.modules.data.frames import BrokenVideoError
from frozen_diffusion.modules.data.image_folder import ImageFolderError, find_images
from frozen_diffusion.modules.data.images import ImageSettings
from frozen_diffusion.modules.data.shards import ShardError, read_shards, shard_files
from frozen_diffusion.modules.data.sources import clips_at, images_at
from frozen_diffusion.modules.host.motion import train_command

SMALL = ClipSettings(frames=8, fps=8, width=64, height=64)
PICTURES = ImageSettings(32, 32)


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    """The bytes of a video of one clip, one with a cut, one of which the long side is turned, and an animation."""
    folder = tmp_path_factory.mktemp("videos")
    write_video(folder / "a.mp4", moving(25))
    write_video(folder / "cut.mp4", moving(35, 1) + moving(30, 2))
    write_video(folder / "turned.mp4", moving(25, 3), rotation=90)
    frames = [Image.fromarray(frame) for frame in moving(10, 4, speed=4)]
    frames[0].save(folder / "moves.webp", save_all=True, append_images=frames[1:], duration=125, lossless=True)
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def picture(level: int, kind: str = "png") -> bytes:
    data = io.BytesIO()
    Image.new("RGB", (64, 48), (level, level, level)).save(data, kind)
    return data.getvalue()


def write_shard(path, members: dict[str, bytes] | list[tuple[str, bytes]], **options) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, options.pop("mode", "w"), **options) as archive:
        for name, data in members.items() if isinstance(members, dict) else members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))


def names(pictures) -> list[str]:
    return [pictures.name(index) for index in range(len(pictures))]


def test_clips_of_shards_are_those_of_the_unpacked_folder(tmp_path, videos):
    """The same clips, cuts, mirrors and pixels, and a key of its own for each."""
    settings = replace(SMALL, mirror=True, stride=0.1)
    members = {f"{index:03}{name[name.index('.'):]}": videos[name] for index, name in enumerate(sorted(videos))}
    members |= {f"{index:03}.txt": f"caption {index}".encode() for index in range(3)}
    write_shard(tmp_path / "shards" / "0.tar", members)
    for name, data in members.items():
        (tmp_path / "plain").mkdir(exist_ok=True)
        (tmp_path / "plain" / name).write_bytes(data)
    packed, plain = clips_at(tmp_path / "shards", settings), find_clips(tmp_path / "plain", settings)
    assert len(packed) == len(plain) > 8
    assert [clip.times for clip in packed.clips] == [clip.times for clip in plain.clips]
    assert [packed.caption(n) for n in range(len(packed))] == [plain.caption(n) for n in range(len(packed))]
    for index in range(0, len(packed), 3):
        one, other = (found.pixels(index).flip(-1) if found.clips[index].mirrored else found.pixels(index)
                      for found in (packed, plain))
        assert torch.equal(one, other)
    assert len({packed.key(index) for index in range(len(packed))}) == len(packed)
    assert len({packed.video(index) for index in range(len(packed))}) == 4
    assert {clip.mirrored for clip in packed.clips} == {True, False}
    assert sorted(path.name for path in tmp_path.rglob("*") if path.is_file()) == sorted([*members, "0.tar"])
    for line in ("shards: 1, samples: 4, with a video: 4", "0.tar/001: split at 1 cut (1.40 s)",
                 "0.tar/003: has no caption"):
        assert line in packed.report()


def test_the_command_line_takes_shards(tmp_path, videos):
    write_shard(tmp_path / "0.tar", {"walk.mp4": videos["a.mp4"], "walk.txt": b"a walk"})
    parser = argparse.ArgumentParser()
    train_command.add_arguments(parser)
    args = parser.parse_args(["--data", str(tmp_path / "{0..0}.tar"), "--checkpoint", "x", "--out", "y", "--frames",
                              "8", "--size", "64x64"])
    clips = train_command.clips_of(args)
    assert {clips.caption(index) for index in range(len(clips))} == {"a walk"}


def test_captions_of_samples(tmp_path, videos):
    captions = {"text.txt": b"of the text\n", "text.json": json.dumps({"caption": "unused"}).encode(),
                "json.json": json.dumps({"width": 64, "caption": "of the\njson"}).encode(),
                "prompt.json": json.dumps({"prompt": "a prompt"}).encode(), "windows.txt": "é".encode("cp1252"),
                "none.json": b'{"width": 64}', "list.json": b"[1]", "broken.json": b"{caption", "blank.txt": b" "}
    write_shard(tmp_path / "0.tar", {**{f"{name.partition('.')[0]}.png": picture(50) for name in captions}, **captions})
    found = images_at(tmp_path / "0.tar", PICTURES)
    told = {name.partition("/")[2]: found.caption(index) for index, name in enumerate(names(found))}
    assert told == {"text": "of the text", "json": "of the json", "prompt": "a prompt", "windows": "é", "none": "",
                    "list": "", "broken": "", "blank": ""}
    for line in ("0.tar/none, 0.tar/list, 0.tar/broken, 0.tar/blank: no caption",
                 "0.tar/windows.txt: captions not in UTF-8", "0.tar/blank.txt: empty captions",
                 "0.tar/broken.json: captions that cannot be read as JSON"):
        assert line in found.report()


def test_pictures_of_shards(tmp_path, videos):
    """Beside a video of the same sample, too; in folders of the archive, with dots and capitals in the endings."""
    write_shard(tmp_path / "0.tar", {"./sub/b.thumb.jpg": picture(10, "JPEG"), "./sub/b.JPG": picture(120, "JPEG"),
                                     "a.png": picture(40), "a.mp4": videos["a.mp4"], "c.webp": videos["moves.webp"],
                                     "d.mp4": videos["a.mp4"], "e.png": picture(1)[:60], ".hidden.png": picture(2)})
    write_shard(tmp_path / "1.tar", {"a.webp": picture(80, "WEBP")})
    found = images_at(tmp_path, PICTURES)
    assert names(found) == ["0.tar/sub/b", "0.tar/a", "1.tar/a"]
    assert [found.pixels(n).float().mean().item() for n in range(3)] == pytest.approx([120, 40, 80], abs=2)
    for line in ("shards: 2, samples: 6, with a picture: 5", "0.tar/d: samples without a picture",
                 "0.tar/sub/b: samples with several pictures, the first is used", "0.tar/e: skipped, cannot be read",
                 "0.tar/c: left aside, for these are videos", "a: samples of the same name are in several shards"):
        assert line in found.report()
    assert len({found.key(index) for index in range(3)}) == 3
    assert len(images_at(tmp_path, replace(PICTURES, max_images=2))) == 2
    with pytest.raises(ImageFolderError, match="No usable picture in .*: shards: 2, .*: left aside, for"):
        images_at(tmp_path, replace(PICTURES, min_side=49))


def test_samples_that_are_not_used_are_counted_and_named(tmp_path, videos, monkeypatch):
    still = tmp_path / "still.mp4"
    write_video(still, [pattern(0)] * 25)
    junk = {f"junk{index}.mp4": b"no video" * 100 for index in range(7)}
    write_shard(tmp_path / "shards" / "0.tar", {
        "good.mp4": videos["a.mp4"], "good.txt": b"x", **junk, "text.txt": b"x", "still.webp": picture(5, "WEBP"),
        "still2.mp4": still.read_bytes(), "two.mp4": videos["a.mp4"], "two.left.mp4": b"junk", "two.txt": b"x"})
    found = clips_at(tmp_path / "shards", SMALL)
    assert [clip.path.name for clip in found.clips] == ["good.mp4", "two.mp4"]
    for line in ("shards: 1, samples: 12, with a video: 10", "0.tar/text, 0.tar/still: samples without a video",
                 "0.tar/two: samples with several videos, the first is used", "0.tar/still2: 1 clip skipped, nothing",
                 "0.tar/junk0, 0.tar/junk1, 0.tar/junk2, 0.tar/junk3, 0.tar/junk4 and 2 more: skipped, it cannot be"):
        assert line in found.report()
    monkeypatch.setattr(sources, "REPORT_LINES", 1)
    short = clips_at(tmp_path / "shards", SMALL).report()
    assert "junk0" in short and "1 clip skipped" not in short and "lines about other samples left out: 1" in short


def test_sparse_files_are_not_read_in_place(tmp_path, monkeypatch):
    """What lies in the archive is not what they hold."""
    write_shard(tmp_path / "0.tar", {"a.png": picture(10), "b.png": picture(20)})
    monkeypatch.setattr(tarfile.TarInfo, "issparse", lambda info: info.name == "a.png")
    found = images_at(tmp_path, PICTURES)
    assert names(found) == ["0.tar/b"] and "0.tar/a.png: skipped, stored as a sparse file" in found.report()


def test_two_samples_of_one_name(tmp_path):
    """The last is used, as if they were unpacked over one another; a file of the first that is not replaced stays."""
    write_shard(tmp_path / "0.tar", [("a.png", picture(10)), ("a.txt", b"first"), ("b.png", picture(20)),
                                     ("a.png", picture(90))])
    found = images_at(tmp_path, PICTURES)
    assert names(found) == ["0.tar/a", "0.tar/b"] and found.caption(0) == "first"
    assert found.pixels(0).float().mean().item() == pytest.approx(90, abs=1)
    assert "0.tar/a.png: twice in a shard; the last one is used" in found.report()


@pytest.mark.parametrize(("pattern", "expected"), [
    ("{000..002}.tar", ["000", "001", "002"]), ("{9..11}.tar", ["9", "10", "11"]), ("{08..10}.tar", ["08", "09", "10"]),
    ("{train,val}-{0..1}.tar", ["train-0", "train-1", "val-0", "val-1"]), ("{x}.tar", ["{x}"])])
def test_patterns_of_shards(tmp_path, pattern, expected):
    for name in expected:
        (tmp_path / f"{name}.tar").touch()
    assert [path.stem for path in shard_files(tmp_path / pattern)] == expected


def test_shards_of_a_folder_in_natural_order(tmp_path):
    for name in ("10.tar", "9.TAR", "sub/1.tar", ".hidden.tar", "a.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    assert [path.name for path in shard_files(tmp_path)] == ["9.TAR", "10.tar", "1.tar"]


@pytest.mark.parametrize("mode", ["w:gz", "cut", "noise", "empty", "no end"])
def test_damaged_shards(tmp_path, mode):
    members = {f"{index}.png": picture(10 * index + 10) for index in range(4)}
    path = tmp_path / "0.tar"
    write_shard(path, members, mode=mode if mode == "w:gz" else "w")
    write_shard(tmp_path / "1.tar", {"good.png": picture(200)})
    data = path.read_bytes()
    third = 2 * (512 + -(-len(members["0.png"]) // 512) * 512)
    changed = {"cut": data[:third + 540], "noise": data[:third] + b"noise" * 300, "empty": b"",
               "no end": data.rstrip(b"\0")}
    path.write_bytes(changed.get(mode, data))
    found = images_at(tmp_path, PICTURES)
    expected = {"cut": ["0.tar/0", "0.tar/1"], "noise": ["0.tar/0", "0.tar/1"],
                "no end": [f"0.tar/{index}" for index in range(4)]}.get(mode, [])
    assert names(found) == [*expected, "1.tar/good"]
    line = {"cut": "0.tar: cut off or damaged (unexpected end of data); what comes before is used",
            "noise": "0.tar: damaged; what comes before the damage is used",
            "w:gz": "A compressed one has to be decompressed", "empty": "0.tar: skipped, no plain .tar (empty file)"}
    assert line.get(mode, "no picture has a caption") in found.report() and "0.tar/2" not in found.report()


def test_shards_that_are_not_there(tmp_path):
    (tmp_path / "0.tar").touch()
    with pytest.raises(ShardError, match=r"There is no file .*1.tar, .*2.tar, .*3.tar and 1 more, of 5 that"):
        read_shards(tmp_path / "{0..4}.tar")
    with pytest.raises(ClipFolderError, match=r"There is no file .*9.tar, of 1 that .* a pattern like clips"):
        clips_at(tmp_path / "9.tar", SMALL)
    with pytest.raises(ImageFolderError, match="{5..x} in the name of the shards is no range"):
        images_at(tmp_path / "{5..x}.tar", PICTURES)
    with pytest.raises(ClipFolderError, match="There is no folder .*nowhere"):
        clips_at(tmp_path / "nowhere", SMALL)
    with pytest.raises(ClipFolderError, match="No usable clip .*: shards: 1, samples: 0, with a video: 0; 0"):
        clips_at(tmp_path, SMALL)


def test_a_folder_with_data_of_its_own_is_no_folder_of_shards(tmp_path, videos):
    write_shard(tmp_path / "0.tar", {"a.mp4": videos["cut.mp4"], "b.png": picture(5)})
    (tmp_path / "own.mp4").write_bytes(videos["a.mp4"])
    found = clips_at(tmp_path, SMALL)
    assert [clip.path.name for clip in found.clips] == ["own.mp4"]
    assert "0.tar: left aside, for shards are read only from a folder of their own" in found.report()
    assert names(images_at(tmp_path, PICTURES)) == ["0.tar/b"]
    (tmp_path / "c.png").write_bytes(picture(9))
    assert names(images_at(tmp_path, PICTURES)) == ["c.png"]
    assert "0.tar: left aside, for shards" in find_images(tmp_path, PICTURES).report()


def test_keys_and_states_change_with_the_shards(tmp_path, videos):
    path, pattern = tmp_path / "0.tar", tmp_path / "{0..0}.tar"
    write_shard(path, {"a.mp4": videos["a.mp4"]})
    os.utime(path, ns=(10 ** 18, 10 ** 18))
    found, states = clips_at(pattern, SMALL), [folder_state(tmp_path), folder_state(pattern)]
    assert clips_at(tmp_path, SMALL).key(0) == found.key(0) and found.pixels(0).shape == (8, 3, 64, 64)
    os.utime(path, ns=(10 ** 18, 10 ** 18 + 1))
    assert not {folder_state(tmp_path), folder_state(pattern)} & {*states, "missing"}
    assert folder_state(tmp_path / "{0..1}.tar") == "missing"
    assert clips_at(pattern, SMALL).key(0) != found.key(0)
    with pytest.raises(BrokenVideoError, match="0.tar/a.mp4: 0.tar is gone or was changed after it was looked through"):
        found.pixels(0)
    write_shard(path, {"a.png": picture(5)})
    pictures = images_at(path, PICTURES)
    path.unlink()
    with pytest.raises(BrokenVideoError, match="a.png: the picture a.png cannot be used: 0.tar is gone or was changed"):
        pictures.pixels(0)


def test_tick_can_stop_the_search(tmp_path):
    write_shard(tmp_path / "0.tar", {"a.png": picture(1)})

    def stop():
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        read_shards(tmp_path, stop)


def test_a_file_in_an_archive_reads_as_one_of_its_own(tmp_path):
    data = np.random.default_rng(0).integers(0, 255, 3000, dtype=np.uint8).tobytes()
    write_shard(tmp_path / "0.tar", {"a.bin": b"before", "b.bin": data, "c.bin": b"after"})
    member = read_shards(tmp_path).samples[1].files["bin"]
    with member.open() as file:
        assert file.read() == data and file.read() == b"" and file.seekable()
        assert file.seek(-7, 2) == 2993 and file.read(100) == data[-7:] and file.tell() == 3000
        assert file.seek(5) == 5 and file.seek(3, 1) == 8 and file.read(4) == data[8:12]
        assert file.seek(5000) == 5000 and file.read() == b""
        with pytest.raises(OSError, match="before the begin"):
            file.seek(-4000, 2)
    with pytest.raises(ValueError, match="'r' was given"):
        member.open("r")
