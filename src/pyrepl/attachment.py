"""A link as users of the package hold it: its state, pausing it, and waiting for what its secondary has.

Decides what "synced" and "applied there" mean to a caller. What is sent is ``link``'s decision, the threads are
``runtime.dialer``'s.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from pyrepl.errors import NotFound, Refused, WaitTimeout
from pyrepl.results import check_timeout

if TYPE_CHECKING:
    from pyrepl.group import Group
    from pyrepl.link import Link
    from pyrepl.runtime.dialer import Dialer

_LOOK = (0.002, 0.05)  # seconds between two looks at a link that is waited for: the first, and the most
_REFUSED = 8.0  # seconds: a refusal is asked about again every 5 s and some; one that lasts longer is an answer

Progress = Callable[[dict[str, Any]], None]


class Attachment:
    """A link of a group. Made by :meth:`Group.add_link` or found by :meth:`Group.link`."""

    def __init__(self, group: Group, link: Link) -> None:
        self._group = group
        self._link = link
        self._dialer: Dialer | None = None
        self._stopped = False

    @property
    def name(self) -> str:
        return self._link.name

    @property
    def address(self) -> str:
        """``host:port`` of the secondary."""
        return self._link.address

    @property
    def mode(self) -> str:
        """``async`` or ``sync``."""
        return self._link.mode

    def status(self) -> dict[str, Any]:
        """Bytes and LSNs are integers; ``state`` is one of STATES in ``link``."""
        if self._dialer is None:
            with self._link.guard:
                return self._link.status()
        return self._dialer.status()

    def pause(self) -> None:
        """Ends the connection until :meth:`resume`, over restarts too. Writes go on; what they touch is sent later."""
        self._set_paused(True)

    def resume(self) -> None:
        """Connects again, and sends what the secondary lacks."""
        self._set_paused(False)

    def wait_synced(self, timeout: float | None = None, progress: Progress | None = None) -> dict[str, Any]:
        """Returns when the secondary is consistent and durably holds all that was written before the call; the status
        then.

        Args:
            timeout: seconds, None for ever.
            progress: called with the status a few times a second (``divergent_bytes``, ``lag_bytes``, ``bytes_sent``,
                ``state``).

        Raises:
            WaitTimeout: it goes on in the background; the text says where it stands.
            Refused: the secondary refuses the link; the text says why.
            NotFound: the link was removed.
        """
        target = self._group.site.window.state().end_lsn

        def synced(status: dict[str, Any]) -> bool:
            return bool(status["consistent"] and status["durable_lsn"] >= target and not status["divergent_bytes"])

        return self._wait(synced, f"synced up to LSN {target}", timeout, progress)

    def wait_applied(self, lsn: int, timeout: float | None = None) -> None:
        """Returns when the secondary has performed everything up to ``lsn``. Errors as of :meth:`wait_synced`."""
        self._wait(lambda status: bool(status["applied_lsn"] >= lsn), f"applied up to LSN {lsn}", timeout, None)

    # ---- for the group

    def start(self) -> None:
        """Begins to connect."""
        from pyrepl.runtime.dialer import Dialer

        self._dialer = Dialer(self._link, os.urandom)
        self._dialer.start()

    def stop(self) -> None:
        """Ends the connection and its threads. Harmless the second time."""
        self._stopped = True
        if self._dialer is not None:
            self._dialer.stop()

    def __repr__(self) -> str:
        return f"<link {self.name!r} of group {self._group.name!r} to {self.address}>"

    # ---- inside

    def _set_paused(self, paused: bool) -> None:
        self._check()
        if self._dialer is not None:
            if paused:
                self._dialer.pause()
            else:
                self._dialer.resume()
        try:
            self._group.site.checkpoint()  # a pause outlives a restart
        except Exception as error:
            raise self._group.failure(error, f"group {self._group.name!r}: pausing link {self.name!r}") from error

    def _check(self) -> None:
        self._group.check()
        if self._stopped:
            raise NotFound(f"group {self._group.name!r}: link {self.name!r} was removed", name=self.name)

    def _wait(
        self, reached: Callable[[dict[str, Any]], bool], what: str, timeout: float | None, progress: Progress | None
    ) -> dict[str, Any]:
        check_timeout(timeout)
        begin = told = time.monotonic()
        refused_since: float | None = None
        pause = _LOOK[0]
        while True:
            self._check()
            status, now = self.status(), time.monotonic()
            if progress is not None and (now - told >= 0.2 or told == begin or reached(status)):
                progress(status)
                told = now
            if reached(status):
                return status
            refused_since = (refused_since or now) if status["state"] in ("refused", "diverged") else None
            if refused_since is not None and now - refused_since > _REFUSED:
                raise Refused(
                    f"link {self.name!r} to {self.address} is refused: {status['last_error']}",
                    reason="peer",
                    link=self.name,
                )
            if timeout is not None and now - begin >= timeout:
                error = f"; last error: {status['last_error']}" if status["last_error"] else ""
                raise WaitTimeout(
                    f"link {self.name!r} is not {what} after {timeout} s: it is {status['state']}, "
                    f"{status['divergent_bytes']} bytes differ, {status['lag_bytes']} behind{error}; it goes on",
                    link=self.name,
                    status=status,
                )
            time.sleep(pause if timeout is None else max(0.0, min(pause, begin + timeout - now)))
            pause = min(pause * 2, _LOOK[1])
