"""What the specifications of h-space injection and the latent basis ask of real weights: for a checkpoint of yours.

    FROZEN_BENCH_CHECKPOINT=/models/v1-5.safetensors FROZEN_BENCH_VISION=/models/clip_vision_l.safetensors \
        make -s bench NAME=real-checkpoint

SD1.5, SD2 or SDXL; a GPU is advised. Pictures are made by the checkpoint from the prompts below. VISION is a CLIP
vision model of the host's, by which pictures are compared. Without CHECKPOINT the script runs on sprite world, which
shows that it works and nothing else. FROZEN_BENCH_PROMPTS: how many pictures (5). What a prompt asks for is judged by
a picture that the checkpoint makes of it: a text score needs a projection that Stable Diffusion's files do not have.
"""
from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import comfy.clip_vision
import comfy.samplers
import comfy.sd
import torch
import torch.nn.functional as F
from bench._sprite_world import World, load_world, prompts
from bench.basis_edit import random_direction, tangents
from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel
from torch import Tensor

from frozen_diffusion.modules.basis.basis import LatentBasis
from frozen_diffusion.modules.basis.geometry import (
    curvedness,
    lerp,
    low_frequency_share,
    principal_angles,
    slerp,
)
from frozen_diffusion.modules.basis.lanczos import lanczos
from frozen_diffusion.modules.basis.products import Jacobian
from frozen_diffusion.modules.basis.subspace_iteration import subspace_iteration
from frozen_diffusion.modules.basis.transport import transport
from frozen_diffusion.modules.curve import Curve
from frozen_diffusion.modules.host.attention import attend_plainly
from frozen_diffusion.modules.host.basis.compute import BasisRequest, compute_basis, encoder_of, jacobian_of
from frozen_diffusion.modules.host.basis.edit import ADDITION, GUIDANCE, EditRequest, edit
from frozen_diffusion.modules.host.basis.encoder import RecordedCall
from frozen_diffusion.modules.host.guiders import guider_of
from frozen_diffusion.modules.host.hspace.inversion import invert
from frozen_diffusion.modules.host.hspace.sampling import InjectionRequest, injection_sampler
from frozen_diffusion.modules.host.vae import vae_pixels
from frozen_diffusion.modules.host.weights import copy_unet
from frozen_diffusion.modules.hspace.steps import InjectionSettings
from frozen_diffusion.modules.hspace.timesteps import ssim_distance
from frozen_diffusion.modules.seeding import stream

REAL = ("a portrait photo of a woman", "a photo of a dog on grass", "an oil painting of a harbour",
        "a photo of a red car", "a mountain lake at sunrise", "a portrait photo of an old man", "a cat on a sofa",
        "a bowl of fruit on a table")
SPRITES = ("a small red cat on a blue background", "a large banana on a green background",
           "a small star on a yellow background", "a large fish on a purple background")
GAMMAS, STEPS, SEED = (0.0, 0.1, 0.3, 0.5, 0.7, 1.0), 50, 900
RANK, EDIT_STEPS = 5, 20


@dataclass(frozen=True)
class Given:
    """A checkpoint, prompts that suit it, and the side of its latents."""
    world: World
    texts: tuple[str, ...]
    side: int
    count: int

    def text(self, prompt: str) -> list:
        return self.world.clip.encode_from_tokens_scheduled(self.world.clip.tokenize(prompt))

    @cached_property
    def empty(self) -> list:
        return self.text("")

    def sigma_at(self, share: float) -> float:
        """The noise level at a share of all timesteps."""
        sampling = self.world.model.get_model_object("model_sampling")
        return float(sampling.sigmas[round(share * (len(sampling.sigmas) - 1))])

    def denoise(self, latent: Tensor, start: float, end: float = 0.0, prompt: str = "") -> Tensor:
        """LATENT samples taken from one noise level to another by Euler's method, cfg 1."""
        sampling = self.world.model.get_model_object("model_sampling")
        levels = [sigma for sigma in comfy.samplers.calculate_sigmas(sampling, "normal", EDIT_STEPS).tolist()
                  if end < sigma < start]
        sigmas = torch.tensor([start, *levels, end])
        return guider_of(self.world.model, self.text(prompt)).sample(
            torch.zeros_like(latent), latent, comfy.samplers.sampler_object("euler"), sigmas, disable_pbar=True,
            seed=0).cpu()

    def noisy(self, number: int, share: float) -> Tensor:
        """A latent that the checkpoint has sampled down to a share of all timesteps."""
        highest = self.sigma_at(1.0)
        noise = torch.randn(1, 4, self.side, self.side, generator=stream("real checkpoint", SEED, number))
        pure = noise * highest / self.world.model.model.latent_format.scale_factor
        return pure if share == 1 else self.denoise(pure, highest, self.sigma_at(share), self.prompt(number))

    def prompt(self, number: int) -> str:
        return self.texts[number % len(self.texts)]

    @cached_property
    def pictures(self) -> list[Tensor]:
        """LATENT samples of finished pictures, one for each prompt in turn; one more than `count`."""
        return [self.denoise(self.noisy(number, 1.0), self.sigma_at(1.0), prompt=self.prompt(number))
                for number in range(self.count + 1)]

    def pixels(self, latent: Tensor) -> Tensor:
        return vae_pixels(self.world.vae, latent)

    def seen(self, latent: Tensor) -> Tensor | None:
        """Unit embeddings of the pictures by CLIP vision [N, d], None without one."""
        if self.world.vision is None:
            return None
        embeds = self.world.vision.encode_image(self.pixels(latent).movedim(1, -1), crop=False).image_embeds
        return F.normalize(embeds.float().cpu(), dim=-1)


def load() -> Given:
    """The checkpoint of the environment, or sprite world. Raises FileNotFoundError."""
    path, vision = (os.environ.get(f"FROZEN_BENCH_{name}") for name in ("CHECKPOINT", "VISION"))
    if path is None:
        return Given(load_world(), SPRITES, 16, prompts(2))
    for file in filter(None, (path, vision)):
        if not Path(file).is_file():
            raise FileNotFoundError(f"There is no file {file}. Give the paths of a checkpoint and a CLIP vision model.")
    model, clip, vae = comfy.sd.load_checkpoint_guess_config(path)[:3]
    side = 128 if model.model.model_config.unet_config.get("num_classes") else 64
    return Given(World(model, clip, vae, vision and comfy.clip_vision.load(vision)), REAL, side, prompts(5))


def gram(latent: Tensor) -> Tensor:
    """Gram matrix of the latents' patches of 3x3 cells, a small stand-in for VGG's: [N, 9 C, 9 C]."""
    patches = F.unfold(latent - latent.mean((2, 3), keepdim=True), 3)
    return patches @ patches.transpose(1, 2) / patches.shape[2]


def similarity(a: Tensor | None, b: Tensor | None) -> float | None:
    return None if a is None or b is None else float((a * b).sum(-1).mean())


def injection_over_gamma(given: Given) -> dict:
    """Similarity to the content and Gram distance to the original at every gamma, cfg 1, empty prompt."""
    rows = {gamma: {"content": [], "gram": []} for gamma in GAMMAS}
    for number in range(given.count):
        original, content = given.pictures[number], given.pictures[number + 1]
        trace = invert(given.world.model, given.empty, content, STEPS, way_back=False).trace
        start = invert(given.world.model, given.empty, original, STEPS, way_back=False)
        for gamma, row in rows.items():
            settings = InjectionSettings(gamma=Curve(((0.0, gamma),)), t_boost=-1)
            sampler = injection_sampler(InjectionRequest(trace, settings))
            out = guider_of(given.world.model, given.empty).sample(
                torch.zeros_like(start.noise), start.noise, sampler, start.sigmas, disable_pbar=True, seed=0).cpu()
            row["content"].append(similarity(given.seen(out), given.seen(content)))
            row["gram"].append(float((gram(out) - gram(original)).norm() / gram(original).norm()))
    return {gamma: {name: mean(values) for name, values in row.items()} for gamma, row in rows.items()}


def mean(values: list[float | None]) -> float | None:
    return None if None in values else sum(values) / len(values)


def basis_at(given: Given, number: int, share: float, prompt: str = "") -> tuple[LatentBasis, Tensor, Tensor]:
    """(basis with a prompt in J, its latent, sigmas from there) of a picture in the making."""
    latent, sigma = given.noisy(number, share), given.sigma_at(share)
    sigmas = torch.tensor([sigma, 0.0])
    return compute_basis(given.world.model, given.text(prompt), latent, sigmas, BasisRequest(RANK))[0], latent, sigmas


def edited(given: Given, basis: LatentBasis, latent: Tensor, sigmas: Tensor, method: str = GUIDANCE) -> Tensor:
    """Finished LATENT samples of the first direction, there, still and back; 16 far for latents of 64x64."""
    request = EditRequest(strength=0.12 * latent.numel() ** 0.5, count=3, method=method)
    rows, _ = edit(given.world.model, given.empty, latent, sigmas, basis, request)
    return given.denoise(rows, float(sigmas[0]))


def directions_against_noise(given: Given) -> dict:
    """Change of what CLIP sees, and share of low frequencies in the change of pixels: v_1 and a random direction."""
    found = {name: {"clip": [], "low": []} for name in ("v", "random")}
    for number in range(given.count):
        basis, latent, sigmas = basis_at(given, number, 0.7)
        for name, used in (("v", basis), ("random", random_direction(basis, number))):
            rows = edited(given, used, latent, sigmas, ADDITION)
            pixels = given.pixels(rows)
            seen = given.seen(rows)
            found[name]["clip"].append(None if seen is None else 1 - similarity(seen[[0, 2]], seen[[1, 1]]))
            found[name]["low"].append(low_frequency_share(pixels[[0, 2]] - pixels[1]))
    return {name: {kind: mean(values) for kind, values in row.items()} for name, row in found.items()}


def guidance_against_addition(given: Given) -> dict:
    """SSIM distance to the source for every unit of change that CLIP sees: less is better."""
    found = {GUIDANCE: [], ADDITION: []}
    for number in range(given.count):
        basis, latent, sigmas = basis_at(given, number, 0.7)
        for method, values in found.items():
            rows = edited(given, basis, latent, sigmas, method)
            pixels, seen = given.pixels(rows), given.seen(rows)
            change = None if seen is None else max(1e-6, 1 - similarity(seen[[0, 2]], seen[[1, 1]]))
            away = float(ssim_distance(pixels[[0, 2]], pixels[[1, 1]]).mean())
            values.append(None if change is None else away / change)
    return {method: mean(values) for method, values in found.items()}


def early_edits_are_coarse(given: Given) -> dict:
    """Share of low frequencies in the change of pixels, edited at 0.9 and at 0.5 of the timesteps."""
    shares = {}
    for share in (0.9, 0.5):
        values = []
        for number in range(given.count):
            basis, latent, sigmas = basis_at(given, number, share)
            pixels = given.pixels(edited(given, basis, latent, sigmas))
            values.append(low_frequency_share(pixels[[0, 2]] - pixels[1]))
        shares[share] = mean(values)
    return shares


def coverage_of_transport(given: Given) -> dict:
    """How much of a direction exists in the next picture, at 0.95 and 0.5 of the timesteps."""
    covered = {}
    for share in (0.95, 0.5):
        bases = [basis_at(given, number, share)[0] for number in range(given.count + 1)]
        covered[share] = mean([transport(a.U[0], b).coverage for a, b in zip(bases[:-1], bases[1:], strict=True)])
    return covered


def spectra(given: Given) -> dict:
    """s_1 / s_5 of the Jacobians of h and of the U-Net's whole output at 0.7 of the timesteps."""
    unet, ratios = copy_unet(given.world.model), {"h": [], "eps": []}
    for number in range(given.count):
        basis, latent, sigmas = basis_at(given, number, 0.7)
        ratios["h"].append(float(basis.s[0] / basis.s[4]))
        call = encoder_of(given.world.model, given.empty, latent, sigmas)[0].call
        *_, last = lanczos(Jacobian(whole(unet.to(call.x.device), call), call.x), RANK)
        ratios["eps"].append(float(last.found.s[0] / last.found.s[4]))
    return {name: mean(values) for name, values in ratios.items()}


def whole(unet: UNetModel, call: RecordedCall) -> Callable[[Tensor], Tensor]:
    """The U-Net's output as a function of the latent, with the forward derivative that fused attention lacks."""
    options = {"optimized_attention_override": attend_plainly}
    return lambda x: unet(x, call.timesteps, call.context, call.y, transformer_options=options)


def paths(given: Given) -> dict:
    """Semantic path length between two latents of pure noise, straight and on the great circle."""
    lengths = {"lerp": [], "slerp": []}
    sigmas = torch.tensor([given.sigma_at(1.0), 0.0])
    for number in range(given.count):
        ends = [encoder_of(given.world.model, given.empty, given.noisy(number + side, 1.0), sigmas)[0]
                for side in range(2)]
        for name, path in (("lerp", lerp), ("slerp", slerp)):
            lengths[name].append(sum(curvedness(path(ends[0].x, ends[1].x, 8), tangents(ends[0]))))
    return {name: mean(values) for name, values in lengths.items()}


def prompt_in_jacobian(given: Given) -> dict:
    """Similarity to a picture of the next prompt, of the better sign of v_1: with that prompt in J and without."""
    found = {"prompt": [], "empty": []}
    for number in range(given.count):
        wanted = given.seen(given.pictures[number + 1])
        for name, prompt in (("prompt", given.prompt(number + 1)), ("empty", "")):
            seen = given.seen(edited(given, *basis_at(given, number, 0.7, prompt)))
            found[name].append(None if seen is None else max(similarity(seen[[row]], wanted) for row in (0, 2)))
    return {name: mean(values) for name, values in found.items()}


def directions_over_time(given: Given) -> dict:
    """Share of low frequencies in the directions themselves, at falling shares of the timesteps."""
    return {share: mean([low_frequency_share(basis_at(given, number, share)[0].V) for number in range(given.count)])
            for share in (1.0, 0.8, 0.6, 0.4, 0.2)}


def released_solver(given: Given) -> dict:
    """Ours against the released iteration, k = 2, on each latent: angle in degrees and relative error of s."""
    angles, errors = [], []
    for number in range(given.count):
        latent, sigmas = given.noisy(number, 0.7), torch.tensor([given.sigma_at(0.7), 0.0])
        jacobian = jacobian_of(encoder_of(given.world.model, given.empty, latent, sigmas)[0])
        ours, theirs = ([*steps][-1].found for steps in (lanczos(jacobian, 2),
                                                         subspace_iteration(jacobian, 2, official=True)))
        angles.append(float(principal_angles(ours.V, theirs.V).max().rad2deg()))
        errors.append(float((ours.s.cpu() / theirs.s.cpu() - 1).abs().max()))
    return {"degrees": max(angles), "relative": max(errors)}


def verdicts(rows: dict) -> Iterator[tuple[str, bool | None]]:
    """(what the paper says, whether it shows here); None where CLIP vision was not given."""
    curve = rows["injection_over_gamma"]
    contents, grams = ([row[name] for row in curve.values()] for name in ("content", "gram"))
    yield "content rises with gamma", None if None in contents else contents[-1] > contents[0]
    yield "style falls with gamma", grams[-1] > grams[0]
    noise = rows["directions_against_noise"]
    yield "v changes more than noise", noise["v"]["clip"] and noise["v"]["clip"] > noise["random"]["clip"]
    yield "v changes coarse things", noise["v"]["low"] > noise["random"]["low"]
    ways = rows["guidance_against_addition"]
    yield "guidance keeps more than addition", ways[GUIDANCE] and ways[GUIDANCE] < ways[ADDITION]
    for name, key in (("early edits are coarse", "early_edits_are_coarse"),
                      ("transport loses coverage", "coverage_of_transport")):
        early, late = rows[key].values()
        yield name, early > late
    yield "h has the steeper spectrum", rows["spectra"]["h"] > rows["spectra"]["eps"]
    asked = rows["prompt_in_jacobian"]
    yield "a prompt in J draws towards it", asked["prompt"] and asked["prompt"] > asked["empty"]
    shares = list(rows["directions_over_time"].values())
    yield "directions grow finer", shares[0] > shares[-1]
    solver = rows["released_solver"]
    yield "the solvers agree", solver["degrees"] < 0.5 and solver["relative"] < 1e-3
    yield "the great circle is shorter", rows["paths"]["slerp"] < rows["paths"]["lerp"]


ROWS = (injection_over_gamma, directions_against_noise, guidance_against_addition, early_edits_are_coarse,
        coverage_of_transport, spectra, prompt_in_jacobian, directions_over_time, released_solver, paths)


@torch.inference_mode()
def run() -> dict:
    """`hold`: fraction of the paper's statements that show on this checkpoint, of those that could be measured."""
    given = load()
    rows = {row.__name__: row(given) for row in ROWS}
    told = dict(verdicts(rows))
    measured = [bool(holds) for holds in told.values() if holds is not None]
    return {"figures": {"hold": sum(measured) / len(measured)},
            "context": {"checkpoint": os.environ.get("FROZEN_BENCH_CHECKPOINT", "sprite world: a trial of the script"),
                        "pictures": given.count, "seeds": [SEED], "steps": STEPS, "holds": told, "rows": rows}}
