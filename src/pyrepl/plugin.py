"""From a plug-in operation as a user made it to the operation that is admitted: everything that could go wrong at
another site is tried here first.

Decides what such an object must be. Must not know when it is admitted or performed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from pyrepl import operations
from pyrepl.catalog import Catalog
from pyrepl.errors import UsageError
from pyrepl.runtime import plugins

if TYPE_CHECKING:
    from pyrepl.group import Group
    from pyrepl.operations import Perform


def maker(
    group: Group, operation: Any, arguments: Mapping[str, Any] | None = None
) -> Callable[[Catalog], Perform]:
    """The constructor of the operation, given the catalog as of the journal's end.

    Args:
        operation: of a class that an entry point names; or the name of that, then with its arguments.

    Raises:
        NotFound, UsageError: the text says what it is not.
    """
    return _named(group, *told(operation, arguments))


def told(operation: Any, arguments: Mapping[str, Any] | None = None) -> tuple[str, dict[str, Any]]:
    """Name and arguments of what :func:`maker` is given.

    Raises:
        UsageError: it is none.
    """
    if isinstance(operation, str):
        try:
            return operation, dict(arguments or {})
        except (TypeError, ValueError):
            raise UsageError(f"arguments={arguments!r}: give a dict of values by name") from None
    if not isinstance(operation, plugins.Operation):
        raise UsageError(f"{type(operation).__name__} is not a plug-in operation: make a subclass of pyrepl.Operation, "
                         f"or give the name of a plug-in")
    if arguments is not None:
        raise UsageError("arguments are given with the name of a plug-in; an operation has its own")
    return plugins.name_of(type(operation)), plugins.arguments_of(operation)


def _named(group: Group, name: str, arguments: dict[str, Any]) -> Callable[[Catalog], Perform]:
    """The same by the name of the plug-in and its arguments.

    Raises:
        NotFound, UsageError: there is none of that name here, or not with these arguments.
    """
    plugin = plugins.load(name)
    given = operations.decode_arguments(operations.encode_arguments(arguments))
    encoded = operations.encode_arguments(plugins.arguments_of(plugins.make(plugin, name, given)))  # with defaults
    made = plugins.make(plugin, name, operations.decode_arguments(encoded))
    if operations.encode_arguments(plugins.arguments_of(made)) != encoded:
        raise UsageError(f"plug-in {name!r} made from its arguments has others: what __init__ takes by name must be "
                         f"what vars() says of it; give what it keeps for itself a name with an underscore in front",
                         plugin=name)
    reads, writes = plugins.touched_by(made, name)
    return lambda catalog: operations.perform(
        catalog, name, plugin.version, encoded, reads, writes, region_size=group.region_size)


__all__ = ["maker", "told"]
