"""A change of role as users of the package ask for it: who is waited for, and how links and connections end.

    demote     writers are refused; every secondary gets what it lacks; the role is durable; the secondaries hear of it;
               the links end
    migrate    the same, but one secondary alone hears of it, and is asked to lead: the rest goes on by itself
               (``succession``)
    promote    the connection of the primary ends; the role is durable; writers are let in
    give way   the primary of one side of a split brain steps down, nobody is waited for, and may be taken back
    takeover   the same as promote, when the primary has not stepped down but is gone

Decides what is waited for and what is refused beforehand. What a role is, and what makes it durable, is ``roles``.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from pyrepl.errors import NotFound, Refused, UsageError, WaitTimeout
from pyrepl.items import LinkInfo
from pyrepl.options import LinkOptions
from pyrepl.results import check_timeout
from pyrepl.roles import PRIMARY, SECONDARY
from pyrepl.runtime.addresses import show

if TYPE_CHECKING:
    from pyrepl.attachment import Attachment
    from pyrepl.group import Group

_LOOK = 0.002  # seconds between two looks at links that are waited for
_ENDING = 3.0  # seconds until it is known that a primary which has just gone is
_TELL = 15.0  # seconds that a secondary which is connected is given to hear that its primary has stepped down


class Changeover:
    """Of one group; one change at a time."""

    def __init__(self, group: Group) -> None:
        self._group = group
        self._one = threading.Lock()

    def demote(self, timeout: float | None, force: bool) -> int:
        """See :meth:`Group.demote`."""
        check_timeout(timeout)
        group = self._group
        with self._one:
            group.check()
            site = group.site
            if site.role != PRIMARY:
                raise Refused(f"group {group.name!r} is a secondary here already", reason="role", group=group.name)
            site.shortage.check("step down")
            links = group.links
            if not force:
                self._check_links(links, "do it with force: if its site leads then, what it lacks is lost to it")
                if links and all(link.status()["found_different"] for link in links):
                    self._check_equal(links[0])
            site.roles.changing = True
            try:
                end = self._step_down(links, timeout, force=force)
                told = self._tell([link for link in links if not _lacks(link, end)])  # rule role_handover
                group.attachments.end()
            finally:
                site.roles.changing = False
        group.emit({"event": "role-changed", "group": group.name, "role": SECONDARY, "lsn": end, "told": told})
        return end

    def migrate(self, name: str, timeout: float | None, back: str | None, force: bool) -> int:
        """See :meth:`Group.migrate`."""
        check_timeout(timeout)
        group = self._group
        with self._one:
            group.check()
            site = group.site
            if site.role != PRIMARY:
                raise Refused(f"group {group.name!r} is a secondary here already", reason="role", group=group.name)
            link, links = group.link(name), group.links
            site.shortage.check("step down")
            self._check_links(links, "swap without it: demote here with force, and promote the other site")
            self._check_performs(link)
            if not force:
                self._check_equal(link)
            succession = self._succession(link, links, back)
            site.roles.changing = True
            try:
                lsn = self._step_down(links, timeout, force=False, successor=link.name, succession=succession)
                group.attachments.end(but=link.name)
            finally:
                site.roles.changing = False
            heir = link.status()["peer"]
        group.emit({"event": "role-changed", "group": group.name, "role": SECONDARY, "lsn": lsn, "told": [link.name]})
        group.succession.begin()  # rule role_handover

        def missing() -> str:
            if site.role == PRIMARY:
                return ""  # somebody took the lead back here
            if site.successor:
                return f"it has not heard of it yet ({link.status()['last_error'] or link.status()['state']})"
            if link in group.links:
                return "it has heard, and the link to it is being ended"
            if site.fed_by is None or site.fed_by.hex() != heir or not any(f.is_open for f in group.feeds(site)):
                return f"it has heard, and has not linked back to {succession[0].address} yet"
            return ""

        late = _until(missing, timeout, group.check)
        if late:
            raise WaitTimeout(
                f"group {group.name!r} has stepped down here at LSN {lsn} and asks the site of link {link.name!r} to "
                f"lead; after {timeout:g} s {late}. It goes on",
                role=site.role,
                link=link.name,
            )
        return lsn

    def _step_down(
        self,
        links: list[Attachment],
        timeout: float | None,
        *,
        force: bool,
        successor: str = "",
        succession: list[LinkInfo] | None = None,
        yields: bool = False,
    ) -> int:
        """Nobody writes, every secondary has everything (unless forced), the role is durable; the last LSN."""
        group, site = self._group, self._group.site
        with group.admission:
            site.roles.hold(True)  # rule role_quiet
        try:
            end = group.flush()
            if not force:
                self._wait(links, end, timeout)
            return site.roles.step_down(successor, succession, yields=yields)
        except BaseException:
            with group.admission:
                if site.role == PRIMARY and not site.roles.asking:
                    site.roles.hold(False)  # it goes on as primary
            raise

    def give_way(self) -> int:
        """See :meth:`Group.resolve`: this site loses."""
        group = self._group
        with self._one:
            group.check()
            site = group.site
            if site.group_id is None:
                raise Refused(f"group {group.name!r} was never paired, and has nothing to lose", reason="lineage")
            if site.role == SECONDARY:
                site.roles.give_way()
                return site.end.lsn
            site.roles.changing = True
            try:
                lsn = self._step_down(group.links, None, force=True, yields=True)
                group.attachments.end()
            finally:
                site.roles.changing = False
        group.emit({"event": "role-changed", "group": group.name, "role": SECONDARY, "lsn": lsn, "told": []})
        return lsn

    def _succession(self, link: Attachment, links: list[Attachment], back: str | None) -> list[LinkInfo]:
        """The links that the successor is to have: back to here, and to all others that this site leads."""
        from pyrepl.runtime.transport import parse_address

        group = self._group
        name, addresses = group.introduce()
        taken = {other.name for other in links if other is not link} | {"primary", "here", ""}
        name = next(free for free in (name, "back", *(f"back-{n}" for n in range(len(links)))) if free not in taken)
        if back is None:
            back = self._reachable(addresses, link)
        elif parse_address(back)[1] == 0:
            raise UsageError(f"{back!r} has no port to connect to: give that at which this node listens", address=back)
        return [
            _info(name, back, link),
            *(_info(other.name, other.address, other) for other in links if other is not link),
        ]

    def _reachable(self, addresses: list[tuple[str, int]], link: Attachment) -> str:
        """Where this node listens, as the other site can dial it."""
        local = link.local_host
        if not addresses or not local:
            raise Refused(
                f"group {self._group.name!r}: the other site could not link back, for this node listens nowhere: let "
                f"it listen, or give back='host:port'",
                reason="address",
                group=self._group.name,
            )
        host, port = next(((host, port) for host, port in addresses if host in (local, "0.0.0.0", "::")), addresses[0])
        return show(local if host in ("0.0.0.0", "::") else host, port)

    def judge_takeover(self, force: bool) -> int:
        """See :meth:`Group.takeover`, ``dry_run``."""
        with self._one:
            self._group.check()
            site = self._group.site
            if not site.roles.asking:
                self._judge(alone=True, gone=True, second=False, force=force)
            kept = site.protective.snapshot
            if kept is not None and not site.end.consistent:
                return kept.lsn
            return site.window.state().end_lsn

    def _judge(self, *, alone: bool, gone: bool, second: bool, force: bool) -> None:
        """Raises why this site may not lead. ``second``: although its primary leads; ``force``: although what it holds
        was found different."""
        group, site = self._group, self._group.site
        if site.role != SECONDARY:
            raise Refused(f"group {group.name!r} is a primary here already", reason="role", group=group.name)
        site.roles.check_lead(site.end, alone=alone, force=force)
        site.shortage.check("lead")

        def fed() -> str:
            return "fed" if any(feed.is_open for feed in group.feeds(site)) else ""

        if not alone or second or site.here.handed_over or not _until(fed, _ENDING, group.check):
            return
        if not gone:
            raise Refused(
                f"group {group.name!r}: its primary is connected, leads, and feeds this site, which would be a second "
                f"primary: each would write what the other lacks (a split brain), and what one of them has written "
                f"is lost when that is resolved. To swap roles migrate the group there, or demote it there first; if "
                f"two primaries are meant, repeat it with force",
                reason="force",
                group=group.name,
            )
        raise Refused(
            f"group {group.name!r}: its primary is connected to this site and leads. To swap roles demote it "
            f"there, then promote this site; a takeover is for a primary that is gone",
            reason="connected",
            group=group.name,
        )

    def promote(self, *, alone: bool, gone: bool, force: bool = False) -> int:
        """See :meth:`Group.promote` and :meth:`Group.takeover` (``gone``)."""
        group = self._group
        with self._one:
            group.check()
            site = group.site
            if site.roles.asking:
                if not alone:
                    group.require_primary()  # says what it waits for
                return self._activate()
            # Before a connection is ended for it.
            self._judge(alone=alone, gone=gone, second=force and not gone, force=force)
            site.roles.changing = True  # no connection begins to feed this site (rule role_quiet)
            try:
                for feed in group.feeds(site):
                    feed.end()
                if site.successor:
                    group.succession.cancel()
                    group.attachments.end()
                told = site.end.succession if not site.successor else None
                names = group.attachments.free_names([info.name for info in told or ()])
                links = [group.attachments.make(name, info.address, info.mode, _options(info))
                         for name, info in zip(names, told or (), strict=True)]
                lsn = site.roles.take_lead(alone=alone, links=links, force=force)
                group.attachments.redial()  # those that it had as a secondary tell who leads now
                group.attachments.enter(links)
            finally:
                site.roles.changing = False
            group.abandon_unfinished()
        group.emit({"event": "role-changed", "group": group.name, "role": PRIMARY, "lsn": lsn, "told": []})
        return lsn

    def activate(self) -> int:
        """This primary, which was started and has asked its peers, or need not, leads from here on; the LSN after which
        its generation begins."""
        group = self._group
        with group.border("beginning to lead"):
            return self._activate()

    def _activate(self) -> int:
        group, roles = self._group, self._group.site.roles
        roles.beginning = True
        try:
            roles.activate()
            group.attachments.redial()  # they have told the lineage as it was
            with group.admission:
                if not roles.asking and group.site.role == PRIMARY:
                    roles.hold(False)
        finally:
            roles.beginning = False
        group.abandon_unfinished()
        lsn = group.site.end.lineage.start
        group.emit({"event": "activated", "group": group.name, "lsn": lsn})
        return lsn

    def resolve(self, loser: str) -> int:
        """See :meth:`Group.resolve`."""
        link = self.find_loser(loser)
        if link is None:
            return self.give_way()
        lsn = self._group.site.window.state().end_lsn
        link.overrule()
        return lsn

    def find_loser(self, loser: str) -> Attachment | None:
        """The link of who is to lose a split brain; None: this site. Raises as :meth:`Group.resolve`."""
        group = self._group
        here = ("here", group.introduce()[0], group.site.node_id.hex())
        links = [link for link in group.links if loser in (link.name, link.status()["peer"])]
        if loser in here and links and loser != here[2]:
            raise UsageError(f"{loser!r} is this node and a link of group {group.name!r}: give the node id", name=loser)
        if loser in here:
            return None
        group.require_primary()
        if not links:
            some = ", ".join(["here", *(link.name for link in group.links)])
            raise NotFound(f"group {group.name!r} knows no {loser!r}: name the side that loses ({some})", name=loser)
        return links[0]

    # ---- the secondaries of a primary that steps down

    def _check_links(self, links: list[Attachment], otherwise: str) -> None:
        """Raises at once for a link that will not get there however long it is waited for."""
        for link in links:
            status = link.status()
            if not status["connected"]:
                raise Refused(
                    f"group {self._group.name!r} cannot step down: {_standing(link.name, status)}, as far as is known "
                    f"here. Let it connect, remove it, or {otherwise}",
                    reason="behind",
                    link=link.name,
                )

    def _check_equal(self, link: Attachment) -> None:
        """Raises for a link whose secondary is known not to hold what this site holds."""
        found = link.status()["found_different"]
        if found is None:
            return
        group = self._group.name
        raise Refused(
            f"group {group!r} cannot step down: the copy at link {link.name!r} differs from this one in "
            f"{found['bytes'] // 1024} KiB, as the verification at LSN {found['lsn']} found, and was not repaired. If "
            f"its site leads, its content is the one that counts, and what this site holds there is lost at the next "
            f"repair. Repair it first (`pyrepl verify {group} --link {link.name}`), or repeat it with force",
            reason="different",
            link=link.name,
            **found,
        )

    def _check_performs(self, link: Attachment) -> None:
        """Raises for a link whose secondary could not lead: nobody would."""
        stands = link.status()["stands"]
        if stands:
            raise Refused(
                f"group {self._group.name!r} cannot step down: the site of link {link.name!r}, which would have to "
                f"perform everything first, says: {stands}",
                reason="space",
                retryable=True,
                link=link.name,
            )

    def _wait(self, links: list[Attachment], end: int, timeout: float | None) -> None:
        def late_one() -> str:
            return next((text for link in links if (text := _lacks(link, end))), "")

        late = _until(late_one, timeout, self._group.check)
        if late:
            raise WaitTimeout(
                f"group {self._group.name!r} has not stepped down after {timeout:g} s, and goes on as primary: {late}"
            )

    def _tell(self, links: list[Attachment]) -> list[str]:
        """The secondaries that have everything hear that they may lead; the names of their links."""
        for link in links:
            link.hand_over()
        _until(lambda: next((link.name for link in links if link.hands_over), ""), _TELL, self._group.check)
        return [link.name for link in links if link.handed_over]


def _info(name: str, address: str, like: Attachment) -> LinkInfo:
    return LinkInfo(name, address, like.mode, like.bandwidth, like.dead, like.most_lag_bytes, like.most_lag_seconds)


def _options(told: LinkInfo) -> LinkOptions:
    """A limit that this version does not allow is the peer's mistake, and no reason not to lead."""
    chosen = {name: value for name in ("bandwidth", "dead", "most_lag_bytes", "most_lag_seconds")
              if (value := getattr(told, name))}
    try:
        return LinkOptions(**chosen)
    except UsageError:
        return LinkOptions()


def _lacks(link: Attachment, end: int) -> str:
    """What its secondary lacks of the history up to ``end``; empty: nothing."""
    status = link.status()
    if status["consistent"] and status["durable_lsn"] >= end and not status["divergent_bytes"]:
        return ""
    return _standing(link.name, status)


def _standing(name: str, status: dict[str, Any]) -> str:
    """How far the secondary of a link is from what this site has."""
    return (
        f"link {name!r} is {status['state']}, {status['lag_bytes']} bytes behind, "
        f"{status['divergent_bytes']} bytes differ{_because(status)}"
    )


def _because(status: dict[str, Any]) -> str:
    return f" ({status['last_error']})" if status["last_error"] and not status["connected"] else ""


def _until(missing: Callable[[], str], timeout: float | None, check: Callable[[], None]) -> str:
    """Waits until nothing is missing; what still is when the time is over."""
    end = None if timeout is None else time.monotonic() + timeout
    while text := missing():
        check()
        if end is not None and time.monotonic() >= end:
            return text
        time.sleep(_LOOK)
    return ""
