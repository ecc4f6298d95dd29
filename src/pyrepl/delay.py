"""Delayed apply: a secondary holds everything durably at once, and performs it only when it is so old.

What waits is *parked* (``_core.window``): it stands in the journal, is acknowledged as durable, and nobody sees it
here: not readers, not views. So what an operator did wrong at the primary can still be read as it was before, until the
delay is over. Age is by the time of the primary's record and the clock of this site; what has no time (items, notes)
goes with what stands before it.

What comes of a plug-in is awaited by the primary, so everything up to it is performed at once. The journal is the
bound: where what waits fills half of it, or nothing more could arrive, the oldest is performed
before its time, and ``shortened`` says so until the delay holds again. A site that changes its role, keeps a tail or
a protective snapshot, or gives way performs everything first (``waived``).

Decides what may be performed now. Must not know what a step does, nor who wakes the applier.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pyrepl._core import layout
from pyrepl.errors import Refused, UsageError, check

if TYPE_CHECKING:
    from pyrepl._core.window import WindowState
    from pyrepl.site import Site

MOST_DELAY = 30 * 86400.0  # seconds
ANY_TIME = (1 << 64) - 1
SECOND = 1_000_000_000  # ns
LARGEST = layout.MAX_PAYLOAD + 2 * layout.BLOCK  # bytes of the log that the longest record takes
SLACK = 256 * 1024  # bytes of notes that such a record may need besides, roughly


class Delay:
    """Of one site. All but :meth:`told` between two steps."""

    def __init__(self, site: Site) -> None:
        self.site = site
        self.seconds = 0.0
        self.shortened = ""  # why something was performed before its time; empty: the delay holds
        self.waived = False  # everything is performed now
        self.next_ns = 0  # when the oldest that waits was closed at the primary; 0: nothing waits

    @property
    def is_parking(self) -> bool:
        """Whether something may stand in the journal that readers do not see."""
        return self.site.window.state().shown_position is not None

    def begin(self) -> None:
        """This site is, or has become, a secondary."""
        if self.seconds and self.site.role == "secondary":
            self.site.window.park(True)

    def end(self) -> None:
        """It leads: everything is performed."""
        self.site.window.park(False)
        self.site.applier.finish()
        check(self.site.window.unpark(), "a site that leads has performed everything")
        self.shortened, self.next_ns = "", 0

    def set(self, seconds: float) -> None:
        """From now on; durable on return."""
        wanted = check_delay(seconds)
        if wanted and self.site.role == "secondary" and self.site.links:
            raise Refused(
                f"group {self.site.name!r} has links of its own here, and a secondary that has cannot be delayed: what "
                f"it shows would be older than what it sends. Delay the site that is last", reason="state")
        self.seconds = wanted
        if self.site.role == "secondary":
            self.site.window.park(self.seconds > 0)
        self.site.checkpoint()

    # ---- the applier

    def until(self, state: WindowState) -> int:
        """The position up to which everything is old enough; what was parked before it is shown."""
        window, site = self.site.window, self.site
        if state.shown_position is None or window.unpark():
            self.next_ns, self.shortened = 0, ""
            return state.end_position
        if state.shown_position > state.applied_position:
            return state.shown_position
        free = not self.seconds or self.waived
        awaited = site.outcomes.is_pending
        cutoff = ANY_TIME if free else max(0, window.time() - int(self.seconds * SECOND))
        most = site.options.epoch_bytes
        shown, self.next_ns = window.show(state.durable_position, cutoff, most)
        if shown > state.applied_position or free:
            self.shortened = ""
        elif awaited:
            # Nothing behind a plug-in counts as acknowledged before it is performed.
            self.shortened = "the primary waits for what comes of a plug-in"
            until = min(state.durable_position, site.outcomes.received_until)
            shown, self.next_ns = window.show(until, ANY_TIME, most)
        elif self.next_ns and (why := self._why_not_longer(state)):
            self.shortened = why
            shown, self.next_ns = window.show(state.durable_position, ANY_TIME, most)
        return shown

    def _why_not_longer(self, state: WindowState) -> str:
        room = self.site.room
        if state.end_position - state.applied_position + state.notes > room // 2:
            return "what waits fills half of the journal"
        if state.wanting or room - (state.end_position - state.tail_position) - state.notes < LARGEST + SLACK:
            return "the journal has no room for more"
        return ""

    @property
    def wait(self) -> float | None:
        """Seconds until the oldest that waits is old enough; None: nothing waits."""
        if not self.next_ns or not self.seconds:
            return None
        return max(0.0, (self.next_ns - self.site.window.time()) / SECOND + self.seconds)

    # ---- for people

    def told(self) -> dict[str, Any]:
        """``seconds``: that were chosen. ``waiting_bytes``: of the journal, not performed yet. ``oldest``: when its
        oldest event was written at the primary, seconds since 1970; null: nothing waits. ``shortened``: why something
        was performed before its time."""
        state, oldest = self.site.window.state(), self.next_ns
        waits = state.shown_position is not None and state.applied_lsn != state.end_lsn  # not a note of its own
        return {
            "seconds": self.seconds,
            "waiting_bytes": state.end_position - state.applied_position if waits else 0,
            "oldest": oldest / SECOND if oldest and waits else None,
            "shortened": self.shortened or None,
        }


def check_delay(seconds: object) -> float:
    """A delay that can be chosen.

    Raises:
        UsageError: the text says the rule.
    """
    if isinstance(seconds, bool) or not isinstance(seconds, int | float) or not 0 <= seconds <= MOST_DELAY:
        raise UsageError(
            f"a delay of {seconds!r} seconds cannot be: from 0 (none) to {MOST_DELAY:g} seconds", seconds=seconds)
    return float(seconds)
