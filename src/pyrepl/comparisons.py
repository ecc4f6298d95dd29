"""The comparisons of a group with its secondaries: of everything, or of the result of one operation.

Decides that there is one at a time, and for how long an operation's is kept. How one is made is ``verifying``'s, which
is imported when the first begins.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from pyrepl.applier import MOST_RESULTS
from pyrepl.errors import Refused

if TYPE_CHECKING:
    from pyrepl.attachment import Attachment
    from pyrepl.catalog import Catalog
    from pyrepl.group import Group
    from pyrepl.operations import Operation
    from pyrepl.results import OperationResult, Progress
    from pyrepl.verifying import Judged


class Comparisons:
    """Of one group: a verification, or the result of an operation; one at a time."""

    def __init__(self, group: Group) -> None:
        self._group = group
        self._busy = threading.Lock()
        self._judged: dict[int, Judged] = {}  # by LSN, the last of them
        self._verified: dict[int, dict[str, dict[str, Any]]] = {}  # by LSN: of each link, what verifications found

    def links(self, lsn: int) -> dict[str, dict[str, Any]] | None:
        """What was found so far of each link, if what stands at this LSN is a verification that is over, or an
        operation whose result is compared (and is kept)."""
        judged = self.find(lsn)
        return judged.result()["links"] if judged is not None else self._verified.get(lsn)

    def find(self, lsn: int) -> Judged | None:
        """Of the result of the operation at this LSN, if that was asked for (and is kept)."""
        return self._judged.get(lsn)

    def verify(
        self, links: list[Attachment], *, repair: bool, timeout: float | None, progress: Progress | None
    ) -> dict[str, Any]:
        """See :meth:`Group.verify`."""
        from pyrepl.verifying import verify

        self._begin()
        try:
            deadline = None if timeout is None else time.monotonic() + timeout
            found = verify(self._group, links, repair=repair, deadline=deadline, progress=progress)
            _keep(self._verified, found["lsn"], found["links"])
            return found
        finally:
            self._busy.release()

    def operate(
        self,
        make: Callable[[Catalog], Operation],
        devices: Mapping[str, str] | None,
        wait: bool,
        timeout: float | None,
    ) -> OperationResult:
        """Admits an operation whose result is compared; see :meth:`Group.operate`."""
        from pyrepl.verifying import Judged

        group = self._group
        if not group.links:
            raise Refused(
                f"group {group.name!r} has no link: there is nothing to compare the result with", reason="empty"
            )
        self._begin()
        try:
            judged = Judged(group)
            result = judged.admit(make, devices)  # its thread ends in end()
        except BaseException:
            self._busy.release()
            raise
        _keep(self._judged, result.lsn, judged)
        if wait:
            result.wait_all(timeout)
        return result

    def end(self, result: OperationResult, found: dict[str, dict[str, Any]]) -> None:
        """The result of an operation was compared."""
        self._busy.release()
        links = {name: one["state"] for name, one in found.items()}
        self._group.emit({"event": "compared", "group": self._group.name, "kind": result.kind, "lsn": result.lsn,
                          "links": links})

    def _begin(self) -> None:
        if not self._busy.acquire(blocking=False):
            raise Refused(f"group {self._group.name!r} is being verified already", reason="busy", retryable=True)


def _keep(kept: dict[int, Any], lsn: int, new: Any) -> None:
    kept[lsn] = new
    while len(kept) > MOST_RESULTS:
        del kept[next(iter(kept))]
