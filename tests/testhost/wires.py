"""Wires that do not run behind nodes: the page's own reroute points on the shortest way around them.

A link that would pass behind a node gets points at the corners of what it goes around. Links of one output share the
points of their common way; each output keeps its own distance from the nodes, so that ways can be told apart.
"""
from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

SLOT, INSET, TITLE_BAR = 20, 10, 30     # of the page: height of a slot, its dot's distance from the edge
CLEAR = 6                               # a way keeps so far from nodes
LANES = (12, 18, 24, 30)                # distances of the points from the corners they go around
GRAZE = 1e-9                            # of a segment: less is a touch, on every processor
BEND = 40                               # what a point costs, in pixels of way
SAMPLES = np.linspace(0, 1, 33)[:, None]


def rectangles(nodes: Sequence[Mapping], grow: float = 0) -> np.ndarray:
    """Left, top, right, bottom of each node, [N, 4]."""
    boxes = np.array([[*node["pos"], node["pos"][0] + node["size"][0], node["pos"][1] + node["size"][1]]
                      for node in nodes], float)
    boxes[:, 1] -= TITLE_BAR
    return boxes + grow * np.array([-1, -1, 1, 1])


def headings(groups: Sequence[Mapping]) -> np.ndarray:
    """The titles of groups as boxes, [N, 4], so that no wire runs through them."""
    return np.array([[left, top, left + min(wide, 14 * len(group["title"]) + 10), top + group["font_size"] + 6]
                     for group in groups for left, top, wide, _ in (group["bounding"],)]).reshape(-1, 4)


def hits(start: np.ndarray, end: np.ndarray, boxes: np.ndarray) -> np.ndarray:
    """Which segments [M, 2] to [M, 2] pass through which boxes: [M, N] of bool."""
    way = end - start
    with np.errstate(divide="ignore", invalid="ignore"):
        near, far = ((boxes[None, :, corner] - start[:, None]) / way[:, None]
                     for corner in ([0, 1], [2, 3]))
    flat = way[:, None] == 0
    between = (start[:, None] > boxes[None, :, :2]) & (start[:, None] < boxes[None, :, 2:])
    near, far = np.minimum(near, far), np.maximum(near, far)
    near = np.where(flat, np.where(between, -np.inf, np.inf), near)
    far = np.where(flat, np.where(between, np.inf, -np.inf), far)
    enter, leave = np.maximum(near.max(2), 0), np.minimum(far.min(2), 1)
    return enter < leave - GRAZE


def dot(node: Mapping, slot: int, output: bool) -> np.ndarray:
    """Where a link meets a node."""
    if output:
        return np.array([node["pos"][0] + node["size"][0] - INSET, node["pos"][1] + (slot + 0.7) * SLOT])
    entry = node["inputs"][slot]
    sockets = [other for other in node["inputs"] if "widget" not in other]
    if "widget" not in entry:
        return np.array([node["pos"][0] + INSET, node["pos"][1] + (sockets.index(entry) + 0.7) * SLOT])
    widgets = [other for other in node["inputs"] if "widget" in other]
    below = SLOT * max(len(sockets), len(node["outputs"])) + 24 * (widgets.index(entry) + 0.5) + 6
    return np.array([node["pos"][0] + INSET, node["pos"][1] + below])


def drawn(start: np.ndarray, points: Sequence[Sequence[float]], end: np.ndarray) -> np.ndarray:
    """The line of a link, [K, 2]: the page's spline from slot to slot, or its points joined."""
    if points:
        return np.array([start, *points, end], float)
    reach = np.array([np.hypot(*(end - start)) / 4, 0])
    a, b = start + reach, end - reach
    t = SAMPLES
    return (1 - t) ** 3 * start + 3 * (1 - t) ** 2 * t * a + 3 * (1 - t) * t ** 2 * b + t ** 3 * end


def behind(line: np.ndarray, ends: Sequence[int], boxes: np.ndarray) -> np.ndarray:
    """Which boxes [N, 4] a line [K, 2] passes behind; its own two, `ends`, count but for the edge with the dot."""
    boxes = boxes.copy()
    boxes[ends[0], 2] -= 2 * INSET
    boxes[ends[1], 0] += 2 * INSET
    return hits(line[:-1], line[1:], boxes).any(0)


def shortest(costs: np.ndarray, source: int) -> np.ndarray:
    """Dijkstra over a dense matrix: the vertex before each on the way from `source`, -1 where there is none."""
    length = np.full(len(costs), np.inf)
    before = np.full(len(costs), -1)
    length[source], open_ = 0, np.ones(len(costs), bool)
    for _ in range(len(costs)):
        here = int(np.where(open_, length, np.inf).argmin())
        if not np.isfinite(length[here]):
            break
        open_[here] = False
        through = length[here] + costs[here]
        better = open_ & (through < length)
        length[better], before[better] = through[better], here
    return before


class Ways:
    """The corners of a set of boxes at one distance, and which of them see each other."""

    def __init__(self, boxes: np.ndarray, lane: float):
        grown = boxes + lane * np.array([-1, -1, 1, 1])
        corners = np.concatenate([grown[:, [x, y]] for x in (0, 2) for y in (1, 3)])
        self.blocked = boxes + CLEAR * np.array([-1, -1, 1, 1])
        free = ~((corners[:, None] > self.blocked[None, :, :2]) & (corners[:, None] < self.blocked[None, :, 2:])
                 ).all(2).any(1)
        self.corners = corners[free]
        self.costs = self.between(self.corners, self.corners)

    def between(self, starts: np.ndarray, ends: np.ndarray) -> np.ndarray:
        """Costs of the straight way from each start to each end, [S, E]; infinite where a node is in the way."""
        pairs = [np.repeat(starts, len(ends), 0), np.tile(ends, (len(starts), 1))]
        closed = hits(*pairs, self.blocked).any(1)
        lengths = np.rint(np.hypot(*(pairs[1] - pairs[0]).T)) + BEND        # whole pixels, alike on every processor
        return np.where(closed | (lengths == BEND), np.inf, lengths).reshape(len(starts), len(ends))

    def paths(self, source: np.ndarray, targets: np.ndarray) -> list[list[tuple[float, float]]]:
        """The points from `source` to each target, both included; empty where there is no way."""
        count = len(self.corners)
        vertices = np.concatenate([self.corners, targets, source[None]])
        costs = np.full((len(vertices),) * 2, np.inf)
        costs[:count, :count] = self.costs
        costs[:count, count:-1] = self.between(self.corners, targets)
        costs[-1, :-1] = self.between(source[None], vertices[:-1])[0]
        before, found = shortest(costs, len(vertices) - 1), []
        for target in range(count, count + len(targets)):
            trail = [target]
            while before[trail[-1]] >= 0:
                trail.append(int(before[trail[-1]]))
            found.append([tuple(vertices[one]) for one in reversed(trail)] if len(trail) > 1 else [])
        return found


def waypoints(path: Sequence[tuple[float, float]], start: np.ndarray, end: np.ndarray, ends: Sequence[int],
              boxes: np.ndarray) -> list[tuple[int, int]]:
    """The points of a way that are needed: those in front of slots only where the wire would turn back or touch."""
    points = [(round(x), round(y)) for x, y in path]
    first, last = points[1][0] < points[0][0], points[-2][0] > points[-1][0]
    for skip in ((1, 1), (1, 0), (0, 1)):
        kept = points[skip[0]:len(points) - skip[1]]
        if not (skip[0] and first or skip[1] and last) and not behind(drawn(start, kept, end), ends, boxes).any():
            return kept
    return points


def route(workflow: dict) -> None:
    """Give the links of a workflow their reroute points, in `extra`, as the page saves them."""
    nodes = {node["id"]: node for node in workflow["nodes"]}
    numbers, boxes = {key: number for number, key in enumerate(nodes)}, rectangles(list(nodes.values()))
    walls = np.concatenate([boxes, headings(workflow["groups"])])
    outputs: dict[tuple[int, int], list] = {}
    for link in workflow["links"]:
        start, end = dot(nodes[link[1]], link[2], True), dot(nodes[link[3]], link[4], False)
        if behind(drawn(start, [], end), (numbers[link[1]], numbers[link[3]]), walls).any():
            outputs.setdefault((link[1], link[2]), []).append((link[0], end, numbers[link[3]]))
    ways = {lane: Ways(walls, lane) for lane in LANES[:len(outputs)]}
    reroutes, extensions = [], []
    for number, ((node, slot), targets) in enumerate(outputs.items()):
        lane, known = LANES[number % len(LANES)], {}
        start, before = dot(nodes[node], slot, True), np.array([INSET + lane, 0])
        paths = ways[lane].paths(start + before, np.array([end - before for _, end, _ in targets]))
        for (link, end, reader), path in zip(targets, paths, strict=True):
            points, parent = waypoints(path, start, end, (numbers[node], reader), boxes) if path else [], None
            for length in range(1, len(points) + 1):
                trail = tuple(points[:length])
                if trail not in known:
                    known[trail] = {"id": len(reroutes) + 1, "pos": list(trail[-1]), "linkIds": [],
                                    **({"parentId": parent} if parent else {})}
                    reroutes.append(known[trail])
                known[trail]["linkIds"].append(link)
                parent = known[trail]["id"]
            if parent:
                extensions.append({"id": link, "parentId": parent})
    if reroutes:
        workflow["extra"] |= {"reroutes": reroutes, "linkExtensions": extensions}


def lines(workflow: Mapping) -> dict[int, np.ndarray]:
    """The line of every link of a saved workflow, reroute points included."""
    nodes = {node["id"]: node for node in workflow["nodes"]}
    points = {point["id"]: point for point in workflow["extra"].get("reroutes", ())}
    last = {extension["id"]: extension["parentId"] for extension in workflow["extra"].get("linkExtensions", ())}
    found = {}
    for link in workflow["links"]:
        trail, point = [], points.get(last.get(link[0]))
        while point:
            trail.append(point["pos"])
            point = points.get(point.get("parentId"))
        found[link[0]] = drawn(dot(nodes[link[1]], link[2], True), trail[::-1], dot(nodes[link[3]], link[4], False))
    return found


def crossings(workflow: Mapping) -> list[tuple[int, str]]:
    """(link, title of a node) for each node that a wire passes behind."""
    boxes = rectangles(workflow["nodes"])
    numbers = {node["id"]: number for number, node in enumerate(workflow["nodes"])}
    ends = {link[0]: (numbers[link[1]], numbers[link[3]]) for link in workflow["links"]}
    return [(link, workflow["nodes"][number].get("title", workflow["nodes"][number]["type"]))
            for link, line in lines(workflow).items() for number in np.flatnonzero(behind(line, ends[link], boxes))]
