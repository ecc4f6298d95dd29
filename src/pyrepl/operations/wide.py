"""Group-wide forms: one verb for several volumes, at one point of the order, all of it or nothing.

A snapshot of a group is named ``<volume>-<name>`` at each volume; the others go by that name. Each is a set whose
members all do the same to stores of their own, so that there is no order among them that could matter, and its kind is
the verb: a group that was made with ``ordering="strict"`` takes it as it takes a snapshot of the group.

Decides which stores are meant, and that a name means what a snapshot of that volume shows.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from pyrepl.catalog import SNAPSHOT, VOLUME, Catalog
from pyrepl.errors import NotFound, Refused, UsageError
from pyrepl.operations.copies import refresh, restore
from pyrepl.operations.sets import CLONE, DELETE, REFRESH, RESTORE, Member, Set, accompany
from pyrepl.operations.snapshots import clone
from pyrepl.operations.volumes import delete


def restore_all(catalog: Catalog, name: str, volumes: Sequence[str] | None, *, region_size: int) -> Set:
    """Each volume shows again what its snapshot ``<volume>-<name>`` shows.

    Raises:
        NotFound, Refused, UsageError: see :func:`_each`; sizes differ.
    """
    return _each(catalog, RESTORE, volumes, lambda beside, volume: restore(
        beside, volume, _snapshot(beside, volume, name), region_size=region_size))


def refresh_all(catalog: Catalog, name: str, volumes: Sequence[str] | None, *, region_size: int) -> Set:
    """Each snapshot ``<volume>-<name>`` shows what its volume shows now.

    Raises:
        NotFound, Refused, UsageError: see :func:`_each`; sizes differ.
    """
    return _each(catalog, REFRESH, volumes, lambda beside, volume: refresh(
        beside, _snapshot(beside, volume, name), region_size=region_size))


def delete_all(catalog: Catalog, name: str, volumes: Sequence[str] | None) -> Set:
    """The snapshots ``<volume>-<name>`` leave the group.

    Raises:
        NotFound, Refused, UsageError: see :func:`_each`.
    """
    return _each(catalog, DELETE, volumes, lambda beside, volume: delete(beside, _snapshot(beside, volume, name)))


def clone_all(catalog: Catalog, name: str, snapshot: str | None, volumes: Sequence[str] | None) -> Set:
    """New volumes ``<volume>-<name>`` with the content of the volumes, or of their snapshots ``<volume>-<snapshot>``.

    Raises:
        NotFound, Refused, UsageError: see :func:`_each`.
        Exists: a store has such a name.
    """
    return _each(catalog, CLONE, volumes, lambda beside, volume: clone(
        beside, volume if snapshot is None else _snapshot(beside, volume, snapshot), f"{volume}-{name}"))


def _each(
    catalog: Catalog, verb: str, volumes: Sequence[str] | None, make: Callable[[Catalog, str], Member]
) -> Set:
    """One member for each of these volumes, or of all.

    Raises:
        Refused: there is none.
        NotFound: no such volume, or no snapshot of that name of one.
        UsageError: a volume is given twice.
    """
    chosen = [store.name for store in catalog if store.kind == VOLUME] if volumes is None else list(volumes)
    if not chosen:
        raise Refused(f"{verb} of a whole group: there is no volume", reason="empty")
    if len(set(chosen)) != len(chosen):
        raise UsageError(f"the same volume is given twice: {', '.join(chosen)}", names=chosen)
    beside, members = catalog.copy(), list[Member]()
    for name in chosen:
        store = catalog.by_name(name)
        if store.kind != VOLUME:
            raise Refused(f"{name!r} is a {store.kind}: {verb} of a group is of its volumes", reason="kind", name=name)
        members.append(make(beside, name))
        accompany(beside, members[-1])
    return Set(members, verb)


def _snapshot(catalog: Catalog, volume: str, name: str) -> str:
    """The name of this volume's part of a snapshot of the group.

    Raises:
        NotFound: it has none; the text says what to do.
    """
    full, of = f"{volume}-{name}", catalog.by_name(volume).id
    found = next((store for store in catalog if store.name == full), None)
    if found is None or found.kind != SNAPSHOT or found.origin != of:
        why = "" if found is None else f" (the {found.kind} of that name is not one of it)"
        raise NotFound(
            f"volume {volume!r} has no snapshot {full!r}{why}: nothing was changed; name the volumes that have one",
            name=full, volume=volume)
    return full
