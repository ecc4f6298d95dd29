"""What each storage-management operation means: admission, effect on the catalog, effect on content. Pure.

An operation is a value that travels: it carries arguments, never data, and the sizes that matter, so that its effects
can be told without knowing the catalog. Its constructor (``snapshot(catalog, ...)``) takes the catalog as of the
journal's end and is its admission: what it refuses changes nothing. Must not know devices, slots or links.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import msgspec

from pyrepl.catalog import MOST_STORES, Catalog
from pyrepl.errors import UsageError
from pyrepl.operations.arguments import arguments
from pyrepl.operations.base import (
    Copied,
    CopiedImage,
    Created,
    Deleted,
    Effect,
    Footprint,
    Resized,
    Reworked,
    Scope,
    avoided,
    judge,
)
from pyrepl.operations.copies import Copy, Zero, copy_range, refresh, restore, synchronize, zero
from pyrepl.operations.early import (
    TICKET,
    Adopt,
    AdoptAll,
    Early,
    Forgo,
    adopt,
    adopt_all,
    check_adopted,
    early_restore,
    early_snapshot,
    effects_there,
    ends,
    forgo,
    unsettles,
)
from pyrepl.operations.images import CloneImage, CopyImage, clone_image, copy_image
from pyrepl.operations.marks import Mark, mark
from pyrepl.operations.plugins import MOST_DIGEST, Outcome, Perform, decode_arguments, encode_arguments, perform
from pyrepl.operations.rewinds import MOST_PARTS, Complete, Rewind, abandon, complete, rewind
from pyrepl.operations.sets import RESTORE, Member, Set, accompany, check_works, find_conflict
from pyrepl.operations.snapshots import Clone, Snapshot, clone, snapshot
from pyrepl.operations.verifications import MOST_VERIFIED, Verified, Verify, verified, verify, written
from pyrepl.operations.volumes import AddVolume, Delete, Resize, add_volume, delete, remove_volume, resize
from pyrepl.operations.wide import clone_all, delete_all, refresh_all, restore_all

Operation = (
    AddVolume | Snapshot | Clone | CloneImage | Copy | CopyImage | Zero | Delete | Resize | Mark | Set | Verify
    | Verified | Rewind | Complete | Early | Adopt | AdoptAll | Forgo | Perform
)
Compared = Verify | Verified  # the sites compare stores as of its LSN

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


def plain(operation: Operation) -> Operation:
    """What it does, whether its result is compared or not."""
    return operation.operation if isinstance(operation, Verified) else operation


def is_unordered(operation: Operation) -> bool:
    """Whether it is a set that users have put together, which ``ordering="strict"`` refuses."""
    done = plain(operation)
    return isinstance(done, Set) and not done.verb


def members(operation: Operation) -> Sequence[Member | Adopt]:
    """Of which something is told one by one: of a set, and of restores that are adopted at one point, as of a restore
    of the group. A snapshot of the group tells none, nor does one that is adopted."""
    done = plain(operation)
    if isinstance(done, Set) or (isinstance(done, AdoptAll) and done.kind == RESTORE):
        return done.members
    return []


def copies_image(operation: Operation) -> bool:
    """Whether it copies from an image, which a site may lack."""
    done = plain(operation)
    members = done.members if isinstance(done, Set) else [done]
    return any(isinstance(member, CopyImage | CloneImage) for member in members)


def works(operation: Operation) -> list[Perform]:
    """What of it plug-ins do."""
    done = plain(operation)
    members = done.members if isinstance(done, Set) else [done]
    return [member for member in members if isinstance(member, Perform)]


def may_be_refused(operation: Operation) -> bool:
    """Whether a secondary may lack what it needs for it, or come to something else, and get the data instead."""
    return copies_image(operation) or bool(works(operation))


def unordered(catalog: Catalog, makers: Sequence[Callable[[Catalog], Operation]]) -> Set:
    """A set of what these constructors make. Each is given a catalog that has, beside the stores of the group, those
    that the ones before it make; so a member that uses a store of another is found out as what it is, a conflict.

    Raises:
        UsageError: no member, too many, one that cannot be one, or two of which one writes a store that the other
            reads or writes; the text names both.
    """
    beside, members = catalog.copy(), list[Member]()
    if not 0 < len(makers) <= MOST_STORES:
        raise UsageError(f"a set of {len(makers)} operations: give at least one, and at most {MOST_STORES}")
    for make in makers:
        member = make(beside)
        if not isinstance(member, Member):
            raise UsageError(f"{member.kind} cannot be a member of a set", kind=member.kind)
        members.append(member)
        accompany(beside, member)
    check_works(members)
    conflict = find_conflict(members)
    if conflict is not None:
        first, second = members[conflict.first - 1], members[conflict.second - 1]
        names = (f"number {conflict.first} ({first.kind})", f"number {conflict.second} ({second.kind})")
        raise UsageError(
            f"the operations of a set have no order, and {names[0]} and {names[1]} need one: {names[0]} "
            f"{_does(first, conflict.store)} store {beside[conflict.store].name!r}, which {names[1]} "
            f"{_does(second, conflict.store)}. Make one of them before or after the set",
            store=beside[conflict.store].name, members=[conflict.first, conflict.second])
    return Set(members)


def _does(member: Member, store: int) -> str:
    return "writes" if store in member.footprint.writes else "reads"


__all__ = [
    "MOST_DIGEST",
    "MOST_PARTS",
    "MOST_VERIFIED",
    "TICKET",
    "AddVolume",
    "Adopt",
    "AdoptAll",
    "Clone",
    "CloneImage",
    "Compared",
    "Complete",
    "Copied",
    "CopiedImage",
    "Copy",
    "CopyImage",
    "Created",
    "Delete",
    "Deleted",
    "Early",
    "Effect",
    "Footprint",
    "Forgo",
    "Mark",
    "Member",
    "Operation",
    "Outcome",
    "Perform",
    "Resize",
    "Resized",
    "Rewind",
    "Reworked",
    "Scope",
    "Set",
    "Snapshot",
    "Verified",
    "Verify",
    "Zero",
    "abandon",
    "add_volume",
    "adopt",
    "adopt_all",
    "arguments",
    "avoided",
    "check_adopted",
    "clone",
    "clone_all",
    "clone_image",
    "complete",
    "copies_image",
    "copy_image",
    "copy_range",
    "decode",
    "decode_arguments",
    "delete",
    "delete_all",
    "early_restore",
    "early_snapshot",
    "effects_there",
    "encode",
    "encode_arguments",
    "ends",
    "forgo",
    "is_unordered",
    "judge",
    "mark",
    "may_be_refused",
    "members",
    "perform",
    "plain",
    "refresh",
    "refresh_all",
    "remove_volume",
    "resize",
    "restore",
    "restore_all",
    "rewind",
    "snapshot",
    "synchronize",
    "unordered",
    "unsettles",
    "verified",
    "verify",
    "works",
    "written",
    "zero",
]
