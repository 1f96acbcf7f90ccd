"""The latent basis, its groups and its file, latent_basis.md 7 (1, 2) and 4.2."""
from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from basis_examples import Encoder, latent, normal
from safetensors.torch import load_file, save_file

from frozen_diffusion.modules.basis.basis import BasisFileError, LatentBasis, basis_tensors, latent_basis, read_basis
from frozen_diffusion.modules.basis.lanczos import lanczos
from frozen_diffusion.modules.basis.products import Jacobian
from frozen_diffusion.modules.basis.triplets import Triplets
from frozen_diffusion.modules.files.atomic_write import write_atomically


def write_basis(path: Path, basis: LatentBasis) -> None:
    write_atomically(path, *basis_tensors(basis), "The latent basis")


def random_basis(k: int = 3) -> LatentBasis:
    s = torch.linspace(5, 3, k)
    found = Triplets(normal(k, 4, 6, 5), normal(k, 8, 3, 2, seed=1), s, s / 1e4)
    return latent_basis(found, 696.3, 3.0 / 7, {"model": "tiny", "prompt": 'a "fox" – ü', "products": 40})


def test_a_basis_of_what_a_solver_found():
    *_, last = lanczos(Jacobian(Encoder(torch.float64), latent(dtype=torch.float64)), 3)
    basis = latent_basis(last.found, 700, 4.2, {"solver": "lanczos"})
    assert basis.V.dtype == basis.U.dtype == basis.s.dtype == torch.float32
    assert basis.V.shape == (3, 3, 8, 8) and basis.U.shape == (3, 8, 4, 4) and basis.provenance == {"solver": "lanczos"}
    torch.testing.assert_close(basis.V.double(), last.found.V, atol=1e-6, rtol=0)


def test_signs_and_lengths_are_canonical():
    """Whatever a solver gives: the largest entry of v is positive, u goes with v, and both are unit vectors."""
    v, u = normal(2, 4, 6, 5), normal(2, 8, 3, 2, seed=1)
    s = torch.tensor([2.0, 1.0])
    signs = torch.tensor([-1.0, 1.0]).view(2, 1, 1, 1)
    one, other = (latent_basis(Triplets(V, U, s, s), 0, 0) for V, U in ((v, u), (3 * signs * v, signs * u)))
    torch.testing.assert_close(one.V, other.V)
    torch.testing.assert_close(one.U, other.U)
    flat = one.V.flatten(1)
    assert (flat.gather(1, flat.abs().argmax(1, keepdim=True)) > 0).all()
    torch.testing.assert_close(flat.norm(dim=1), torch.ones(2))
    assert ((one.V * v).flatten(1).sum(1).sign() == (one.U * u).flatten(1).sum(1).sign()).all()


def test_near_equal_values_are_grouped():
    basis = replace(random_basis(6), s=torch.tensor([10.0, 9.9, 9.8, 5.0, 3.0, 2.99]))
    assert basis.groups == ((0, 1, 2), (3,), (4, 5))
    torch.testing.assert_close(basis.gaps[:3], torch.tensor([0.01, 0.1 / 9.9, 4.8 / 9.8]), rtol=1e-4, atol=0)
    assert random_basis(1).groups == ((0,),) and random_basis(1).gaps.shape == (0,)


def test_shapes_must_agree():
    basis = random_basis()
    with pytest.raises(ValueError, match=r"\[2\]"):
        replace(basis, s=torch.ones(2))
    with pytest.raises(ValueError, match=r"V \[4, 6, 5\]"):
        replace(basis, V=basis.V[0])


def test_there_and_back(tmp_path):
    path, basis = tmp_path / "new" / "fox.safetensors", random_basis()
    write_basis(path, basis)
    back = read_basis(path)
    for name in ("V", "U", "s", "residuals"):
        assert torch.equal(getattr(back, name), getattr(basis, name))
    assert (back.t, back.sigma, back.provenance) == (696.3, 3.0 / 7, {"model": "tiny", "prompt": 'a "fox" – ü',
                                                                 "products": "40"})
    assert [file.name for file in path.parent.iterdir()] == ["fox.safetensors"]
    assert path.stat().st_mode & 0o777 == 0o644


def test_a_write_that_fails_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "fox.safetensors"
    write_basis(path, random_basis())
    before = path.read_bytes()

    def full(*_):
        raise OSError("No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(OSError, match="No space left.*Free some space"):
        write_basis(path, random_basis(2))
    assert path.read_bytes() == before and [file.name for file in tmp_path.iterdir()] == ["fox.safetensors"]


@pytest.mark.parametrize(("content", "words"), [
    (b"", "empty"), (b"<!DOCTYPE html><html>", "web page"), (b"version https://git-lfs.github.com/spec/v1", "LFS"),
    (b"just some words that are long enough", "does not begin like"), (b"abc", "does not begin like"),
    (b"\x40\0\0\0\0\0\0\0{" + b"x" * 100, "damaged"), (b"\x02\0\0\0\0\0\0\0{}", "no latent basis"),
])
def test_files_that_are_none(tmp_path, content, words):
    path = tmp_path / "other.safetensors"
    path.write_bytes(content)
    with pytest.raises(BasisFileError, match=f"other.safetensors.*{words}"):
        read_basis(path)


@pytest.mark.parametrize("left", [5, 40, 2000, -1])
def test_cut_off_files(tmp_path, left):
    path = tmp_path / "fox.safetensors"
    write_basis(path, random_basis())
    path.write_bytes(path.read_bytes()[:left])
    with pytest.raises(BasisFileError, match="cut off|does not begin"):
        read_basis(path)


def changed(path: Path, metadata: dict, **tensors) -> Path:
    """The file of a basis with other metadata (None: left out) and tensors (None: left out)."""
    write_basis(path, random_basis())
    state = load_file(path)
    header = path.read_bytes()
    told = json.loads(header[8:8 + int.from_bytes(header[:8], "little")])["__metadata__"] | metadata
    state = {name: tensor for name, tensor in (state | tensors).items() if tensor is not None}
    save_file(state, path, {key: value for key, value in told.items() if value is not None})
    return path


@pytest.mark.fault("E2")
@pytest.mark.parametrize(("metadata", "tensors", "words"), [
    ({"format_version": "2"}, {}, "version 2.*Update"), ({"t": "soon"}, {}, "damaged.*t is 'soon'"),
    ({"format_version": "new"}, {}, "fox.safetensors.*format_version is 'new'"),
    ({"about": None}, {}, "damaged"),
    ({}, {"s": None}, "damaged"), ({}, {"s": torch.ones(2)}, "damaged.*s \\[2\\]"),
    ({}, {"U": torch.full((3, 8, 3, 2), torch.nan)}, "U not finite"),
])
def test_damaged_bases(tmp_path, metadata, tensors, words):
    with pytest.raises(BasisFileError, match=words):
        read_basis(changed(tmp_path / "fox.safetensors", metadata, **tensors))


def test_a_missing_file_is_missing(tmp_path):
    with pytest.raises(FileNotFoundError):
        read_basis(tmp_path / "none.safetensors")
