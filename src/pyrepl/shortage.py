"""Want of room: a site stands still where the file system of its stores is full, and goes on by itself.

What finds no room is neither failed nor replaced by its data, which would need more room still: it is not done yet. The
journal, which has its room from the beginning, takes in what comes meanwhile, and what has no place there either is
refused to whoever sends it.

    stand    what is being performed finds no room. Nothing of it counts (rule stand_still): notes that are durable by
             then say where content is that was moved, as after a crash, and it is begun again from the journal
    again    once a second, and for whoever needs everything performed; first one record, then more, until it is over
    torn     where an epoch was begun, maps may be ahead of the data that stand in the window: no view is made before
             that has been performed (rule stand_whole)
    mover    without room it rests, and tries again as often; while the site stands still it copies for no volume

Decides when it is tried again, and what people are told. Must not know how anything is performed (``applier``), nor
what time it is but by the window's clock.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

from pyrepl.errors import Refused

if TYPE_CHECKING:
    from pyrepl.site import Site

FULL = (errno.ENOSPC, errno.EDQUOT)
AGAIN = 1.0  # seconds until it is tried again
LEAST = 64 * 1024  # bytes of the epoch after the first one that found room again
SECOND = 1_000_000_000  # ns


class NoRoom(Refused):
    """The file system of a store's device has no room. ``path``: of the device, "" if that is not known; ``why``: what
    the system says."""

    def __init__(self, error: OSError) -> None:
        self.path, self.why = error.filename or "", error.strerror or str(error)
        where = f"{self.path}: " if self.path else ""
        super().__init__(f"{where}{self.why}: free some space", reason="space", retryable=True)


@contextmanager
def room_for() -> Iterator[None]:
    """What is done within needs room for stores, and nothing of the journal.

    Raises:
        NoRoom: there is none.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in FULL:
            raise
        raise NoRoom(error) from error


class Stand(NamedTuple):
    """Since when there is no room (ns since 1970), when that was seen last, and for what."""

    since: int
    tried: int
    path: str
    why: str


class Shortage:
    """Of one site. The applier says what it meets; any thread may ask."""

    def __init__(self, site: Site) -> None:
        self.site = site
        self.stand: Stand | None = None  # the site stands still
        self.rest: Stand | None = None  # the mover rests
        self.changed: Callable[[str], None] = lambda text: None  # it stands still, and why; "": it goes on
        self.most = 0  # bytes that one epoch may have; 0: it need not be careful
        self._torn = 0  # journal position up to which an epoch was begun and not ended
        self._is_hurried = False
        self._turned_away = False  # what came has found no place in the journal either

    # ---- the applier

    @property
    def stands(self) -> bool:
        """Whether the site stands still."""
        return self.stand is not None

    @property
    def is_early(self) -> bool:
        """Whether what found no room is not to be tried again yet."""
        return self.stand is not None and not self._is_hurried and self._left(self.stand) > 0

    @property
    def is_mover_early(self) -> bool:
        """Whether the mover, which found no room, is not to try again yet."""
        return self.rest is not None and self._left(self.rest) > 0

    def hurry(self, hurried: bool) -> None:
        """Somebody needs everything performed: it is tried again at once."""
        self._is_hurried = hurried

    def begin(self, error: NoRoom) -> None:
        """What is to be performed next has found no room."""
        is_new, self._is_hurried, self.most = self.stand is None, False, 1
        self.stand = self._again(self.stand, error)
        if is_new:
            self.changed(self.words())

    def tear(self, until: int) -> None:
        """An epoch that reaches up to this journal position has found no room: some of it may be done. Or a start has
        still to redo it."""
        self._torn = max(self._torn, until)

    def whole(self) -> None:
        """No epoch was begun that is not ended: what is performed next is none."""
        self._torn = 0

    def passed(self, position: int) -> None:
        """Everything before this journal position is performed."""
        self.most = max(8 * self.most, LEAST) if self.most else 0
        if position >= self._torn:
            self.over()

    def over(self) -> None:
        """Nothing waits for room."""
        self._torn = self.most = 0
        if self.stand is not None:
            self.stand, self._turned_away = None, False
            self.changed("")

    def mover_found_none(self, error: NoRoom) -> None:
        """It rests."""
        self.rest = self._again(self.rest, error)

    def mover_is_done(self) -> None:
        """It has nothing to do."""
        self.rest = None

    @property
    def wait(self) -> float | None:
        """Seconds until something is tried again; None: nothing waits for room."""
        if self.stand is not None:
            return self._left(self.stand)
        return None if self.rest is None else self._left(self.rest) or 1.0  # it may be its turn, and not be asked

    def _again(self, before: Stand | None, error: NoRoom) -> Stand:
        now = self.site.window.time()
        return Stand(before.since if before is not None else now, now, error.path, error.why)

    def _left(self, one: Stand) -> float:
        """Whichever way the clock was set meanwhile, it is no more than :data:`AGAIN`."""
        return max(0.0, AGAIN - abs(self.site.window.time() - one.tried) / SECOND)

    # ---- what may not be done meanwhile

    def check(self, doing: str) -> None:
        """It needs that everything is performed.

        Raises:
            Refused: the site stands still; the text says what helps.
        """
        if self.stand is not None:
            raise Refused(f"group {self.site.name!r} cannot {doing} now: {self.words()}", reason="space",
                          retryable=True)

    def shows(self, shown_position: int) -> bool:
        """Whether readers who find what is shown up to there find all that was begun."""
        return self.stand is None or shown_position >= self._torn

    def turn_away(self) -> None:
        """What came waits for a place in the journal.

        Raises:
            Refused: the site stands still, so none comes free.
        """
        if self.stand is not None:
            self._turned_away = True
            self.check("take more")

    def check_feed(self) -> None:
        """A primary is about to feed this site: it is told at once, and sends nothing, if something found no place in
        the journal, and it still stands still.

        Raises:
            Refused: the text says what helps.
        """
        if self._turned_away:
            self.check("take more")

    # ---- for people

    def words(self) -> str:
        """That the site stands still, why, and what to do; empty: it does not."""
        stand, lsn = self.stand, self.site.window.state().applied_lsn
        if stand is None:
            return ""
        return (f"it stands still after LSN {lsn}, for want of room: {_what(stand)}; {self._free(stand)} bytes are "
                f"free there. Free some space: it goes on by itself")

    def told(self) -> dict[str, Any] | None:
        """Why the site stands still: ``device``, ``error``, ``free`` (bytes there), ``since`` (seconds since 1970),
        ``text``. None: it does not."""
        return self._told(self.stand, self.words())

    def mover_told(self) -> dict[str, Any] | None:
        """The same of the mover, while it rests."""
        rest = self.rest
        if rest is None:
            return None
        return self._told(rest, f"the mover rests, for want of room: {_what(rest)}; {self._free(rest)} bytes are free "
                                f"there. Free some space: it goes on by itself")

    def _told(self, one: Stand | None, text: str) -> dict[str, Any] | None:
        if one is None:
            return None
        return {"device": one.path or None, "error": one.why, "free": self._free(one), "since": one.since / SECOND,
                "text": text}

    def _free(self, one: Stand) -> int:
        return self.site.shelf.placement.room(one.path)


def _what(stand: Stand) -> str:
    return f"{stand.path}: {stand.why}" if stand.path else stand.why
