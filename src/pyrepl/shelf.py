"""The shelf: which device holds which store at this site, and what an operation does to devices and source maps.

Decides slots, the scratch, and when a deleted store's device may go. Applier and recovery perform operations by the
same method here, so that replaying a note does exactly what was done before the crash. Must not know journal or links.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping

from pyrepl._core import layout
from pyrepl._core.device import Device
from pyrepl._core.stores import Stores
from pyrepl.catalog import Image, ImageKey, Place
from pyrepl.errors import InternalError, check
from pyrepl.notes import Placed, Worked
from pyrepl.operations import Copied, CopiedImage, Created, Deleted, Effect, Resized, Reworked
from pyrepl.seams import Placement
from pyrepl.shortage import room_for

_ENTRY = struct.Struct("<QQII")  # pr_map_entry


class Shelf:
    """The devices of one group at one site. Changed by the applier's thread only."""

    def __init__(self, stores: Stores, placement: Placement) -> None:
        self.stores = stores
        self.placement = placement
        self.places: dict[int, Place] = {}
        self.zombies: dict[int, str] = {}  # slot -> path: deleted stores whose devices others may still show
        self.graveyard: list[str] = []  # paths that may be removed once a checkpoint does not know them
        self.images: dict[str, Image] = {}  # by name: what others may show and nobody writes
        self.unhung: dict[str, OSError] = {}  # images whose devices could not be opened at the start, and why
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

        Raises:
            NoRoom: for one of them. What was made by then is made again by the next call, or swept by a start.
        """
        with room_for():
            return self._prepare(effects, reserved, names)

    def _prepare(self, effects: list[Effect], reserved: dict[int, tuple[str, bool]],
                 names: dict[int, str]) -> tuple[list[Placed], Placed | None, int]:
        placed: list[Placed] = []
        region = self.stores.region_size
        taken = self._taken_slots()
        largest = self.scratch_size
        for effect in effects:
            match effect:
                case Created(store, regions, _):
                    size = regions * region
                    path, fresh = reserved.get(store, ("", True))
                    path = path or self.placement.create(names.get(store, "store"), store, size, self.paths)
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

    def _taken_slots(self) -> set[int]:
        return {*self.stores.slots(), *(image.slot for image in self.images.values())}

    def free_slot(self) -> int:
        """One that nothing stands in."""
        return self._free_slot(self._taken_slots())

    def work_slots(self, count: int, placed: list[Placed], scratch: Placed | None) -> list[int]:
        """Slots for what plug-ins have written, beside those of what was prepared."""
        taken = self._taken_slots() | {one.slot for one in placed} | ({scratch.slot} if scratch is not None else set())
        return [self._free_slot(taken) for _ in range(count)]

    @property
    def paths(self) -> set[str]:
        """Devices that something names still, deleted stores' too: where a tail was lost, or a store is made anew, the
        next one of the same number and name must not take theirs. Any thread may ask."""
        live = {place.path for place in list(self.places.values())}
        return live | set(self.zombies.copy().values()) | set(self.graveyard)

    @property
    def free_slots(self) -> int:
        """How many more devices the table can hold."""
        return layout.MAX_STORES - 1 - len(self._taken_slots())

    def _free_slot(self, taken: set[int]) -> int:
        slot = next(n for n in range(1, len(taken) + 2) if n not in taken)
        taken.add(slot)
        return slot

    # ---- the note says that it happened

    def perform(
        self, effects: list[Effect], placed: list[Placed], scratch: Placed | None, scratch_size: int, *,
        refused: bool = False, worked: list[Worked] | None = None, devices: Mapping[str, Device] | None = None,
    ) -> list[int]:
        """Changes table and maps as the note says; for each effect, the regions whose content may have become another.

        Args:
            refused: without what is copied from images, which this site lacks.
            worked: what plug-ins have written.
            devices: of that, by path, if they are open.
        """
        region = self.stores.region_size
        where = {p.store: p for p in placed}
        changed = [0] * len(effects)
        if scratch is not None:
            self.stores.add(scratch.slot, self.placement.open(scratch.path, scratch_size))
            self.stores.set_scratch(scratch.slot)
            self.scratch = Place(scratch.slot, scratch.path)
        self._grow(self.scratch, scratch_size)
        self.scratch_size = max(self.scratch_size, scratch_size)
        swapped = {one.store: self._swap_in(one, devices or {}) for one in worked or []}
        for number, effect in enumerate(effects):
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
                    changed[number] = self.stores.copy(into, self.places[source].slot if source else 0, first, count)
                case CopiedImage() if refused:
                    pass
                case CopiedImage(target, key, first, count):
                    changed[number] = self.stores.copy(self.places[target].slot, self._slot_of(key), first, count)
                case Reworked(_, writes):
                    changed[number] = sum(swapped.get(one.store, 0) for one in writes)
                case Resized(store, regions):
                    self._grow(self.places[store], regions * region)
                    self.stores.resize(self.places[store].slot, regions * region)
                case Deleted(store):
                    gone = self.places[store]
                    self.stores.drop_map(gone.slot)
                    self.zombies[gone.slot] = gone.path  # before it leaves the others: `paths` always has it
                    del self.places[store]
        return changed

    def _swap_in(self, worked: Worked, devices: Mapping[str, Device]) -> int:
        """The store shows what a plug-in has written; how many regions. The device is as a deleted store's: it leaves
        when nobody shows it any more."""
        slot, path = worked.placed.slot, worked.placed.path
        device = devices[path] if path in devices else self.placement.open(path, worked.size)
        self.stores.add(slot, device)
        self.zombies[slot] = path
        into = self.places[worked.store].slot
        self.stores.repoint(b"".join(_ENTRY.pack(first, count, into, slot) for first, count in worked.runs))
        return sum(count for _, count in worked.runs)

    def count_changed(self, effects: list[Effect]) -> int:
        """Regions whose content :meth:`perform` would make another now, for stores in files of this site's own; nothing
        changes.

        Raises:
            KeyError: a store is not there.
        """
        made, total = set[int](), 0
        for effect in effects:
            match effect:
                case Created(store, _, _):
                    made.add(store)
                case Copied(target, _, _, count) | CopiedImage(target, _, _, count) if target in made:
                    total += count  # no store shows the device of a new one
                case Copied(target, source, first, count):
                    other = self.places[source].slot if source else 0
                    total += self.stores.differing(self.places[target].slot, other, first, count)
                case CopiedImage(target, key, first, count):
                    total += self.stores.differing(self.places[target].slot, self._slot_of(key), first, count)
                case Reworked(_, writes):
                    total += sum(one.count for one in writes)
                case _:
                    pass
        return total

    def _grow(self, place: Place | None, size: int) -> None:
        # A device is never made shorter: other stores may show what a shrunk store cut off.
        if place is not None and self.stores.device(place.slot).size < size:
            self.stores.device(place.slot).resize(size)

    # ---- images

    def hang(self, image: Image) -> None:
        """The image's device enters the table.

        Raises:
            OSError: it cannot be opened.
        """
        device = self.placement.open_image(image.path, image.key.size)
        try:
            self.stores.add(image.slot, device, store=image.id, size=image.key.size)
        except BaseException:
            device.close()
            raise
        self.images[image.name] = image

    def take_down(self, name: str) -> None:
        """The image leaves the table; nobody shows it."""
        image = self.images.pop(name)
        if self.unhung.pop(name, None) is None:
            device = self.stores.device(image.slot)
            self.stores.drop_map(image.slot)
            self.stores.remove(image.slot)
            device.close()

    def _slot_of(self, key: ImageKey) -> int:
        image = self.images.get(key.name)
        if image is not None and key.name in self.unhung:
            raise self.unhung[key.name]
        check(image is not None and image.key == key, "an operation is performed from the image that it means",
              name=key.name)
        assert image is not None
        return image.slot

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
        self.graveyard.append(self.zombies[slot])
        del self.zombies[slot]

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
        images: list[Image],
    ) -> None:
        """Becomes what a checkpoint says."""
        if scratch is not None:
            self.stores.add(scratch.slot, self.placement.open(scratch.path, scratch_size))
            self.stores.set_scratch(scratch.slot)
        self.scratch, self.scratch_size = scratch, scratch_size
        for image in images:
            try:
                self.hang(image)
            except OSError as error:  # of no account if nobody shows it
                self.images[image.name], self.unhung[image.name] = image, error
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
                for problem in self.unhung.values():
                    raise problem from error
                raise InternalError(f"the checkpoint has no usable source map of store {store}: {error}") from error

    def close(self) -> None:
        """Closes the devices."""
        for slot in self.stores.slots():
            self.stores.device(slot).close()
