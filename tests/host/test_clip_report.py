"""Clip Report through the node, on clips whose figures are known."""
from __future__ import annotations

import math

import pytest
import torch

from frozen_diffusion.modules.clips.report import HEIGHT, WIDEST, WORST
from frozen_diffusion.modules.pictures.frame_sheet import GAP

RED = tuple(int(WORST[at:at + 2], 16) for at in (1, 3, 5))


def jumping(frames: int = 6, jump: int = 4) -> torch.Tensor:
    """[F, 32, 32, 3]: black up to the frame `jump`, white from there on."""
    clip = torch.zeros(frames, 32, 32, 3)
    clip[jump:] = 1
    return clip


def report(comfy, frames: torch.Tensor, fps: float = 8.0, columns: int = 3):
    return comfy.run("FrozenClipReport", frames=frames, fps=fps, columns=columns)


def test_the_figures_and_the_words(comfy):
    picture, text, flicker, span = report(comfy, jumping())
    assert flicker == pytest.approx((255 * 2 / 4) / (255 / 5)) and span == 255      # two second differences, one first
    assert "most different neighbours: frames 3 and 4 (255.00), at 0.50 s" in text
    assert "flicker r = 2.50" in text and "d1 = 51.00" in text and "motion span = 255.00" in text
    assert picture.ndim == 4 and picture.shape[0] == 1 and picture.shape[3] == 3


def test_the_worst_pair_is_framed_in_red_on_the_sheet(comfy):
    picture = (report(comfy, jumping())[0][0] * 255).round().int()
    sheet = picture[HEIGHT:]
    for frame in range(6):
        top, left = frame // 3 * (32 + GAP), frame % 3 * (32 + GAP)
        edge = sheet[-(2 * 32 + GAP):][top, left + 8]
        assert (tuple(edge.tolist()) == RED) == (frame in (3, 4)), frame


def test_the_plot_is_as_wide_as_a_wide_sheet(comfy):
    picture = report(comfy, jumping().repeat_interleave(64, 1).repeat_interleave(16, 2), columns=6)[0][0]
    plot = picture[:len(picture) - 64 * 32]
    assert picture.shape[1] == 6 * (512 + GAP) - GAP > WIDEST
    assert (plot[:, picture.shape[1] * 19 // 20:] < 0.95).any()     # its grid reaches the last twentieth


def test_pictures_with_alpha_are_read_without_it(comfy):
    clip = torch.cat((jumping(), torch.rand(6, 32, 32, 1)), dim=-1)
    assert report(comfy, clip)[1] == report(comfy, jumping())[1]


def test_two_frames_have_no_flicker_and_one_frame_is_refused(comfy):
    _, text, flicker, span = report(comfy, jumping(2, 1))
    assert math.isnan(flicker) and span == 255 and "frames 0 and 1" in text and "nan" not in text
    with pytest.raises(ValueError, match="at least two RGB frames"):
        report(comfy, jumping(1, 1))
