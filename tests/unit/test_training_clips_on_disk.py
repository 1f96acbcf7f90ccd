"""The cache of latents and text, batches, noise levels, the plain loss and the small sampler."""
from __future__ import annotations

import math

import pytest
import torch

from frozen_diffusion.modules.data.clips import ClipSettings
from frozen_diffusion.modules.data.encoded import EncodedClips, Text, stack_texts
from frozen_diffusion.modules.seeding import stream
from frozen_diffusion.modules.training.denoising import NoiseLevels, ddim, denoising_loss, shifted, snr_weight


class Source:
    """Five clips of six frames; clip n has the grey n everywhere, but for its frame number in a corner."""

    settings = ClipSettings(frames=6, width=64, height=64)

    def __len__(self):
        return 5

    def caption(self, index):
        return f"clip {index % 2}"

    def pixels(self, index):
        pixels = torch.full((6, 3, 64, 64), index, dtype=torch.uint8)
        pixels[:, 0, 0, 0] = torch.arange(6)
        return pixels

    def key(self, index):
        return f"key {index}"

    video = key


class Codec:
    vae_name, clip_name = "a vae", "a clip"

    def __init__(self):
        self.calls = []

    def latents(self, pixels):
        self.calls.append("latents")
        return pixels[:, :, ::8, ::8].float()

    def text(self, caption):
        self.calls.append(caption)
        return Text(torch.full((1, 77 if caption else 154, 4), float(len(caption))), None)


def test_everything_is_encoded_once(tmp_path):
    clips = EncodedClips(Source(), Codec(), tmp_path)
    assert list(clips.encode()) == [(n, 8) for n in range(9)]
    assert sorted(clips.codec.calls) == ["", "clip 0", "clip 1"] + ["latents"] * 5
    again = EncodedClips(Source(), Codec(), tmp_path)
    assert list(again.encode()) == [(8, 8)] and again.codec.calls == [] and again.name == clips.name
    assert torch.equal(again.latents(3), Source().pixels(3)[:, :, ::8, ::8].float())


def test_encoded_clips_keep_their_file_names(tmp_path):
    """As versions before this class wrote them: caches of then stay valid."""
    clips = EncodedClips(Source(), Codec(), tmp_path)
    list(clips.encode())
    found = sorted(path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*") if path.is_file())
    assert found == [f"{name}.safetensors" for name in (
        "latents/2819c5a260e83bc3f5309c21", "latents/482c2ecb956d9614fd5cb387", "latents/758cb44fce3fc6efdafe6825",
        "latents/b190e09d6b16ecec3ebeb3da", "latents/c5e2b6ab9873b1980a0b7643", "text/20d2b078b01159f94795d87b",
        "text/255ca703bd4e2cfdff2ed4c3", "text/d8f04bcfef13d2bcedeef8a5")]
    assert clips.name == "9aa1933b1f8c004f3d5fa497"


def test_two_processes_encode_their_parts(tmp_path):
    counts, calls = [], []
    for index in range(2):
        clips = EncodedClips(Source(), Codec(), tmp_path)
        counts.append(list(clips.encode(share=(index, 2))))
        calls += clips.codec.calls
    assert counts == [[(n, 5) for n in range(6)], [(n, 3) for n in range(4)]]
    assert sorted(calls) == ["", "clip 0", "clip 1"] + ["latents"] * 5
    whole = EncodedClips(Source(), Codec(), tmp_path)
    assert list(whole.encode()) == [(8, 8)] and list(whole.encode(share=(1, 2))) == [(3, 3)]


def test_interrupted_damaged_and_foreign_files(tmp_path):
    clips = EncodedClips(Source(), Codec(), tmp_path)
    for done, _ in clips.encode():
        if done == 5:
            break
    rest = EncodedClips(Source(), Codec(), tmp_path)
    list(rest.encode())
    assert rest.codec.calls == ["latents"] * 3
    broken = next((tmp_path / "latents").iterdir())
    broken.write_bytes(broken.read_bytes()[:20])
    repaired = EncodedClips(Source(), Codec(), tmp_path)
    list(repaired.encode())
    assert repaired.codec.calls == ["latents"]
    other = Codec()
    other.vae_name = "another vae"
    changed = EncodedClips(Source(), other, tmp_path)
    list(changed.encode())
    assert other.calls == ["latents"] * 5 and changed.name != clips.name


def test_latents_that_are_not_finite_are_refused(tmp_path):
    codec = Codec()
    codec.latents = lambda pixels: torch.full((6, 4, 8, 8), float("nan"))
    with pytest.raises(ValueError, match=r"The VAE gave values for clip 1 that are not finite.*--fp32-vae"):
        list(EncodedClips(Source(), codec, tmp_path).encode())
    assert not list(tmp_path.glob("latents/*"))


def test_batches(tmp_path):
    clips = EncodedClips(Source(), Codec(), tmp_path)
    list(clips.encode())
    batch = clips.batch(5, 4, 0.0, seed=1, draw=0)
    assert batch.latents.shape == (5, 4, 3, 8, 8) and batch.text.tokens.shape == (5, 77, 4)
    assert sorted(batch.latents[:, 0, 1, 1, 1].tolist()) == [0, 1, 2, 3, 4]
    starts = batch.latents[:, 0, 0, 0, 0]
    assert torch.equal(batch.latents[:, :, 0, 0, 0], starts[:, None] + torch.arange(4))     # frames in a row
    assert torch.equal(clips.batch(5, 4, 0.5, 1, 7).latents, clips.batch(5, 4, 0.5, 1, 7).latents)
    texts = torch.cat([clips.batch(5, 6, 0.3, 0, draw).text.tokens[:, 0, 0] for draw in range(40)])
    assert 40 < (texts == 0).sum().item() < 80              # 60 expected of 200


def test_scattered_frames_are_in_order_and_the_same_of_every_clip(tmp_path):
    clips = EncodedClips(Source(), Codec(), tmp_path)
    list(clips.encode())
    whole = {clip[0, 1, 1, 1].item(): clip for clip in map(clips.latents, range(5))}
    drawn = set()
    for draw in range(30):
        batch = clips.batch(5, 2, 0.0, 1, draw, scattered=True)
        first, second = batch.frame_indices.tolist()
        assert first < second
        drawn |= {first, second}
        for latents in batch.latents:
            assert torch.equal(latents, whole[latents[0, 1, 1, 1].item()][[first, second]])
    assert drawn == set(range(6)) and clips.batch(5, 2, 0.0, 1, 0).frame_indices is None


def test_texts_of_different_lengths_are_repeated():
    short, long = Text(torch.randn(1, 2, 3), torch.randn(1, 5)), Text(torch.randn(1, 3, 3), torch.randn(1, 5))
    stacked = stack_texts([short, long])
    assert stacked.tokens.shape == (2, 6, 3) and stacked.pooled.shape == (2, 5)
    query = torch.randn(1, 4, 3)
    attend = torch.nn.functional.scaled_dot_product_attention
    for row, text in enumerate((short, long)):
        both = stacked.tokens[row:row + 1]
        assert torch.allclose(attend(query, both, both), attend(query, text.tokens, text.tokens), atol=1e-6)


def levels(prediction):
    """Stable Diffusion's."""
    betas = torch.linspace(0.00085 ** 0.5, 0.012 ** 0.5, 1000, dtype=torch.float64) ** 2
    return NoiseLevels((1 - betas).cumprod(0), prediction)


@pytest.mark.parametrize("prediction", ["eps", "v"])
def test_targets_and_split_are_inverses(prediction):
    noise = levels(prediction)
    x0, eps, t = torch.randn(3, 2, 4), torch.randn(3, 2, 4), torch.tensor([0, 500, 999])
    found = noise.split(noise.add_noise(x0, eps, t), noise.target(x0, eps, t), t)
    assert torch.allclose(found[0], x0, atol=1e-4) and torch.allclose(found[1], eps, atol=1e-4)


@pytest.mark.parametrize("prediction", ["eps", "v"])
def test_loss_is_zero_for_the_truth_and_one_for_nothing(tmp_path, prediction):
    clips = EncodedClips(Source(), Codec(), tmp_path)
    list(clips.encode())
    batch, noise = clips.batch(4, 6, 0.0, 0, 0), levels(prediction)
    x0 = 0.5 * batch.latents

    def truth(x, t, text, frame_indices):
        abar = noise.abar[t].float().view(-1, 1, 1, 1, 1)
        return noise.target(x0, (x - abar.sqrt() * x0) / (1 - abar).sqrt(), t)

    def loss(predict, snr_limit=0.0, pure_noise=0.0):
        of = denoising_loss(predict, noise, lambda latents: 0.5 * latents, torch.device("cpu"), snr_limit,
                            pure_noise=pure_noise)
        return of(batch, stream("x")).item()

    assert loss(truth) < 1e-6 and loss(truth, 5.0) < 1e-3 and loss(truth, 5.0, pure_noise=0.5) < 1e-2
    if prediction == "eps":
        assert loss(lambda x, t, text, frame_indices: torch.zeros_like(x)) == pytest.approx(1, abs=0.1)


@pytest.mark.parametrize("prediction", ["eps", "v"])
def test_pure_noise_shows_nothing_of_the_clip(tmp_path, prediction):
    """All of them are at the last level, and what the network gets does not depend on the clip."""
    clips = EncodedClips(Source(), Codec(), tmp_path)
    list(clips.encode())
    batch, seen = clips.batch(4, 6, 0.0, 0, 0), []

    def look(x, t, text, frame_indices):
        assert (t == 999).all()
        seen.append(x)
        return torch.zeros_like(x)

    for scale in (0.5, 20.0):
        denoising_loss(look, levels(prediction), lambda latents, scale=scale: scale * latents, torch.device("cpu"),
                       pure_noise=1.0)(batch, stream("x"))
    torch.testing.assert_close(*seen, rtol=0, atol=1e-4)
    assert seen[0].std().item() == pytest.approx(1, abs=0.05)


def test_noise_shift_draws_high_noise_more_often():
    """Shift 1 changes nothing; shift 3 puts half of the draws above three quarters, and stays in range and order."""
    t = torch.arange(1000)
    assert torch.equal(shifted(t, 1000, 1.0), t)
    high = shifted(t, 1000, 3.0)
    assert (high.diff() >= 0).all() and high[0] >= 0 and high[-1] == 999
    assert (high >= 750).float().mean().item() == pytest.approx(0.5, abs=0.002)


@pytest.mark.parametrize("prediction", ["eps", "v"])
def test_snr_weights_count_an_error_of_x0_alike_for_both_predictions(prediction):
    """A wrong x_0 that is off by 1 everywhere costs min(SNR + 1, limit) at every noise level."""
    noise, t = levels(prediction), torch.arange(0, 100, 7)
    x0, eps = torch.randn(2, len(t), 3, generator=stream("w")).double()
    x = noise.add_noise(x0, eps, t)
    abar = noise.abar[t].view(-1, 1)
    wrong = noise.target(x0 + 1, (x - abar.sqrt() * (x0 + 1)) / (1 - abar).sqrt(), t)
    error = (wrong - noise.target(x0, eps, t)).square().mean(1)
    snr = noise.snr(t)
    torch.testing.assert_close(error * snr_weight(snr, 5.0, prediction), (snr + 1).clamp(max=5.0))


@pytest.mark.parametrize("first", [None, 60])
@pytest.mark.parametrize("prediction", ["eps", "v"])
def test_ddim_finds_a_gaussian_of_known_mean(prediction, first):
    """For data N(mean, 0.5^2) the ideal denoiser is known; the sampler must land on that distribution, from the last
    level, which is nearly all noise, and from half-noised data."""
    noise, mean, spread = levels(prediction), 2.0, 0.5

    def ideal(x, t, text, frame_indices):
        abar = noise.abar[t].float().view(-1, 1, 1, 1, 1)
        a, variance = abar.sqrt(), 1 - abar
        x0 = mean + (x - a * mean) * a * spread ** 2 / (abar * spread ** 2 + variance)
        return noise.target(x0, (x - a * x0) / variance.sqrt(), t)

    text = Text(torch.zeros(1, 2, 3), None)
    data, eps = torch.randn(2, 1, 8, 4, 16, 16, generator=stream("s"))
    start = noise.add_noise(mean + spread * data, eps, torch.tensor([len(noise.abar) - 1 if first is None else first]))
    *_, sample = ddim(ideal, noise, start, text, text, 99, 1.0, first)
    assert sample.mean().item() == pytest.approx(mean, abs=0.05)
    assert sample.std().item() == pytest.approx(spread, rel=0.15) and math.isfinite(sample.sum())
