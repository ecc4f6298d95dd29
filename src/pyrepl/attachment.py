"""A link as users of the package hold it: its state, pausing it, and waiting for what its secondary has.

Decides what "synced" and "applied there" mean to a caller. What is sent is ``link``'s decision, the threads are
``runtime.dialer``'s.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Literal

from pyrepl.bound import is_bounded
from pyrepl.errors import NotFound, Refused, UsageError, WaitTimeout
from pyrepl.options import spelled
from pyrepl.results import TELL_EVERY, Progress, check_timeout
from pyrepl.roles import PRIMARY

if TYPE_CHECKING:
    from pyrepl.forecast import Forecast
    from pyrepl.group import Group
    from pyrepl.link import Link
    from pyrepl.runtime.dialer import Dialer
    from pyrepl.volume import Extent, Store

LATER = ("; its secondary holds all of that durably, and performs it later: it may be delayed (`pyrepl group show` at "
         "that site says so)")  # the end of a sentence
_LOOK = (0.002, 0.05)  # seconds between two looks at a link that is waited for: the first, and the most
_REFUSED = 8.0  # seconds: a refusal is asked about again every 5 s and some; one that lasts longer is an answer


class Attachment:
    """A link of a group. Made by :meth:`Group.add_link` or found by :meth:`Group.link`."""

    def __init__(self, group: Group, link: Link) -> None:
        self._group = group
        self._link = link
        self._dialer: Dialer | None = None
        self._stopped = False
        self._oldest = -1, 0  # LSN of the link's base, and when the event after it was written, ns since 1970

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

    @property
    def bandwidth(self) -> int:
        """Bytes per second that are sent at most; 0: no limit."""
        return self._link.options.bandwidth

    @property
    def dead(self) -> float:
        """Seconds of silence after which the secondary is given up, and dialled again."""
        return self._link.options.dead

    @property
    def most_lag_bytes(self) -> int:
        """Of the journal, that the secondary may lack before writers wait for it; 0: any number."""
        return self._link.options.most_lag_bytes

    @property
    def most_lag_seconds(self) -> float:
        """That the oldest event which it lacks may be old before writers wait; 0: any age."""
        return self._link.options.most_lag_seconds

    def status(self) -> dict[str, Any]:
        """Bytes and LSNs are integers; ``state`` is one of STATES in ``link``; ``lag_seconds``: how long ago, by the
        time that it carries, the oldest event was written that the secondary does not durably hold; 0 if it holds all,
        None if that event carries no time."""
        if self._dialer is None:
            with self._link.guard:
                status = self._link.status()
            status["last_error_time"] = status["refused_since"] = None
        else:
            status = self._dialer.status()
        if status["lag_events"]:
            with self._link.guard:
                oldest = self._link.ledger.oldest_ns()
            status["lag_seconds"] = max(0.0, time.time() - oldest / 1e9) if oldest else None
        else:
            status["lag_seconds"] = 0.0
        return status

    def divergent(self, store: Store | str) -> list[Extent]:
        """Where the secondary's copy of a store may differ, besides what is still on its way (``lag_bytes``): extents
        of whole regions, ascending.

        Raises:
            NotFound: no such store.
        """
        from pyrepl.volume import Extent

        self._check()
        group = self._group
        found = store if not isinstance(store, str) else group.store(store)
        region = group.region_size
        with self._link.guard:
            runs = list(self._link.ledger.differing(found.id, -(-found.size // region)).runs())
        return [Extent(first * region, count * region) for first, count in runs]

    @property
    def diverged(self) -> set[int]:
        """The stores, by number, whose copies at the secondary may differ, besides what is still on its way; and those
        that are made of them there when their time comes."""
        catalog = self._group.site.end.catalog
        with self._link.guard:
            found, there = self._link.base.differing(), set(self._link.base.catalog.stores)
        for store in sorted(catalog, key=lambda store: store.id):
            if store.id not in there and store.origin in found:
                found.add(store.id)
        return found

    def pause(self) -> None:
        """Ends the connection until :meth:`resume`, over restarts too. Writes go on; what they touch is sent later."""
        self._set_paused(True)

    def resume(self) -> None:
        """Connects again, and sends what the secondary lacks."""
        self._set_paused(False)

    def set(
        self,
        *,
        mode: Literal["async", "sync"] | None = None,
        address: str | None = None,
        bandwidth: int | None = None,
        dead: float | None = None,
        most_lag_bytes: int | None = None,
        most_lag_seconds: float | None = None,
    ) -> None:
        """Changes the link while it works; it holds at once, and over restarts. What is not given stays.

        Args:
            mode: "sync": writes wait for the secondary from when it has caught up. "async": they do not, and those that
                wait return.
            address: where the secondary is now ("host:port"). The connection ends and the link dials there; a node that
                is not the one that was paired is refused.
            bandwidth: bytes per second that are sent at most, 1 KiB to 1 TiB; 0: no limit. Over any time it is no more
                than that and a burst, an eighth of a second's or 2 KiB. Heartbeats go at once and count; what comes
                back is not limited.
            dead: seconds of silence after which the secondary is given up and dialled again, 0.05 to 600 and more than
                the heartbeat, 1 s. This, too, makes a new connection.
            most_lag_bytes: of the journal, 1 MiB to 1 PiB, that the secondary may lack before writers wait for it; 0:
                any number. Operations never wait, and a write that begins within the bound is let in whole: the lag
                can exceed it by the largest write for each that is under way.
            most_lag_seconds: 0.1 to 86400, that the oldest event which it lacks may be old before writers wait; 0: any
                age. Both bounds hold while the link is connected, from when the secondary is within them: a link that
                is down, or has much to make up for, stops nobody, and is ``degraded``.

        Raises:
            UsageError: a value outside its rule, or nothing to change; nothing was changed.
            NotFound: the link was removed.
        """
        from pyrepl.runtime.transport import parse_address

        self._check()
        wanted = {"mode": mode, "address": address, "bandwidth": bandwidth, "dead": dead,
                  "most_lag_bytes": most_lag_bytes, "most_lag_seconds": most_lag_seconds}
        given: dict[str, Any] = {name: value for name, value in wanted.items() if value is not None}
        if not given:
            raise UsageError(f"link {self.name!r}: nothing to change: give one of {', '.join(wanted)}", name=self.name)
        for name, value in given.items():
            if name not in ("mode", "address"):
                check_number(name, value, *((int,) if name in ("bandwidth", "most_lag_bytes") else (int, float)))
        if address is not None and parse_address(address)[1] == 0:
            raise UsageError(f"{address!r} has no port to connect to: give that of the other node", address=address)
        if self._group.role != PRIMARY:
            check_fed(self._group.name, **given)
        with self._link.guard:
            self._link.set(**given)
        if self._dialer is not None:
            self._dialer.changed()
        self._keep("changing")
        self._group.emit({"event": "link-changed", "group": self._group.name, "link": self.name, **given})

    def wait_synced(self, timeout: float | None = None, progress: Progress | None = None) -> dict[str, Any]:
        """Returns when the secondary says, over a connection that stands, that it is consistent and durably holds all
        that was written before the call, and knows who has written it (the generation); and in mode ``sync`` writes
        wait for it from here on (it is not degraded). Returns the status then. What it said before the link broke or
        was paused does not count: it may be no more.

        Args:
            timeout: seconds, None for ever.
            progress: called with the status a few times a second (``divergent_bytes``, ``lag_bytes``, ``bytes_sent``,
                ``state``). What it raises ends the waiting and is the caller's.

        Raises:
            WaitTimeout: it goes on in the background; the text says where it stands.
            Refused: the secondary refuses the link, for 8 s or when the time is over; the text says why.
            NotFound: the link was removed.
        """
        target = self._group.site.window.state().end_lsn

        def synced(status: dict[str, Any]) -> bool:
            holds = status["consistent"] and status["durable_lsn"] >= target and not status["divergent_bytes"]
            with self._link.guard:
                return bool(holds and status["connected"] and not status["degraded"] and self._link.is_informed)

        return self._wait(synced, f"synced up to LSN {target}", timeout, progress)

    def wait_applied(self, lsn: int, timeout: float | None = None, progress: Progress | None = None) -> None:
        """Returns when the secondary has performed everything up to ``lsn``. Arguments and errors as of
        :meth:`wait_synced`."""
        self._wait(lambda status: bool(status["applied_lsn"] >= lsn), f"applied up to LSN {lsn}", timeout, progress,
                   lambda status: f"; {status['stands']}" if status["stands"] else
                   LATER if status["durable_lsn"] >= lsn else "")

    # ---- for the group

    def judge_lag(self) -> None:
        """Writers wait, or go on, by how far the secondary is behind, if that is bounded."""
        link = self._link
        if is_bounded(link.options):
            with link.guard:
                link.judge_lag(self._age() if link.options.most_lag_seconds else 0.0)

    def forecast(self) -> Forecast:
        """What the secondary will be like further on."""
        self._check()
        with self._link.guard:
            return self._link.forecast()

    def hand_over(self) -> None:
        """The group has stepped down: the secondary is told so, if it has everything."""
        with self._link.guard:
            self._link.handing_over = True

    @property
    def hands_over(self) -> bool:
        """Whether it is worth waiting for it to hear that."""
        with self._link.guard:
            return self._link.is_open and not self._link.handed_over

    @property
    def handed_over(self) -> bool:
        """Whether it has heard that."""
        with self._link.guard:
            return self._link.handed_over

    @property
    def is_heard(self) -> bool:
        """Whether it has heard that, or leads already."""
        with self._link.guard:
            return self._link.handed_over or self._link.leads_there

    @property
    def local_host(self) -> str:
        """The address of this machine by which it reaches the secondary; empty: it is not connected."""
        return self._dialer.local_host if self._dialer is not None else ""

    def overrule(self) -> None:
        """The secondary is told to lose what only it has, at the next connection; durable on return."""
        with self._link.guard:
            if self._link.is_open:
                raise Refused(
                    f"link {self.name!r} is connected: there is no split brain with its secondary, and nothing to lose",
                    reason="state",
                    link=self.name,
                )
            self._link.ledger.overrules = True
        self._group.site.checkpoint()
        if self._dialer is not None:
            self._dialer.hurry()

    @property
    def has_answered(self) -> bool:
        """Whether the secondary was reached since the start, and goes on from this site's history."""
        with self._link.guard:
            return self._link.answered

    @property
    def has_failed(self) -> bool:
        """Whether an attempt at it has come to nothing, or none is made."""
        with self._link.guard:
            return self._link.state in ("down", "refused", "diverged", "paused")

    def redial(self) -> None:
        """Ends the connection, and makes another."""
        if self._dialer is not None:
            self._dialer.redial()

    def start(self) -> None:
        """Begins to connect; not in a group that has ended meanwhile, for its links were ended with it."""
        from pyrepl.runtime.dialer import Dialer

        if self._group.fault is not None:
            return
        dialer = self._dialer = Dialer(self._link, os.urandom, self.judge_lag)
        if self._stopped or self._group.fault is not None:  # whoever ended it may have looked before there was one
            dialer.stop()
        dialer.start()

    def stop(self) -> None:
        """Ends the connection and its threads. Harmless the second time."""
        self._stopped = True
        if self._dialer is not None:
            self._dialer.stop()

    def __repr__(self) -> str:
        return f"<link {self.name!r} of group {self._group.name!r} to {self.address}>"

    # ---- inside

    def _age(self) -> float:
        """Seconds since the oldest event was written that the secondary lacks, 0 if it is not known or there is none.
        With the guard. It is asked after each write: what was read for this position is remembered."""
        lsn = self._link.base.lsn
        if self._oldest[0] != lsn or not self._oldest[1]:
            self._oldest = lsn, self._link.ledger.oldest_ns()
        oldest = self._oldest[1]
        return max(0.0, time.time() - oldest / 1e9) if oldest else 0.0

    def _set_paused(self, paused: bool) -> None:
        self._check()
        if self._dialer is not None:
            if paused:
                self._dialer.pause()
            else:
                self._dialer.resume()
        self._keep("pausing")

    def _keep(self, doing: str) -> None:
        """What was changed outlives a restart."""
        try:
            self._group.site.checkpoint()
        except Exception as error:
            raise self._group.failure(error, f"group {self._group.name!r}: {doing} link {self.name!r}") from error

    def _check(self) -> None:
        self._group.check()
        if self._stopped:
            raise NotFound(f"group {self._group.name!r}: link {self.name!r} was removed", name=self.name)

    def _wait(
        self, reached: Callable[[dict[str, Any]], bool], what: str, timeout: float | None, progress: Progress | None,
        why: Callable[[dict[str, Any]], str] = lambda status: "",
    ) -> dict[str, Any]:
        from pyrepl.link import REFUSING

        check_timeout(timeout)
        begin = told = time.monotonic()
        refused_since: float | None = None
        pause = _LOOK[0]
        while True:
            self._check()
            status, now = self.status(), time.monotonic()
            if progress is not None and (now - told >= TELL_EVERY or told == begin or reached(status)):
                progress(status)
                told = now
            if reached(status):
                return status
            over = timeout is not None and now - begin >= timeout
            if status["state"] in REFUSING:  # also while it asks again
                refused_since = refused_since or now
            else:
                refused_since = None
            if refused_since is not None and (over or now - refused_since > _REFUSED):
                raise Refused(
                    f"link {self.name!r} to {self.address} is refused: {status['last_error']}",
                    reason="peer",
                    link=self.name,
                )
            if over:
                error = f"; last error: {status['last_error']}" if status["last_error"] else ""
                raise WaitTimeout(
                    f"link {self.name!r} is not {what} after {timeout:g} s: it is {status['state']}, "
                    f"{status['divergent_bytes']} bytes differ, {status['lag_bytes']} behind"
                    f"{why(status)}{error}; it goes on",
                    link=self.name,
                    status=status,
                )
            time.sleep(pause if timeout is None else max(0.0, min(pause, begin + timeout - now)))
            pause = min(pause * 2, _LOOK[1])


def check_fed(group: str, **given: Any) -> None:
    """What a link of a secondary cannot have: nobody writes there who could wait for it.

    Raises:
        Refused: the text says why.
    """
    if given.get("mode") == "sync" or given.get("most_lag_bytes") or given.get("most_lag_seconds"):
        raise Refused(
            f"group {group!r} is a secondary here: no writer waits for a link of its own, so it has neither mode "
            f"'sync' nor a bound of its lag. They can be chosen when this site leads", reason="role")


def check_number(name: str, value: Any, *kinds: type) -> Any:
    """An option of a link that is a number.

    Raises:
        UsageError: it is of another type.
    """
    if isinstance(value, bool) or not isinstance(value, kinds):
        kind = "a whole number" if kinds == (int,) else "a number"
        raise UsageError(f"link option {spelled(name)} = {value!r}: give {kind}", option=name)
    return value
