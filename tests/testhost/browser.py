"""The server's page in a real browser: Debian's chromium, driven by playwright."""
from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from frozen_diffusion.modules.host.boot import PACK

FLAGS = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking", "--no-first-run"]
SEEN = """numbers => numbers.map(number => {
    const node = window.app.graph.getNodeById(number), {scale, offset} = window.app.canvas.ds
    const [x, y] = node.pos, title = window.LiteGraph.NODE_TITLE_HEIGHT
    const [left, top, right, bottom] = [x + offset[0], y - title + offset[1], x + node.size[0] + offset[0],
                                        y + node.size[1] + offset[1]].map(side => side * scale)
    const free = [0.02, 0.25, 0.5, 0.75, 0.98].every(a => [0.02, 0.25, 0.5, 0.75, 0.98].every(b => {
        const over = document.elementFromPoint(left + a * (right - left), top + b * (bottom - top))
        return over && (over.id === 'graph-canvas' || over.closest('.dom-widget'))
    }))
    return left >= 0 && top >= 0 && right <= innerWidth && bottom <= innerHeight && Boolean(free)
})"""
TEXTS = """() => Object.fromEntries(window.app.graph.nodes.map(node => [node.id, (node.widgets || []).filter(
    widget => widget.name === '$$node-text-preview' || node.type === 'PreviewAny').map(widget => widget.value)
    .filter(Boolean).join(' ')]).filter(([_, text]) => text))"""
REPORTED = """() => window.app.graph.nodes.filter(node => node.type === 'PreviewAny' && node.widgets?.length
    && node.inputs[0].link != null).map(node => node.getInputNode(0).type)"""
LOADED = """images => images.filter(image => image.complete && image.naturalWidth).map(
    image => image.src.includes('default-template') ? null : [image.naturalWidth, image.naturalHeight])"""
READY = "() => window.app && window.app.graph && document.querySelector('#graph-canvas')"

WORDS = ("slider", "style", "style transfer", "animate", "animatediff", "video", "flicker", "smooth", "harivo",
         "attribute", "content", "guidance", "cfg", "faster", "motion lora", "camera", "alpha", "cut out",
         "transparent", "metric")


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

    def seen(self, node_ids: Sequence[int], patience: int = 0) -> list[bool]:
        """Whether each node lies in the window, title included, with nothing of the page over it.

        A page that has just opened a workflow moves its view afterwards, and a dialog of missing models may come late:
        close it and ask again until all of them are seen, for up to `patience` tenths of a second.
        """
        for _ in range(patience):
            if all(self.tab.evaluate(SEEN, list(node_ids))):
                break
            self.close_dialogs()
            self.tab.wait_for_timeout(100)
        return self.tab.evaluate(SEEN, list(node_ids))

    def layout(self) -> dict[str, list[float]]:
        """Width and height of each node, by id."""
        return self.tab.evaluate("() => Object.fromEntries(window.app.graph.nodes.map(n => [n.id, [...n.size]]))")

    def reroutes(self) -> int:
        """How many points wires have."""
        return self.tab.evaluate("() => window.app.graph.reroutes.size")

    def reported(self) -> set[str]:
        """The types of the nodes whose output is connected to a node that previews text, with a place for the text."""
        return set(self.tab.evaluate(REPORTED))

    def shown_texts(self) -> dict[str, str]:
        """The texts of reports that stand on the page, by node id: under the nodes and in nodes that preview text."""
        return self.tab.evaluate(TEXTS)

    def close_dialogs(self) -> None:
        """Close what opened by itself, as the offer to download missing models does."""
        for _ in range(3):
            if not self.tab.locator(".p-dialog-mask").count():
                break
            self.tab.keyboard.press("Escape")
            self.tab.wait_for_timeout(500)

    def searched(self, pack: str, words: Sequence[str]) -> dict[str, list[str]]:
        """The names of the pack's nodes that the page's node search offers for each word."""
        self.tab.evaluate("() => window.app.extensionManager.command.execute('Workspace.SearchBox.Toggle')")
        box, found = self.tab.locator(".comfy-vue-node-search-container input").first, {}
        for word in words:
            box.fill("")
            self.tab.wait_for_timeout(200)
            box.fill(word)
            self.tab.wait_for_timeout(600)          # the page waits for the end of typing
            texts = self.tab.locator(".p-autocomplete-option").all_inner_texts()
            found[word] = [text.partition("\n")[0].strip() for text in texts if pack in text]
        self.tab.keyboard.press("Escape")
        return found

    def thumbnails(self, pack: str, names: Sequence[str]) -> dict[str, list[int]]:
        """Width and height of the picture that the template browser shows for each template; none if it is missing."""
        self.tab.evaluate("() => window.app.extensionManager.command.execute('Comfy.BrowseTemplates')")
        self.tab.get_by_text(pack, exact=True).first.click()
        found = {}
        for name in names:
            card = self.tab.locator(f"[data-testid='template-workflow-{name}']")
            for _ in range(20):         # the page adds cards when it is scrolled to its end
                if card.count():
                    break
                self.tab.locator("[data-testid='template-workflows-content'] > *").last.scroll_into_view_if_needed()
                self.tab.mouse.wheel(0, 2000)
                self.tab.wait_for_timeout(100)
            if not card.count():
                continue
            card.scroll_into_view_if_needed()
            for _ in range(50):
                sizes = card.locator("img").evaluate_all(LOADED)
                if sizes:
                    break
                self.tab.wait_for_timeout(100)
            if sizes and sizes[0]:
                found[name] = sizes[0]
        self.tab.keyboard.press("Escape")
        return found

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
