"""The shelf: which device holds which store at this site, and what an operation does to devices and source maps.

Decides slots, the scratch, and when a deleted store's device may go. Applier and recovery perform operations by the
same method here, so that replaying a note does exactly what was done before the crash. Must not know journal or links.
"""

from __future__ import annotations

from pyrepl._core.device import Device
from pyrepl._core.stores import Stores
from pyrepl.catalog import Place
from pyrepl.errors import InternalError, check
from pyrepl.notes import Placed
from pyrepl.operations import Copied, Created, Deleted, Effect, Resized
from pyrepl.seams import Placement


class Shelf:
    """The devices of one group at one site. Changed by the applier's thread only."""

    def __init__(self, stores: Stores, placement: Placement) -> None:
        self.stores = stores
        self.placement = placement
        self.places: dict[int, Place] = {}
        self.zombies: dict[int, str] = {}  # slot -> path: deleted stores whose devices others may still show
        self.graveyard: list[str] = []  # paths that may be removed once a checkpoint does not know them
        self.scratch: Place | None = None
        self.scratch_size = 0

    # ---- before the note

    def prepare(self, effects: list[Effect], reserved: dict[int, tuple[str, bool]],
                names: dict[int, str]) -> tuple[list[Placed], Placed | None, int]:
        """Makes what the operation needs outside the maps: devices for what it creates, room for what grows, the
        scratch.

        Doing it twice, or not at all after a crash, is harmless: nothing names these devices before the note does.

        Args:
            effects: what the operation does.
            reserved: store id -> (path, fresh) for devices that admission already made or was given.
            names: store id -> name, for paths that people recognise.

        Returns:
            where each new store is placed, where the scratch is placed if it is new, and the size of the scratch.
        """
        placed: list[Placed] = []
        region = self.stores.region_size
        taken: set[int] = set(self.stores.slots())
        largest = self.scratch_size
        for effect in effects:
            match effect:
                case Created(store, regions, _):
                    size = regions * region
                    path, fresh = reserved.get(store, ("", True))
                    path = path or self.placement.create(names.get(store, "store"), store, size)
                    placed.append(Placed(store, self._free_slot(taken), path, fresh))
                    largest = max(largest, size)
                case Resized(store, regions):
                    size = regions * region
                    place = self.places[store]
                    if self.stores.device(place.slot).size < size:
                        self.placement.resize(place.path, size)
                    largest = max(largest, size)
                case _:
                    pass
        scratch = None
        if largest > self.scratch_size:
            if self.scratch is None:
                scratch = Placed(0, self._free_slot(taken), self.placement.create("scratch", 0, largest), True)
            else:
                self.placement.resize(self.scratch.path, largest)
        return placed, scratch, largest

    def _free_slot(self, taken: set[int]) -> int:
        slot = next(n for n in range(1, len(taken) + 2) if n not in taken)
        taken.add(slot)
        return slot

    # ---- the note says that it happened

    def perform(self, effects: list[Effect], placed: list[Placed], scratch: Placed | None, scratch_size: int) -> int:
        """Changes table and maps as the note says; returns the regions whose content may have become another."""
        region = self.stores.region_size
        where = {p.store: p for p in placed}
        changed = 0
        if scratch is not None:
            self.stores.add(scratch.slot, self.placement.open(scratch.path, scratch_size))
            self.stores.set_scratch(scratch.slot)
            self.scratch = Place(scratch.slot, scratch.path)
        self._grow(self.scratch, scratch_size)
        self.scratch_size = max(self.scratch_size, scratch_size)
        for effect in effects:
            match effect:
                case Created(store, regions, zero):
                    place = where[store]
                    device = self.placement.open(place.path, regions * region)
                    self.stores.add(
                        place.slot, device, store=store, size=regions * region, zero=zero and not place.fresh
                    )
                    self.places[store] = Place(place.slot, place.path)
                case Copied(target, source, first, count):
                    into = self.places[target].slot
                    changed += self.stores.copy(into, self.places[source].slot if source else 0, first, count)
                case Resized(store, regions):
                    self._grow(self.places[store], regions * region)
                    self.stores.resize(self.places[store].slot, regions * region)
                case Deleted(store):
                    gone = self.places.pop(store)
                    self.stores.drop_map(gone.slot)
                    self.zombies[gone.slot] = gone.path
        return changed

    def _grow(self, place: Place | None, size: int) -> None:
        # A device is never made shorter: other stores may show what a shrunk store cut off.
        if place is not None and self.stores.device(place.slot).size < size:
            self.stores.device(place.slot).resize(size)

    def renumber(self, ids: dict[int, tuple[int, int]]) -> None:
        """A fresh secondary's stores get the primary's numbers: old id -> (new id, size). Their maps are their own
        devices."""
        devices = {}
        for old in ids:  # all leave before any enters: old and new numbers may be the same ones in another order
            slot = self.places[old].slot
            devices[old] = self.stores.device(slot)
            self.stores.drop_map(slot)
            self.stores.remove(slot)
        for old, (new, size) in ids.items():
            self.stores.add(self.places[old].slot, devices[old], store=new, size=size)
        self.places = {new: self.places[old] for old, (new, _) in ids.items()}

    def release(self, slot: int) -> None:
        """The device of a deleted store leaves the table; its file goes after the next checkpoint."""
        check(slot in self.zombies, f"slot {slot} is released but holds no deleted store")
        device: Device = self.stores.device(slot)
        self.stores.remove(slot)
        device.close()
        self.graveyard.append(self.zombies.pop(slot))

    def bury(self, paths: list[str]) -> None:
        """A checkpoint that does not know these paths is durable: nobody will ask for them again."""
        live = {place.path for place in self.places.values()} | set(self.zombies.values())
        for path in paths:
            self.graveyard.remove(path)
            if path not in live:
                self.placement.remove(path)

    # ---- checkpoints

    def maps(self) -> dict[int, bytes]:
        """The source maps, by slot."""
        return {place.slot: self.stores.encode_map(place.slot) for place in self.places.values()}

    def restore(
        self,
        *,
        places: dict[int, Place],
        sizes: dict[int, int],
        zombies: dict[int, str],
        scratch: Place | None,
        scratch_size: int,
        maps: dict[int, bytes],
    ) -> None:
        """Becomes what a checkpoint says."""
        if scratch is not None:
            self.stores.add(scratch.slot, self.placement.open(scratch.path, scratch_size))
            self.stores.set_scratch(scratch.slot)
        self.scratch, self.scratch_size = scratch, scratch_size
        for slot, path in zombies.items():
            self.stores.add(slot, self.placement.open(path, 0))
            self.zombies[slot] = path
        for store, place in places.items():
            device = self.placement.open(place.path, sizes[store])
            self.stores.add(place.slot, device, store=store, size=sizes[store])
            self.places[store] = place
        for store, place in places.items():
            try:
                self.stores.decode_map(place.slot, maps[place.slot])
            except (KeyError, ValueError) as error:
                raise InternalError(f"the checkpoint has no usable source map of store {store}: {error}") from error

    def close(self) -> None:
        """Closes the devices."""
        for slot in self.stores.slots():
            self.stores.device(slot).close()
