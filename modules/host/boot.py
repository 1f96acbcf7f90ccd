"""Find a ComfyUI and make it importable in this process: for the command line, benchmarks and tests.

Inside a running ComfyUI nothing here is used. Imports the standard library only, until `boot_comfyui` runs.
"""
from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path

PACK = Path(__file__).resolve().parents[2]      # the checkout


def is_comfyui(folder: Path) -> bool:
    """Whether `folder` is the root of a ComfyUI tree."""
    return (folder / "main.py").is_file() and (folder / "comfy" / "sd.py").is_file()


def find_comfyui() -> Path:
    """The ComfyUI to use: COMFYUI_PATH, else the one around this pack, else `.comfyui` in the checkout.

    The answer need not exist yet when it is `.comfyui`: `make test` and `make demo` put it there.
    Raises FileNotFoundError when COMFYUI_PATH is set to something that is not a ComfyUI.
    """
    named = os.environ.get("COMFYUI_PATH")
    if named:
        folder = Path(named).expanduser().resolve()
        if not is_comfyui(folder):
            raise FileNotFoundError(f"COMFYUI_PATH is {named!r}, but there is no ComfyUI in it: expected a "
                                    "folder with main.py and comfy/. Correct the path or unset COMFYUI_PATH.")
        return folder
    around = Path(os.path.abspath(__file__)).parents[4]     # ./custom_nodes/<pack>/modules/host/boot.py
    return around if is_comfyui(around) else PACK / ".comfyui"


def boot_comfyui(arguments: Sequence[str] = ()) -> Path:
    """Make `import comfy` work in this process and fix its settings; returns the folder of the ComfyUI.

    `arguments` are ComfyUI's own command-line flags; `--cpu` is added where torch finds no accelerator.
    Calling it again changes nothing: ComfyUI reads its flags once, at import. Raises FileNotFoundError
    if there is no ComfyUI.
    """
    folder = find_comfyui()
    if "comfy.cli_args" in sys.modules:
        return folder
    if not is_comfyui(folder):
        raise FileNotFoundError(f"no ComfyUI found around {PACK} or in {folder}. Set COMFYUI_PATH to the "
                                "folder of yours, or run `make demo` once, which fetches one.")
    import torch
    mps = torch.backends.mps.is_available()
    flags = [*arguments, *([] if torch.cuda.is_available() or mps or "--cpu" in arguments else ["--cpu"])]
    sys.path.insert(0, str(folder))     # first, so that `import nodes` finds the host's file
    given, sys.argv = sys.argv, ["main.py", *flags]
    try:
        import comfy.options
        comfy.options.enable_args_parsing(True)
        import comfy.cli_args  # noqa: F401 (reads sys.argv at import)
    finally:
        sys.argv = given
    import comfy.model_management  # noqa: F401 (asks for the devices at import)
    return folder
