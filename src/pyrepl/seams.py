"""The only ways in which the engine touches the world, as protocols; ``runtime`` and the simulation implement them.

Decides nothing. The disk itself is :class:`pyrepl._core.device.Device`; sockets and clocks never reach the engine.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from pyrepl._core.device import Device

Entropy = Callable[[int], bytes]
"""``entropy(n)`` returns n unpredictable bytes (production) or bytes from a seed (simulation)."""


class Placement(Protocol):
    """Where a site keeps the devices of stores that were not given one: the site's own policy, never the peer's."""

    def create(self, name: str, store_id: int, size: int) -> str:
        """A fresh sparse device of ``size`` bytes, all zeros, its existence durable; returns its path."""

    def open(self, path: str, size: int) -> Device:
        """The device at ``path``, at least ``size`` bytes long."""

    def resize(self, path: str, size: int) -> None:
        """Makes a device that ``create`` made ``size`` bytes long; a device that was given only has its length
        checked."""

    def remove(self, path: str) -> None:
        """Gives the space back, if ``create`` made it; a device that was given is left alone."""
