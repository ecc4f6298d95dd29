"""Changes of role that a peer asks for: what a group does by itself, over restarts too.

    where it stepped down   the link to the successor is kept until that one durably holds the request, or says that it
                            is a primary, or any primary feeds this site; then the link is forgotten
    at the successor        it becomes primary, with the links that it was told of
    at a started primary    it asks all its peers whether they go on from its history, and leads when all have said so
    at a primary that lost  it steps down for the other side of a split brain, which was told to overrule it

The first two are the second half of a migration. They read from the site alone what is to be done (``roles``), so a
start goes on where a crash has interrupted it. Only the successor ever leads by itself, and only after the primary's
own role was durable (rule role_handover): there are never two. Decides when to look; must not know how a role changes
(``changeover``).
"""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING

from pyrepl.errors import PyreplError, Refused
from pyrepl.roles import SECONDARY

if TYPE_CHECKING:
    from pyrepl.group import Group

_LOOK = 0.01  # seconds between two looks at a link, or a connection, that is waited for
_HEARD = 1.0  # seconds that a successor leaves its primary to hear that it has heard
_AGAIN = 1.0  # seconds until a successor that could not lead tries again


class Succession:
    """Of one group. One thread at a time, and only while something is to be done."""

    def __init__(self, group: Group) -> None:
        self._group = group
        self._lock = threading.Lock()
        self._over = threading.Event()
        self._again = False
        self._thread: threading.Thread | None = None

    # ---- from any thread

    def begin(self) -> None:
        """Looks whether something is to be done, and does it in the background."""
        with self._lock:
            self._again = True
            if self._thread is None and not self._over.is_set():
                self._thread = threading.Thread(
                    target=self._run, name=f"pyrepl-succession-{self._group.name}", daemon=True
                )
                self._thread.start()

    def stop(self) -> None:
        """Does nothing any more; what is under way has ended on return. Harmless the second time."""
        self._over.set()
        with self._lock:
            thread, self._again = self._thread, False
        if thread is not None and thread is not threading.current_thread():
            thread.join()

    def cancel(self) -> None:
        """The successor is not asked any more: this site takes the lead back."""
        self.stop()
        self._over.clear()

    # ---- its thread

    def _run(self) -> None:
        while True:
            with self._lock:
                if not self._again or self._over.is_set():
                    self._thread = None
                    return
                self._again = False
            try:
                self._go_on()
            except PyreplError as error:
                if self._group.fault is not None:
                    continue
                self._group.emit({"event": "not-promoted", "group": self._group.name, "text": str(error)})
                with self._lock:
                    self._again = not self._over.wait(_AGAIN)

    def _go_on(self) -> None:
        group, site = self._group, self._group.site
        if site.role != SECONDARY:
            if site.roles.overruling:
                site.roles.overruling = b""
                group.resolve("here")
            elif site.roles.asking:
                self._ask_peers()
        elif site.successor:
            self._ask()
        elif site.end.succession is not None:
            self._lead()

    def _ask_peers(self) -> None:
        """Until all have answered, or somebody has decided otherwise."""
        group, roles = self._group, self._group.site.roles
        while roles.asking and not roles.overruling and not self._again:
            if all(link.has_answered for link in group.links):
                group.changeover.activate()
            elif self._over.wait(_LOOK):
                return

    def _ask(self) -> None:
        """Until the successor has heard."""
        group, site = self._group, self._group.site
        name = site.successor
        attachment = group.link(name)
        attachment.hand_over()
        while site.successor and not attachment.is_heard:
            if self._over.wait(_LOOK):
                return
        group.attachments.forget_successor(name)

    def _lead(self) -> None:
        group, site = self._group, self._group.site
        until = time.monotonic() + _HEARD
        while any(feed.owes for feed in group.feeds(site)) and time.monotonic() < until:
            if self._over.wait(_LOOK):
                return
        try:
            group.promote()
        except Refused as error:
            if error.reason != "role":  # somebody else has promoted it
                raise
