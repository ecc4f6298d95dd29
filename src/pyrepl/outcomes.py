"""What came of plug-ins at this site, and who has still to hear of it.

    known       of operations that this site has performed, and has decided or is to pass on: until no link may send
                them any more. A checkpoint holds them, and so does the note that performs the operation
    surprises   of operations that another site decided, and of which this one has not the result: until its primary
                has heard

Decides how long an outcome is kept, and that there is room for it. What an outcome is, is ``workshop``'s.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pyrepl.errors import Refused
from pyrepl.operations import Outcome

if TYPE_CHECKING:
    from pyrepl.site import Site
    from pyrepl.workshop import Done

_TOKEN = b"plug-ins"
MOST_OUTCOME = 512  # bytes in a checkpoint of what came of one plug-in


class Outcomes:
    """Of one site. ``performed`` and ``forget`` are called by the applier's thread."""

    def __init__(self, site: Site) -> None:
        self.site = site
        self.known: dict[int, list[Outcome]] = {}  # by LSN
        self.surprises: dict[int, str] = {}  # LSN -> why
        self.received_until = 0  # journal position after the last operation with plug-ins that was received
        self._waiting = 0  # operations with plug-ins that were received and are not performed
        self._admitted: dict[int, int] = {}  # LSN of what is not performed yet -> its plug-ins

    @property
    def is_pending(self) -> bool:
        """Whether it is not known yet what comes of something that was received."""
        return self.received_until > self.site.window.state().applied_position

    def check_room(self, works: int) -> None:
        """What comes of so many plug-ins more has room in a checkpoint.

        Raises:
            Refused: the text says what to do.
        """
        site = self.site
        kept = sum(list(self._admitted.values())) + sum(len(known) for known in list(self.known.values()))
        if not site.has_checkpoint_room(MOST_OUTCOME * (kept + works)):
            raise Refused(
                f"the checkpoint areas of this journal ({site.journal.area_size} bytes each) have no room for what "
                f"comes of more plug-ins: let the secondaries catch up, or remove links that lead to none",
                reason="limit",
                retryable=True,
            )

    def admitted(self, lsn: int, works: int) -> None:
        """So many plug-ins have their place."""
        self._admitted[lsn] = works

    def receive(self, stores: int) -> None:
        """One is about to be received: what comes behind it has room for a protective snapshot of so many stores, which
        is kept if it does not come to what it came to at the primary (rule view_room)."""
        with self.site.guard:
            self._waiting += 1
            self.site.views.promise(_TOKEN, stores)

    def done(self) -> None:
        """One that was received is performed, or was not received after all."""
        with self.site.guard:
            self._waiting -= 1
            if self._waiting <= 0:
                self._waiting = 0
                self.site.views.withdraw(_TOKEN)

    def performed(self, lsn: int, done: Done, *, is_known: bool) -> None:
        """An operation with plug-ins.

        Args:
            is_known: that not all of it would be performed was decided when it arrived.
        """
        for known in [known for known in list(self._admitted) if known <= lsn]:
            del self._admitted[known]  # of one that was performed before it was said that it has its place, too
        self.done()
        if done.decides or self.site.followers:
            self.known[lsn] = done.decided
        if not done.decides and done.differs and not is_known:
            with self.site.guard:  # the thread that reads the link may be there
                self.site.end.refuse(lsn, done.differs)
                self.surprises[lsn] = done.differs

    def spare_room(self) -> None:
        """At a secondary nobody asks whether what comes of plug-ins has room before they come. Where a checkpoint has
        none, links that lack them begin again: the data are copied. Between two steps."""
        site = self.site
        self.forget()
        kept = MOST_OUTCOME * sum(len(known) for known in self.known.values())
        if not kept or site.has_checkpoint_room(kept):
            return
        for link in site.links.values():
            with link.guard:
                if link.ledger.unsent(self.known):
                    link.begin_again("more outcomes of plug-ins than a checkpoint of this site keeps")
        site.siblings.drop()

    def forget(self) -> None:
        """Before what links know is captured: what none of them will send by then, a start needs no more."""
        needed = set[int]()
        for link in self.site.followers:
            with link.guard:
                needed.update(link.ledger.unsent(self.known))
        for lsn in self.known.keys() - needed:
            del self.known[lsn]
