"""Clips out of folders of real video files, written here by PyAV, and out of sprite world."""
from __future__ import annotations

import av
import numpy as np
import pytest
import torch
from clip_examples import moving, numbered, pattern, write_video
from PIL import Image

from frozen_diffusion.modules.data.clip_folder import (
    ClipFolderError,
    file_state,
    find_clips,
    folder_state,
)
from frozen_diffusion.modules.data.clips import ClipSettings
from frozen_diffusion.modules.data.video import find_cuts, fit, read_frames, scan_video
from frozen_diffusion.modules.demo.clips import SpriteClips
from frozen_diffusion.modules.demo.world import MOTION_WORDS

SMALL = ClipSettings(frames=8, fps=8, width=64, height=64)


def numbers(pixels: torch.Tensor) -> list[float]:
    return [(frame.float().mean().item() - 20) / 2 for frame in pixels]


@pytest.mark.parametrize("fps", [12, 25, 30])
def test_eight_frames_a_second_whatever_the_source(tmp_path, fps):
    path = tmp_path / "a.mp4"
    write_video(path, numbered(fps * 2), fps=fps)
    times = [0.25 + k / 8 for k in range(8)]
    seen = numbers(read_frames(path, times, 8, 64, 48))
    assert seen == pytest.approx([int(time * fps + 1e-6) for time in times], abs=0.7)


def test_time_stamps_decide_in_a_file_of_variable_rate(tmp_path):
    path = tmp_path / "a.mp4"
    stamps = [0, 100, 200, 700, 800, 1500, 1600, 2000]
    write_video(path, numbered(8), times=stamps)
    assert scan_video(path, 8).times == pytest.approx(np.array(stamps) / 1000)
    seen = numbers(read_frames(path, [0.0, 0.15, 0.5, 0.75, 1.4, 1.55], 8, 64, 48))
    assert seen == pytest.approx([0, 1, 2, 3, 4, 5], abs=0.7)


def test_seeking_far_into_a_file_finds_the_same_frames(tmp_path):
    path = tmp_path / "long.mp4"
    write_video(path, numbered(110), fps=25)
    late = [3.0 + k / 8 for k in range(6)]
    assert numbers(read_frames(path, late, 8, 64, 48)) == pytest.approx([int(t * 25) for t in late], abs=0.7)


def test_cuts_split_a_file_and_no_clip_reaches_over_one(tmp_path):
    write_video(tmp_path / "cut.mp4", moving(35, 1) + moving(45, 2) + moving(5, 3))
    found = find_clips(tmp_path, SMALL)
    assert [clip.times[0] for clip in found.clips] == pytest.approx([0.0, 1.4])
    assert found.clips[1].times[-1] < 80 / 25
    assert "cut.mp4: split at 2 cuts (1.40 s, 3.20 s)" in found.report()
    assert "1 of 3 scenes are too short" in found.report()


def test_fast_motion_is_no_cut():
    frames = np.stack([np.roll(np.kron([[0, 255] * 3], np.ones((24, 4, 3)).reshape(24, 12)), 3 * k, axis=1)
                       for k in range(12)])[..., :24, None].repeat(3, -1).astype(np.uint8)
    assert np.abs(np.diff(frames.astype(int), axis=0)).mean() > 22      # large changes, but every frame
    assert find_cuts(frames) == []


def test_still_short_broken_and_strange_files_are_reported(tmp_path):
    write_video(tmp_path / "good.mp4", moving(50))
    write_video(tmp_path / "still.mp4", [pattern(0)] * 50)
    write_video(tmp_path / "short.mp4", moving(10))
    (tmp_path / "broken.mp4").write_bytes(b"not a video at all" * 50)
    (tmp_path / "half.mp4").write_bytes((tmp_path / "good.mp4").read_bytes()[:3000])
    (tmp_path / "empty.mp4").write_bytes(b"")
    (tmp_path / "notes.pdf").write_bytes(b"ignored")
    found = find_clips(tmp_path, SMALL)
    assert {clip.path.name for clip in found.clips} == {"good.mp4"} and len(found) == 2
    report = found.report()
    for line in ("broken.mp4: skipped, it cannot be decoded", "half.mp4: skipped, it cannot be decoded",
                 "empty.mp4: skipped, it cannot be decoded", "short.mp4: skipped, it is too short (0.40 s",
                 "still.mp4: 2 clips skipped, nothing moves", "good.mp4: has no caption"):
        assert line in report
    assert "notes.pdf" not in report


def test_a_video_without_pictures_is_reported(tmp_path):
    with av.open(str(tmp_path / "sound.mp4"), "w") as container:
        stream = container.add_stream("aac", rate=8000)
        sound = av.AudioFrame.from_ndarray(np.zeros((1, 8000), np.float32), format="fltp", layout="mono")
        sound.rate = 8000
        container.mux(stream.encode(sound))
        container.mux(stream.encode())
    with pytest.raises(ClipFolderError, match="sound.mp4: skipped, it has no video stream"):
        find_clips(tmp_path, SMALL)


def test_nothing_usable_is_an_error_that_says_what_was_found(tmp_path):
    with pytest.raises(ClipFolderError, match="There is no folder"):
        find_clips(tmp_path / "nowhere", SMALL)
    with pytest.raises(ClipFolderError, match="it is empty. Expected video files"):
        find_clips(tmp_path, SMALL)
    (tmp_path / "readme.md").write_text("hello")
    with pytest.raises(ClipFolderError, match="No video in .*: it holds readme.md"):
        find_clips(tmp_path, SMALL)
    write_video(tmp_path / "short.mp4", moving(5))
    with pytest.raises(ClipFolderError, match=r"No usable clip in .*, of 1 found: short.mp4: skipped"):
        find_clips(tmp_path, SMALL)


def test_a_scene_a_little_too_short_is_slowed_down(tmp_path):
    write_video(tmp_path / "a.mp4", moving(20))                 # 0.8 s for a clip of 1 s
    found = find_clips(tmp_path, SMALL)
    assert found.clips[0].times == pytest.approx([k * 0.1 for k in range(8)])
    assert "a scene of 0.80 s is slowed down to 1.00 s" in found.report()


def test_start_positions_and_limit(tmp_path):
    write_video(tmp_path / "a.mp4", moving(76))                 # 3.04 s
    starts = [clip.times[0] for clip in find_clips(tmp_path, SMALL).clips]
    assert starts == pytest.approx([0, 1, 2])
    close = ClipSettings(**{**SMALL.__dict__, "stride": 0.5})
    assert len(find_clips(tmp_path, close)) == 5
    limited = find_clips(tmp_path, ClipSettings(**{**close.__dict__, "max_clips": 2}))
    assert [clip.times[0] for clip in limited.clips] == pytest.approx([0, 1])
    assert "3 clips left out by the limit of 2" in limited.report()


def test_image_sequences_in_natural_order(tmp_path):
    folder = tmp_path / "walk"
    folder.mkdir()
    for index, frame in enumerate(moving(12, speed=4)):
        Image.fromarray(frame).save(folder / f"frame_{index}.png")
    (tmp_path / "walk.txt").write_text("a square\nwalks")
    found = find_clips(tmp_path, SMALL)
    assert len(found) == 1 and found.caption(0) == "a square walks"
    expected = torch.stack([fit(frame, 64, 64) for frame in moving(8, speed=4)])
    assert torch.equal(found.pixels(0), expected)
    Image.fromarray(pattern(0)).save(folder / "frame_3.png", format="PNG")
    (folder / "frame_3.png").write_bytes(b"broken")
    with pytest.raises(ClipFolderError, match="walk: skipped, the picture frame_3.png cannot be read"):
        find_clips(tmp_path, SMALL)


def test_captions_from_text_files_and_csv(tmp_path):
    (tmp_path / "more").mkdir()
    for name in ("a", "b", "more/c"):
        write_video(tmp_path / f"{name}.mp4", moving(25))
    (tmp_path / "a.txt").write_text("from the text file\n")
    (tmp_path / "table.csv").write_text('File,Caption\na.mp4,unused\nb,"a square, moving"\nmore/c.mp4,c\n')
    found = find_clips(tmp_path, SMALL)
    assert [found.caption(i) for i in range(3)] == ["from the text file", "a square, moving", "c"]
    (tmp_path / "table.csv").write_text("a.mp4;one\n")
    with pytest.raises(ClipFolderError, match="needs a first line that names a column of files"):
        find_clips(tmp_path, SMALL)
    (tmp_path / "second.csv").write_text("file,caption\n")
    with pytest.raises(ClipFolderError, match="several .csv files"):
        find_clips(tmp_path, SMALL)


def test_captions_from_a_table_of_json_lines(tmp_path):
    """As Hugging Face's folders of images and videos have them; a .csv goes first."""
    write_video(tmp_path / "a.mp4", moving(25))
    write_video(tmp_path / "b.mp4", moving(25))
    table = tmp_path / "metadata.jsonl"
    table.write_text('{"file_name": "a.mp4", "text": "a square\\nmoves"}\n\n{"File_Name": "b", "Caption": "b é"}\n'
                     '{"file_name": "gone.mp4", "text": "x"}\n{"file_name": "a.mp4"}\n', "utf-8-sig")
    found = find_clips(tmp_path, SMALL)
    assert [found.caption(i) for i in range(2)] == ["a square moves", "b é"]
    assert "metadata.jsonl: rows that name no video or sequence: 4 (gone.mp4)" in found.report()
    assert "metadata.jsonl: rows without a caption column: 5" in found.report()
    for line, message in (("[1]", "line 1 is no JSON object"), ('{"text": "x"}', "needs the name of a file in each")):
        table.write_text(line)
        with pytest.raises(ClipFolderError, match=message):
            find_clips(tmp_path, SMALL)
    (tmp_path / "table.csv").write_text("file,caption\na.mp4,of the table\n")
    assert find_clips(tmp_path, SMALL).caption(0) == "of the table"


def test_size_is_covered_and_centred():
    wide = np.zeros((40, 120, 3), dtype=np.uint8)
    wide[:, 40:80] = 200                                        # the middle third
    assert fit(wide, 64, 64).shape == (3, 64, 64)
    assert fit(wide, 64, 64).float().mean() == pytest.approx(200, abs=2)
    assert fit(wide, 32, 96).shape == (3, 96, 32)


def test_mirrored_clips_are_mirrored_as_a_whole(tmp_path):
    write_video(tmp_path / "a.mp4", moving(225))
    plain = find_clips(tmp_path, SMALL)
    mirrored = find_clips(tmp_path, ClipSettings(**{**SMALL.__dict__, "mirror": True}))
    flips = [clip.mirrored for clip in mirrored.clips]
    assert 0 < sum(flips) < len(flips)
    for index in (flips.index(True), flips.index(False)):
        expected = plain.pixels(index).flip(-1) if flips[index] else plain.pixels(index)
        assert torch.equal(mirrored.pixels(index), expected)


def test_keys_and_states_change_with_the_files(tmp_path):
    path = tmp_path / "a.mp4"
    write_video(path, moving(50))
    found, state = find_clips(tmp_path, SMALL), folder_state(tmp_path)
    assert len({found.key(0), found.key(1)}) == 2 and folder_state(tmp_path) == state
    before = file_state(path)
    write_video(path, moving(51))
    assert file_state(path) != before and folder_state(tmp_path) != state


def test_tick_can_stop_a_scan(tmp_path):
    write_video(tmp_path / "a.mp4", moving(25))

    def stop():
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        find_clips(tmp_path, SMALL, stop)


@pytest.mark.parametrize("wrong", [{"frames": 1}, {"fps": 0}, {"width": 100}, {"height": 0}])
def test_wrong_settings(wrong):
    with pytest.raises(ValueError, match="was given"):
        ClipSettings(**wrong)


def test_sprite_world_as_a_source():
    source, again = (SpriteClips(5, ClipSettings(frames=4), seed=3) for _ in range(2))
    assert source.pixels(2).shape == (4, 3, 128, 128) and torch.equal(source.pixels(2), again.pixels(2))
    assert source.caption(2) == again.caption(2) and "background" in source.caption(2)
    assert len({source.key(i) for i in range(5)}) == 5


def test_sprite_world_draws_the_motions_it_is_told():
    source = SpriteClips(60, ClipSettings(frames=4), seed=3, motions=("spin", "circle", "circle"))
    drawn = [source.caption(i) for i in range(60)]
    spins = sum(any(word in text for word in MOTION_WORDS["spin"]) for text in drawn)
    circles = sum(any(word in text for word in MOTION_WORDS["circle"]) for text in drawn)
    assert spins + circles == 60 and 30 <= circles <= 50
    assert source.key(0) != SpriteClips(60, ClipSettings(frames=4), seed=3).key(0)


@pytest.mark.parametrize("wrong", [("spin", "jump"), ()])
def test_sprite_world_refuses_unknown_motions(wrong):
    with pytest.raises(ValueError, match="still, left, .* was given"):
        SpriteClips(5, ClipSettings(), motions=wrong)
