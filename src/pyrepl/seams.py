"""The only ways in which the engine touches the world, as protocols; ``runtime`` and the simulation implement them.

Decides nothing. The disk itself is :class:`pyrepl._core.device.Device`; sockets and clocks never reach the engine.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import TYPE_CHECKING, Protocol

from pyrepl._core.device import Device

if TYPE_CHECKING:
    from pyrepl.operations import Mark, Perform
    from pyrepl.workshop import Bench

Entropy = Callable[[int], bytes]
"""``entropy(n)`` returns n unpredictable bytes (production) or bytes from a seed (simulation)."""


class Gate(Protocol):
    """What happens at a mark, beside the order: the applier asks it, in its own thread."""

    def may_pass(self, mark: Mark, lsn: int) -> bool:
        """Whether the mark may be performed now. Everything before it is, nothing after it; while this says no, the
        stores stay so, and it is asked again with each step."""

    def passed(self, mark: Mark, lsn: int) -> None:
        """It is performed."""


class OpenGate:
    """Nothing happens at a mark."""

    def may_pass(self, mark: Mark, lsn: int) -> bool:
        return True

    def passed(self, mark: Mark, lsn: int) -> None:
        pass


class Run(Protocol):
    """One plug-in at its work. The applier asks."""

    error: str
    """Why it came to nothing; "": it is done, and what it did counts."""
    said: bytes
    """The digest that it gave of what it did."""

    def is_over(self) -> bool:
        """Whether it is done, has failed, or is given up because its time is over. From then on it touches nothing."""

    def wait(self) -> None:
        """Until it is over, which is a matter of time."""

    def end(self) -> None:
        """It is given up. Harmless the second time."""


class Plugins(Protocol):
    """The plug-ins that a site has."""

    def begin(self, work: Perform, lsn: int, benches: Mapping[str, Bench]) -> Run:
        """It runs, with these stores by name, until it is over. One that is not here is over at once."""


class Ended:
    """A run that is over."""

    def __init__(self, error: str = "", said: bytes = b"") -> None:
        self.error, self.said = error, said

    def is_over(self) -> bool:
        return True

    def wait(self) -> None:
        pass

    def end(self) -> None:
        pass


class NoPlugins:
    """There are none."""

    def begin(self, work: Perform, lsn: int, benches: Mapping[str, Bench]) -> Run:
        return Ended(f"there is no plug-in {work.plugin!r} here")


class Placement(Protocol):
    """Where a site keeps the devices of stores that were not given one: the site's own policy, never the peer's."""

    def create(self, name: str, store_id: int, size: int, taken: Collection[str] = ()) -> str:
        """A fresh sparse device of ``size`` bytes, all zeros, its existence durable; its path, none of ``taken``."""

    def open(self, path: str, size: int) -> Device:
        """The device at ``path``, at least ``size`` bytes long."""

    def open_image(self, path: str, size: int) -> Device:
        """The device at ``path`` for reading, shared with others who read; at least ``size`` bytes long."""

    def identify(self, path: str) -> tuple[int, ...]:
        """What the file at ``path`` is known by: another tuple when it was changed, or is another file."""

    def digest(self, path: str, size: int) -> bytes:
        """SHA-256 of its first ``size`` bytes."""

    def resize(self, path: str, size: int) -> None:
        """Makes a device that ``create`` made ``size`` bytes long; a device that was given only has its length
        checked."""

    def remove(self, path: str) -> None:
        """Gives the space back, if ``create`` made it; a device that was given is left alone."""

    def room(self, path: str = "") -> int:
        """Bytes that the devices of ``create`` can still take, all together; or what the file system of that path has
        left."""
