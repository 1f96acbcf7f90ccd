"""Folders as people have them, through the node Clip Dataset: what a player shows is what is trained on."""
from __future__ import annotations

import io
import shutil
import tarfile
from fractions import Fraction

import av
import numpy as np
import pytest
import torch
from clip_examples import captions, moving, numbered, save_pictures, write_video
from PIL import Image

from frozen_diffusion.modules.data import image_sequences
from frozen_diffusion.modules.data.clip_folder import file_state, folder_state
from frozen_diffusion.modules.data.hdr import HLG_TRANSFER, PQ_TRANSFER, to_sdr
from frozen_diffusion.modules.data.video import scan_video


@pytest.mark.fault("D1")
def test_pictures_of_the_same_name_beside_videos_are_previews(dataset, video, tmp_path):
    for index in range(12):
        shutil.copy(video, tmp_path / f"made_{index:05}.mp4")
        Image.fromarray(moving(1)[0]).save(tmp_path / f"made_{index:05}.png")
    Image.new("RGB", (64, 48)).save(tmp_path / "chart.png")
    save_pictures(tmp_path / "walk", moving(8, speed=4))
    for name in ("walk", "run"):                            # previews of sequences, beside their folders
        Image.new("RGB", (64, 48)).save(tmp_path / f"{name}.jpg")
    save_pictures(tmp_path / "alone", moving(1), "one.png")
    clips, report = dataset()
    assert len(clips) == 13 and {clip.path.suffix for clip in clips.clips} == {".mp4", ""}
    assert "made_00000.png, made_00001.png, made_00002.png, made_00003.png, made_00004.png and 8 more: left aside as " \
           "previews" in report
    assert "chart.png, run.jpg: left aside, for they lie beside videos" in report
    assert "alone/one.png: left aside, for a single picture" in report


@pytest.mark.fault("D2")
def test_animated_pictures_are_clips_with_captions(dataset, tmp_path):
    frames = [Image.fromarray(frame) for frame in moving(12, speed=4)]
    for name in ("a.webp", "b.png", "c.apng", "d.gif", "e.jpg"):
        kind = {".apng": "PNG", ".jpg": "WEBP"}.get(name[1:])       # an animation is one whatever its ending says
        frames[0].save(tmp_path / name, kind, save_all=True, append_images=frames[1:], duration=125, lossless=True)
        (tmp_path / name).with_suffix(".txt").write_text(f"caption of {name}")
    frames[0].save(tmp_path / "still.webp")
    clips, report = dataset()
    assert captions(clips) == {name: f"caption of {name}" for name in ("a.webp", "b.png", "c.apng", "d.gif", "e.jpg")}
    assert "still.webp: left aside" in report
    expected = torch.stack([torch.from_numpy(frame) for frame in moving(8, speed=4)]).float()
    for index in (0, 1, 2, 4):
        pixels = clips.pixels(index).float()                        # 64 x 48 is scaled to 85 x 64 and cropped
        assert (pixels.mean((1, 2, 3)) - expected[:, :, 8:56].mean((1, 2, 3))).abs().max() < 6
        assert (pixels[1:] - pixels[:-1]).abs().amax((1, 2, 3)).min() > 60


@pytest.mark.fault("D2")
@pytest.mark.parametrize("name", ["a.webp", "a.png", "a.gif"])
def test_animated_pictures_have_frame_times_of_their_own(tmp_path, name):
    """And a PNG's picture for viewers that cannot animate is no frame; a duration of 0 is .1 s, as browsers take it."""
    frames = [Image.fromarray(frame) for frame in numbered(50)[::10]]
    options = {"default_image": True} if name == "a.png" else {}
    first, rest = (Image.new("RGB", (64, 48), "red"), frames) if options else (frames[0], frames[1:])
    first.save(tmp_path / name, save_all=True, append_images=rest, duration=[100, 300, 50, 0, 200], lossless=True,
               **options)
    scan = scan_video(tmp_path / name, 8)
    if name == "a.gif":                             # read by FFmpeg, which takes the last frame as long as the mean
        assert scan.times == pytest.approx([0, .1, .4, .45, .55])
    else:
        assert [*scan.times, scan.end] == pytest.approx([0, .1, .4, .45, .55, .75])
    assert scan.thumbs.mean((1, 2, 3)) == pytest.approx([20, 40, 60, 80, 100], abs=2)


def disc(index: int, squeeze: float, width=64, height=48) -> np.ndarray:
    """A white disc of diameter 30 that is stored `squeeze` times as wide, in a grey that flickers."""
    y, x = np.mgrid[:height, :width] + 0.5
    inside = ((x - width / 2) / squeeze) ** 2 + (y - height / 2) ** 2 < 15 ** 2
    return np.where(inside[..., None], 255, 30 + 20 * (index % 2)).astype(np.uint8).repeat(3, -1)


@pytest.mark.fault("D3")
@pytest.mark.parametrize("rotation", [0, 90])
@pytest.mark.parametrize("aspect", [Fraction(4, 3), Fraction(1, 2), Fraction(1)])
def test_discs_are_round(dataset, tmp_path, aspect, rotation):
    frames = [disc(index, 1 / float(aspect)) for index in range(25)]
    write_video(tmp_path / "a.mp4", frames, aspect=aspect, rotation=rotation)
    clips, _ = dataset()
    white = clips.pixels(0)[0].float().mean(0) > 150
    high, wide = white.any(1).sum().item(), white.any(0).sum().item()
    assert abs(high - wide) <= 1 and abs(white.sum().item() / (torch.pi / 4 * high * wide) - 1) < 0.05
    plain = f"{file_state(tmp_path / 'a.mp4')}|{clips.clips[0].times}|False|64x64"
    assert (clips.key(0) == plain) == (aspect == 1)         # other pixels than before have another key in the cache


def hdr_video(path, nits: float, transfer: int) -> None:
    """A grey of so many nits in 10-bit HEVC."""
    levels = np.linspace(0, 1, 1 << 16)
    if transfer == PQ_TRANSFER:
        y = (nits / 10000) ** (2610 / 16384)
        level = ((3424 / 4096 + 2413 / 128 * y) / (1 + 2392 / 128 * y)) ** (2523 / 32)
    else:
        light = (nits / 1000) ** (1 / 1.2)
        level = np.interp(light, np.where(levels <= .5, levels ** 2 / 3, (np.exp((levels - .55991073) / .17883277)
                                                                         + .28466892) / 12), levels)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx265", rate=25, options={"x265-params": "log-level=none"})
        stream.width, stream.height, stream.pix_fmt = 64, 64, "yuv420p10le"
        context = stream.codec_context
        context.color_trc, context.color_primaries, context.colorspace, context.color_range = transfer, 9, 9, 1
        for _ in range(25):
            frame = av.VideoFrame(64, 64, "yuv420p10le")
            for plane, value in zip(frame.planes, (round(64 + 876 * level), 512, 512), strict=True):
                plane.update(np.full(plane.buffer_size // 2, value, np.uint16).tobytes())
            container.mux(stream.encode(frame))
        container.mux(stream.encode())


@pytest.mark.fault("D4")
@pytest.mark.parametrize("transfer", [PQ_TRANSFER, HLG_TRANSFER], ids=["PQ", "HLG"])
def test_hdr_is_tone_mapped_and_reported(dataset, tmp_path, transfer):
    """Diffuse white, a quarter of its light, and a highlight."""
    for nits in (50.75, 203, 600):
        hdr_video(tmp_path / f"{nits}.mp4", nits, transfer)
    clips, report = dataset(keep_still=True)
    found = {clip.path.stem: clips.pixels(index).float().mean().item() for index, clip in enumerate(clips.clips)}
    assert found == pytest.approx({"50.75": 255 * (1.055 * .25 ** (1 / 2.4) - .055), "203": 255, "600": 255}, abs=2.5)
    name = "PQ" if transfer == PQ_TRANSFER else "HLG"
    assert f"203.mp4, 50.75.mp4, 600.mp4: HDR ({name}), tone-mapped to SDR" in report and "zscale" in report
    assert clips.key(0).endswith(f"|{name} to SDR")


@pytest.mark.fault("D4")
def test_colours_of_bt2020_become_those_of_bt709():
    """The primaries of BT.709 at 203 nits in BT.2020 (BT.2087's matrix), as PQ levels."""
    linear = np.array([[.6274, .0691, .0164], [.3293, .9195, .0880], [.0433, .0114, .8956]])        # a primary a row
    y = (linear * 203 / 10000) ** (2610 / 16384)
    levels = ((3424 / 4096 + 2413 / 128 * y) / (1 + 2392 / 128 * y)) ** (2523 / 32)
    code = (levels * 0xFFFF).round().astype(np.uint16)[None]
    assert np.abs(to_sdr(code, PQ_TRANSFER, 9)[0].astype(int) - 255 * np.eye(3)).max() <= 3
    assert to_sdr(np.zeros((1, 1, 3), np.uint16), HLG_TRANSFER, 9).max() == 0


def transparent(count: int) -> list[np.ndarray]:
    """A green square that moves; the rest is transparent, with a red under it that changes."""
    frames = []
    for index in range(count):
        frame = np.zeros((64, 64, 4), np.uint8)
        frame[..., 0] = 255 - 200 * (index % 2)
        frame[20:44, 2 * index:2 * index + 16] = (0, 255, 0, 255)
        frames.append(frame)
    return frames


@pytest.mark.fault("D5")
def test_what_is_transparent_is_black(dataset, tmp_path):
    frames = [Image.fromarray(frame) for frame in transparent(16)]
    for codec in ("libvpx-vp9", "libvpx"):
        write_alpha_video(tmp_path / f"{codec}.webm", transparent(16), codec)
    save_pictures(tmp_path / "rgba", frames)
    save_pictures(tmp_path / "palette", [frame.quantize(8) for frame in frames])
    frames[0].save(tmp_path / "a.webp", save_all=True, append_images=frames[1:], duration=125, lossless=True,
                   exact=True)
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:], duration=120, disposal=2)
    write_alpha_video(tmp_path / "opaque.webm", [np.concatenate([f[..., :3], f[..., :1] * 0 + 255], -1)
                                                 for f in transparent(16)], "libvpx-vp9")
    clips, report = dataset()
    first = {clip.path.name: index for index, clip in reversed(list(enumerate(clips.clips)))}
    assert set(first) == {"libvpx-vp9.webm", "libvpx.webm", "rgba", "palette", "a.webp", "a.gif", "opaque.webm"}
    for name, index in first.items():
        pixels = clips.pixels(index).float()
        hidden, square = pixels[0, :, :12, 40:].mean((1, 2)), pixels[0, :, 28:36, 4:12].mean((1, 2))
        assert torch.allclose(square, torch.tensor([0.0, 255.0, 0.0]), atol=12), name
        assert (hidden[0] > 200) if name == "opaque.webm" else hidden.max() < 8, (name, hidden)
        assert clips.key(index).endswith("|alpha over black") == (name != "opaque.webm")
    assert "libvpx.webm" in (line := next(line for line in report.splitlines() if "transparency, shown over" in line))
    assert "opaque" not in line


@pytest.mark.fault("D5")
def test_transparency_that_cannot_be_decoded_is_reported(dataset, tmp_path, monkeypatch):
    """Where PyAV was built without libvpx."""
    def unknown(name, mode):
        raise ValueError(name)

    write_alpha_video(tmp_path / "a.webm", transparent(16), "libvpx-vp9")
    monkeypatch.setattr("av.CodecContext.create", unknown)
    clips, report = dataset()
    assert "a.webm: transparency that this PyAV cannot decode" in report and clips.key(0).endswith("|alpha not decoded")


def write_alpha_video(path, frames, codec: str) -> None:
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=8, options={"auto-alt-ref": "0", "crf": "4", "b": "4M",
                                                                 "deadline": "realtime"})
        stream.width, stream.height, stream.pix_fmt = frames[0].shape[1], frames[0].shape[0], "yuva420p"
        stream.metadata["alpha_mode"] = "1"
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgba").reformat(format="yuva420p")))
        container.mux(stream.encode())


@pytest.mark.fault("D5")
@pytest.mark.parametrize("name", ["frame_{}.png", "frame_{}.tif"])
def test_sixteen_bits_of_grey_use_their_range(dataset, tmp_path, name):
    ramp = np.tile(np.linspace(0, 0xFFFF, 64).astype(np.uint16), (64, 1))
    save_pictures(tmp_path / "grey", [np.roll(ramp, 4 * index, 1) for index in range(8)], name)
    clips, report = dataset()
    assert "grey: 16-bit grey, scaled to 8 bits" in report and len(clips) == 1
    found = clips.pixels(0)[:, 0].float()
    expected = np.stack([np.roll(ramp, 4 * index, 1) for index in range(8)]) / 257
    assert np.abs(found.numpy() - expected).max() < 1


@pytest.mark.fault("D5")
def test_numbers_without_a_known_white_are_refused_by_name(dataset, video, tmp_path):
    shutil.copy(video, tmp_path / "a.mp4")
    save_pictures(tmp_path / "float", [Image.fromarray(np.random.rand(64, 64).astype(np.float32))] * 8, "{}.tif")
    _, report = dataset()
    assert "float: skipped, the picture 0.tif cannot be used: it holds floating-point numbers" in report


@pytest.mark.fault("D8")
def test_linked_folders_are_entered_once(dataset, video, tmp_path, tmp_path_factory):
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    (elsewhere / "deep").mkdir()
    shutil.copy(video, elsewhere / "deep" / "far.mp4")
    (elsewhere / "deep" / "far.txt").write_text("from afar")
    (tmp_path / "own").mkdir()
    shutil.copy(video, tmp_path / "own" / "near.mp4")
    (tmp_path / "linked").symlink_to(elsewhere)
    (elsewhere / "back").symlink_to(tmp_path)               # loops
    (tmp_path / "own" / "self").symlink_to(tmp_path / "own")
    (tmp_path / "again").symlink_to(tmp_path / "own")
    clips, report = dataset()
    assert captions(clips) == {"near.mp4": "", "far.mp4": "from afar"}
    assert "again, own/self, linked/back: left aside, links to folders that are read already" in report
    state = folder_state(tmp_path)
    (elsewhere / "deep" / "far.txt").write_text("changed")
    assert folder_state(tmp_path) != state


@pytest.mark.fault("D9")
def test_a_clip_of_a_long_sequence_opens_its_own_pictures_only(dataset, tmp_path, monkeypatch):
    """However far into the sequence it is."""
    (tmp_path / "walk").mkdir()
    for index in range(600):
        Image.new("L", (8, 8), index % 200 + 20).save(tmp_path / "walk" / f"{index}.bmp")
    clips, _ = dataset(width=32, height=32, keep_still=True, stride=0.0)
    opened, plain = [], Image.open
    monkeypatch.setattr(image_sequences.Image, "open", lambda path: opened.append(int(path.stem)) or plain(path))
    assert len(clips) == 75
    for index in (0, 1, len(clips) // 2, len(clips) - 1):
        opened.clear()
        first = round(clips.clips[index].times[0] * 8)
        assert clips.pixels(index).float().mean((1, 2, 3)).tolist() == [n % 200 + 20 for n in range(first, first + 8)]
        assert opened == list(range(first, first + 8))


@pytest.mark.fault("D10")
@pytest.mark.parametrize("name", ["track.mkv", "cover.mp4", "attached.mkv"])
def test_a_cover_picture_is_not_the_video(dataset, tmp_path, name):
    frames = moving(40)
    with av.open(str(tmp_path / name), "w") as container:
        if name == "attached.mkv":
            picture = io.BytesIO()
            Image.new("RGB", (64, 48), "red").save(picture, "JPEG")
            container.add_attachment("cover.jpg", "image/jpeg", picture.getvalue())
        else:
            cover = container.add_stream("mjpeg", rate=25)
            cover.width, cover.height, cover.pix_fmt = 64, 48, "yuvj420p"
            cover.disposition = av.stream.Disposition.attached_pic
        stream = container.add_stream("libx264", rate=25)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        if name != "attached.mkv":
            picture = av.VideoFrame.from_ndarray(np.full((48, 64, 3), (255, 0, 0), np.uint8), format="rgb24")
            picture.pts = 0
            container.mux([*cover.encode(picture), *cover.encode()])
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())
    clips, report = dataset()
    assert len(clips) == 1 and "too short" not in report
    assert clips.pixels(0)[:, 1].float().mean() > 60        # the red cover has no green


def test_shards_are_read_like_a_folder(comfy, dataset, video, tmp_path):
    """A folder of WebDataset shards, and a pattern; the node runs again when a shard changed."""
    (tmp_path / "a.txt").write_text("a square moves")
    for shard in ("000.tar", "001.tar"):
        with tarfile.open(tmp_path / shard, "w") as archive:
            archive.add(video, f"{shard[:3]}1.mp4")
            archive.add(tmp_path / "a.txt", f"{shard[:3]}1.txt")
    pattern = str(tmp_path / "{000..001}.tar")
    for folder in (str(tmp_path), pattern):
        clips, report = dataset(folder=folder)
        assert captions(clips) == {"0001.mp4": "a square moves", "0011.mp4": "a square moves"}
        assert "shards: 2, samples: 2, with a video: 2" in report and len(clips) == 2
    node = comfy.node("FrozenClipDataset")
    before = [node.fingerprint_inputs("folder", folder) for folder in (str(tmp_path), pattern)]
    (tmp_path / "001.tar").write_bytes((tmp_path / "000.tar").read_bytes() + bytes(512))
    after = [node.fingerprint_inputs("folder", folder) for folder in (str(tmp_path), pattern)]
    assert len({*before, *after}) == 4


def test_files_of_kinds_that_are_not_read_are_named(dataset, video, tmp_path):
    shutil.copy(video, tmp_path / "a.mp4")
    (tmp_path / "more.zip").write_bytes(b"PK")
    (tmp_path / "b.avif").write_bytes(b"x")
    assert "b.avif, more.zip: left aside, for such files are not read" in dataset()[1]


def test_sprite_worlds_paths_are_video_files(comfy, tmp_path, monkeypatch):
    """They are written once, with captions, and loaded as a user's own; a file that a user put there stays."""
    import folder_paths

    from frozen_diffusion.modules.demo.paths import plain_look
    monkeypatch.setattr(folder_paths, "get_input_directory", lambda: str(tmp_path))
    settings = {"frames": 16, "fps": 8.0, "width": 128, "height": 128, "stride": 0.0, "max_clips": 0, "mirror": False,
                "keep_still": False, "seed": 0}
    clips, report, _ = comfy.run("FrozenClipDataset", source="sprite world: sway", folder="", **settings)
    exact = plain_look("sway")
    assert len(clips) == 1 and clips.caption(0) == exact.text and clips.settings.frames == 16
    off = (clips.pixels(0).float() - exact.pixels(0).float()).abs()
    assert off.mean() < 4                           # of 255; chroma is at half of the size
    path, = (tmp_path / "frozen_diffusion" / "sprite world sway").glob("*.mp4")
    path.with_suffix(".txt").write_text("my own words")
    before = path.stat().st_mtime_ns
    again = comfy.run("FrozenClipDataset", source="sprite world: sway", folder="", **settings)[0]
    assert again.caption(0) == "my own words" and path.stat().st_mtime_ns == before
    both = comfy.run("FrozenClipDataset", source="sprite world: sway, two looks", folder="", **settings)[0]
    assert len(both) == 2 and "panda" in both.caption(0) and "star" in both.caption(1)
