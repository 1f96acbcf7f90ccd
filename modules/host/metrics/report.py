"""From sets of pictures to a report: encoding the attributes, the ruler, the comparisons, the pictures."""
from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ...data.cache import TensorCache
from ...files.provenance import same_model
from ...metrics.attributes import AttributeList
from ...metrics.compare import Comparison, compare, without_chance
from ...metrics.divergence import PRESETS, Settings, sad
from ...metrics.hcs import TEMPLATED, Ruler, alike_attributes, finite_rows, text_directions
from ...metrics.neighbours import K, Neighbours, neighbours
from ...metrics.report import as_csv, as_json, conclusion, report_text, versus
from ...metrics.report_picture import Extremes, report_picture
from ..files import cache_folder
from .clip_pair import ClipPair, interruptible
from .image_sets import ImageSet, rows_of_images

APART = 0.2             # relative difference of median sizes or shapes that is worth a line
NEIGHBOURS = 3000       # pictures of a set whose neighbours are sought
LEAST_OF_FOLDER = 4     # pictures of a sub-folder that is scored by itself
EXTREMES = 4            # thumbnails of a kind
SHOWN = 3               # attributes whose extremes are shown


@dataclass(frozen=True)
class Report:
    """What the node hands out."""

    picture: Tensor
    text: str
    csv: str
    json: str
    comparisons: Mapping[str, Comparison]
    ruler: Ruler


def make_ruler(reference: ImageSet, attributes: AttributeList, text_centre: str) -> Ruler:
    """The ruler of a reference set. Raises AttributeListError for a list that gives no scores."""
    templated, bare = encoded_list(reference.pair, attributes)
    directions = text_directions(templated, bare, attributes.groups, text_centre)
    return Ruler(attributes.names, attributes.groups, directions, reference.features.double().mean(0), len(reference),
                 reference.pair.identity, text_centre, attributes.hash, reference.colour)


def encoded_list(pair: ClipPair, attributes: AttributeList) -> tuple[Tensor, Tensor]:
    """(features of the attributes in their template, of the bare names), each [M, D]; kept on disk."""
    cache, key = TensorCache(cache_folder("attributes"), "An encoded list", torch.float32), (pair.identity,
                                                                                            attributes.hash)
    if not cache.has(key):
        templated = []
        for attribute in attributes.attributes:
            interruptible()
            templated.append(pair.texts(attribute.texts(attributes.template)).mean(0))
        found = {"templated": torch.stack(templated), "bare": pair.texts(attributes.names)}
        try:
            cache.write(key, found, "the attributes", "text encoder")
        except RuntimeError:            # a full disk: only the next time is slower
            return found["templated"], found["bare"]
    found = cache.read(key)
    return found["templated"], found["bare"]


def check_ruler(ruler: Ruler, pair: ClipPair) -> None:
    """Raises ValueError where a ruler belongs to another encoder."""
    if not same_model(ruler.encoder, pair.identity):
        raise ValueError(f"The ruler was made with another CLIP pair ({ruler.encoder}; this one is {pair.identity}); "
                         "scores of two encoders are not comparable. Connect the pair it was made with, or make a new "
                         "ruler.")


def attribute_report(reference: ImageSet, generated: Mapping[str, ImageSet], ruler: Ruler, settings: Settings,
                     seed: int, tick: Callable[[str], None]) -> Report:
    """Compare one or two generated sets with a reference.

    `tick` is called with what comes next and may raise to stop. Raises ValueError for sets of different encoders.
    """
    for picked in generated.values():
        if not same_model(picked.pair.identity, reference.pair.identity):
            raise ValueError(f"The sets {reference.name} and {picked.name} were read with different CLIP pairs. "
                             "Connect the same pair to both Image Sets.")
    check_ruler(ruler, reference.pair)
    scores, comparisons, lines = ruler.scores(reference.features), {}, []
    for name, picked in generated.items():
        its_scores = ruler.scores(picked.features)
        found = compare(scores, its_scores, ruler.names, settings, seed,
                        lambda part, name=name: tick(f"{name}: {part}"))
        comparisons[name] = found
        lines += [report_text(found, name), *notes_on_sets(reference, picked), baseline_line(reference, picked),
                  *subfolder_lines(reference, picked, scores, its_scores, found)]
    sentence = conclusion(next(iter(comparisons.values())), next(iter(comparisons)))
    if len(comparisons) == 2:
        sentence = versus(comparisons)
        lines.insert(0, sentence)
    lines += [f"{one} and {other} are nearly the same to the encoder (cosine {cosine:.2f}): keep one of them"
              for one, other, cosine in alike_attributes(ruler.names, ruler.directions)]
    picture = report_picture(comparisons, sentence, extremes(reference, generated, ruler, comparisons))
    told = {"reference": reference.name, "encoder_name": reference.pair.name, "notes": lines}
    return Report(picture, "\n".join(lines), as_csv(comparisons), as_json(comparisons, ruler, told), comparisons, ruler)


def extremes(reference: ImageSet, generated: Mapping[str, ImageSet], ruler: Ruler, comparisons: Mapping[str, Comparison]
             ) -> list[Extremes]:
    """The pictures with most and least of the attributes that differ most, in the first generated set."""
    name, found = next(iter(comparisons.items()))
    scores = ruler.scores(generated[name].features)
    rows = (found.reliable or found.sad.kl.argsort(descending=True).tolist())[:SHOWN]
    shown = []
    for row in rows:
        order = scores[:, row].argsort().tolist()
        most, least = order[::-1][:EXTREMES], order[:EXTREMES]
        shown.append(Extremes(ruler.names[row], *([picture for number in part
                                                   if (picture := generated[name].show(number)) is not None]
                                                  for part in (most, least))))
    return shown


def notes_on_sets(reference: ImageSet, generated: ImageSet) -> list[str]:
    """What differs besides the content: sizes, shapes, codecs."""
    sizes = [torch.tensor([row.size for row in picked.rows]).double() for picked in (reference, generated)]
    notes = []
    short, shape = ([float(value(size).median()) for size in sizes] for value in (
        lambda size: size.min(1).values, lambda size: size[:, 0] / size[:, 1]))
    if abs(short[0] / short[1] - 1) > APART or abs(shape[0] / shape[1] - 1) > APART:
        notes.append(f"sizes differ (median short side {short[0]:.0f} and {short[1]:.0f} pixels, width over height "
                     f"{shape[0]:.2f} and {shape[1]:.2f}): the encoder sees that too, so scale both alike")
    codecs = [{row.name.rpartition(".")[2].lower() for row in picked.rows if "." in row.name}
              for picked in (reference, generated)]
    if all(codecs) and codecs[0] != codecs[1]:
        notes.append(f"file formats differ ({', '.join(sorted(codecs[0]))} and {', '.join(sorted(codecs[1]))}): the "
                     "encoder sees compression too")
    return notes


def baseline_line(reference: ImageSet, generated: ImageSet) -> str:
    """Precision, recall, density and coverage on the same features."""
    if min(len(reference), len(generated)) <= K:
        return f"precision, recall, density, coverage: need more than {K} pictures a set"
    found, cut = baseline(reference, generated)
    return (f"precision {found.precision:.2f}, recall {found.recall:.2f}, density {found.density:.2f}, coverage "
            f"{found.coverage:.2f} (k = {K}{f', of {NEIGHBOURS} pictures each' if cut else ''})")


def baseline(reference: ImageSet, generated: ImageSet) -> tuple[Neighbours, bool]:
    """`neighbours` of evenly taken pictures, and whether there were more."""
    interruptible()
    parts = [_evenly(picked.features) for picked in (reference, generated)]
    return neighbours(*parts), max(len(reference), len(generated)) > NEIGHBOURS


def _evenly(features: Tensor) -> Tensor:
    return features if len(features) <= NEIGHBOURS else features[
        torch.linspace(0, len(features) - 1, NEIGHBOURS).round().long()]


def subfolder_lines(reference: ImageSet, generated: ImageSet, scores: Tensor, its_scores: Tensor, found: Comparison
                    ) -> list[str]:
    """SaD of each sub-folder of the generated set, against the reference's of that name if there is one; scores as in
    `found`, and measured as it was. Folders of few pictures are left out.
    """
    its, theirs, told = generated.subfolders, reference.subfolders, []
    for name, numbers in its.items():
        if len(numbers) < LEAST_OF_FOLDER:
            continue
        against = theirs.get(name, [])
        part = scores[against] if len(against) >= LEAST_OF_FOLDER else scores
        value = float(sad(part, its_scores[numbers], found.settings).kl[found.counted].mean())
        told.append(f"{name or '(top)'} {value:.1f} ({len(numbers)})")
    return [f"SaD of each sub-folder (pictures; fewer, higher by chance): {', '.join(told)}"] if told else []


def scores_of_images(images: Tensor, pair: ClipPair, ruler: Ruler, mask: Tensor | None = None) -> Tensor:
    """HCS [N, M] of an IMAGE batch; with a MASK [N or 1, H, W] of the subject only, before the reference's mean colour.

    Raises ValueError for a mask of another number or size.
    """
    check_ruler(ruler, pair)
    if mask is not None:
        images = before_colour(images.cpu(), mask.cpu(), ruler.colour)
    features = torch.stack([row.feature for row in rows_of_images(images, pair).values()]).float()
    broken = (~finite_rows(features)).nonzero().flatten().tolist()
    if broken:
        raise ValueError(f"Picture {broken[0] + 1} holds numbers that are not finite (a black picture?), and "
                         f"{len(broken)} of {len(features)} in all. Leave them out.")
    return ruler.scores(features)


def before_colour(images: Tensor, mask: Tensor, colour: Sequence[float]) -> Tensor:
    """IMAGE [N, H, W, 3] with what the mask leaves out in one colour."""
    mask = mask[None] if mask.ndim == 2 else mask
    if len(mask) not in (1, len(images)) or mask.shape[1:] != images.shape[1:3]:
        raise ValueError(f"The mask is {list(mask.shape)} and the images are {list(images.shape[:3])}; expected one "
                         "mask for all or one for each, of the same size.")
    empty = (~mask.flatten(1).any(1)).nonzero().flatten().tolist()
    if empty:
        raise ValueError(f"The mask of picture {empty[0] + 1} is empty: there is no subject to score. Is it inverted?")
    return images[..., :3] * mask[..., None] + torch.tensor(colour) * (1 - mask[..., None])


def ruler_of(reference: ImageSet | None, attributes: AttributeList | None, ruler: Ruler | None,
             text_centre: str | None = None) -> Ruler:
    """The ruler that is given, else one of reference and attributes.

    Raises ValueError where neither is there, or where the given ones contradict each other.
    """
    if ruler is not None:
        if attributes is not None and attributes.hash != ruler.list_hash:
            raise ValueError(f"The ruler measures the attribute list {ruler.list_hash}, and the list {attributes.hash} "
                             "is connected too. Every score depends on the whole list: disconnect one of them.")
        if text_centre is not None and text_centre != ruler.text_centre:
            raise ValueError(f"The ruler has the text centre {ruler.text_centre}, and this preset wants {text_centre}. "
                             "Choose the preset that it was made with, or make a new ruler.")
        return ruler
    if reference is None or attributes is None:
        raise ValueError("Connect a ruler, or both a reference and attributes: scores are measured from the "
                         "reference's mean along the attributes.")
    return make_ruler(reference, attributes, text_centre or TEMPLATED)


def settings_of(preset: str, method: str, chance: bool) -> Settings:
    """A preset with what the user changed. Raises ValueError for a method that contradicts it."""
    settings = PRESETS[preset]
    if preset == "paper parity":
        if method not in ("auto", "exact"):
            raise ValueError(f"paper parity is exact; {method} was chosen. Set method to auto.")
        return settings
    return replace(settings if chance else without_chance(settings), method=method)


def named_sets(generated: ImageSet, generated_b: ImageSet | None) -> dict[str, ImageSet]:
    """One or two generated sets by name; equal names are told apart by A and B."""
    if generated_b is None:
        return {generated.name: generated}
    names = [generated.name, generated_b.name]
    if names[0] == names[1]:
        names = [f"{names[0]} {letter}" for letter in "AB"]
    return dict(zip(names, (generated, generated_b), strict=True))
