"""Bulk work: regions into copied batches, events into region maps, devices compared."""
from pyrepl._core.device import Device
from pyrepl._core.regions import RegionMap
from pyrepl._core.stores import Stores
from pyrepl._core.window import Entry, Window

def copied_batch(window: Window, stores: Stores, store: int, runs: list[tuple[int, int]], *, group: bytes,
                 generation: bytes, lsn: int,
                 item: int) -> tuple[bytes, memoryview, int]:
    """Reads these runs of regions (at most PR_MAX_PAYLOAD bytes, PR_MAX_RECORDS records; the last region may be cut
    by the store's end) as the store shows them now, and encodes a batch of copied regions: (head, payload, payload
    bytes). Zero regions cost no payload. read_end (in the head) is the window's end LSN after the read. LookupError,
    ValueError (does not fit, outside), OSError."""
def enter(entry: Entry, store: int, regions: RegionMap, region_size: int) -> None:
    """Marks every region that this batch of events touches in `store` (folding). ValueError: not a batch of events,
    or an event lies outside the map (then nothing was marked)."""
def leave(entry: Entry, store: int, regions: RegionMap, region_size: int, store_size: int) -> None:
    """Clears every region that a write, zero or discard of this batch covers whole (streaming); events that follow
    each other without a gap count as one. What lies outside the map is left out."""
def hash_store(window: Window, stores: Stores, store: int, length: int) -> bytes:
    """A digest (16 bytes) of the first `length` bytes that the store shows, zeros of the map and of a device alike;
    see pump.c."""
def equal(a: Device, b: Device, length: int) -> int:
    """Offset of the first difference of two devices, or -1."""
