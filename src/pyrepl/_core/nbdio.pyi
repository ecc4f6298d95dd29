"""The transmission phase of one NBD connection: requests in, window and devices, replies out."""
from collections.abc import Callable
from typing import Any

from pyrepl._core.stores import Stores
from pyrepl._core.window import Window

PAYLOAD_MOST: int  # bytes of a read or write
FLIGHT: int  # requests of one connection
WORKERS: int  # threads of one connection, besides the one that takes requests in
READ_MOST: int  # bytes of reads that a worker performs together
COMMANDS: dict[str, int]
ENDS: dict[int, str]

class Connection:
    """After the negotiation. ``fd`` is a connected stream socket, in blocking mode; its owner closes it when serve has returned.
    ``rare`` is called from other threads, one at a time, for BLOCK_STATUS and for what of TRIM and WRITE_ZEROES is long or not
    aligned: (command, flags, cookie, offset, length) -> (error of the protocol or 0, the whole reply or nothing)."""

    failure: BaseException | None  # the last that ``rare`` raised
    def __init__(
        self,
        window: Window,
        stores: Stores,
        *,
        store: int,
        size: int,
        fd: int,
        read_only: bool,
        structured: bool,
        statuses: bool,
        rare: Callable[[int, int, int, int, int], tuple[int, bytes]],
    ) -> None: ...
    def serve(self) -> str:
        """Returns when the connection has ended, how: "left" (in good order), "lost", "garbled", "too-long"."""
    def stop(self) -> None:
        """From any thread: serve returns soon. What is in flight is completed, and not answered."""
    def counts(self) -> dict[str, Any]:
        """``requests`` by command, ``errors``, ``bytes_read``, ``bytes_written``, so far."""
