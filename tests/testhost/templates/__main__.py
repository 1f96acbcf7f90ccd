"""PYTHONPATH=tests python -m testhost.templates: writes workflows/*.json and removes those that have no source."""
import tempfile
from pathlib import Path

from frozen_diffusion.modules.host.boot import PACK

from ..server import LINK, Server, free_port
from .write import write_all

with tempfile.TemporaryDirectory() as output, Server(LINK, Path(output), free_port()) as server:
    written = write_all(PACK / "workflows", server.object_info())
    for path in sorted({*(PACK / "workflows").glob("*.json")} - {*written}):
        path.unlink()
    for path in written:
        print(path.relative_to(PACK))
