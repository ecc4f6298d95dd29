"""What a site keeps for a verification: views of its stores as of one LSN, and their digests.

    announce   before the operation gets its place here: from then on everything that is admitted has room for its views
               (rule view_room); what was admitted before is applied when the operation is performed
    capture    by the applier, in the step that performs it: the views show this LSN, whatever is written meanwhile
    forget     they are closed: when the comparison is over, when the next verification is performed, or when nobody has
               asked for a while (``sweep``). A start closes them like all views

At most one verification is kept. Decides what of it is kept and what is digested. Must not know who compares
(``verifying``), nor what follows from a difference (``link``).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import xxhash

from pyrepl._core import view
from pyrepl.catalog import View
from pyrepl.errors import NotFound, PyreplError, UsageError

if TYPE_CHECKING:
    from pyrepl.operations import Compared
    from pyrepl.site import Site

DIGEST = 16  # bytes of an XXH3-128
PIECE = 4 << 20  # bytes that are read at a time


class Verification:
    """What one site keeps. ``announce`` is called where operations enter, ``capture`` by the applier, the rest from any
    thread."""

    def __init__(self, site: Site) -> None:
        self.site = site
        self.lsn = 0  # 0: none is kept
        self.views: dict[int, View] = {}  # by store
        self.problem = ""  # why nothing is kept of the last one
        self.failed_lsn = -1
        self._asked = False

    def announce(self, operation: Compared) -> None:
        """It is about to get its place here.

        Raises:
            UsageError: one with this token has its place already.
        """
        if operation.token in self.site.views.promised:
            raise UsageError("a verification comes a second time")
        self.site.views.promise(operation.token, len(operation.stores))

    def retract(self, operation: Compared) -> None:
        """It did not get one."""
        self.site.views.withdraw(operation.token)

    def capture(self, operation: Compared, lsn: int) -> None:
        """It is performed: whatever prevents the views does not prevent it."""
        views = self.site.views
        self._close()
        try:
            opened = views.open_promised(operation.token, operation.stores)
        except (PyreplError, OSError) as error:
            self.problem, self.failed_lsn = str(error), lsn
            return
        self.lsn, self.views, self._asked = lsn, opened, True

    def forget(self, lsn: int) -> None:
        """Nobody asks for it any more. Harmless the second time."""
        if self.lsn == lsn and lsn:
            self.site.exclusive(lambda: self._close() if self.lsn == lsn else None)

    def keep(self, lsn: int) -> None:
        """Somebody will ask for it."""
        if self.lsn == lsn:
            self._asked = True

    def sweep(self) -> None:
        """Forgets what nobody has asked for since the sweep before. Between two steps."""
        if not self._asked:
            self._close()
        self._asked = False

    def digests(self, lsn: int, store: int, first: int, count: int, per: int) -> bytes:
        """XXH3-128 of each ``per`` regions of ``count`` regions from ``first`` on, one after the other.

        Raises:
            NotFound: nothing is kept of that LSN, or of that store there.
            UsageError: outside the store.
        """
        site = self.site
        if self.lsn != lsn:
            site.exclusive(lambda: None)  # the step that performs it may be under way
        entry = self.views.get(store)
        if self.lsn != lsn or entry is None:
            why = self.problem if self.failed_lsn == lsn else (
                "it was not kept there: the site was restarted since, or nobody asked for it in time"
                if self.lsn != lsn or not lsn else f"there is no store {store}"
            )
            raise NotFound(f"the verification at LSN {lsn} has no store {store} to look at: {why}", lsn=lsn)
        self._asked = True
        size = site.region_size
        if first < 0 or count <= 0 or per <= 0 or first + count > entry.size // size:
            raise UsageError(f"{count} regions from {first} are not inside store {store}", store=store)
        answer = bytearray()
        memory = memoryview(bytearray(min(PIECE, per * size)))
        for start in range(first, first + count, per):
            state = xxhash.xxh3_128()
            end = min(start + per, first + count) * size
            for offset in range(start * size, end, PIECE):
                part = memory[: min(PIECE, end - offset)]
                view.readinto(site.window, site.stores, entry.id, offset, part)
                state.update(part)
            answer += state.digest()
        return bytes(answer)

    def _close(self) -> None:
        numbers = [entry.id for entry in self.views.values() if entry.id in self.site.views.opened]
        self.lsn, self.views = 0, {}
        self.site.views.close_these(numbers)
