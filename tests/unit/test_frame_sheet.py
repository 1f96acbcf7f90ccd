"""A clip as one picture."""
import pytest
import torch

from frozen_diffusion.modules.pictures.frame_sheet import GAP, GREY, frame_sheet


def test_every_frame_is_at_its_place():
    frames = torch.rand(5, 4, 6, 3)
    sheet = frame_sheet(frames, columns=3)
    assert sheet.shape == (1, 2 * (4 + GAP) - GAP, 3 * (6 + GAP) - GAP, 3)
    for index, frame in enumerate(frames):
        top, left = index // 3 * (4 + GAP), index % 3 * (6 + GAP)
        assert torch.equal(sheet[0, top:top + 4, left:left + 6], frame)
    assert (sheet[0, 4 + GAP:, 2 * (6 + GAP):] == GREY).all()       # the empty sixth place


@pytest.mark.parametrize("count, columns", [(1, 8), (8, 8), (3, 1)])
def test_any_count_fits(count, columns):
    assert frame_sheet(torch.rand(count, 2, 2, 3), columns).shape[0] == 1
