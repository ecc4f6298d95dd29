"""Bounded lag: how far writers may get ahead of one secondary, in bytes of the journal, in seconds, or both.

Decides from when on a bound holds and at which end of the journal writers wait. A bound holds while the link is
connected, from when the secondary is within it: a link that is down, or has much to make up for, stops nobody, and its
status says so (``degraded``). Must not know how writers are made to wait (``_core.window``), nor what time it is.
"""

from __future__ import annotations

from pyrepl.options import LinkOptions


class Bound:
    """Of one link.

    Attributes:
        holds: whether it is kept to; False: not wanted, or not reached yet.
        position: where the journal's end may not go beyond; None: anywhere.
    """

    def __init__(self) -> None:
        self.holds = False
        self.position: int | None = None

    def void(self) -> None:
        """The connection has ended, or another bound is wanted."""
        self.holds, self.position = False, None

    def judge(self, options: LinkOptions, *, acknowledged: int, end: int, age: float) -> None:
        """By where things are now.

        Args:
            options: of the link.
            acknowledged: journal position up to which the secondary has everything; the end, if nothing is missing.
            end: of the journal.
            age: seconds since the oldest event was written that the secondary lacks; 0 if there is none.
        """
        is_late = 0 < options.most_lag_seconds < age
        is_far = 0 < options.most_lag_bytes < end - acknowledged
        self.holds = is_bounded(options) and (self.holds or not (is_late or is_far))
        if not self.holds:
            self.position = None
        elif is_late:
            self.position = 0  # whoever has no place yet waits, until the oldest has arrived
        else:
            self.position = acknowledged + options.most_lag_bytes if options.most_lag_bytes else None


def is_bounded(options: LinkOptions) -> bool:
    """Whether a bound is wanted."""
    return options.most_lag_bytes > 0 or options.most_lag_seconds > 0
