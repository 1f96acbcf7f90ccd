"""The server's page in a real browser: Debian's chromium, driven by playwright."""
from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager

from frozen_diffusion.modules.host.boot import PACK

FLAGS = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking", "--no-first-run"]
READY = "() => window.app && window.app.graph && document.querySelector('#graph-canvas')"


class Page:
    """ComfyUI's page, open on a server."""

    def __init__(self, tab, address: str):
        self.tab, self.address = tab, address
        self.faults: list[str] = []
        tab.on("pageerror", lambda error: self.faults.append(str(error)))

    def open(self, query: str = "") -> None:
        """Load the page afresh, with `query` behind its address, and wait until its graph can be used."""
        self.faults.clear()
        self.tab.goto(f"http://{self.address}/{query}", wait_until="domcontentloaded")
        self.tab.wait_for_function(READY, timeout=60_000)
        self.tab.wait_for_selector("[data-testid=queue-button]", timeout=60_000)

    def open_template(self, pack: str, name: str) -> None:
        """Open one of the pack's templates as a link does.

        The page first shows the workflow that was open before, so wait for the nodes of this one, its notes included:
        two templates may have the same nodes.
        """
        workflow = json.loads((PACK / "workflows" / f"{name}.json").read_text(encoding="utf-8"))
        self.open(f"?template={name}&source={pack}")
        self.tab.wait_for_function(
            "nodes => window.app.graph.nodes.map(n => `${n.id} ${n.type}` + "
            "(n.type === 'MarkdownNote' ? n.widgets?.[0]?.value : '')).sort().join() === nodes",
            arg=",".join(sorted(f"{node['id']} {node['type']}" + "".join(
                node["widgets_values"] if node["type"] == "MarkdownNote" else ()) for node in workflow["nodes"])),
            timeout=30_000)

    def load(self, workflow: dict) -> None:
        """Open a workflow given as an object, as dropping its file on the page does."""
        self.tab.evaluate("workflow => window.app.loadGraphData(workflow)", workflow)

    def missing(self) -> list[str]:
        """The types of the open graph's nodes that the page does not know."""
        return self.tab.evaluate("() => window.app.graph.nodes.map(n => n.type)"
                                 ".filter(t => !(t in window.LiteGraph.registered_node_types))")

    def prompt(self) -> dict[str, dict]:
        """The API graph that the page would queue."""
        graph = self.tab.evaluate("async () => (await window.app.graphToPrompt()).output")
        return {key: {part: node[part] for part in ("class_type", "inputs")} for key, node in graph.items()}

    def run(self) -> None:
        """Click Run: the first button in the page's group of them, or on newer pages the button itself."""
        run = self.tab.locator("[data-testid=queue-button]").first
        inner = run.locator("button")
        (inner.first if inner.count() else run).click()


@contextmanager
def chromium() -> Iterator:
    """A running browser. Raises FileNotFoundError without chromium, ImportError without playwright."""
    from playwright.sync_api import sync_playwright
    path = shutil.which("chromium") or shutil.which("chromium-browser")
    if path is None:
        raise FileNotFoundError("no chromium on this machine (Debian: apt-get install chromium)")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=FLAGS)
        yield browser
        browser.close()
