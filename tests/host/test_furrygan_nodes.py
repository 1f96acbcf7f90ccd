"""FurryGAN through the nodes: drawing, files, the user's pictures, what the host's own nodes make of it."""
from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

import folder_paths
import numpy as np
import pytest
import torch
from comfy.model_management import InterruptProcessingException
from furry_examples import SHAPE, furry_file
from PIL import Image

from frozen_diffusion.modules.files.atomic_write import write_atomically
from frozen_diffusion.modules.furrygan.files import FurryFileError, furry_tensors, official_state
from frozen_diffusion.modules.host.furrygan import invert
from frozen_diffusion.modules.host.furrygan.files import hold_furry
from frozen_diffusion.modules.seeding import stream

DRAW = {"seed": 3, "batch_size": 2, "psi_foreground": 0.7, "psi_background": 0.7, "background_seed": -1,
        "mix_rows": "none", "mix_seed": 1, "clean_mask": True}


@pytest.fixture(autouse=True)
def own_folders(comfy, tmp_path, monkeypatch):
    """The output folder and models/furrygan of each test are its own."""
    monkeypatch.setattr(folder_paths, "get_output_directory", lambda: str(tmp_path / "output"))
    monkeypatch.setattr(folder_paths, "models_dir", str(tmp_path / "models"))
    monkeypatch.setattr(folder_paths, "filename_list_cache", {})
    monkeypatch.setitem(folder_paths.folder_names_and_paths, "furrygan", ([], {".safetensors", ".pt"}))
    (tmp_path / "output").mkdir()
    (tmp_path / "models" / "furrygan").mkdir(parents=True)


@pytest.fixture(scope="module")
def furry(comfy):
    return hold_furry(furry_file(), "test")


@pytest.fixture
def models(tmp_path) -> Path:
    return tmp_path / "models" / "furrygan"


def written(path: Path, **changes) -> Path:
    write_atomically(path, *furry_tensors(replace(furry_file(), **changes)), "The FurryGAN")
    return path


@pytest.fixture
def draw(comfy):
    """Generate Foreground with some inputs changed."""
    return lambda furry, **changes: comfy.run("FrozenGenerateForeground", furrygan=furry, **DRAW | changes)


def test_cut_outs_come_from_a_seed(comfy, furry, draw):
    foreground, background, composite, mask, rgba, styles, report = draw(furry)
    assert foreground.shape == background.shape == composite.shape == (2, 32, 32, 3) and mask.shape == (2, 32, 32)
    assert torch.equal(rgba, torch.cat([foreground, mask[..., None]], -1)) and len(styles) == 2
    assert "2 cut-outs; the foreground fills" in report
    again = draw(furry)
    assert all(torch.equal(first, second) for first, second in zip((mask, rgba), again[3:5], strict=True))
    swapped = draw(furry, background_seed=0)
    assert torch.equal(swapped[0], foreground) and not torch.equal(swapped[1], background)


@pytest.mark.fault("F1")
def test_saved_rgba_opens_right_and_masks_fit_the_hosts_nodes(comfy, furry, tmp_path, draw):
    from comfy_extras.nodes_compositing import JoinImageWithAlpha, SplitImageWithAlpha
    from comfy_extras.nodes_mask import ImageCompositeMasked, InvertMask
    foreground, background, _, mask, rgba, *_ = draw(furry)
    comfy.run("SaveImage", images=rgba, filename_prefix="cut")
    saved = np.asarray(Image.open(tmp_path / "output" / "cut_00001_.png"))
    assert saved.shape == (32, 32, 4)
    assert np.abs(saved[..., 3] / 255 - mask[0].numpy()).max() < 1 / 255 + 1e-6      # opaque is the subject
    assert (saved[..., 3][mask[0].numpy() == 1] == 255).all()
    inverted, = comfy.run(InvertMask, mask=mask)
    joined, = comfy.run(JoinImageWithAlpha, image=foreground, alpha=inverted)
    torch.testing.assert_close(joined, rgba, rtol=0, atol=1e-6)
    _, of_host = comfy.run(SplitImageWithAlpha, image=rgba)
    torch.testing.assert_close(of_host, inverted, rtol=0, atol=1e-6)
    pasted, = comfy.run(ImageCompositeMasked, destination=background, source=foreground, x=0, y=0,
                        resize_source=False,
                        mask=mask)
    over = mask[..., None] * foreground + (1 - mask[..., None]) * background
    torch.testing.assert_close(pasted, over, rtol=0, atol=1e-6)


@pytest.mark.fault("F2")
def test_three_channels_lie_beside_four(comfy, furry, draw):
    found = draw(furry)
    assert [part.shape[-1] for part in (*found[:3], found[4])] == [3, 3, 3, 4]
    scaled, = comfy.run("ImageScale", image=found[0], width=64, height=64, crop="disabled", upscale_method="bilinear")
    assert scaled.shape == (2, 64, 64, 3)


def test_a_walk_closes_and_a_slider_moves_one_layer(comfy, furry, draw):
    styles = draw(furry, batch_size=3)[5]
    *layers, loop = comfy.run("FrozenForegroundWalk", furrygan=furry, styles=styles, frames=9, hold_background=True,
                              clean_mask=True)
    assert layers[4].shape == (9, 32, 32, 4) and len(loop) == 9
    plain = draw(furry, batch_size=1)
    torch.testing.assert_close(layers[0][:1], plain[0], rtol=0, atol=1e-5)
    assert (layers[1] - layers[1][:1]).abs().max() < 1e-5           # the background is held
    slid = comfy.run("FrozenForegroundSlider", furrygan=furry, styles=styles, layer="background", rows="all",
                     direction=0,
                     amount=3.0, clean_mask=True)
    same = comfy.run("FrozenForegroundSlider", furrygan=furry, styles=styles, layer="foreground", rows="all",
                     direction=0,
                     amount=0.0, clean_mask=True)
    torch.testing.assert_close(slid[0], same[0], rtol=0, atol=1e-6)
    assert (slid[1] - same[1]).abs().max() > 0.01
    with pytest.raises(ValueError, match="no direction 99"):
        comfy.run("FrozenForegroundSlider", furrygan=furry, styles=styles, layer="foreground", rows="all", direction=99,
                  amount=1.0, clean_mask=True)
    other = hold_furry(furry_file(shape=replace(SHAPE, size=16)), "other")
    with pytest.raises(ValueError, match="styles are of another FurryGAN"):
        comfy.run("FrozenForegroundWalk", furrygan=other, styles=styles, frames=9, hold_background=True,
                      clean_mask=True)


def test_files_go_round(comfy, furry, tmp_path, draw):
    path, = comfy.run("FrozenSaveFurryGAN", furrygan=furry, filename_prefix="furrygan/mine", with_discriminator=True)
    small, = comfy.run("FrozenSaveFurryGAN", furrygan=furry, filename_prefix="furrygan/small", with_discriminator=False)
    listed = comfy.node("FrozenLoadFurryGAN").define_schema().inputs[0].options
    assert {Path(path).name, Path(small).name} <= set(listed)
    loaded, report = comfy.run("FrozenLoadFurryGAN", furrygan_file=Path(path).name)
    assert "pictures of 32x32" in report and "with discriminator" in report
    first, again = (draw(each) for each in (furry, loaded))
    assert all(torch.equal(one, other) for one, other in zip(first[:5], again[:5], strict=True))
    without, _ = comfy.run("FrozenLoadFurryGAN", furrygan_file=Path(small).name)
    assert torch.equal(draw(without)[3], first[3])
    with pytest.raises(ValueError, match="holds the generator only"):
        comfy.run("FrozenMaskHint", furrygan=without, image=first[0])


def test_official_checkpoints_are_read_and_become_ours(comfy, furry, models, draw):
    file = furry.file
    torch.save({"g": {}, "g_ema": official_state(furry.generator), "d": dict(file.discriminator), "g_optim": {},
                "d_optim": {}, "args": argparse.Namespace(size=32), "ada_aug_p": 0.0}, models / "100000.pt")
    loaded, report = comfy.run("FrozenLoadFurryGAN", furrygan_file="100000.pt")
    assert "with discriminator" in report
    torch.testing.assert_close(loaded.means[0], furry.means[0])     # drawn anew: the file has none
    found, ours = (draw(each) for each in (loaded, furry))
    assert torch.equal(found[3], ours[3])
    path, = comfy.run("FrozenSaveFurryGAN", furrygan=loaded, filename_prefix="furrygan/official",
                      with_discriminator=True)
    again, _ = comfy.run("FrozenLoadFurryGAN", furrygan_file=Path(path).name)
    assert torch.equal(draw(again)[3], ours[3])


@pytest.mark.fault("F3")
def test_whole_pickles_are_refused_and_not_run(comfy, models, tmp_path):
    class Evil:
        def __reduce__(self):
            return open, (str(tmp_path / "ran"), "w")

    torch.save({"g_ema": Evil()}, models / "network.pt")
    with pytest.raises(FurryFileError, match="network.pt"):
        comfy.run("FrozenLoadFurryGAN", furrygan_file="network.pt")
    assert not (tmp_path / "ran").exists()


def test_wrong_files_say_what_they_are(comfy, models):
    broken = {**furry_file().generator, "pre_m.activate.bias": torch.full((32,), float("nan"))}
    written(models / "nan.safetensors", generator=broken)
    missing = {key: value for key, value in furry_file().generator.items() if not key.startswith("refine_m")}
    written(models / "cut.safetensors", generator=missing)
    plain = {"style.1.weight": torch.zeros(8, 8), "conv1.conv.weight": torch.zeros(1, 8, 8, 3, 3),
             "to_rgb1.bias": torch.zeros(1, 3, 1, 1)}
    torch.save({"g_ema": plain}, models / "stylegan.pt")
    (models / "empty.safetensors").write_bytes(b"")
    for name, told in (("nan.safetensors", "pre_m.activate.bias holds numbers that are not finite"),
                       ("cut.safetensors", "weights do not fit a FurryGAN of size 32, e.g. refine_m"),
                       ("stylegan.pt", "plain StyleGAN2 without a mask branch"),
                       ("empty.safetensors", "empty.safetensors")):
        with pytest.raises(FurryFileError, match=told):
            comfy.run("FrozenLoadFurryGAN", furrygan_file=name)
    with pytest.raises(FileNotFoundError):
        comfy.run("FrozenLoadFurryGAN", furrygan_file="gone.safetensors")


def test_a_flat_map_is_no_mask_and_is_said(comfy, draw):
    file = furry_file(noise=0.0)
    flat = {key: torch.zeros_like(value) if key.startswith(("pre_m", "refine_m")) else value
            for key, value in file.generator.items()}
    found = draw(hold_furry(replace(file, generator=flat), "flat"))
    assert found[3].amax() == 0 and "mask of picture 0, 1 is empty" in found[6]
    assert all(torch.isfinite(part).all() for part in found[:5])


def test_psi_below_zero_is_refused(comfy, furry, draw):
    with pytest.raises(ValueError, match="psi is -1"):
        draw(furry, psi_foreground=-1.0)
    assert draw(furry, psi_foreground=1.2)[3].isfinite().all()


def test_a_hint_is_of_the_pictures_size(comfy, furry):
    image = torch.rand(3, 40, 72, 3, generator=stream("hint"))
    mask, = comfy.run("FrozenMaskHint", furrygan=furry, image=image)
    assert mask.shape == (3, 40, 72) and 0 <= mask.amin() and mask.amax() <= 1
    one, = comfy.run("FrozenMaskHint", furrygan=furry, image=image[1:2])
    assert torch.allclose(one[0], mask[1], atol=1e-6)


def test_a_picture_is_cut_out_with_its_own_pixels(comfy, furry, draw):
    image = draw(furry)[0]
    wide = torch.cat([torch.zeros(2, 32, 8, 3), image, torch.zeros(2, 32, 8, 3)], 2)
    cutout, mask, foreground, background, composite, styles, report = comfy.run(
        "FrozenForegroundFromImage", furrygan=furry, image=wide, steps=20, guide=0.1, seed=0)
    assert torch.equal(cutout[..., :3], image) and torch.equal(cutout[..., 3], mask) and mask.shape == (2, 32, 32)
    assert foreground.shape == background.shape == composite.shape == image.shape and len(styles) == 2
    assert "picture 1: error" in report and "overlap with the mask predictor" in report
    slid = comfy.run("FrozenForegroundSlider", furrygan=furry, styles=styles, layer="foreground", rows="all",
                     direction=0,
                     amount=0.0, clean_mask=True)
    torch.testing.assert_close(slid[3], mask, rtol=0, atol=1e-6)
    noise = torch.rand(1, 32, 32, 3, generator=stream("noise"))
    assert "Do not trust this mask" in comfy.run("FrozenForegroundFromImage", furrygan=furry, image=noise, steps=10,
                                                 guide=0.1, seed=0)[6]


def test_a_cancel_ends_a_search_and_leaves_the_networks(comfy, furry, monkeypatch):
    before = {key: value.clone() for key, value in furry.generator.state_dict().items()}
    calls = iter(range(100))

    def interrupt():
        if next(calls) == 3:
            raise InterruptProcessingException

    monkeypatch.setattr(invert.comfy.model_management, "throw_exception_if_processing_interrupted", interrupt)
    with pytest.raises(InterruptProcessingException):
        comfy.run("FrozenForegroundFromImage", furrygan=furry, image=torch.rand(1, 32, 32, 3), steps=10, guide=0.1,
                  seed=0)
    after = furry.generator.state_dict()
    assert all(torch.equal(value, after[key]) and after[key].grad is None for key, value in before.items())


def test_edges_are_cleaned_and_shapes_are_checked(comfy):
    image, mask = torch.rand(2, 24, 32, 3, generator=stream("edge")), torch.zeros(1, 24, 32)
    mask[:, 6:18, 8:24] = 1
    clean, rgba = comfy.run("FrozenDecontaminateEdges", image=image, mask=mask)
    assert torch.equal(clean[:, 6:18, 8:24], image[:, 6:18, 8:24]) and torch.equal(rgba[1, ..., 3], mask[0])
    assert comfy.run("FrozenDecontaminateEdges", image=image, mask=mask[:, ::2, ::2])[1].shape == (2, 24, 32, 4)
    with pytest.raises(ValueError, match="2 pictures and 3 masks"):
        comfy.run("FrozenDecontaminateEdges", image=image, mask=mask.expand(3, -1, -1))
    with pytest.raises(ValueError, match="The mask is 32x32 and the picture 32x24"):
        comfy.run("FrozenDecontaminateEdges", image=image, mask=torch.zeros(1, 32, 32))


def test_pairs_are_written_and_a_full_disk_leaves_none(comfy, furry, tmp_path, monkeypatch, draw):
    folder, = comfy.run("FrozenSegmentationPairs", furrygan=furry, count=3, seed=5, psi=1.0,
                        filename_prefix="furrygan/pairs")
    pictures, masks = (sorted((Path(folder) / kind).iterdir()) for kind in ("images", "masks"))
    assert [path.name for path in pictures] == [path.name for path in masks] == [f"{k:06}.png" for k in range(3)]
    drawn = draw(furry, seed=5, batch_size=3, psi_foreground=1.0, psi_background=1.0)
    for number in range(3):
        alpha = np.asarray(Image.open(masks[number]))
        assert alpha.ndim == 2 and np.abs(alpha / 255 - drawn[3][number].numpy()).max() <= 0.5 / 255 + 1e-6
    second, = comfy.run("FrozenSegmentationPairs", furrygan=furry, count=1, seed=5, psi=1.0,
                        filename_prefix="furrygan/pairs")
    assert second != folder

    def full(self, *_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Image.Image, "save", full)
    with pytest.raises(OSError, match="nothing was kept. Free some space"):
        comfy.run("FrozenSegmentationPairs", furrygan=furry, count=1, seed=5, psi=1.0, filename_prefix="furrygan/none")
    assert not list((tmp_path / "output" / "furrygan").glob("none*"))
