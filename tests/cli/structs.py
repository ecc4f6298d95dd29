"""The structs of ``--json`` as rows of a table: for comparing the document with them."""

from __future__ import annotations

import types
import typing
from typing import Any, Literal, Union, get_args, get_origin

import msgspec

from pyrepl.cli import output
from pyrepl.demo import scenario


def all_structs() -> dict[str, type[msgspec.Struct]]:
    """Every struct that is written, by the title of its section: outputs by their command, parts by their name."""
    found: dict[str, type[msgspec.Struct]] = {}
    for kind in [*vars(output).values(), scenario.Report, scenario.Step, scenario.Restore]:
        if isinstance(kind, type) and issubclass(kind, msgspec.Struct) and kind not in (output.Output, output.Part):
            found[kind.__name__] = kind
    return found


def is_output(kind: type[msgspec.Struct]) -> bool:
    """Whether it is written by itself; else it is a part of others."""
    return "schema" in kind.__struct_fields__


def rows(kind: type[msgspec.Struct]) -> list[tuple[str, str, str]]:
    """Of each field: name, type, unit."""
    hints = typing.get_type_hints(kind, include_extras=True)
    return [(name, shown(hints[name]), unit(hints[name])) for name in kind.__struct_fields__]


def shown(hint: Any) -> str:
    """A type in the words of JSON."""
    origin, arguments = get_origin(hint), get_args(hint)
    if origin is typing.Annotated:
        return shown(arguments[0])
    if origin is Literal:
        return ", ".join(f"`{word}`" for word in arguments)
    if origin in (Union, types.UnionType):
        kinds = [shown(one) for one in arguments if one is not type(None)]
        return " or ".join([*kinds, "null"])
    if origin is list:
        return f"list of {shown(arguments[0])}"
    if origin is dict:
        return "object"
    if isinstance(hint, type) and issubclass(hint, msgspec.Struct):
        return f"[{hint.__name__}](#{hint.__name__.lower()})"
    return {int: "integer", float: "number", str: "string", bool: "boolean", Any: "any"}[hint]


def unit(hint: Any) -> str:
    """The unit that an annotation names, also inside "or null" and lists."""
    if get_origin(hint) is typing.Annotated:
        return next(str(meta.extra["unit"]) for meta in get_args(hint) if isinstance(meta, msgspec.Meta) and meta.extra)
    return next((found for one in get_args(hint) if (found := unit(one))), "")
