"""Operations that change which stores there are and how long: add, remove, delete, resize."""

from __future__ import annotations

import msgspec

from pyrepl.catalog import MOST_STORES, SNAPSHOT, VOLUME, Catalog, Store, check_new_name, check_size
from pyrepl.errors import Exists, Refused, counted, some_of
from pyrepl.operations.base import Created, Deleted, Effect, Footprint, Resized, put_size


class AddVolume(msgspec.Struct, frozen=True, tag="add-volume", tag_field="op", forbid_unknown_fields=True):
    """A volume enters the group. ``zero``: it shows zeros at every site; else each site's device is taken as it is."""

    id: int
    name: str
    size: int
    zero: bool

    @property
    def kind(self) -> str:
        return "add-volume"

    @property
    def blocks(self) -> list[int]:
        return [self.id]

    def check(self, catalog: Catalog) -> None:
        """Admission at a secondary."""
        check_new_name(catalog, self.name)
        if self.id in catalog or self.id < 1:
            raise Exists(f"store number {self.id} exists", store=self.id)
        if len(catalog.stores) >= MOST_STORES:
            raise Refused(
                f"a group holds at most {MOST_STORES} stores: delete some first", reason="limit", limit=MOST_STORES
            )

    def apply(self, catalog: Catalog) -> None:
        catalog.add(Store(id=self.id, name=self.name, kind=VOLUME, size=self.size))

    def effects(self, region_size: int) -> list[Effect]:
        return [Created(self.id, self.size // region_size, self.zero)]


class Delete(msgspec.Struct, frozen=True, tag="delete", tag_field="op", forbid_unknown_fields=True):
    """A store leaves the group. What others show from its device is handed over to them in the background."""

    id: int

    @property
    def kind(self) -> str:
        return "delete"

    @property
    def blocks(self) -> list[int]:
        return []

    @property
    def footprint(self) -> Footprint:
        return Footprint([], [self.id])

    def check(self, catalog: Catalog) -> None:
        """Admission at a secondary."""
        catalog[self.id]

    def apply(self, catalog: Catalog) -> None:
        del catalog.stores[self.id]

    def effects(self, region_size: int) -> list[Effect]:
        return [Deleted(self.id)]


class Resize(msgspec.Struct, frozen=True, tag="resize", tag_field="op", forbid_unknown_fields=True):
    """A volume becomes ``size`` bytes long and was ``was`` (0: not said); what is added reads as zeros, what is cut off
    is lost."""

    id: int
    size: int
    was: int = 0

    @property
    def kind(self) -> str:
        return "resize"

    @property
    def blocks(self) -> list[int]:
        return [self.id]

    @property
    def footprint(self) -> Footprint:
        return Footprint([], [self.id])

    def check(self, catalog: Catalog) -> None:
        """Admission at a secondary."""
        catalog[self.id]

    def apply(self, catalog: Catalog) -> None:
        put_size(catalog, self.id, self.size)

    def effects(self, region_size: int) -> list[Effect]:
        return [Resized(self.id, self.size // region_size, self.was // region_size)]


def add_volume(catalog: Catalog, name: str, size: int, *, zero: bool, region_size: int) -> AddVolume:
    """A new volume of ``size`` bytes."""
    operation = AddVolume(catalog.next_id, name, check_size(size, region_size), zero)
    operation.check(catalog)
    return operation


def remove_volume(catalog: Catalog, name: str, *, force: bool = False) -> Delete:
    """The volume leaves the group; its content is lost to it.

    Raises:
        Refused: it is not a volume, or it has snapshots and ``force`` is not given (they stay, and keep their content).
    """
    store = catalog.by_name(name)
    if store.kind != VOLUME:
        raise Refused(f"{name!r} is a {store.kind}, not a volume: use delete", reason="kind", name=name)
    held = catalog.snapshots_of(store.id)
    if held and not force:
        what = f"{counted(len(held), 'snapshot')} ({some_of(one.name for one in held)})"
        raise Refused(
            f"volume {name!r} has {what}: delete first, or use force to remove the volume and keep these",
            reason="snapshots",
            name=name,
        )
    return Delete(store.id)


def delete(catalog: Catalog, name: str) -> Delete:
    """A snapshot is deleted.

    Raises:
        Refused: it is a volume (remove_volume names what is lost).
    """
    store = catalog.by_name(name)
    if store.kind != SNAPSHOT:
        raise Refused(f"{name!r} is a {store.kind}: use remove to take it out of the group", reason="kind", name=name)
    return Delete(store.id)


def resize(catalog: Catalog, name: str, size: int, *, force: bool = False, region_size: int) -> Resize:
    """A volume grows, or with ``force`` shrinks, to ``size`` bytes.

    Raises:
        Refused: not a volume; or it would shrink and ``force`` is not given.
        UsageError: not whole regions.
    """
    store = catalog.by_name(name)
    size = check_size(size, region_size)
    if store.kind != VOLUME:
        raise Refused(f"{name!r} is a {store.kind}: only volumes are resized", reason="kind", name=name)
    if size < store.size and not force:
        raise Refused(f"{name!r} would lose its last {store.size - size} bytes: use force if that is meant",
                      reason="shrink", name=name, size=store.size)
    return Resize(store.id, size, store.size)
