"""Wires go around nodes, and the opening view refuses what would not be seen."""
import numpy as np
import pytest

from testhost import view, wires


def node(number: int, x: float, y: float, inputs: int = 0, outputs: int = 0) -> dict:
    return {"id": number, "type": f"N{number}", "pos": [x, y], "size": [200, 100],
            "inputs": [{"name": f"i{slot}", "type": "T", "link": None} for slot in range(inputs)],
            "outputs": [{"name": "o", "type": "T"} for _ in range(outputs)]}


def workflow(*nodes: dict, links: list) -> dict:
    return {"nodes": list(nodes), "links": links, "groups": [], "extra": {}}


def row(links: list) -> dict:
    """Three nodes side by side; the middle one is in the way of a link from the first to the last."""
    return workflow(node(1, 0, 0, outputs=1), node(2, 300, 0, inputs=1), node(3, 600, 0, inputs=2), links=links)


def test_segments_and_boxes():
    box = np.array([[0, 0, 10, 10]], float)
    starts = np.array([[-5, 5], [-5, 5], [-5, 20], [5, -5], [0, -5], [2, 2]], float)
    ends = np.array([[15, 5], [-1, 5], [15, 20], [5, 15], [0, 15], [3, 3]], float)
    assert wires.hits(starts, ends, box)[:, 0].tolist() == [True, False, False, True, False, True]


def test_a_free_wire_is_left_alone():
    graph = row([[1, 1, 0, 2, 0, "T"]])
    wires.route(graph)
    assert graph["extra"] == {} and wires.crossings(graph) == []


def test_a_wire_behind_a_node_gets_points_around_it():
    graph = row([[1, 1, 0, 3, 0, "T"]])
    assert wires.crossings(graph) == [(1, "N2")]
    wires.route(graph)
    assert wires.crossings(graph) == [] and graph["extra"]["linkExtensions"][0]["id"] == 1
    assert all(point["linkIds"] == [1] for point in graph["extra"]["reroutes"])


def test_a_wire_back_does_not_run_behind_its_own_nodes():
    graph = workflow(node(1, 0, 0, inputs=1), node(2, 0, 300, outputs=1), links=[[1, 2, 0, 1, 0, "T"]])
    assert wires.crossings(graph)
    wires.route(graph)
    assert wires.crossings(graph) == []


def test_wires_of_one_output_share_their_way():
    graph = row([[1, 1, 0, 3, 0, "T"], [2, 1, 0, 3, 1, "T"]])
    wires.route(graph)
    shared = [point for point in graph["extra"]["reroutes"] if point["linkIds"] == [1, 2]]
    assert shared and wires.crossings(graph) == []


def test_a_result_out_of_sight_is_refused():
    near, far = node(1, 0, 0), node(2, 5000, 0)
    seen = view.opening_view([near, far], [], [near])
    assert seen["scale"] == view.ZOOMS[1]
    with pytest.raises(ValueError, match="not seen when the workflow is opened, at zoom 0.6: N2"):
        view.opening_view([near, far], [], [near, far])


def test_what_the_minimap_covers_is_not_seen():
    """The lower right corner, at zoom 1."""
    assert view.is_seen((1100, 200, 1300, 700), 1, (0, 0)) and view.is_seen((1400, 200, 1500, 600), 1, (0, 0))
    assert not view.is_seen((1400, 600, 1500, 700), 1, (0, 0))
    assert not view.is_seen((0, 200, 300, 300), 1, (0, 0)), "below the side bar"
