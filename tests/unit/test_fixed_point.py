"""Refinements of an inversion: a fixed point whose best iterate is kept, in float64."""
import pytest
import torch

from frozen_diffusion.modules.hspace.fixed_point import FixedPoint
from frozen_diffusion.modules.seeding import stream

pytestmark = pytest.mark.fault("G2")


def random(*shape, name):
    return torch.randn(*shape, generator=stream("fixed point", name), dtype=torch.float64)


def solved(aim, y, count, **more):
    """The solver after `count` repetitions, and what each iterate missed by [count + 1, B]."""
    solver, missed = FixedPoint(**more), []
    for repetition in range(count + 1):
        y = solver.following() if repetition else y
        missed.append((aim(y) - y).flatten(1).norm(dim=1))
        solver.take(y, aim(y), {"y": y})
    return solver, torch.stack(missed)


@pytest.mark.parametrize("factor", [-4.0, -1.5, -0.5, 0.5, 3.0])
def test_a_linear_aim_is_met_where_repeating_it_diverges(factor):
    """One factor for all directions: two repetitions and the right combination of them."""
    goal, start = random(2, 4, 3, name="goal"), random(2, 4, 3, name="start")
    solver, missed = solved(lambda y: goal + factor * (y - goal), start, 2)
    torch.testing.assert_close(solver.y, goal, rtol=1e-6, atol=1e-6)
    assert (missed[1] > missed[0]).all() == (abs(factor) > 1)
    torch.testing.assert_close(solver.next_length(), torch.full((2,), 1 / (1 - factor)).double().clamp(0.125, 1.5)
                               if factor < 1 else torch.full((2,), 1.5).double())


def test_the_best_iterate_is_kept_row_by_row():
    steep = torch.tensor([-8.0, -0.2]).view(2, 1).double()
    for joint in (False, True):
        solver, missed = solved(lambda y: steep * y.sin(), random(2, 5, name="rows"), 6, joint=joint)
        found = (steep * solver.y.sin() - solver.y).norm(dim=1)
        wanted = missed.norm(dim=1).min() if joint else missed.amin(0)
        torch.testing.assert_close(found.norm() if joint else found, wanted)
        assert torch.equal(solver.seen["y"], solver.y)


def test_numbers_that_are_not_finite_never_win():
    solver = FixedPoint()
    for y in (torch.ones(1, 3), torch.full((1, 3), torch.nan)):
        solver.take(y, y + 1, {"y": y})
    assert torch.equal(solver.y, torch.ones(1, 3))
