"""The stream of a link by the run: many batches of events out, or in, by one call without the GIL.

What is no batch of events, and why a frame is wrong, is said by the session and the replica, frame by frame.
"""
from typing_extensions import Buffer

from pyrepl._core.window import Window

LOT: int
"""Batches of one lot at most."""

def pack_frame(kind: int, length: int, body_crc: int, sequence: int, session: int) -> bytes:
    """The header of a frame."""
def unpack_frame(header: Buffer) -> tuple[int, int, int, int, int]:
    """(type, length, body_crc, sequence, session). ValueError: length, magic, version or checksum is wrong."""

class Reach:
    """Where a stream of events stands at its receiver: what the next batch must be, and what has been taken since `begin`."""
    def __init__(self, *, alignment: int) -> None: ...
    def begin(self, group: bytes, generation: bytes, session: int, sequence: int, lsn: int, previous: int | None) -> None:
        """From here on: `sequence` of the next frame, `lsn` of the last event, `previous` the digest of its batch (None: not known)."""
    @property
    def batches(self) -> int:
        """That were taken."""
    @property
    def bytes(self) -> int:
        """Of their frames."""
    @property
    def sequence(self) -> int: ...
    @property
    def lsn(self) -> int: ...
    @property
    def previous(self) -> int | None: ...
    @property
    def position(self) -> int:
        """Of the journal behind the last one that was taken; 0: none was."""

def take(window: Window, reach: Reach, data: Buffer) -> int:
    """Takes the batches of events at the beginning of data into the window, each judged; the bytes of their frames. Ends at the first
    frame that is not whole, no batch of events, or not the next one; or where there is no room."""

class Inlet:
    """What a connection has received and nobody has taken yet, in `memory`: at least the longest frame. The descriptor is the
    caller's, and so is the time that it waits (SO_RCVTIMEO). EOFError: the peer sends no more; BlockingIOError: it was silent for
    that time; OSError."""
    def __init__(self, fd: int, memory: Buffer) -> None: ...
    @property
    def received(self) -> int:
        """Bytes in all."""
    @property
    def at_hand(self) -> int:
        """Bytes that were received and not taken."""
    @property
    def is_whole(self) -> bool:
        """Whether a whole frame is at hand."""
    def fill(self, length: int) -> int:
        """Receives until so many bytes are at hand; where in the memory they begin. That holds until the next call."""
    def skip(self, length: int) -> None:
        """So many of them are done with. ValueError: they are not at hand."""
    def take(self, window: Window, reach: Reach, most: int, quiet: int) -> bool:
        """Takes batches as :func:`take` does, receives what it needs for it, and returns when something was taken (or nothing for
        want of room, for a moment) and no more is at hand, or `most` bytes were. False: what comes next is another frame. The first
        `quiet` bytes are appended without waking who writes them: the caller makes them durable at once."""

class Outlet:
    """A lot of batches of events that follow one another in the log, with their frames. Pins the window's memory until it is
    released."""
    def __init__(self, window: Window) -> None: ...
    @property
    def count(self) -> int: ...
    @property
    def first_lsn(self) -> int: ...
    def fetch(self, position: int, until: int, most: int) -> int:
        """Those of one generation from `position` on that end before `until`, about `most` bytes of them, from memory or read
        back from the log; how many. 0: what stands there is something else, which Window.entry says. ValueError: before the
        tail or beyond the end."""
    def marks(self) -> list[tuple[int, int, int, int]]:
        """Of each batch: its bytes on the wire without the frame's header, its last LSN, the position behind it, the bytes of its
        longest event."""
    def head(self, number: int) -> bytes:
        """Travel part and descriptors of one."""
    def seal(self, sequence: int, session: int) -> None:
        """Their frames are numbered from `sequence` on."""
    @property
    def length(self) -> int:
        """Bytes that are still to be sent."""
    def send(self, fd: int, patience: int, dead: int) -> int:
        """Sends all of it; the bytes. Times in ms: after `patience` without room the window's memory is copied away and given back,
        after `dead` TimeoutError. OSError."""
    def __bytes__(self) -> bytes:
        """What send would send."""
    def release(self) -> None:
        """Harmless the second time."""
