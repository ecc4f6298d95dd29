"""What becomes of links, and of two primaries that meet, as events: said once when it changes, and what to do about it.

    link-state   a link is another than it was: it connects, ends, is refused; its secondary stands still, for want of
                 room, or goes on; or writes wait for it no longer, or again
    split-brain  another site has written beside this one, since they last agreed

Looks at the groups of a node whenever it is told to. Decides what counts as a change worth a line: a link that is
dialling is what it was before. Must not know where events go (``serving`` writes them into the log, each with a level).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from pyrepl.errors import PyreplError

if TYPE_CHECKING:
    from pyrepl.attachment import Attachment
    from pyrepl.group import Group
    from pyrepl.node import Node

GOOD = ("streaming", "resyncing", "paused")


class Seen(NamedTuple):
    """A link as it was last told."""

    state: str
    degraded: bool
    stands: bool = False


class Watch:
    """Of one node."""

    def __init__(self, node: Node) -> None:
        self._node = node
        self._links: dict[Attachment, Seen] = {}
        self._parted: dict[tuple[str, str], int] = {}  # (group, node of the other site) -> fork

    @property
    def parted(self) -> list[str]:
        """The groups in which there is a split brain."""
        return sorted({group for group, _ in self._parted})

    def look(self) -> None:
        """Tells what has changed since it looked last."""
        known, parted = self._links, self._parted
        self._links, self._parted = {}, {}
        for group in self._node.groups:
            try:
                self._look_at(group, known, parted)
            except PyreplError:
                continue  # it has failed, or was closed: that is told elsewhere

    def _look_at(self, group: Group, known: dict[Attachment, Seen], parted: dict[tuple[str, str], int]) -> None:
        status = group.status()
        if group.fault is not None or "split_brain" not in status:
            return
        for one in status["split_brain"]:
            key = group.name, one["node"]
            self._parted[key] = one["fork_lsn"]
            if parted.get(key) != one["fork_lsn"]:
                self._node.emit({"event": "split-brain", "group": group.name, **one, "text": _advice(group.name, one)})
        told = {one["link"] for one in status["split_brain"]}
        links = {link.name: link for link in group.links}
        for one in status["links"]:
            if one["name"] in links:
                link = links[one["name"]]
                self._links[link] = self._look_at_link(group, link, one, known.get(link), one["name"] in told)

    def _look_at_link(
        self, group: Group, link: Attachment, status: dict[str, Any], last: Seen | None, parted: bool
    ) -> Seen:
        state, degraded = status["state"], bool(status["degraded"])
        if state == "connecting":  # it dials again, and is what it was
            state = last.state if last is not None else state
        now = Seen(state, degraded, bool(status["stands"]))
        if last is None and (state in GOOD or state == "connecting"):
            return now  # as it should be
        if last is None or last.state != state:
            text = status["last_error"] if state not in GOOD and not parted else ""
            self._tell(group, link, now, text)
        elif last.stands != now.stands and state in GOOD:
            self._tell(group, link, now, status["stands"] or "its secondary goes on")
        elif last.degraded != degraded and state == "streaming":
            self._tell(group, link, now, _kept(status) if degraded else "writes wait for it again")
        return now

    def _tell(self, group: Group, link: Attachment, now: Seen, text: str) -> None:
        self._node.emit({"event": "link-state", "group": group.name, "link": link.name, "state": now.state,
                         "degraded": now.degraded, "text": text or None})


def _advice(group: str, one: dict[str, Any]) -> str:
    resolve = f"`pyrepl resolve {group} --loser here`"
    way = f"{resolve} at one of the two" if one["link"] is None else f"{resolve} or `--loser {one['link']}`"
    return (f"both sites have written since event {one['fork_lsn']}, and nothing is sent: say which side is to lose "
            f"what it alone has, by {way}; without --force that tells what it would be")


def _kept(status: dict[str, Any]) -> str:
    bound = "" if status["mode"] == "sync" else "its lag is not bounded: "
    return f"{bound}writes do not wait for it"
