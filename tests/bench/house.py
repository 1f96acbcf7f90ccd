"""The house as its files show it: rooms, arrows, words, sizes, packages. What is counted is told in the context."""
from __future__ import annotations

from testhost import house


def run() -> dict:
    lines, longest = house.largest_file()
    lists = {"rooms_crossed": house.rooms_crossed(), "upward_arrows": house.upward_arrows(), "words": house.words(),
             "unused_dependencies": house.unused_dependencies()}
    return {"figures": {name: len(found) for name, found in lists.items()} | {"largest_file": lines},
            "context": lists | {"longest": longest, "files": len(house.SOURCES)}}
