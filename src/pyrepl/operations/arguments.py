"""An operation as people read it: its arguments by name, stores by the names that they had.

Decides the words only. Numbers of bytes and regions stay numbers, what is bytes becomes hexadecimal digits.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from pyrepl.operations.plugins import Perform, decode_arguments
from pyrepl.operations.rewinds import Rewind
from pyrepl.operations.snapshots import Clone, Snapshot
from pyrepl.operations.volumes import Delete

_STORES = ("id", "target", "source", "volume")  # arguments that are numbers of stores
_MOST = 64  # of a list, in an answer


def arguments(operation: Any, names: Mapping[int, str]) -> dict[str, Any]:
    """What it was given.

    Args:
        operation: not one that is wrapped (``plain``).
        names: of the stores before and after it, by number; one that has none is told by number.
    """
    match operation:
        case Snapshot(members):
            return {"of": {member.name: names.get(member.origin, member.origin) for member in members}}
        case Clone(member):
            return {"name": member.name, "of": names.get(member.origin, member.origin)}
        case Delete(store):
            return {"name": names.get(store, store)}
        case Rewind():
            volume = names.get(operation.volume, operation.volume)
            return {"name": operation.name, "of": volume, "to_lsn": operation.lsn, "size": operation.size}
        case Perform():
            given: dict[str, Any] = _plain(decode_arguments(operation.arguments))
            return {
                "plugin": operation.plugin, "version": operation.version, "arguments": given,
                "reads": [names.get(one.store, one.store) for one in operation.reads],
                "writes": [names.get(one.store, one.store) for one in operation.writes],
            }
    told: dict[str, Any] = msgspec.to_builtins(operation, builtin_types=(bytes,))
    del told["op"]
    if "members" in told:
        return {"members": [{"kind": one.kind, **arguments(one, names)} for one in operation.members]}
    for key in _STORES:
        if key in told:
            told[key] = names.get(told[key], told[key] or None)
    if "stores" in told:
        told["stores"] = [names.get(store, store) for store in told["stores"]]
    told.pop("verb", None)  # is its kind
    plain: dict[str, Any] = _plain(told)
    return plain


def _plain(value: Any) -> Any:
    if isinstance(value, bytes):
        return value.hex()
    if isinstance(value, dict):
        return {key: _plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(inner) for inner in value[:_MOST]]
    return value
