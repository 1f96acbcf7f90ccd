"""A latent basis: directions in x, their images in h-space, and the file that keeps them."""
from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from ..files.checks import check_file, check_format, read_header
from .triplets import Triplets, canonical

FORMAT, VERSION = "frozen-diffusion latent basis", "1"
SAME_PLANE_GAP = 0.02             # relative gap below which two singular values share a plane of directions
TENSORS = ("V", "U", "s", "residuals")
MIDDLE, MOST_BLOCKS = "middle", 12
# Where h is read: the output of one block of the U-Net. SDXL has fewer of them than SD1.5 and SD2.
BLOCKS = (MIDDLE, *(f"{side} {number}" for side in ("input", "output") for number in range(MOST_BLOCKS)))
TRANSPORT, GLOBAL, PROMPT = "transport", "global basis", "prompt direction"
DERIVED = (TRANSPORT, GLOBAL, PROMPT)   # what stands in the place of a solver where none ran


class BasisFileError(ValueError):
    """A file is not a usable latent basis; the message says what it is and what to do."""


@dataclass(frozen=True)
class LatentBasis:
    """The tangent space of one latent at one noise level: J v_i = s_i u_i.

    Attributes:
        V: [k, C, H, W] float32, unit directions in x_t of the variance-preserving scale (what the U-Net sees).
        U: [k, ...] float32, unit directions in h, [k, C', H', W'] if h is not pooled.
        s: [k] float32, descending.
        residuals: [k] float32, || J^T u_i - s_i v_i ||.
        t: timestep, 0..999 for Stable Diffusion; sigma: the noise level in the host's scale.
        about: model, prompt and latent by their fingerprints, solver, products and the like, in words.
    """
    V: Tensor
    U: Tensor
    s: Tensor
    residuals: Tensor
    t: float
    sigma: float
    provenance: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self):
        k = len(self.V)
        if k == 0 or self.V.ndim != 4 or self.U.ndim < 2 or {len(self.U), len(self.s), len(self.residuals)} != {k}:
            shapes = ", ".join(f"{name} {list(getattr(self, name).shape)}" for name in TENSORS)
            raise ValueError(f"A latent basis has V [k, C, H, W], U [k, ...], s [k] and residuals [k] with one k of at "
                             f"least 1; {shapes} were given.")

    @property
    def block(self) -> str:
        """The U-Net's block whose output is h, one of BLOCKS. Files of before there was a choice are of the middle."""
        return self.provenance.get("block", MIDDLE)

    @property
    def network_timestep(self) -> float:
        """The timestep that the U-Net was given: t, unless Compute Latent Basis was told another."""
        return float(self.provenance.get("network_timestep", self.t))

    @property
    def solved(self) -> bool:
        """Whether a solver computed it, so that s and residuals are figures and not placeholders."""
        return self.provenance.get("solver") not in DERIVED

    @property
    def gaps(self) -> Tensor:
        """[k - 1] relative gaps (s_i - s_(i+1)) / s_i."""
        return (self.s[:-1] - self.s[1:]) / self.s[:-1]

    @property
    def groups(self) -> tuple[tuple[int, ...], ...]:
        """The indices 0..k-1 in runs of near-equal s. Within a run only the span means something: the single
        directions are an arbitrary rotation of one another."""
        runs = [[0]]
        for index, gap in enumerate(self.gaps.tolist(), 1):
            if gap < SAME_PLANE_GAP:
                runs[-1].append(index)
            else:
                runs.append([index])
        return tuple(tuple(run) for run in runs)


def check_blocks(bases: Sequence[LatentBasis]) -> None:
    """Raises ValueError for bases of different blocks: their h have nothing to do with one another."""
    if len({basis.block for basis in bases}) > 1:
        raise ValueError(f"The bases belong to different blocks of the U-Net: "
                         f"{', '.join(basis.block for basis in bases)}. Compute them with the same block.")


def latent_basis(found: Triplets, t: float, sigma: float, provenance: Mapping[str, str] | None = None) -> LatentBasis:
    """The basis of what a solver found, in float32 on the CPU: unit U and canonical signs whatever the solver gave."""
    V, U, s, residuals = (tensor.float().cpu() for tensor in (found.V, found.U, found.s, found.residuals))
    v, u = V.flatten(1), U.flatten(1)
    v, u = canonical(v / v.norm(dim=1, keepdim=True), u / u.norm(dim=1, keepdim=True))
    told = {key: str(value) for key, value in (provenance or {}).items()}
    return LatentBasis(v.view(V.shape), u.view(U.shape), s, residuals, float(t), float(sigma), told)


def basis_tensors(basis: LatentBasis) -> tuple[dict[str, Tensor], dict[str, str]]:
    """(tensors, metadata) as a file holds them."""
    tensors = {name: getattr(basis, name).detach().float().cpu().contiguous() for name in TENSORS}
    return tensors, {"format": FORMAT, "format_version": VERSION, "t": repr(float(basis.t)),
                     "sigma": repr(float(basis.sigma)), "scale": "variance preserving",
                     "about": json.dumps(dict(basis.provenance))}


def _number(metadata: Mapping[str, str], name: str) -> float:
    """A field of the metadata. Raises KeyError, or ValueError that names the field."""
    try:
        return float(metadata[name])
    except ValueError as error:
        raise ValueError(f"{name} is {metadata[name]!r} in its metadata, not a number") from error


def read_basis(path: str | Path) -> LatentBasis:
    """Read a file of `basis_tensors`.

    Raises FileNotFoundError, or BasisFileError (a ValueError) that says what the file is instead or what is wrong.
    """
    path = Path(path)
    check_file(path, BasisFileError)
    metadata = read_header(path).get("__metadata__") or {}
    check_format(path, metadata, FORMAT, VERSION, "latent basis", "Save Basis", BasisFileError)
    try:
        tensors = load_file(path)
        provenance = json.loads(metadata["about"])
        basis = LatentBasis(*(tensors[name].float() for name in TENSORS), _number(metadata, "t"),
                            _number(metadata, "sigma"), provenance)
    except (SafetensorError, KeyError, ValueError, TypeError) as error:
        raise BasisFileError(f"{path.name} is a damaged latent basis ({error}). Compute it "
                             "again.") from error
    broken = [name for name in TENSORS if not bool(tensors[name].isfinite().all())]
    if broken:
        raise BasisFileError(f"{path.name}: {', '.join(broken)} not finite (NaN or infinity). Make the latent basis "
                             "again.")
    return basis
