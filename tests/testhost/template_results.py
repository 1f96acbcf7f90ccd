"""What the templates give on one ComfyUI, as numbers that those of another can be compared with.

    PYTHONPATH=tests python -m testhost.template_results FOLDER [NAME ...]      the ComfyUI of COMFYUI_PATH
"""
from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image
from safetensors.torch import load_file

from frozen_diffusion.modules.host.boot import PACK

from .server import ExecutionFailed, PromptRejected, Server
from .workflow import api_graph, inputs_of

MOTION = "frozen-diffusion/sprite_motion.safetensors"
LORA = "frozen-diffusion/sprite_zigzag.safetensors"
STEPS = 6                               # of the reduced templates


def with_embedded_files(graph: Mapping[str, dict]) -> dict:
    """A graph whose loaders of the user's own files load what comes with the pack, at sprite world's size."""
    changed = {}
    for key, node in graph.items():
        inputs = dict(node["inputs"])
        changed[key] = {**node, "inputs": inputs}
        match node["class_type"]:
            case "CheckpointLoaderSimple":      # a stand-in for the user's own checkpoint: the one exchange it takes
                changed[key] = {**node, "class_type": "FrozenLoadSpriteWorld", "inputs": {}}
            case "FrozenLoadMotionModule":
                if not inputs["motion_file"].startswith("frozen-diffusion/"):
                    inputs["motion_file"] = MOTION
            case "FrozenLoadMotionLoRA":
                if not inputs["lora_file"].startswith("frozen-diffusion/"):
                    inputs["lora_file"] = LORA
            case "FrozenLoadCLIPPair":
                changed["own world"] = {"class_type": "FrozenLoadSpriteWorld", "inputs": {}}
                changed[key] = {**node, "class_type": "FrozenCLIPPair",
                                "inputs": {"clip": ["own world", 1], "clip_vision": ["own world", 3]}}
            case "FrozenImageSet":
                if inputs["folder"]:            # a stand-in for the user's own pictures
                    changed[f"own {key}"] = {"class_type": "FrozenSpriteScenes", "inputs": {
                        "clip": ["own world", 1], "count": 60, "seed": int(key) if key.isdecimal() else len(changed)}}
                    inputs |= {"folder": "", "images": [f"own {key}", 0]}
            case "EmptyLatentImage":
                inputs |= {"width": 128, "height": 128}
    return changed


def keyed(graph: Mapping[str, dict], keys: Sequence[str]) -> dict:
    """An API graph with words for its numbers: node 1 is the first of `keys`."""
    words = {str(number): key for number, key in enumerate(keys, 1)}
    return {words[number]: {**node, "inputs": {name: [words[value[0]], value[1]] if isinstance(value, list) else value
                                               for name, value in node["inputs"].items()}}
            for number, node in graph.items()}


def reduced(name: str, object_info: Mapping) -> dict:
    """A template's graph as the page would queue it; small where only time is saved."""
    workflow = json.loads((PACK / "workflows" / f"{name}.json").read_text(encoding="utf-8"))
    graph = with_embedded_files(api_graph(workflow, object_info))
    for node in graph.values():
        inputs = node["inputs"]
        match node["class_type"]:
            case "KSampler" | "BasicScheduler":
                inputs["steps"] = min(inputs["steps"], STEPS)
            case "FrozenInvertDDIM" | "FrozenCalibrateTimesteps":
                inputs["steps"] = STEPS
            case "SplitSigmas":
                inputs["step"] = 2
            case "FrozenEditAlongBasis":
                inputs |= {"count": 3, "steps": 2}
            case "FrozenComputeLatentBasis":
                inputs["rank"] = 2
            case "FrozenClipDataset":
                inputs["max_clips"] = 4
            case "FrozenSpriteScenes":
                inputs["count"] = 8
            case "FrozenAttributes":
                inputs |= {"source": "text below", "text": "a dog, a cat, a red background, a blue background"}
            case "FrozenAttributeReport":
                inputs["chance"] = False
            case "FrozenTrainFurryGAN":
                inputs |= {"steps": 2, "sample_every": 0, "channels": 16, "batch_size": 4}
            case "FrozenForegroundFromImage":
                inputs["steps"] = 10
            case "FrozenForegroundWalk":
                inputs["frames"] = 4
            case "FrozenSegmentationPairs":
                inputs["count"] = 4
            case "FrozenTrainMotionModule":
                inputs |= {"steps": 2, "sample_every": 0, "trs_from": 0, "accumulate": 1}
            case "FrozenTrainGuideModel":
                inputs |= {"steps": 2, "sample_every": 0, "trajectories": 2, "trajectory_steps": 3}
            case "FrozenTrainAbsorber":
                inputs |= {"steps": 2, "sample_every": 0, "crops": 4}
            case "FrozenTrainMotionLoRA":
                inputs |= {"steps": 2, "sample_every": 0, "prompts": ""}
    return graph


def results_of(graph: Mapping, object_info: Mapping) -> Iterator[tuple[str, list]]:
    """(LATENT or IMAGE, link) of what a graph ends in: latents to be decoded, pictures to be shown or saved."""
    for node in graph.values():
        schema = object_info[node["class_type"]]
        for name, kind, _ in inputs_of(schema):
            link = node["inputs"].get(name)
            decodes = kind == "LATENT" and node["class_type"].startswith("VAEDecode")
            shows = kind == "IMAGE" and (schema["output_node"] or node["class_type"] == "CreateVideo")
            if isinstance(link, list) and (decodes or shows):
                yield kind, link


def with_savers(graph: Mapping, object_info: Mapping) -> dict:
    """The graph and a node of the host that saves each of its results, under the name `result_<number>`."""
    savers = {"LATENT": ("SaveLatent", "samples"), "IMAGE": ("SaveImage", "images")}
    found = {json.dumps(link): (kind, link) for kind, link in results_of(graph, object_info)}
    more = {}
    for number, (kind, link) in enumerate(found.values()):
        saver, name = savers[kind]
        more[f"result_{number}"] = {"class_type": saver,
                                    "inputs": {name: link, "filename_prefix": f"result_{number}"}}
    return {**graph, **more}


def run_template(server: Server, name: str) -> dict[str, np.ndarray]:
    """Latents [..] fp32 and pictures [N, H, W, C] uint8 of one template. Raises as Server.submit and api_graph do."""
    info = server.object_info()
    shown = server.submit(with_savers(reduced(name, info), info), seconds=1800)
    results = {}
    for key in sorted(key for key in shown if key.startswith("result_")):
        files = server.files({key: shown[key]})
        if files[0].suffix == ".latent":
            results[f"{key}_latent"] = load_file(files[0])["latent_tensor"].float().numpy()
        else:
            results[f"{key}_picture"] = np.stack([np.asarray(Image.open(file)) for file in files])
    return results


def main(folder: Path, names: list[str]) -> int:
    """Write FOLDER/<template>.npz, or .txt with the error; returns the exit status."""
    folder.mkdir(parents=True, exist_ok=True)
    names = names or sorted(path.stem for path in (PACK / "workflows").glob("*.json"))
    with tempfile.TemporaryDirectory() as output, Server(Path(output)) as server:
        for name in names:
            print(name, file=sys.stderr, flush=True)
            try:
                np.savez_compressed(folder / f"{name}.npz", **run_template(server, name))
            except (PromptRejected, ExecutionFailed, ValueError) as error:
                (folder / f"{name}.txt").write_text(str(error))
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), sys.argv[2:]))
