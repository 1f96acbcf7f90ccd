"""The real server: the pack loads by the host's own loader, graphs run, errors and interrupts come back."""
import pytest

from testhost.server import ExecutionFailed, Interrupted, PromptRejected

PICTURE = {
    "1": {"class_type": "EmptyImage", "inputs": {"width": 32, "height": 16, "batch_size": 2, "color": 255}},
    "2": {"class_type": "SaveImage", "inputs": {"images": ["1", 0], "filename_prefix": "test"}},
}


def test_pack_is_loaded(server, comfy):
    """The host's log shows no failed import and its node list holds our nodes, filed under our pack."""
    assert "IMPORT FAILED" not in server.log() and "Error while calling comfy_entrypoint" not in server.log()
    known = server.object_info()
    for node in comfy.pack:
        assert known[node.GET_SCHEMA().node_id]["python_module"] == f"custom_nodes.{server.pack_name}"


def test_graph_runs_to_files(server):
    """A graph ends in files under the output folder, and its messages can be followed."""
    kinds = []
    files = server.files(server.submit(PICTURE, on_message=lambda kind, data: kinds.append(kind)))
    assert len(files) == 2 and all(path.is_file() and path.is_relative_to(server.output) for path in files)
    assert "execution_success" in kinds


def test_rejected_graph_names_the_input(server):
    """A value out of range comes back as an error of that node."""
    graph = PICTURE | {"1": {"class_type": "EmptyImage", "inputs": PICTURE["1"]["inputs"] | {"width": -1}}}
    with pytest.raises(PromptRejected, match="EmptyImage.*width") as caught:
        server.submit(graph)
    assert list(caught.value.node_errors) == ["1"]


def test_failed_node_gives_its_text(server):
    """What a node raises reaches the client with the node's name."""
    graph = PICTURE | {"2": {"class_type": "SaveImage",
                             "inputs": {"images": ["1", 0], "filename_prefix": "../outside"}}}
    with pytest.raises(ExecutionFailed, match="SaveImage.*outside"):
        server.submit(graph)


def test_interrupt_stops_a_run(server):
    """A run stopped in the middle says so, and the next one works."""
    small = {"width": 512, "height": 512, "batch_size": 1, "color": 7}
    chain = {"0": {"class_type": "EmptyImage", "inputs": small}}
    for step in range(1, 9):
        chain[str(step)] = {"class_type": "ImageScale", "inputs": {
            "image": [str(step - 1), 0], "upscale_method": "lanczos", "width": 2048 + step, "height": 2048,
            "crop": "disabled"}}
    chain["9"] = {"class_type": "PreviewImage", "inputs": {"images": ["8", 0]}}

    def stop(kind: str, data: dict) -> None:
        if kind == "executing":
            server.interrupt()

    with pytest.raises(Interrupted):
        server.submit(chain, on_message=stop)
    assert server.submit(PICTURE)
