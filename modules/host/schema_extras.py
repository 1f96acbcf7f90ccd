"""What newer pages make of a node: inputs that are folded away, and words that find it. Older ones pass over it."""
from __future__ import annotations

from collections.abc import Callable

from comfy_api.latest import io


def for_newer_pages(*words: str, folded: tuple[str, ...] = ()) -> Callable[[type], type]:
    """A class decorator: `words` find the node in a search, the inputs `folded` are shown when asked for.

    Its schema raises ValueError for a name that is none of an input.
    """
    def decorated(node: type[io.ComfyNode]) -> type[io.ComfyNode]:
        plain = node.define_schema.__func__

        def define_schema(cls) -> io.Schema:
            schema = plain(cls)
            inputs = {entry.id: entry for entry in schema.inputs}
            if unknown := [name for name in folded if name not in inputs]:
                raise ValueError(f"{schema.node_id} has no input {', '.join(unknown)}; it has {', '.join(inputs)}.")
            for name in folded:
                inputs[name].extra_dict["advanced"] = True
            if hasattr(schema, "search_aliases"):
                schema.search_aliases = list(words)
            return schema

        node.define_schema = classmethod(define_schema)
        return node
    return decorated
