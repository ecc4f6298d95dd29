"""The links of a group: adding, ending and finding them while threads connect, write and change roles.

Decides when a link begins to connect, and when it is forgotten. What a link sends is ``link``'s decision; how one is
paused, changed and waited for is ``attachment``'s; who leads is ``changeover``'s.

    guard   one lock for all links of the group: the applier, which folds and saves them, takes it too
"""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable, Collection, Iterator
from typing import TYPE_CHECKING, Any

from pyrepl.attachment import Attachment, check_fed, check_number
from pyrepl.catalog import check_name
from pyrepl.errors import Exists, NotFound, UsageError
from pyrepl.options import LinkOptions
from pyrepl.roles import PRIMARY

if TYPE_CHECKING:
    from pyrepl.group import Group
    from pyrepl.link import Link
    from pyrepl.site import Site

_LOOK = 0.002  # seconds between two looks at links whose first answer is waited for


def numbered(name: str) -> Iterator[str]:
    """Names like this one."""
    return (f"{name}-{number}" for number in itertools.count(2))


class Attachments:
    """Of one group, by name."""

    def __init__(self, group: Group) -> None:
        self._group = group
        self._known: dict[str, Attachment] = {}
        self.guard = threading.RLock()

    def enter_site(self, site: Site) -> None:
        """What a site that was opened has: before its applier begins."""
        site.guard = self.guard
        for link in site.followers:
            link.guard = self.guard
        self._known = {name: Attachment(self._group, link) for name, link in site.links.items()}

    def __iter__(self) -> Iterator[Attachment]:
        return iter(list(self._known.values()))

    def find(self, name: str) -> Attachment:
        """See :meth:`Group.link`."""
        try:
            return self._known[name]
        except (KeyError, TypeError):
            some = ", ".join(sorted(self._known)) or "none"
            raise NotFound(f"group {self._group.name!r} has no link {name!r} (it has: {some})", name=name) from None

    # ---- made and removed by users

    def add(self, name: str, address: str, mode: str, bandwidth: int) -> Attachment:
        """See :meth:`Group.add_link`."""
        from pyrepl.runtime.transport import parse_address

        group = self._group
        check_name(name)
        with group.border(f"adding link {name!r}"):
            options = LinkOptions(bandwidth=check_number("bandwidth", bandwidth, int))
            if parse_address(address)[1] == 0:
                raise UsageError(f"{address!r} has no port to connect to: give that of the other node", address=address)
            if name in ("primary", "here"):
                raise UsageError(f"{name!r} means this site: give the link another name", name=name)
            if group.role != PRIMARY:
                check_fed(group.name, mode=mode)
            with group.admission:
                if name in self._known:
                    raise Exists(
                        f"group {group.name!r} has a link {name!r}: give another name, or remove it first", name=name
                    )
                link = self.make(name, address, mode, options)
                group.site.attach(link)
                attachment = self._known[name] = Attachment(group, link)
        attachment.start()
        self._tell_added(link)
        return attachment

    def remove(self, name: str) -> None:
        """See :meth:`Group.remove_link`."""
        group = self._group
        attachment = self.find(name)
        attachment.stop()
        with group.border(f"removing link {name!r}"), group.admission:
            if self._known.pop(name, None) is not None:
                group.site.detach(name)
        group.emit({"event": "link-removed", "group": group.name, "link": name})

    # ---- as roles change

    def make(self, name: str, address: str, mode: str, options: LinkOptions | None = None) -> Link:
        """A link that is not part of the group yet."""
        from pyrepl.link import Link

        return Link(self._group.site, name, address=address, mode=mode, options=options, guard=self.guard)

    def free_names(self, names: list[str]) -> list[str]:
        """These, or names like them that no link has: a successor may have links of its own."""
        taken = {*self._known}
        found = []
        for name in names:
            free = next(one for one in itertools.chain((name,), numbered(name)) if one not in taken)
            found.append(free)
            taken.add(free)
        return found

    def enter(self, links: list[Link]) -> None:
        """These are part of the site already: they begin to connect."""
        for link in links:
            self._known[link.name] = Attachment(self._group, link)
            self._known[link.name].start()
            self._tell_added(link)

    def end(self, *, but: str = "") -> None:
        """Ends and forgets all but one: this site has stepped down."""
        group = self._group
        ended = [attachment for attachment in self if attachment.name != but]
        for attachment in ended:
            attachment.stop()
        with group.border("ending links"), group.admission:
            for attachment in ended:
                self._known.pop(attachment.name, None)
            group.site.forget_links(but)

    def forget_successor(self, name: str) -> None:
        """The successor of this site has heard that it is to lead: the link to it ends."""
        with self._group.border(f"forgetting link {name!r}"):
            self._group.site.roles.end_succession()
            attachment = self._known.get(name)
            if attachment is not None:
                attachment.stop()
                self._known.pop(name, None)

    # ---- connecting

    def start(self) -> None:
        """All begin to connect."""
        for attachment in self:
            attachment.start()

    def redial(self) -> None:
        """All connect again: what they told of this site is not so any more."""
        for attachment in self:
            attachment.redial()

    def stop(self) -> None:
        """Their threads have ended on return."""
        for attachment in self:
            attachment.stop()

    def await_answers(self, deadline: float) -> None:
        """A primary that was started leads when its peers have answered: waits for those that can be reached."""
        group = self._group
        while group.fault is None and group.role == PRIMARY and not group.site.accepts and time.monotonic() < deadline:
            links = list(self)
            failed = any(link.has_failed for link in links)
            if group.site.roles.asking and failed and all(link.has_failed or link.has_answered for link in links):
                return  # it goes on asking
            time.sleep(_LOOK)

    # ---- told

    def status(self) -> list[dict[str, Any]]:
        """Of each, as of :meth:`Attachment.status`."""
        return [attachment.status() for attachment in self]

    def diverged(self) -> dict[int, list[str]]:
        """By number of a store, the links at whose secondaries its copy may differ."""
        found: dict[int, list[str]] = {}
        for attachment in self:
            for store in attachment.diverged:
                found.setdefault(store, []).append(attachment.name)
        return found

    def judge_lags(self) -> None:
        """After each step of the engine."""
        for attachment in self:
            attachment.judge_lag()

    def outcomes(self) -> Callable[..., dict[str, str]]:
        """What has become of the operation at an LSN, at each link's secondary: "performed", "refused" or "pending".
        Second argument: links that are known to have refused it, which a link's status forgets sooner."""
        links = self.status() if self._group.role == PRIMARY else []
        with self._group.site.guard:
            refused = {link.name: set(link.refused_lsns) for link in list(self._group.site.links.values())}

        def state(link: dict[str, Any], lsn: int, known: Collection[str]) -> str:
            if lsn in refused.get(link["name"], ()) or link["name"] in known:
                return "refused"
            return "performed" if link["applied_lsn"] >= lsn else "pending"

        return lambda lsn, known=(): {link["name"]: state(link, lsn, known) for link in links}

    def _tell_added(self, link: Link) -> None:
        self._group.emit({"event": "link-added", "group": self._group.name, "link": link.name,
                          "address": link.address, "mode": link.mode})
