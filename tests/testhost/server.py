"""A real ComfyUI server with this pack in it, and a client that queues graphs as its page does."""
from __future__ import annotations

import asyncio
import json
import os
import re
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from frozen_diffusion.modules.host.boot import PACK, find_comfyui

LINK = PACK / ".host"                   # git-ignored: the folder by which a ComfyUI finds the pack
NAME = "frozen-diffusion"
PROGRESS_TEXT = (3).to_bytes(4, "big")      # the kind of a binary message
EXTRA_PATHS = "frozen_diffusion:\n  base_path: .\n  custom_nodes: custom_nodes\n"


class PromptRejected(RuntimeError):
    """The server did not accept a graph; `node_errors` maps node ids to what is wrong with them."""

    def __init__(self, answer: dict):
        self.node_errors = answer.get("node_errors", {})
        details = [f"{node['class_type']} ({key}): {error['message']}: {error['details']}"
                   for key, node in self.node_errors.items() for error in node["errors"]]
        super().__init__("; ".join([answer.get("error", {}).get("message", str(answer)), *details]))


class ExecutionFailed(RuntimeError):
    """A node raised; the attributes are those of the server's message."""

    def __init__(self, message: dict):
        self.node_id, self.node_type = message["node_id"], message["node_type"]
        self.exception_type, self.text = message["exception_type"], message["exception_message"]
        self.traceback = "".join(message.get("traceback", []))
        super().__init__(f"{self.node_type} ({self.node_id}): {self.exception_type}: {self.text}")


class Interrupted(RuntimeError):
    """The run was stopped before its end."""


def link_pack() -> tuple[str, list[str]]:
    """Let a ComfyUI find this checkout without writing into it; returns the pack's folder name and flags."""
    around = Path(os.path.abspath(__file__)).parents[2].parent
    if around.name == "custom_nodes" and find_comfyui() == around.parent:
        return PACK.name, []
    nodes = LINK / "custom_nodes"
    nodes.mkdir(parents=True, exist_ok=True)
    link = nodes / NAME
    if not (link.is_symlink() and link.resolve() == PACK):
        link.unlink(missing_ok=True)
        link.symlink_to(PACK, target_is_directory=True)
    paths = LINK / "extra_model_paths.yaml"
    paths.write_text(EXTRA_PATHS)
    return NAME, ["--extra-model-paths-config", str(paths)]


def version_of(comfyui: Path) -> str:
    """The version that a ComfyUI tree gives itself."""
    file = comfyui / "comfyui_version.py"
    found = re.search(r'__version__ = "(.+)"', file.read_text()) if file.is_file() else None
    return found[1] if found else "unknown"


def finish(coroutine):
    """Run a coroutine to its end, in a thread of its own: playwright keeps an event loop in the main one."""
    async def ended():
        return await coroutine

    with ThreadPoolExecutor(1) as thread:
        return thread.submit(asyncio.run, ended()).result()


def free_port() -> int:
    """A port of this machine that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class Server:
    """A running ComfyUI; use it in a `with` statement. Everything it writes goes below `folder`."""

    def __init__(self, folder: Path, output: Path | None = None, port: int | None = None,
                 flags: tuple[str, ...] = ()):
        self.folder, self.output = Path(folder), Path(output or folder / "output")
        self.input, self.log_file = self.folder / "input", self.folder / "server.log"
        self.address = f"127.0.0.1:{port or free_port()}"
        self.flags = flags

    def __enter__(self) -> Server:
        import torch
        for path in (self.folder / "user", self.input, self.folder / "temp", self.output):
            path.mkdir(parents=True, exist_ok=True)
        settings = self.folder / "user" / "default" / "comfy.settings.json"
        if not settings.exists():           # else the page greets a first visitor with a dialogue
            settings.parent.mkdir(exist_ok=True)
            settings.write_text(json.dumps({"Comfy.TutorialCompleted": True, "Comfy.Templates.SortBy": "alphabetical"}))
        self.pack_name, where = link_pack()
        comfyui = find_comfyui()
        accelerated = torch.cuda.is_available() or torch.backends.mps.is_available()
        command = [
            sys.executable, str(comfyui / "main.py"), "--port", self.address.split(":")[1],
            *(() if accelerated else ("--cpu",)), "--disable-api-nodes", "--disable-auto-launch",
            "--use-pytorch-cross-attention",
            "--disable-all-custom-nodes", "--whitelist-custom-nodes", self.pack_name, *where,
            "--output-directory", str(self.output), "--input-directory", str(self.input),
            "--temp-directory", str(self.folder), "--user-directory", str(self.folder / "user"),
            "--database-url", f"sqlite:///{self.folder / 'comfyui.db'}", *self.flags,
        ]
        with self.log_file.open("w") as log:
            self.process = subprocess.Popen(command, cwd=comfyui, stdout=log, stderr=log,
                                            stdin=subprocess.DEVNULL)
        try:
            self.wait_until_up()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *exception) -> None:
        self.process.terminate()
        try:
            self.process.wait(15)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()

    def wait_until_up(self, seconds: float = 300) -> None:
        """Return when the server answers. Raises RuntimeError with its log if it dies or stays silent."""
        end = time.monotonic() + seconds
        while time.monotonic() < end and self.process.poll() is None:
            try:
                return self.call("/queue") and None
            except (urllib.error.URLError, ConnectionError):
                time.sleep(0.5)
        code = self.process.poll()
        ended = "stayed silent" if code is None else f"ended with code {code}"
        raise RuntimeError(f"the ComfyUI server {ended}; its log ends with:\n{self.log()[-3000:]}")

    def log(self) -> str:
        """Everything the server has printed."""
        return self.log_file.read_text(errors="replace")

    def call(self, path: str, body: dict | None = None):
        """GET `path`, or POST `body` to it; returns the decoded answer. Raises urllib.error.HTTPError."""
        data = None if body is None else json.dumps(body).encode()
        kind = {"Content-Type": "application/json"}
        request = urllib.request.Request(f"http://{self.address}{path}", data, kind)
        with urllib.request.urlopen(request, timeout=60) as answer:
            text = answer.read()
        return json.loads(text) if text else None

    def object_info(self) -> dict[str, dict]:
        """The schema of every node, by id; asked once."""
        if not hasattr(self, "_object_info"):
            self._object_info = self.call("/object_info")
        return self._object_info

    def queue(self, graph: dict, client: str = "") -> str:
        """Queue an API graph; returns its id. Raises PromptRejected."""
        try:
            return self.call("/prompt", {"prompt": graph, "client_id": client})["prompt_id"]
        except urllib.error.HTTPError as error:
            raise PromptRejected(json.loads(error.read())) from None

    def interrupt(self) -> None:
        """Stop the run that is going on."""
        self.call("/interrupt", {})

    def wait(self, prompt_id: str, seconds: float = 600) -> dict[str, dict]:
        """Wait for a queued graph; returns what each output node shows. Raises as `submit`."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            entry = self.call(f"/history/{prompt_id}").get(prompt_id)
            if entry:
                return outputs_of(entry)
            if self.process.poll() is not None:
                raise RuntimeError(f"the ComfyUI server died; its log ends with:\n{self.log()[-3000:]}")
            time.sleep(0.1)
        raise TimeoutError(f"prompt {prompt_id} did not finish within {seconds} s")

    def submit(self, graph: dict, on_message: Callable[[str, dict], None] | None = None,
               seconds: float = 600) -> dict[str, dict]:
        """Run an API graph to its end; returns what each output node shows, by node id.

        `on_message(kind, data)` gets the server's messages as they come (`executing`, `progress`, ...; `progress_text`
        for text that the page draws under a node).
        Raises PromptRejected, ExecutionFailed, Interrupted or TimeoutError.
        """
        if on_message is None:
            return self.wait(self.queue(graph), seconds)
        prompt_id = finish(asyncio.wait_for(self.follow(graph, on_message), seconds))
        return self.wait(prompt_id, seconds)

    async def follow(self, graph: dict, on_message: Callable[[str, dict], None]) -> str:
        """Queue `graph` and hand on the messages about it until it has ended; returns its id."""
        import aiohttp
        client = uuid.uuid4().hex
        address = f"ws://{self.address}/ws?clientId={client}"
        async with aiohttp.ClientSession() as web, web.ws_connect(address, max_msg_size=0) as messages:
            prompt_id = await asyncio.to_thread(self.queue, graph, client)
            async for message in messages:
                if message.type is aiohttp.WSMsgType.BINARY and message.data[:4] == PROGRESS_TEXT:
                    await asyncio.to_thread(on_message, "progress_text", progress_text(message.data))
                if message.type is not aiohttp.WSMsgType.TEXT:
                    continue            # pictures of a preview
                content = json.loads(message.data)
                kind, data = content["type"], content["data"]
                if data.get("prompt_id", prompt_id) != prompt_id:
                    continue
                await asyncio.to_thread(on_message, kind, data)
                if kind in ("execution_success", "execution_error", "execution_interrupted"):
                    break
        return prompt_id

    def files(self, outputs: dict[str, dict]) -> list[Path]:
        """The files named in what `submit` returned, in the order of the nodes."""
        roots = {"output": self.output, "temp": self.folder / "temp", "input": self.input}
        lists = [shown for node in outputs.values() for shown in node.values() if isinstance(shown, list)]
        return [roots[item["type"]] / item["subfolder"] / item["filename"]
                for shown in lists for item in shown if isinstance(item, dict) and "filename" in item]


def progress_text(message: bytes) -> dict[str, str]:
    """The node id and the text of the server's binary message: kind, length of the id, id, text."""
    begin = 8 + int.from_bytes(message[4:8], "big")
    return {"node": message[8:begin].decode(), "text": message[begin:].decode()}


def outputs_of(entry: dict) -> dict[str, dict]:
    """What a history entry's output nodes show. Raises ExecutionFailed or Interrupted."""
    for kind, message in entry["status"]["messages"]:
        if kind == "execution_error":
            raise ExecutionFailed(message)
        if kind == "execution_interrupted":
            raise Interrupted(f"stopped at node {message.get('node_id')}")
    return entry["outputs"]
