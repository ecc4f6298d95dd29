"""Operations on all volumes of a group, or on several, at one point of the order: all of it, or nothing.

Decides which volumes are meant, and by which names their snapshots are found. What such an operation is stands in
``operations.wide``; how it begins at the secondaries first, in ``early``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from pyrepl import operations
from pyrepl.catalog import VOLUME, Catalog, check_name
from pyrepl.errors import Refused, UsageError
from pyrepl.operations import Operation
from pyrepl.volume import Snapshot, Volume

if TYPE_CHECKING:
    from pyrepl.group import Group
    from pyrepl.results import OperationResult


def snapshot_all(
    group: Group, name: str, volumes: Sequence[Volume | str] | None, *, verify: bool, wait: bool, timeout: float | None
) -> OperationResult:
    """See :meth:`Group.snapshot`."""
    origins: list[str] = []

    def make(catalog: Catalog) -> Operation:
        chosen = volumes if volumes is not None else [entry.name for entry in catalog if entry.kind == VOLUME]
        if not chosen:
            raise Refused(f"group {group.name!r} has no volume to take a snapshot of: add one first", reason="empty")
        origins[:] = [group.name_of(volume, catalog) for volume in chosen]
        return operations.snapshot(catalog, origins, [f"{origin}-{name}" for origin in origins])

    result = group.operate(make, verify=verify, wait=wait, timeout=timeout)
    names = [f"{origin}-{name}" for origin in origins]
    result.snapshots = [Snapshot(group, result.created[full], full, result) for full in names]
    return result


def wide(
    group: Group, verb: str, name: str, volumes: Sequence[Volume | str] | None, snapshot: str | None = None
) -> Callable[[Catalog], Operation]:
    """The constructor of a group-wide form (``operations.wide``).

    Raises:
        UsageError: a name that cannot be one.
    """
    check_name(name)
    if snapshot is not None:
        check_name(snapshot)

    def make(catalog: Catalog) -> Operation:
        chosen = None if volumes is None else [group.name_of(volume, catalog) for volume in volumes]
        match verb:
            case "restore":
                return operations.restore_all(catalog, name, chosen, region_size=group.region_size)
            case "refresh":
                return operations.refresh_all(catalog, name, chosen, region_size=group.region_size)
            case "clone":
                return operations.clone_all(catalog, name, snapshot, chosen)
            case "delete":
                return operations.delete_all(catalog, name, chosen)
            case _:
                raise UsageError(f"{verb!r} has no form for a whole group")

    return make
