"""What each storage-management operation means: admission, effect on the catalog, effect on content. Pure.

An operation is a value that travels: it carries arguments, never data, and the sizes that matter, so that its effects
can be told without knowing the catalog. Its constructor (``snapshot(catalog, ...)``) takes the catalog as of the
journal's end and is its admission: what it refuses changes nothing. Must not know devices, slots or links.
"""

from __future__ import annotations

import msgspec

from pyrepl.errors import UsageError
from pyrepl.operations.base import Copied, Created, Deleted, Effect, Resized, judge
from pyrepl.operations.copies import Copy, Zero, copy_range, refresh, restore, synchronize, zero
from pyrepl.operations.marks import Mark, mark
from pyrepl.operations.snapshots import Clone, Snapshot, clone, snapshot
from pyrepl.operations.volumes import AddVolume, Delete, Resize, add_volume, delete, remove_volume, resize

Operation = AddVolume | Snapshot | Clone | Copy | Zero | Delete | Resize | Mark

_encoder = msgspec.msgpack.Encoder()
_decoder: msgspec.msgpack.Decoder[Operation] = msgspec.msgpack.Decoder(Operation)


def encode(operation: Operation) -> bytes:
    """The bytes that stand in the journal and travel."""
    return _encoder.encode(operation)


def decode(data: bytes) -> Operation:
    """The operation that these bytes are.

    Raises:
        UsageError: they are none that this version knows.
    """
    try:
        return _decoder.decode(data)
    except msgspec.MsgspecError as error:
        raise UsageError(f"not an operation that this version knows: {error}") from error


__all__ = [
    "AddVolume",
    "Clone",
    "Copied",
    "Copy",
    "Created",
    "Delete",
    "Deleted",
    "Effect",
    "Mark",
    "Operation",
    "Resize",
    "Resized",
    "Snapshot",
    "Zero",
    "add_volume",
    "clone",
    "copy_range",
    "decode",
    "delete",
    "encode",
    "judge",
    "mark",
    "refresh",
    "remove_volume",
    "resize",
    "restore",
    "snapshot",
    "synchronize",
    "zero",
]
