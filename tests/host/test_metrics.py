"""Attribute metrics through the nodes: sets of pictures, reports, scores, rulers, and what is put in wrongly."""
from __future__ import annotations

import json
import os
from pathlib import Path

import comfy.model_management
import folder_paths
import pytest
import torch
from metrics_examples import WORDS, odd_pictures, write_pictures
from PIL import Image

from frozen_diffusion.modules.basis.basis import LatentBasis
from frozen_diffusion.modules.data.image_folder import ImageFolderError
from frozen_diffusion.modules.demo.attributes import attribute_names, attribute_text, holds
from frozen_diffusion.modules.demo.scenes import drawn_scenes, pictures_of, random_scenes
from frozen_diffusion.modules.host.demo import load_sprite_world
from frozen_diffusion.modules.host.metrics import image_sets, metrics_command
from frozen_diffusion.modules.host.metrics.clip_pair import HostPair
from frozen_diffusion.modules.host.metrics.image_sets import set_of_images
from frozen_diffusion.modules.metrics.feature_blocks import FeatureBlocks
from frozen_diffusion.modules.metrics.folder import for_encoder, open_picture
from frozen_diffusion.modules.metrics.hcs import AttributeListError
from frozen_diffusion.modules.metrics.report import detectability
from frozen_diffusion.modules.metrics.ruler_file import RulerFileError
from frozen_diffusion.modules.seeding import stream


@pytest.fixture(scope="module")
def pair(comfy):
    _, clip, _, vision = load_sprite_world()
    return HostPair(clip, vision)


@pytest.fixture(autouse=True)
def own_folders(tmp_path, monkeypatch):
    """Caches, input, output and temp of each test are its own."""
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
    def run(text=WORDS, source="text below", image_set=None, template="a photo of {}"):
        return comfy.run("FrozenAttributes", source=source, text=text, template=template, count=20,
                         image_set=image_set)
    return run


@pytest.fixture
def report(comfy):
    def run(reference, generated, listed=None, **more):
        more = {"preset": "general", "method": "auto", "chance": False, "seed": 0, **more}
        return comfy.run("FrozenAttributeReport", reference=reference, generated=generated, attributes=listed, **more)
    return run


def pictures(count: int, seed: int = 0) -> torch.Tensor:
    return drawn_scenes(count, seed)[1]


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


def test_the_same_folder_twice_is_exactly_nothing(image_set, attributes, report, tmp_path):
    """M3."""
    write_pictures(tmp_path / "input" / "a", 12)
    picture, text, table, told, ruler = report(image_set("a")[0], image_set("a")[0], attributes()[0], chance=True)
    found = json.loads(told)["sets"]["a"]
    assert found["sad"] == 0 and found["pad"] == 0 and picture.shape[0] == 1 and picture.isfinite().all()
    assert "no attribute of a differs" in text and table.count("\n") == len(found["rows"]) + 1
    assert ruler.images == 12


def test_what_is_changed_is_found(image_set, attributes, report):
    scenes = random_scenes(60, 1)
    red = [scene if number % 2 else scene.__class__(scene.sprite, scene.size, scene.place, "red", scene.texture)
           for number, scene in enumerate(scenes)]
    text = attribute_text(24)
    reference, generated = (image_set(images=images)[0] for images in (pictures_of(scenes, 1), pictures_of(red, 2)))
    found = report(reference, generated, attributes(text)[0], generated_b=reference)
    sets = json.loads(found[3])["sets"]
    rows = [row for row in sets["a batch A"]["rows"] if row["kind"] == "attribute"]
    assert max(rows, key=lambda row: row["score"])["name"] == "red" and sets["a batch B"]["sad"] == 0
    assert "a batch B is nearer to the reference than a batch A" in found[1]


def test_paper_parity_is_exact_and_says_what_lies_outside(image_set, attributes, report):
    sets = [image_set(images=pictures(8, seed))[0] for seed in (1, 2)]
    told = json.loads(report(*sets, attributes()[0], preset="paper parity")[3])
    assert told["text_centre"] == "official_bare" and told["sets"]["a batch"]["half_range"] == 35
    with pytest.raises(ValueError, match="paper parity is exact"):
        report(*sets, attributes()[0], preset="paper parity", method="gaussian")
    assert json.loads(report(*sets, attributes()[0], method="gaussian")[3])["sets"]["a batch"]["sad"] > 0


def test_sets_that_are_prepared_differently_are_told(image_set, attributes, report, tmp_path):
    write_pictures(tmp_path / "input" / "a", 4)
    for path in write_pictures(tmp_path / "input" / "b", 4, 1, "jpg"):
        Image.open(path).resize((64, 96)).save(path)
    text = report(image_set("a")[0], image_set("b")[0], attributes()[0])[1]
    assert "sizes differ" in text and "file formats differ (png and jpg)" in text


def test_lists_that_give_no_scores(image_set, attributes, report):
    one = image_set(images=pictures(4))[0]
    with pytest.raises(AttributeListError, match="at least 2 attributes"):
        report(one, one, attributes("a dog")[0])
    two = report(one, image_set(images=pictures(4, 1))[0], attributes("a dog\na cat")[0])
    assert json.loads(two[3])["sets"]["a batch"]["pad"] is None and "no pair" in two[1]
    with pytest.raises(AttributeListError, match="is empty"):
        attributes(" ")
    with pytest.raises(ValueError, match="Connect a ruler, or both"):
        report(one, one)


def test_attributes_of_captions_and_of_the_paper(image_set, attributes, tmp_path):
    for path, words in zip(write_pictures(tmp_path / "input" / "a", 3), ("a red dog", "a red cat", "a blue dog"),
                           strict=True):
        path.with_suffix(".txt").write_text(words)
    found, told = attributes(source="captions of an image set", image_set=image_set("a")[0])
    assert set(found.names) == {"red", "dog"} and "captions of 3 pictures" in told
    assert len(attributes(source="faces (FFHQ, CelebA)")[0].names) == 20
    assert len(attributes(source="sprite world")[0].names) == 40
    with pytest.raises(ValueError, match="Connect the image_set"):
        attributes(source="captions of an image set")


def test_a_ruler_keeps_reports_comparable(comfy, image_set, attributes, report, pair, tmp_path, monkeypatch):
    reference, generated = (image_set(images=pictures(9, seed))[0] for seed in (1, 2))
    first = report(reference, generated, attributes()[0])
    path, = comfy.run("FrozenSaveRuler", ruler=first[4], filename_prefix="rulers/mine")
    ruler, told = comfy.run("FrozenLoadRuler", ruler_file=Path(path).name)
    assert "6 attributes" in told and "9 reference pictures" in told
    again = report(reference, generated, ruler=ruler)
    assert json.loads(again[3])["sets"]["a batch"]["sad"] == pytest.approx(
        json.loads(first[3])["sets"]["a batch"]["sad"], rel=1e-4)
    with pytest.raises(ValueError, match="disconnect one of them"):
        report(reference, generated, attributes("a dog\na cat")[0], ruler=ruler)
    with pytest.raises(ValueError, match="this preset wants official_bare"):
        report(reference, generated, ruler=ruler, preset="paper parity")
    monkeypatch.setattr(pair, "identity", "0.0:1.0")
    with pytest.raises(ValueError, match="The ruler was made with another CLIP pair"):
        comfy.run("FrozenScoreImages", images=pictures(2), clip_pair=pair, as_clip=False, ruler=ruler)
    Path(path).write_bytes(Path(path).read_bytes()[:200])
    with pytest.raises(RulerFileError, match="cut off"):
        comfy.run("FrozenLoadRuler", ruler_file=Path(path).name)
    with pytest.raises(FileNotFoundError, match="There is no ruler"):
        comfy.run("FrozenLoadRuler", ruler_file="gone.safetensors")


def test_scores_find_what_is_there(comfy, pair):
    """With the shipped ruler, on fresh pictures; the worst of 40 attributes is found rightly nearly always."""
    scenes = random_scenes(200, 9)
    ruler, _ = comfy.run("FrozenLoadRuler", ruler_file="frozen-diffusion/sprite_world")
    scores = ruler.scores(set_of_images(pictures_of(scenes, 9), pair).features)
    truth = torch.tensor([[holds(*name)(scene) for name in attribute_names()] for scene in scenes])
    found = detectability(scores, truth)
    assert found.nanmean() > 0.99 and found[~found.isnan()].min() > 0.93


def test_scores_of_pictures_clips_and_masks(comfy, pair):
    ruler, _ = comfy.run("FrozenLoadRuler", ruler_file="frozen-diffusion/sprite_world")
    given = {"clip_pair": pair, "ruler": ruler}
    picture, text, table = comfy.run("FrozenScoreImages", images=pictures(3), as_clip=False, **given)
    assert table.count("\n") == 4 and "picture 3: " in text and picture.ndim == 4
    _, text, _ = comfy.run("FrozenScoreImages", images=pictures(8), as_clip=True, **given)
    assert "drifts most" in text and "temporal SaD" in text
    whole = torch.ones(1, 128, 128)
    same = comfy.run("FrozenScoreImages", images=pictures(3), as_clip=False, mask=whole, **given)[2]
    assert same == table
    half = whole.clone()
    half[:, :, 64:] = 0
    assert comfy.run("FrozenScoreImages", images=pictures(3), as_clip=False, mask=half, **given)[2] != table
    for mask, told in ((torch.zeros(1, 128, 128), "mask of picture 1 is empty"),
                       (torch.ones(2, 128, 128), "expected one mask")):
        with pytest.raises(ValueError, match=told):
            comfy.run("FrozenScoreImages", images=pictures(3), as_clip=False, mask=mask, **given)
    black = pictures(3)
    black[1] = torch.nan
    with pytest.raises(ValueError, match="Picture 2 holds numbers that are not finite"):
        comfy.run("FrozenScoreImages", images=black, as_clip=False, **given)
    with pytest.raises(ValueError, match="at least 6"):
        comfy.run("FrozenScoreImages", images=pictures(3), as_clip=True, **given)
    with pytest.raises(ValueError, match="Connect a ruler, or both"):
        comfy.run("FrozenScoreImages", images=pictures(3), as_clip=False, clip_pair=pair)


def test_scenes_are_one_batch_for_a_sampler(comfy):
    _, clip, _, _ = load_sprite_world()
    images, prompts, latent, captions = comfy.run("FrozenSpriteScenes", clip=clip, count=3, seed=4)
    assert images.shape == (3, 128, 128, 3) and latent["samples"].shape == (3, 4, 16, 16)
    assert prompts[0][0].shape == (3, 77, 128) and len(captions.splitlines()) == 3
    alone = clip.encode_from_tokens(clip.tokenize(captions.splitlines()[1]))
    assert torch.allclose(prompts[0][0][1], alone[0], atol=1e-5)


def test_the_command_line_writes_a_report(tmp_path, capsys):
    parser = __import__("argparse").ArgumentParser()
    metrics_command.add_arguments(parser)
    for name, seed in (("a", 1), ("b", 2), ("c", 3)):
        write_pictures(tmp_path / name, 6, seed)
    (tmp_path / "list.txt").write_text(WORDS)

    def run(*words):
        given = {"reference": tmp_path / "a", "generated": tmp_path / "b", "attributes": tmp_path / "list.txt",
                 "clip": "sprite-world", "out": tmp_path / "out"}
        options = [part for name, value in given.items() for part in (f"--{name}", str(value))]
        return metrics_command.main(parser.parse_args([*options, "--no-chance", *words]))

    assert run("--generated", str(tmp_path / "c")) == 0
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [f"report.{ending}" for ending in
                                                                          ("csv", "html", "json", "png")]
    assert set(json.loads((tmp_path / "out" / "report.json").read_text())["sets"]) == {"b", "c"}
    assert run("--reference", str(tmp_path / "gone")) == 1 and "There is no folder" in capsys.readouterr().err
    assert run("--clip", str(tmp_path / "list.txt")) == 1 and "list.txt" in capsys.readouterr().err
    assert run("--clip", str(tmp_path / "gone.pt")) == 1 and "There is no CLIP file" in capsys.readouterr().err


def test_purity_of_an_edit(comfy, pair):
    """One attribute is changed in truth: it moves most, and nothing outside of its group as much."""
    scenes = random_scenes(12, 3)
    red = [scene.__class__(scene.sprite, scene.size, scene.place, "red", scene.texture) for scene in scenes]
    ruler, _ = comfy.run("FrozenLoadRuler", ruler_file="frozen-diffusion/sprite_world")
    given = {"before": pictures_of(scenes, 5), "after": pictures_of(red, 5), "clip_pair": pair, "ruler": ruler}
    purity, text = comfy.run("FrozenEditPurity", target="", **given)
    assert text.startswith("red +") and purity > 0.8
    assert comfy.run("FrozenEditPurity", target="dog", **given)[0] < 0.5
    with pytest.raises(ValueError, match="'sheep' is not among the attributes: dog"):
        comfy.run("FrozenEditPurity", target="sheep", **given)
    with pytest.raises(ValueError, match="same pictures, in the same order"):
        comfy.run("FrozenEditPurity", target="", **{**given, "after": given["after"][:3]})


def test_directions_are_named_by_what_they_change(comfy, pair):
    scenes = random_scenes(1, 3) * 3
    ruler, _ = comfy.run("FrozenLoadRuler", ruler_file="frozen-diffusion/sprite_world")
    first, second = ([scene.__class__(scene.sprite, scene.size, scene.place, colour, scene.texture)
                      for scene, colour in zip(scenes, colours, strict=True)]
                     for colours in (("red", "pink", "blue"), ("white", "pink", "black")))
    edits = torch.cat([pictures_of(first, 5), pictures_of(second, 5)])
    shape = (2, 4, 16, 16)
    V = torch.linalg.qr(torch.randn(1024, 2, generator=stream("V"))).Q.T.reshape(shape).contiguous()
    basis = LatentBasis(V, V.clone(), torch.tensor([2.0, 1.0]), torch.zeros(2), 500.0, 2.0)
    _, text = comfy.run("FrozenBasisReport", basis=basis, edits=edits, clip_pair=pair, ruler=ruler)
    line = text.splitlines()[-1]
    assert "what each direction changes most" in line and " 0 " in line and "(0." in line
    with pytest.raises(ValueError, match="no 2 rows of two or more"):
        comfy.run("FrozenBasisReport", basis=basis, edits=edits[:5], clip_pair=pair, ruler=ruler)
