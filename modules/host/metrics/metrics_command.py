"""`python -m frozen_diffusion.cli metrics`: two or three folders of pictures in, a report out."""
from __future__ import annotations

import argparse
import sys
from pathlib import Path

from ...metrics.attributes import TEMPLATE, attributes_of_captions, parse_attributes
from ...metrics.clip_keys import ACTIVATIONS
from ...metrics.divergence import METHODS, PRESETS
from ...metrics.folder import GENERAL, PAPER_PARITY
from ...metrics.report_page import report_page
from ...pictures.frame_sheet import to_image
from ..demo import load_sprite_world
from .clip_pair import ClipPair, HostPair
from .full_clip import FullCLIP
from .image_sets import ImageSet, set_of_folder
from .report import attribute_report, make_ruler, named_sets, settings_of

SPRITES, CAPTIONS = "sprite-world", "captions"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of the command."""
    parser.add_argument("--reference", type=Path, required=True, help="folder of reference pictures")
    parser.add_argument("--generated", type=Path, required=True, action="append",
                        help="folder to be judged; twice: A/B")
    parser.add_argument("--attributes", required=True,
                        help=f"text file, one attribute a line; or {SPRITES}, or {CAPTIONS} of the reference")
    parser.add_argument("--clip", required=True, help=f"file of a whole CLIP, or {SPRITES}")
    parser.add_argument("--activation", choices=ACTIVATIONS, default=ACTIVATIONS[0],
                        help="of the CLIP file; gelu for LAION's B and L")
    parser.add_argument("--out", type=Path, required=True, help="folder for report.json, .csv, .png, .html")
    parser.add_argument("--preset", choices=list(PRESETS), default="general")
    parser.add_argument("--method", choices=METHODS, default="auto")
    parser.add_argument("--template", default=TEMPLATE, help="put around attributes, with {} for the name")
    parser.add_argument("--no-chance", action="store_true", help="leave the permutation test out")
    parser.add_argument("--seed", type=int, default=0)


def main(args: argparse.Namespace) -> int:
    """Write the report; returns the exit status. What cannot be read ends in one sentence."""
    try:
        if len(args.generated) > 2:
            raise ValueError(f"--generated is given {len(args.generated)} times; at most twice, for A and B.")
        settings = settings_of(args.preset, args.method, not args.no_chance)
        pair = clip_of(args.clip, args.activation)
        how = PAPER_PARITY if args.preset == "paper parity" else GENERAL
        reference, *generated = (read(folder, pair, how) for folder in (args.reference, *args.generated))
        ruler = make_ruler(reference, attribute_list(args.attributes, reference, args.template), settings.text_centre)
        report = attribute_report(reference, named_sets(*generated, *[None] * (2 - len(generated))), ruler, settings,
                                  args.seed, lambda part: None)
        args.out.mkdir(parents=True, exist_ok=True)
        (args.out / "report.json").write_text(report.json, encoding="utf-8")
        (args.out / "report.csv").write_text(report.csv, encoding="utf-8")
        to_image(report.picture[0]).save(args.out / "report.png")
        page = report_page(report.comparisons, report.picture, report.text)
        (args.out / "report.html").write_text(page, encoding="utf-8")
    except (ValueError, OSError) as error:
        print(error, file=sys.stderr)
        return 1
    print(report.text)
    print(f"written: {args.out / 'report.html'}")
    return 0


def clip_of(name: str, activation: str) -> ClipPair:
    """The pair of sprite world, or of a file."""
    if name == SPRITES:
        _, clip, _, vision = load_sprite_world()
        return HostPair(clip, vision)
    if not Path(name).is_file():
        raise FileNotFoundError(f"There is no CLIP file {name}. Give a file of a whole CLIP, or {SPRITES}.")
    return FullCLIP(Path(name), activation)


def attribute_list(name: str, reference: ImageSet, template: str):
    """Of a file, of captions, or of sprite world."""
    from ...demo.attributes import attribute_text
    if name == CAPTIONS:
        return attributes_of_captions(reference.captions, template=template)
    if name == SPRITES:
        return parse_attributes(attribute_text(), template)
    return parse_attributes(Path(name).read_text(encoding="utf-8"), template)


def read(folder: Path, pair: ClipPair, how: str) -> ImageSet:
    """A folder with its sub-folders, with a line of progress."""
    reading = set_of_folder(folder, pair, how=how)
    while True:
        try:
            done, total = next(reading)
        except StopIteration as end:
            print(f"\r{end.value.report()}", file=sys.stderr)
            return end.value
        print(f"\r{folder}: {done} of {total}", end="", file=sys.stderr, flush=True)
