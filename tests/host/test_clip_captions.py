"""Captions of folders as people have them, through the node Clip Dataset: encodings, tables, columns."""
from __future__ import annotations

import shutil

import pytest
from clip_examples import captions, moving, save_pictures


@pytest.mark.fault("D6")
def test_captions_in_the_encodings_of_windows(dataset, video, tmp_path):
    text = "A café by the “sea”"
    written = {"utf8": text.encode(), "bom": text.encode("utf-8-sig"), "utf16": text.encode("utf-16"),
               "utf16be": b"\xfe\xff" + text.encode("utf-16-be"), "utf16 bare": text.encode("utf-16-le"),
               "utf32": text.encode("utf-32"), "windows": text.encode("cp1252"), "binary": bytes(range(256)),
               "empty": b"\n"}
    for name, data in written.items():
        shutil.copy(video, tmp_path / f"{name}.mp4")
        (tmp_path / f"{name}.{'TXT' if name == 'bom' else 'txt'}").write_bytes(data)
    (tmp_path / "windos.txt").write_text("a slip of the finger")
    clips, report = dataset()
    unreadable = ("binary.mp4", "empty.mp4")
    assert captions(clips) == {f"{name}.mp4": "" if f"{name}.mp4" in unreadable else text for name in written}
    for line in ("windows.txt: captions not in UTF-8, read as Windows-1252", "binary.txt: captions that cannot be read",
                 "empty.txt: empty captions", "windos.txt: text that belongs to no video",
                 "binary.mp4: has no caption"):
        assert line in report


@pytest.mark.fault("D6")
def test_the_caption_beside_a_folder_that_is_one_sequence(dataset, tmp_path):
    save_pictures(tmp_path, moving(8, speed=4))
    beside = tmp_path.with_suffix(".txt")
    beside.write_bytes("a café".encode("cp1252"))
    clips, report = dataset()
    assert clips.caption(0) == "a café" and f"{beside.name}: captions not in UTF-8" in report


@pytest.mark.fault("D6")
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "cp1252"])
def test_names_in_tables_as_people_write_them(dataset, video, tmp_path, encoding):
    names = ["one", "sub/two", "three", "sub/four", "Five", "six", "sub/seven", "café"]
    (tmp_path / "sub").mkdir()
    for name in names:
        shutil.copy(video, tmp_path / f"{name}.mp4")
    rows = [r".\one.mp4", r"sub\two.mp4", str(tmp_path / "three.mp4"), f"{tmp_path.name}/sub/four.mp4", "FIVE.MP4",
            r"D:\old\place\six.mp4", '"./sub/seven"', "cafe\u0301.mp4" if encoding != "cp1252" else "café"]
    lines = ["file_name,caption", *(f"{row},{index} é" for index, row in enumerate(rows)), "nowhere/one.mp4,x",
             "gone.mp4,x", "short"]
    (tmp_path / "captions.CSV").write_bytes("\r\n".join(lines).encode(encoding))
    clips, report = dataset()
    assert captions(clips) == {f"{name.rpartition('/')[2]}.mp4": f"{index} é" for index, name in enumerate(names)}
    assert "captions.CSV: rows that name no video or sequence: 10 (nowhere/one.mp4), 11 (gone.mp4)" in report
    assert "captions.CSV: rows without a caption column: 12" in report
    assert ("read as Windows-1252" in report) == (encoding == "cp1252")


@pytest.mark.fault("D6")
def test_tables_with_semicolons_and_with_two_captions_for_a_file(dataset, video, tmp_path):
    shutil.copy(video, tmp_path / "a.mp4")
    shutil.copy(video, tmp_path / "b.mp4")
    (tmp_path / "t.csv").write_text("file;caption\na.mp4;first, with comma\nb.mp4;b\na.mp4;second\na;by its stem\n")
    clips, report = dataset()
    assert captions(clips) == {"a.mp4": "second", "b.mp4": "b"}
    assert "t.csv: several rows with different captions, the last one is used: a.mp4" in report


@pytest.mark.fault("D7")
@pytest.mark.parametrize("place", ["{page}/{id}.mp4", "videos/{page}/{id}.mp4", "{id}.mp4"])
def test_webvids_own_columns(dataset, video, tmp_path, place):
    header = "videoid,contentUrl,duration,page_dir,name"
    rows = [("21179416", "006001_006050", "Aerial shot"), ("5629184", "071501_071550", "Senior couple, hands")]
    lines = [f'{number},https://x.example/{number}.mp4,PT00H00M11S,{page},"{text}"' for number, page, text in rows]
    (tmp_path / "results_2M_train.csv").write_text("\n".join([header, *lines]))
    for number, page, _ in rows:
        path = tmp_path / place.format(page=page, id=number)
        path.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(video, path)
    clips, _ = dataset()
    assert captions(clips) == {f"{number}.mp4": text for number, _, text in rows}
