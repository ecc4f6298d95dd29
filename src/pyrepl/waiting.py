"""Waiting until what has its place in the order of a group is performed, here or at a secondary.

Decides what an LSN to wait for may be, and what somebody is told who has waited in vain: what stands in the way. Must
not know when an event is performed (``applier``, ``delay``).
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from pyrepl.errors import UsageError, WaitTimeout
from pyrepl.results import TELL_EVERY, Progress, check_timeout
from pyrepl.roles import PRIMARY

if TYPE_CHECKING:
    from pyrepl.group import Group


def wait_performed(group: Group, lsn: int | None, where: str, timeout: float | None, progress: Progress | None) -> int:
    """See :meth:`Group.wait`."""
    group.check()
    check_timeout(timeout)
    end = group.site.window.state().end_lsn
    if lsn is None:
        lsn = end
    elif isinstance(lsn, bool) or not isinstance(lsn, int) or lsn < 0 or (lsn > end and group.role == PRIMARY):
        raise UsageError(f"LSN {lsn!r}: the last that was given is {end}", lsn=lsn, end=end)
    if where not in (PRIMARY, "here"):
        group.link(where).wait_applied(lsn, timeout, progress)
        return lsn
    group.hurry()
    with group.border(f"waiting for LSN {lsn}"):
        if not _wait_applied(group, lsn, timeout, progress):
            raise WaitTimeout(
                f"group {group.name!r}: LSN {lsn} is not performed after {timeout:g} s{_why_later(group, lsn)}; it "
                f"goes on",
                lsn=lsn,
            )
    return lsn


def _why_later(group: Group, lsn: int) -> str:
    """That something has arrived here and is not old enough, or finds no room; empty: that is not it."""
    site = group.site
    if site.shortage.stands:
        return f": {site.shortage.words()}"
    left = site.delay.wait
    if left is None or site.role == PRIMARY:
        return ""
    more = "" if lsn <= site.window.state().end_lsn else f"; LSN {lsn} has not arrived"
    return (f": this site is delayed by {site.delay.seconds:g} s, and the oldest that waits is performed in "
            f"{left:.1f} s{more} (pyrepl group set {group.name} --delay)")


def _wait_applied(group: Group, lsn: int, timeout: float | None, progress: Progress | None) -> bool:
    window = group.site.window
    if progress is None:
        return window.wait_applied(lsn, timeout)
    begin = time.monotonic()
    while True:
        left = None if timeout is None else max(0.0, begin + timeout - time.monotonic())
        if window.wait_applied(lsn, TELL_EVERY if left is None else min(left, TELL_EVERY)):
            return True
        progress({"lsn": lsn, "applied_lsn": window.state().applied_lsn})
        if left is not None and left <= TELL_EVERY:
            return False
