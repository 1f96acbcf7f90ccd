"""What a person sees of the templates in ComfyUI's page, in a window of 1600x900.

`thumbnails`: the template browser shows its own picture, at least 384 pixels wide and high. `result_in_view`: after
opening, note, input and result lie in the window with nothing of the page over them. `reports_visible`: of templates
with reports that a person is meant to read, those in which each kind of them goes to Preview as Text; the templates of
RUN are run by a click as well, and every report must stand on the page, under its node and in that preview.
`words_found`: of an artist's words, those for which the page's node search offers a node of the pack. `help_pictures`:
share of the help pages with a picture.
"""
from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path

from frozen_diffusion.modules.host.boot import PACK, find_comfyui
from testhost.browser import WORDS, Page, chromium
from testhost.server import Server, version_of
from testhost.templates import REPORTS, TEMPLATES, named, reports
from testhost.view import WINDOW

RUN = ("h_space_any_sampler",)          # quick ones
SECONDS = 600                           # for one of them
SMALLEST = 384                          # pixels of a picture


def opened(page: Page, pack: str, name: str) -> dict:
    """What is seen of one template right after opening."""
    template = TEMPLATES[name]()
    numbers = {key: number for number, key in enumerate(template.graph, 1)}
    page.open_template(pack, name)
    page.close_dialogs()
    seen = dict(zip(("note", "input", "result"), page.seen([len(numbers) + 1, numbers[template.main],
                                                            numbers[template.result]]), strict=True))
    return seen | {"zoom": page.tab.evaluate("() => window.app.canvas.ds.scale"),
                   "reports": sorted(reports(template.graph)[0]), "shown_as_text": sorted(page.reported())}


def run_and_read(page: Page, server: Server, name: str) -> dict[str, str]:
    """Run the open template by a click; the text on the page of each node that has or previews a report, by key."""
    known, graph, end = set(server.call("/history")), TEMPLATES[name]().graph, time.monotonic() + SECONDS
    page.run()
    while set(server.call("/history")) == known and time.monotonic() < end:
        page.tab.wait_for_timeout(500)
    page.tab.wait_for_timeout(1000)         # the last message may still be on its way
    texts = page.shown_texts()
    return {key: texts.get(str(number), "") for number, (key, node) in enumerate(graph.items(), 1)
            if node["class_type"] in REPORTS or node["class_type"] == "PreviewAny"}


def run() -> dict:
    """The figures `thumbnails`, `result_in_view` and `reports_visible`, shares of templates."""
    templates, texts = {}, {}
    with tempfile.TemporaryDirectory() as folder, Server(Path(folder)) as server, chromium() as browser:
        page = Page(browser.new_page(viewport={"width": WINDOW[0], "height": WINDOW[1]}), server.address)
        for name in TEMPLATES:
            print(name, file=sys.stderr, flush=True)
            templates[name] = opened(page, server.pack_name, name)
            if name in map(named, RUN):
                texts[name] = run_and_read(page, server, name)
        page.open()
        pictures = page.thumbnails(server.pack_name, list(TEMPLATES))
        page.open()
        found = page.searched(server.pack_name, WORDS)
    for name, template in templates.items():
        template["picture"] = pictures.get(name)
        template["in_view"] = template["note"] and template["input"] and template["result"]
        template["reports_visible"] = (set(template["reports"]) <= set(template["shown_as_text"])
                                       and all(texts.get(name, {}).values()))
    pages = sorted((PACK / "nodes" / "web" / "docs").glob("*.md"))
    telling = [template["reports_visible"] for template in templates.values() if template["reports"]]
    figures = {
        "thumbnails": sum(min(size) >= SMALLEST for size in pictures.values()) / len(TEMPLATES),
        "result_in_view": sum(template["in_view"] for template in templates.values()) / len(TEMPLATES),
        "reports_visible": sum(telling) / len(telling),
        "words_found": sum(map(bool, found.values())) / len(WORDS),
        "help_pictures": sum("![" in page.read_text(encoding="utf-8") for page in pages) / len(pages)}
    return {"figures": figures, "context": {"comfyui": version_of(find_comfyui()), "window": WINDOW,
                                            "templates_with_reports": len(telling), "templates": templates,
                                            "texts_after_a_run": texts, "nodes_found": found}}
