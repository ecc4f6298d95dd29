"""What can be chosen for a group at one site and for a link, validated where it is made.

Decides the limits of each option. Knows nothing of files or sockets.
"""

from __future__ import annotations

import msgspec

from pyrepl._core import layout
from pyrepl.errors import UsageError

MIB = 1 << 20
LIMITS: dict[str, tuple[float, float, str]] = {  # the least and the most that a link can be limited to
    "bandwidth": (1 << 10, 1 << 40, "bytes per second"),
    "most_lag_bytes": (MIB, 1 << 50, "bytes"),
    "most_lag_seconds": (0.1, 86400, "seconds"),
}


class SiteOptions(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Options of one group at one site; all sizes in bytes.

    Raises:
        UsageError: a value outside its rule; the text names option, value and rule.
    """

    region_size: int = 64 * 1024
    """Granule of source maps and divergence maps; a power of two. Both sites of a link must agree."""
    alignment: int = 4096
    """Of events: 512 or 4096. Not below the sector size of any device of the group."""
    ring_bytes: int = 64 * MIB
    """Memory of the window."""
    epoch_bytes: int = 4 * MIB
    """About how much one epoch applies; bounds how long an operation waits for the epoch in flight."""
    move_bytes: int = MIB
    """About how much one step of the mover copies."""
    checkpoint_bytes: int = 64 * MIB
    """A checkpoint is taken after this much of the log was applied; bounds what recovery redoes."""
    area_bytes: int = 0
    """Of each of the two checkpoint areas; 0: chosen from the journal's size."""

    def __post_init__(self) -> None:
        for name in self.__struct_fields__:
            self._require(name, type(getattr(self, name)) is int, "a whole number of bytes")
        power = self.region_size & (self.region_size - 1) == 0
        self._require("region_size", power and layout.BLOCK <= self.region_size <= layout.MAX_REGION,
                      f"a power of two from {layout.BLOCK} to {layout.MAX_REGION}")
        self._require("alignment", self.alignment in (512, 4096), "512 or 4096")
        least = 4 * (layout.MAX_PAYLOAD + layout.BLOCK)
        self._require("ring_bytes", self.ring_bytes >= least and self.ring_bytes % layout.BLOCK == 0,
                      f"a multiple of {layout.BLOCK}, at least {least}")
        for name in ("epoch_bytes", "move_bytes", "checkpoint_bytes"):
            self._require(name, getattr(self, name) >= self.region_size, "at least one region")
        self._require("area_bytes", self.area_bytes == 0 or
                      (self.area_bytes >= 16 * layout.BLOCK and self.area_bytes % layout.BLOCK == 0),
                      f"0, or a multiple of {layout.BLOCK}, at least {16 * layout.BLOCK}")

    def _require(self, name: str, holds: bool, rule: str) -> None:
        if not holds:
            raise UsageError(f"option {name} = {getattr(self, name)!r}: must be {rule}", option=name, rule=rule)


class LinkOptions(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Of one link. Times in seconds.

    Raises:
        UsageError: a value outside its rule.
    """

    heartbeat: float = 1.0
    dead: float = 5.0
    """Nothing heard for so long: the connection is given up."""
    backoff_first: float = 0.05
    backoff_most: float = 5.0
    most_flight: int = 64 * MIB
    """Bytes that may be sent and not acknowledged."""
    bandwidth: int = 0
    """Bytes per second that are sent at most; 0: no limit."""
    most_lag_bytes: int = 0
    """Of the journal, that the secondary may lack before writers wait for it; 0: any number."""
    most_lag_seconds: float = 0.0
    """That an event which it lacks may be old before writers wait for it; 0: any age."""

    def __post_init__(self) -> None:
        for name, least, most in (("heartbeat", 0.01, 60.0), ("dead", 0.05, 600.0), ("backoff_first", 0.001, 60.0),
                                  ("backoff_most", 0.001, 3600.0), ("most_flight", 1 << 20, 1 << 30)):
            value = getattr(self, name)
            if not least <= value <= most:
                raise UsageError(
                    f"link option {spelled(name)} = {_figure(value)}: must be from {_figure(least)} to {_figure(most)}",
                    option=name,
                )
        for name, (low, high, unit) in LIMITS.items():
            value = getattr(self, name)
            if value != 0 and not low <= value <= high:
                limits = f"from {low} to {high} {unit}, or none (0) for no limit"
                raise UsageError(
                    f"link option {spelled(name)} = {_figure(value)}: must be {limits}",
                    option=name,
                )
        if self.dead <= self.heartbeat:
            raise UsageError(
                f"link option dead = {self.dead:g}: must be more than heartbeat, {self.heartbeat:g}", option="dead"
            )


def _figure(value: float) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def spelled(name: str) -> str:
    """An option as people are told of it: by the API or the command line."""
    return name.replace("_", "-")
