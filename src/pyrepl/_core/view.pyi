"""What a store shows now: window over map over devices."""
from typing_extensions import Buffer

from pyrepl._core.stores import Stores
from pyrepl._core.window import Window

def read(window: Window, stores: Stores, store: int, offset: int, length: int) -> bytes:
    """Any offset and length inside the store. LookupError: no such store; ValueError: outside; OSError: the device."""
def readinto(window: Window, stores: Stores, store: int, offset: int, buffer: Buffer) -> None: ...
def write_unaligned(window: Window, stores: Stores, store: int, offset: int, data: Buffer, *, fua: bool = False) -> int:
    """A write of any offset and length: the edges are read, merged and written while their blocks are held. The last
    LSN. Errors as read(); ValueError too for no data; OSError too if the journal failed. Longer than 4 MiB goes in
    pieces."""
def allocation(window: Window, stores: Stores, store: int, offset: int, length: int) -> list[tuple[int, bool]]:
    """Runs from ``offset`` on, as (bytes, whether they certainly read as zeros): at most 1024, so perhaps not all of the
    range. Errors as read()."""
