"""The cache of tensors on disk: what is missing, shares of it, damage, precision and full disks."""
from __future__ import annotations

from pathlib import Path

import pytest
import torch

from frozen_diffusion.modules.data import cache as cache_file
from frozen_diffusion.modules.data.cache import TensorCache
from frozen_diffusion.modules.files import atomic_write
from frozen_diffusion.modules.files.atomic_write import CheckpointError

KEYS = [("an encoder", f"picture {index}") for index in range(5)]


@pytest.fixture
def cache(tmp_path):
    return TensorCache(tmp_path / "features", "A feature")


def fill(cache: TensorCache, keys) -> None:
    for key in keys:
        cache.write(key, {"x": torch.ones(2)}, key[1], "encoder")


def test_what_is_missing_is_made_once(cache):
    assert cache.missing(KEYS) == [0, 1, 2, 3, 4]
    fill(cache, KEYS[1:3])
    assert cache.missing(KEYS) == [0, 3, 4]
    assert cache.missing([("another encoder", "picture 1"), KEYS[1]]) == [0]
    assert cache.missing([KEYS[0], KEYS[1], KEYS[0]]) == [0]        # equal keys are one piece


def test_tensors_come_back_as_they_were(cache, tmp_path):
    """A trajectory's: the index of a noise level, and latents."""
    z = torch.randn(3, 4, 8, 8)
    tensors = {"sigma_index": torch.tensor([0, 7, 49]), "z": z, "turned": z.transpose(2, 3)}
    cache.write(KEYS[0], tensors, "trajectory 1", "U-Net")
    found = cache.read(KEYS[0])
    assert found["sigma_index"].tolist() == [0, 7, 49] and found["z"].dtype == torch.float32
    assert torch.equal(found["z"], z.half().float()) and torch.equal(found["turned"], found["z"].transpose(2, 3))
    exact = TensorCache(tmp_path / "exact", "A feature", torch.float32)
    exact.write(KEYS[0], {"z": z}, "trajectory 1", "U-Net")
    assert torch.equal(exact.read(KEYS[0])["z"], z)
    with pytest.raises(ValueError, match="float16 or float32; torch.float64 was given"):
        TensorCache(tmp_path, "A feature", torch.float64)


def test_a_damaged_piece_counts_as_missing(cache):
    fill(cache, KEYS)
    path = cache.path(KEYS[3])
    path.write_bytes(path.read_bytes()[:-1])
    cache.path(KEYS[4]).write_bytes(b"")
    assert cache.missing(KEYS) == [3, 4]
    for key in (KEYS[3], ("never", "made")):
        with pytest.raises(CheckpointError, match="cannot be read now .*Start the same run again"):
            cache.read(key)
    fill(cache, KEYS[3:])
    assert cache.missing(KEYS) == [] and torch.equal(cache.read(KEYS[3])["x"], torch.ones(2))


@pytest.mark.parametrize(("value", "sentence"), [
    (float("nan"), "The encoder gave values for b.png that are not finite. Run the encoder in float32, or leave b.png"),
    (-1e5, r"The encoder gave values for b.png up to 1e\+05, which float16 cannot hold. Keep this cache in float32")])
def test_numbers_that_cannot_be_kept_are_refused(cache, value, sentence):
    with pytest.raises(ValueError, match=sentence):
        cache.write(KEYS[0], {"good": torch.ones(1), "bad": torch.tensor([1.0, value])}, "b.png", "encoder")
    assert not cache.folder.exists()
    with pytest.raises(ValueError, match="not finite. Use another VAE.$"):
        cache.write(KEYS[0], {"bad": torch.tensor(float("inf"))}, "b.png", "VAE", "Use another VAE.")


@pytest.mark.parametrize("made_before", [[], [1], [0, 2], [0, 1, 3]])
def test_shares_make_every_piece_once(cache, made_before):
    """Even if one process has made its part before another looks what is missing."""
    fill(cache, [KEYS[index] for index in made_before])
    done = []
    for index in range(3):
        mine = cache.missing(KEYS, share=(index, 3))
        fill(cache, [KEYS[number] for number in mine])
        done += mine
    assert sorted(done + made_before) == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("share", [(2, 2), (-1, 2), (0, 0)])
def test_shares_that_cannot_be(cache, share):
    with pytest.raises(ValueError, match="expected .number of the process from 0"):
        cache.missing(KEYS, share)


def test_a_full_disk(cache, monkeypatch):
    def full(tensors, path, metadata):
        Path(path).write_bytes(b"half")
        raise OSError("No space left on device")

    fill(cache, KEYS[:1])
    monkeypatch.setattr(atomic_write, "save_file", full)
    with pytest.raises(CheckpointError, match="A feature could not be written .*No space left.*What was made before"):
        fill(cache, KEYS[1:])
    assert list(cache.folder.iterdir()) == [cache.path(KEYS[0])] and cache.missing(KEYS) == [1, 2, 3, 4]


def test_two_processes_may_write_one_piece(cache, monkeypatch):
    """Each writes a draft of its own; the one that comes too late to put it in place is content with the other's."""
    drafts, plain = [], atomic_write.save_file
    monkeypatch.setattr(atomic_write, "save_file", lambda tensors, path, metadata: (
        drafts.append(path), plain(tensors, path, metadata)))
    fill(cache, [KEYS[0], KEYS[0]])
    assert len(set(drafts)) == 2 and {path.parent for path in drafts} == {cache.folder}

    def late(*args, **options):
        atomic_write.write_atomically(*args, **options)
        raise OSError("The process cannot access the file because it is being used by another process")

    monkeypatch.setattr(cache_file, "write_atomically", late)
    fill(cache, [KEYS[1]])
    assert cache.missing(KEYS) == [2, 3, 4] and len(list(cache.folder.iterdir())) == 2
