"""`make demo` and `make ui`: the pack in a real ComfyUI, as a run of the main template and as its page.

    PYTHONPATH=tests python -m testhost.demo [--ui] [--template NAME] [--port N]
"""
from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import time
import webbrowser
from collections.abc import Callable
from pathlib import Path

from frozen_diffusion.modules.host.boot import PACK

from .server import LINK, ExecutionFailed, PromptRejected, Server, free_port
from .templates import named
from .workflow import api_graph

OUTPUT = PACK / "output"


def reporter(graph: dict, object_info: dict) -> Callable[[str, dict], None]:
    """A listener that tells the person at the terminal which node runs and how far it is."""
    def tell(kind: str, data: dict) -> None:
        node = graph.get(str(data.get("node")), {}).get("class_type")
        if node and kind == "executing":
            print(f"  {object_info[node]['display_name']}", flush=True)
        elif node and kind == "progress" and (data["value"] in (1, data["max"]) or data["value"] % 5 == 0):
            print(f"    {data['value']:.0f} of {data['max']:.0f}", flush=True)
    return tell


def run_template(server: Server, path: Path) -> list[Path]:
    """Queue one template as its page would; returns the files it made. Raises as Server.submit and api_graph do."""
    graph = api_graph(json.loads(path.read_text(encoding="utf-8")), server.object_info())
    return server.files(server.submit(graph, on_message=reporter(graph, server.object_info()), seconds=1800))


def demo(server: Server, path: Path) -> int:
    """Run the template and say where its files are; returns the exit status."""
    began = time.monotonic()
    print(f"running {path.relative_to(PACK)}", flush=True)
    try:
        files = run_template(server, path)
    except (PromptRejected, ExecutionFailed, ValueError) as error:     # the last: saved values that do not fit
        print(f"it failed: {error}", file=sys.stderr)
        return 1
    print(f"done in {time.monotonic() - began:.0f} s; made:")
    for file in files:
        print(f"  {os.path.relpath(file)}")
    print("`make ui` opens the same template in ComfyUI's page.")
    return 0 if files else 1


def stay(server: Server, template: str) -> int:
    """Open the page on a template and keep the server until it ends or Ctrl-C is pressed."""
    address = f"http://{server.address}/?template={template}&source={server.pack_name}"
    print(f"ComfyUI is running: {address}\nCtrl-C stops it.", flush=True)
    webbrowser.open(address)
    try:
        return server.process.wait()
    except KeyboardInterrupt:
        return 0


def main() -> int:
    """The command line; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--ui", action="store_true", help="open the page and leave the server running")
    parser.add_argument("--template", default="harivo_text_to_video",
                        help="a file of workflows/, without .json and, if you like, without its number")
    parser.add_argument("--port", type=int, help="the server's port; a free one if not given")
    options = parser.parse_args()
    try:
        path = PACK / "workflows" / f"{named(options.template)}.json"
    except ValueError as error:
        parser.error(str(error))
    print("starting ComfyUI", flush=True)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))     # so that the server is stopped with us
    shown = ("--preview-method", "auto") if options.ui else ()      # pictures while they are sampled
    with Server(LINK, OUTPUT, options.port or free_port(), shown) as server:
        return stay(server, path.stem) if options.ui else demo(server, path)


if __name__ == "__main__":
    sys.exit(main())
