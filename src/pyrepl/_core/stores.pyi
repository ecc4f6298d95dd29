"""Stores: the table of devices and source maps of one group at one site. The applier's thread changes it; readers may resolve."""
from typing_extensions import Buffer

from pyrepl._core.device import Device

class Stores:
    region_size: int
    def __init__(self, *, region_size: int, alignment: int) -> None: ...
    def add(self, slot: int, device: Device, *, store: int = 0, size: int = 0, zero: bool = False) -> None:
        """A device enters at `slot`. With `store` (its id) it gets a map: its own slot everywhere, or zeros."""
    def set_scratch(self, slot: int) -> None: ...
    def drop_map(self, slot: int) -> None: ...
    def remove(self, slot: int) -> None:
        """The device leaves. OSError(EBUSY) if a store still shows it."""
    def device(self, slot: int) -> Device: ...
    def slots(self) -> list[int]: ...
    def free_slot(self) -> int:
        """The lowest slot not in use. OSError(ENOSPC): none."""
    def shown(self, slot: int, most: int = ...) -> int:
        """How many regions of its device other stores show, counted up to `most`."""
    def foreign(self, slot: int) -> int:
        """How many regions of this store have a device other than its own (zeros do not count)."""
    def copy(self, target: int, source: int, first: int, count: int) -> int:
        """Slots, regions: map(target) := map(source) on the range (source 0: zeros). Returns regions whose content may have changed."""
    def differing(self, target: int, source: int, first: int, count: int) -> int:
        """How many regions `copy` with these arguments would count; nothing changes. Any thread."""
    def resize(self, slot: int, size: int) -> None:
        """The map and the size; what is added shows zeros. The device was resized before (grow) or is afterwards (shrink)."""
    def source(self, slot: int, region: int) -> int: ...
    def runs(self, slot: int) -> list[tuple[int, int, int]]: ...
    def repoint(self, entries: Buffer) -> None:
        """Takes in the body of a note of type "map": an array of pr_map_entry. ValueError: malformed, nothing was done."""
    def resolve(self, store: int, offset: int, length: int, most: int = 64) -> tuple[list[tuple[int, int, int]], int, int]:
        """Where a live store's bytes are: ([(slot or 0 for zeros, offset on the device, length)], bytes covered, version). At most
        `most` (64) extents. LookupError: no such store; ValueError: outside it."""
    def version(self, store: int, offset: int, length: int) -> int:
        """Becomes another when a region of the range is re-pointed; 2**64 - 1: no such store."""
    def flush(self) -> None:
        """Flushes every device that was written since its last flush."""
    def encode_map(self, slot: int) -> bytes: ...
    def decode_map(self, slot: int, data: Buffer) -> None: ...
    def map_memory(self) -> int: ...
