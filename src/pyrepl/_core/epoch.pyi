"""Epochs: what the applier and the mover do, planned and carried out in C. One object, one thread."""
from pyrepl._core.stores import Stores
from pyrepl._core.window import Window

PARTLY: int  # ways in which a region is touched, for plan_touches
WHOLE: int
ZEROED: int
VACATE: int

class Epoch:
    """One run, step by step: gather, plan, then for each stage copy, flush, note, repoint; then write. Errors of a device are
    OSError with its name; OSError(ENODEV): a ring of stores, and no scratch device; OSError(ENOSPC): no device is long enough for
    what must be kept of a region; ValueError: a step out of turn, or a bad record in the log."""
    def __init__(self, stores: Stores, window: Window | None) -> None:
        """Without a window: for the mover only."""
    def gather(self, position: int, limit_position: int, limit_bytes: int) -> tuple[int, int, int]:
        """Takes the records from `position` on, while they are batches of events or copied regions (notes are passed over), up to
        limit_position and about limit_bytes: (position after them, last LSN of an event or 0, number of the last copied item or 0).
        Stops before an operation or item."""
    def plan(self) -> int:
        """Plans what was gathered: the number of stages."""
    def plan_touches(self, touches: list[tuple[int, int, int]]) -> int:
        """Plans for these (region, slot, way), each region and slot once: the number of stages. For tests and tools."""
    def plan_move(self, slot: int, start: int, most: int) -> tuple[int, int]:
        """Plans the mover's next step: makes up to `most` regions of the store in `slot`, from region `start` on, its own source.
        (stages, region to go on from; 0 stages and the map's size: nothing left)"""
    def plan_vacate(self, slot: int, start: int, most: int, local: bool = False) -> tuple[int, int]:
        """The same, to hand over what others show from the device in `slot`: a deleted store's (what only stores from
        layout.FIRST_LOCAL on show too if `local`), or the scratch."""
    def moves(self, stage: int) -> list[tuple[int, int, int]]:
        """The copies of a stage: (region, target slot, source slot or 0 for zeros)."""
    def copy(self, stage: int) -> int:
        """Carries out the copies of a stage; returns bytes copied. The caller then calls stores.flush()."""
    def note(self, stage: int) -> bytes:
        """The body of the note, empty if nothing changes."""
    def repoint(self, stage: int) -> None: ...
    def write(self) -> int:
        """Writes the data home; returns bytes written."""
    def clear(self) -> None: ...
