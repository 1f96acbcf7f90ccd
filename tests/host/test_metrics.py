"""Attribute metrics through the nodes: reports, scores, rulers, the command line."""
from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from metrics_examples import WORDS, pictures, write_pictures
from PIL import Image

from frozen_diffusion.modules.basis.basis import LatentBasis
from frozen_diffusion.modules.demo.attributes import attribute_names, attribute_text, holds
from frozen_diffusion.modules.demo.scenes import pictures_of, random_scenes
from frozen_diffusion.modules.host.demo import load_sprite_world
from frozen_diffusion.modules.host.metrics import metrics_command
from frozen_diffusion.modules.host.metrics.image_sets import set_of_images
from frozen_diffusion.modules.metrics.hcs import AttributeListError
from frozen_diffusion.modules.metrics.report import detectability
from frozen_diffusion.modules.metrics.ruler_file import RulerFileError
from frozen_diffusion.modules.seeding import stream

pytestmark = pytest.mark.usefixtures("own_folders")


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
