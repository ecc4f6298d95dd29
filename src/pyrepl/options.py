"""What can be chosen for a group at one site, validated where it is made.

Decides the limits of each option. Knows nothing of files or sockets.
"""

from __future__ import annotations

import msgspec

from pyrepl._core import layout
from pyrepl.errors import UsageError

MIB = 1 << 20


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
