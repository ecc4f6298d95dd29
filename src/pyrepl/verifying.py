"""A verification from its call to its result: the operation, the comparison with each link's secondary, the repair.
It may be another operation, of which the result is compared.

One thread compares with one link. A piece of 4 MiB is compared by one digest, region by region only where it differs.
What was in D of the link at that LSN is left out: it is known to differ. Decides what of a link counts as equal,
different, repaired or failed, when a link that does not get on is given up, and what is remembered of a difference
that is not to be repaired. How digests are made is ``verification``, what a difference means is ``link``.
"""

from __future__ import annotations

import os
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any

from pyrepl import operations
from pyrepl._core.regions import RegionMap
from pyrepl.attachment import LATER
from pyrepl.errors import PyreplError, WaitTimeout
from pyrepl.items import FoundDifferent
from pyrepl.probes import Asked, Probing
from pyrepl.protocol.messages import DIGEST, MOST_PROBED
from pyrepl.results import TELL_EVERY

if TYPE_CHECKING:
    from pyrepl.attachment import Attachment
    from pyrepl.catalog import Catalog
    from pyrepl.group import Group
    from pyrepl.operations import Operation
    from pyrepl.results import OperationResult, Progress

PIECE = 4 << 20  # bytes under one digest
GONE = 10.0  # seconds without a connection, until a link is given up
STUCK = 30.0  # seconds in which nothing of a link moves, until it is given up
MOST_EXTENTS = 256  # of one link, in a result
COMPARING = "comparing"  # the state of a link while it is under way
LOOK = 0.02  # seconds between two looks at what nobody tells


class _GaveUp(Exception):
    """This link cannot be compared any further; the text says why."""


Links = dict[str, dict[str, Any]]
Scopes = dict[int, tuple[int, int]]  # by store: (first, count), the regions that are compared


class Comparison:
    """Of one verification with one link. ``scopes``: of an operation whose result is compared; None: all stores."""

    def __init__(self, group: Group, attachment: Attachment, token: bytes, deadline: float | None) -> None:
        self._group, self._attachment, self._link = group, attachment, attachment._link
        self._deadline = deadline
        self.scopes: Scopes | None = None
        self._awake = threading.Event()
        self._moved: tuple[int, ...] = ()
        self._moved_at = self._connected_at = time.monotonic()
        self._begin = time.monotonic()
        self.probing = Probing(token, self._awake.set)
        self.regions = self.compared = self.different = self.known = 0
        self._cancelled, self._lsn = False, 0
        self.extents: list[dict[str, Any]] = []
        self.state, self.reason = COMPARING, ""
        self.seconds = 0.0
        status = attachment.status()
        if status["state"] in ("paused", "refused", "diverged"):  # else it may be about to connect again
            self.reason = _not_connected(status)
        with self._link.guard:
            if not self.reason:
                self._link.probing = self.probing

    def run(self, lsn: int, *, repair: bool) -> None:
        """Compares, and mends if that is wanted. What goes wrong is ``reason``."""
        self._lsn = lsn
        try:
            if not self.reason:
                self._wait(lambda: self.probing.lsn == lsn <= min(self._link.base.lsn, self._link.applied_lsn))
                self._compare(lsn, repair)
                self.state = "equal" if not self.different else "different"
            else:
                self.state = "failed"
        except (_GaveUp, PyreplError, OSError, LookupError) as error:
            self.state, self.reason = "failed", str(error)
        finally:
            self.end()
        if self.state == "different" and repair:
            try:
                self._attachment.wait_synced(self._left(), self._go_on)
                self.state = "repaired"
            except (PyreplError, _GaveUp) as error:
                self.reason = f"the repair goes on: {error}"
        self.seconds = time.monotonic() - self._begin

    def end(self) -> None:
        """Nothing more is asked."""
        with self._link.guard:
            if self._link.probing is self.probing:
                self._link.end_probing()
        self._nudge()

    def cancel(self) -> None:
        """Nobody waits for it any more: its thread ends soon. Harmless when it is over."""
        self._cancelled = True
        self.end()
        self._awake.set()

    def result(self) -> dict[str, Any]:
        """For the caller."""
        return {
            "state": self.state,
            "reason": self.reason,
            "regions": self.regions,
            "regions_compared": self.compared,
            "regions_different": self.different,
            "regions_known_to_differ": self.known,
            "extents": self.extents,
            "bytes_on_wire": self.probing.bytes_on_wire,
            "seconds": self.seconds,
        }

    # ---- inside

    def _compare(self, lsn: int, repair: bool) -> None:
        site = self._group.site
        views = dict(site.verification.views)
        scopes = self.scopes or {store: (0, entry.size // site.region_size) for store, entry in views.items()}
        self.regions = sum(scopes[store][1] for store in views)
        for store, entry in views.items():
            anyway = self.probing.anyway.get(store)
            if anyway is None:  # the secondary lacks it: all of it is on its way
                self.known += scopes[store][1]
                continue
            found = RegionMap(entry.size // site.region_size)
            under_way: deque[Asked] = deque()
            for asked in self._questions(store, *scopes[store], anyway):
                self._ask(asked)
                under_way.append(asked)
                if len(under_way) > 1:
                    self._finish(lsn, under_way.popleft(), anyway, found)
            while under_way:
                self._finish(lsn, under_way.popleft(), anyway, found)
            if found:
                self.different += found.count()
                for first, count in found.runs():
                    if len(self.extents) < MOST_EXTENTS:
                        self.extents.append({"store": entry.name, "offset": first * site.region_size,
                                             "length": count * site.region_size})
                if repair:
                    with self._link.guard:
                        self._go_on()
                        self._link.enter_found(store, found)
                    self._nudge()

    def _questions(self, store: int, begin: int, regions: int, anyway: RegionMap) -> Iterator[Asked]:
        size = self._group.region_size
        per, most = max(1, PIECE // size), max(1, MOST_PROBED // size)
        for first in range(begin, begin + regions, most):
            count = min(most, begin + regions - first)
            if _marked(anyway, first, count) < count:
                yield Asked(store, first, count, per)
            else:
                self.known += count  # all of it differs anyway

    def _finish(self, lsn: int, asked: Asked, anyway: RegionMap, found: RegionMap) -> None:
        self._settle(lsn, asked, anyway, found)
        known = _marked(anyway, asked.first, asked.count)
        self.known += known
        self.compared += asked.count - known

    def _settle(self, lsn: int, asked: Asked, anyway: RegionMap, found: RegionMap) -> None:
        verification = self._group.site.verification
        ours = verification.digests(lsn, *asked)
        theirs = self._answer(asked)
        for at in range(0, len(ours), DIGEST):
            if ours[at : at + DIGEST] == theirs[at : at + DIGEST]:
                continue
            first = asked.first + at // DIGEST * asked.per
            if asked.per == 1:
                if first not in anyway:
                    found.mark(first)
            else:
                closer = Asked(asked.store, first, min(asked.per, asked.first + asked.count - first), 1)
                self._ask(closer)
                self._settle(lsn, closer, anyway, found)

    def _ask(self, asked: Asked) -> None:
        with self._link.guard:
            self.probing.ask(asked)
        self._nudge()

    def _answer(self, asked: Asked) -> bytes:
        self._wait(lambda: asked in self.probing.answers)
        with self._link.guard:
            return self.probing.answers.pop(asked)

    def _nudge(self) -> None:
        dialer = self._attachment._dialer
        if dialer is not None:
            dialer.wake()

    def _go_on(self, _: object = None) -> None:
        if self._cancelled:
            raise _GaveUp("it was ended before it was done")

    def _left(self) -> float | None:
        return None if self._deadline is None else max(0.0, self._deadline - time.monotonic())

    def _wait(self, reached: Callable[[], bool]) -> None:
        while True:
            self._awake.clear()
            link, now = self._link, time.monotonic()
            with link.guard:
                if reached():
                    return
                moved = (self.probing.lsn, link.base.lsn, link.applied_lsn, link.stream.item,
                         self.probing.bytes_on_wire)
                problem = self.probing.problem
                last_error, connected = link.last_error, link.is_open
            self._group.check()
            self._go_on()
            self._group.site.verification.keep(self._lsn)  # however far behind the secondary is
            self._connected_at = now if connected else self._connected_at
            if now - self._connected_at > GONE:
                raise _GaveUp(_not_connected(self._attachment.status()))
            if problem:
                raise _GaveUp(f"the secondary: {problem}")
            if moved != self._moved:
                self._moved, self._moved_at = moved, now
            if self._deadline is not None and now >= self._deadline:
                raise _GaveUp(f"the time is over: the link is {self._attachment.status()['state']}"
                              + (LATER if self._is_later() else ""))
            if now - self._moved_at > STUCK:
                if self._is_later():
                    raise _GaveUp("the secondary holds it and has not performed it: if that site is delayed, verify "
                                  "without a delay")
                raise _GaveUp(f"nothing has moved for {STUCK:g} s: the link is {self._attachment.status()['state']}"
                              + (f", {last_error}" if last_error else ""))
            self._awake.wait(LOOK)

    def _is_later(self) -> bool:
        """Whether the secondary holds it, and has not performed it."""
        with self._link.guard:
            return self._link.applied_lsn < self._lsn <= self._link.base.lsn


def _marked(regions: RegionMap, first: int, count: int) -> int:
    """How many of ``count`` regions from ``first`` on are marked."""
    found, at = 0, first
    while (run := regions.next_run(at)) is not None and run[0] < first + count:
        at = run[0] + run[1]
        found += min(at, first + count) - run[0]
    return found


def _not_connected(status: dict[str, Any]) -> str:
    error = f", {status['last_error']}" if status["last_error"] else ""
    return f"not connected: the link is {status['state']}{error}"


class Run:
    """One verification with all its links: from before the operation has its place until all of it is over."""

    def __init__(
        self, group: Group, attachments: list[Attachment], *, repair: bool, deadline: float | None, before: Links
    ) -> None:
        self.token = os.urandom(16)
        self.lsn = 0
        self._group, self._repair, self._before = group, repair, before
        self._comparisons = {one.name: Comparison(group, one, self.token, deadline) for one in attachments}
        self._threads: list[threading.Thread] = []

    def begin(self, lsn: int, scopes: Scopes | None = None) -> None:
        """The operation has its place, and is performed here: the links are compared, each in a thread."""
        self.lsn, site = lsn, self._group.site
        site.exclusive(lambda: None)  # the step that performs it is over
        for name, comparison in self._comparisons.items():
            comparison.scopes = scopes
            if site.verification.lsn != lsn:
                comparison.reason = comparison.reason or f"this site: {site.verification.problem}"
            self._threads.append(threading.Thread(target=comparison.run, args=(lsn,), kwargs={"repair": self._repair},
                                                  name=f"pyrepl-verify-{name}", daemon=True))
        for thread in self._threads:
            thread.start()

    def wait(self, progress: Progress | None) -> None:
        """Until all links are done."""
        for thread in self._threads:
            while thread.is_alive():
                thread.join(TELL_EVERY)
                if progress is not None:
                    progress({"lsn": self.lsn, "links": self.links()})

    def end(self) -> None:
        """Nobody waits for it any more, or it is over."""
        for comparison in self._comparisons.values():
            comparison.cancel()
        for thread in self._threads:
            if thread.ident is not None:
                thread.join()  # soon: it looks at that
        if self.lsn:
            self._group.site.verification.forget(self.lsn)

    def links(self) -> Links:
        """What was found before, and what this one has found so far, by link."""
        worst = (COMPARING, "equal", "repaired", "different", "failed")
        merged = {}
        for name, comparison in self._comparisons.items():
            new, old = comparison.result(), self._before.get(name)
            if old is not None:
                for key in ("regions", "regions_compared", "regions_different", "regions_known_to_differ",
                            "bytes_on_wire", "seconds"):
                    new[key] += old[key]
                new["extents"] = (old["extents"] + new["extents"])[:MOST_EXTENTS]
                new["state"] = max(old["state"], new["state"], key=worst.index)
                new["reason"] = old["reason"] or new["reason"]
            merged[name] = new
        return merged


def verify(
    group: Group, attachments: list[Attachment], *, repair: bool, deadline: float | None, progress: Progress | None
) -> dict[str, Any]:
    """See :meth:`Group.verify`. One verification after the other, each of as many stores as one may have."""
    stores = [entry.id for entry in list(group.site.end.catalog)]
    lsn, links = 0, Links()
    for begin in range(0, len(stores), operations.MOST_VERIFIED):
        part = [s for s in stores[begin : begin + operations.MOST_VERIFIED] if s in group.site.end.catalog]
        if not part:
            continue
        run = Run(group, attachments, repair=repair, deadline=deadline, before=links)
        try:
            left = None if deadline is None else max(0.0, deadline - time.monotonic())
            make = partial(operations.verify, stores=part, token=run.token)
            run.begin(group.operate(make, timeout=left).lsn)
            run.wait(progress)
        finally:
            run.end()
            with suppress(PyreplError):  # a group that has failed says so itself
                _remember(group, attachments, run.lsn, run.links(), repair=repair, whole=False)
        lsn, links = run.lsn, run.links()
    _remember(group, attachments, lsn, links, repair=repair, whole=True)
    return {"lsn": lsn, "region_size": group.region_size, "links": links}


def _remember(
    group: Group, attachments: list[Attachment], lsn: int, links: Links, *, repair: bool, whole: bool
) -> None:
    """What was found different by now and is not repaired stays known, over restarts too, until all of a secondary's
    stores were compared and nothing of it is left: equal, or in D (rule of the model, "Verification")."""
    changed: Attachment | None = None
    for attachment in attachments:
        if attachment.name not in links:
            continue  # no store was left to be compared
        one, link = links[attachment.name], attachment._link
        size = 0 if repair else one["regions_different"] * group.region_size
        with link.guard:
            known = link.ledger.found_different
            is_all = whole and one["state"] != "failed"
            if (known is not None and (known.lsn, known.bytes) == (lsn, size)) or not (size or is_all):
                continue  # it is known already, or there is no word on it
            if is_all or known is None or size > known.bytes:
                link.ledger.judge(FoundDifferent(lsn, time.time(), size) if size else None)
                changed = attachment if link.ledger.found_different != known else changed
    if changed is not None:
        changed._keep("verifying")


class Judged:
    """An operation whose result is compared, in a thread of its own, from its place in the order on."""

    def __init__(self, group: Group) -> None:
        self._group = group
        self._region_size = group.region_size
        self._run: Run | None = Run(group, group.links, repair=True, deadline=None, before={})
        self._done = threading.Event()
        self._lsn = 0
        self._links: Links = {}  # when it is done

    def admit(self, make: Callable[[Catalog], Operation], devices: Mapping[str, str] | None) -> OperationResult:
        """It gets its place, and is compared from there on. Raises as :meth:`Group.operate`: nothing is compared."""
        group, size, run = self._group, self._group.region_size, self._run
        assert run is not None
        scopes: Scopes = {}

        def compared(catalog: Catalog) -> Operation:
            operation = operations.verified(catalog, make(catalog), run.token, region_size=size)
            scopes.update(operations.written(operation.effects(size)))
            return operation

        try:
            result = group.operate(compared, devices=devices, wait=False)
        except BaseException:
            run.end()
            raise
        run.lsn = self._lsn = result.lsn
        threading.Thread(target=self._compare, args=(run, result, scopes), name="pyrepl-verify", daemon=True).start()
        return result

    def result(self) -> dict[str, Any]:
        """So far: ``lsn``, ``done``, ``region_size``, and ``links`` as of :meth:`Group.verify`."""
        run = self._run
        links = run.links() if run is not None else self._links
        return {"lsn": self._lsn, "done": run is None, "region_size": self._region_size, "links": links}

    def wait(self, timeout: float | None, progress: Progress | None) -> dict[str, Any]:
        """Until it is done; the result.

        Raises:
            WaitTimeout: it goes on.
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        while not self._done.wait(TELL_EVERY if deadline is None else min(TELL_EVERY, deadline - time.monotonic())):
            if progress is not None:
                progress(self.result())
            if deadline is not None and time.monotonic() >= deadline:
                raise WaitTimeout(f"group {self._group.name!r}: the result at LSN {self._lsn} is not compared after "
                                  f"{timeout:g} s; it goes on", lsn=self._lsn)
        return self.result()

    def _compare(self, run: Run, performed: OperationResult, scopes: Scopes) -> None:
        problem = "this site has failed"
        try:
            performed.wait()
            run.begin(performed.lsn, scopes)
            run.wait(None)
            problem = ""
        except PyreplError as error:  # the group has ended
            problem = str(error)
        finally:
            with suppress(PyreplError):
                run.end()
            self._links = run.links()
            for one in self._links.values():
                if problem:
                    one["state"], one["reason"] = "failed", one["reason"] or problem
            self._run = None  # what it kept is not wanted any more
            self._group.comparisons.end(performed, self._links)
            self._done.set()


__all__ = ["Judged", "verify"]
