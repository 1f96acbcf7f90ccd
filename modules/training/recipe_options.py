"""Options of the command line from a recipe: one for every field of its dataclass, with its default."""
from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .processes import launch_settings

SHORT = {"learning_rate": "lr", "batch_size": "batch"}


def add_recipe(parser, recipe: type, names: Mapping[str, str] | None = None) -> None:
    """Add an option for every field of a dataclass to a parser or a group of one.

    names: of options whose field's own name means something else on this command line.
    """
    names, defaults = names or {}, recipe()
    for field in dataclasses.fields(recipe):
        name = names.get(field.name, field.name)
        option = "--" + SHORT.get(name, name).replace("_", "-")
        value, switch = getattr(defaults, field.name), argparse.BooleanOptionalAction
        kind = {"action": switch} if isinstance(value, bool) else {"type": type(value)}
        parser.add_argument(option, dest=name, default=value, help=f"default: {value!r}", **kind)


def add_training(parser: argparse.ArgumentParser, recipe: type, what: str,
                 names: Mapping[str, str] | None = None) -> None:
    """Add what every training has: the file to write (`what`), whether to go on, and the recipe.

    What `accelerate launch` was asked for is a default.
    """
    parser.add_argument("--out", required=True, type=Path, metavar="FILE", help=f"{what} to write")
    parser.add_argument("--resume", action=argparse.BooleanOptionalAction, default=True,
                        help="go on from OUT's checkpoint if there is one")
    add_recipe(parser.add_argument_group("training"), recipe, names)
    try:
        parser.set_defaults(**launch_settings())
    except ValueError as error:
        parser.error(str(error))


def size_of(text: str, example: str) -> tuple[int, int]:
    """(width, height) of an option --size. Raises ValueError."""
    width, _, height = text.lower().partition("x")
    if not (width.isdigit() and height.isdigit()):
        raise ValueError(f"--size is {text!r}; expected WIDTHxHEIGHT, e.g. {example}.")
    return int(width), int(height)


def recipe_of(args: argparse.Namespace, recipe: type, names: Mapping[str, str] | None = None) -> Any:
    """The recipe that the options say. Raises ValueError where the recipe does."""
    names = names or {}
    return recipe(**{field.name: getattr(args, names.get(field.name, field.name))
                     for field in dataclasses.fields(recipe)})
