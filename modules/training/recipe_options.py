"""Options of the command line from a recipe: one for every field of its dataclass, with its default."""
from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Mapping
from typing import Any

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


def recipe_of(args: argparse.Namespace, recipe: type, names: Mapping[str, str] | None = None) -> Any:
    """The recipe that the options say. Raises ValueError where the recipe does."""
    names = names or {}
    return recipe(**{field.name: getattr(args, names.get(field.name, field.name))
                     for field in dataclasses.fields(recipe)})
