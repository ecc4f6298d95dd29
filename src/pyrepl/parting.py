"""Two histories of one group that have parted: how far, and what people are told to do about it.

    fork    the last event that both sites have (``lineage.common``)
    tail    events after it of one site, in a generation of which the other knows nothing: that one never agreed to lose
            them. Of a primary that writes on beside another: all its events after the fork
    split brain: both sites have a tail. Nothing is sent before somebody says which side is to lose it (``resolve``)

Decides what counts as a split brain, and its words. Must not know who may be fed (``roles``, ``greeting``), nor what is
kept of the side that loses.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from pyrepl.lineage import KEPT, Lineage, common

FORGOTTEN = f"or nothing since the last {KEPT} times that a site began to lead, and older ones are forgotten"


class Parting(NamedTuple):
    """Of this site and another.

    Attributes:
        fork: the last event in common.
        here, there: the last event of this site, and of the other.
        ours, theirs: whether this site, and the other, has a tail.
    """

    fork: int
    here: int
    there: int
    ours: bool
    theirs: bool

    @property
    def is_split_brain(self) -> bool:
        """Whether each has what the other knows nothing of."""
        return self.ours and self.theirs

    def turned(self) -> Parting:
        """The same, as the other site sees it."""
        return Parting(self.fork, self.there, self.here, self.theirs, self.ours)

    def status(self, node: bytes, link: str | None, here: int) -> dict[str, Any]:
        """Of a split brain, for people and programs.

        Args:
            node: the other site's.
            link: of this primary that leads there.
            here: the last event of this site by now.
        """
        return {"node": node.hex(), "link": link, "fork_lsn": self.fork, "lsn": here, "there_lsn": self.there}


def parting(mine: Lineage, here: int, theirs: Lineage, there: int) -> Parting | None:
    """How the histories of a site that stands at ``here`` of its lineage, and one at ``there`` of another, have parted.
    None: they have nothing in common."""
    fork = common(mine, here, theirs, there)
    if fork < 0:
        return None
    return Parting(
        fork=fork,
        here=here,
        there=there,
        ours=bool(mine.tail(here, fork) - theirs.generations),
        theirs=bool(theirs.tail(there, fork) - mine.generations),
    )


def parting_of_two(
    mine: Lineage, here: int, theirs: Lineage, there: int, *, asks: bool, asks_there: bool
) -> Parting | None:
    """The same of two primaries. One that writes has a tail if it has gone on, whoever knows of its generation: it goes
    on telling writers that they are safe.

    Args:
        asks, asks_there: that site was started and does not write yet (``roles``): what it had not sent when the other
            took over is no tail, for that one agreed to lose it.
    """
    parted = parting(mine, here, theirs, there)
    if parted is None:
        return None
    fork = parted.fork
    return parted._replace(
        ours=parted.ours or (not asks and here > fork), theirs=parted.theirs or (not asks_there and there > fork)
    )


def words(parted: Parting, group: str, *, me: str = "this site", other: str = "the other") -> str:
    """What a site says to one that it cannot follow, or be followed by; both show it.

    Args:
        me, other: how the two are called.
    """
    if parted.is_split_brain:
        return (
            f"split brain: after event {parted.fork} each site has events that the other knows nothing of, {me} up to "
            f"{parted.here}, {other} up to {parted.there}. Nothing is sent. Decide which side is to lose them, and say "
            f"so at either: `pyrepl resolve {group} --loser here` at the one that loses"
        )
    if parted.ours:
        return (
            f"{me} has followed another primary after event {parted.fork}, or led, up to {parted.here}, and {other} "
            f"knows nothing of that. Nothing is sent. If that is to be lost, say so there: `pyrepl resolve {group} "
            f"--loser here`; if not, demote {other}"
        )
    return f"the histories have parted after event {parted.fork}"


def words_of_two(parted: Parting, group: str) -> str:
    """What a primary says to another one of its group."""
    if parted.is_split_brain:
        return words(parted, group, me="this primary")
    both = f"group {group!r} is a primary on this node, and on the one that asks"
    if parted.ours:
        return (
            f"{both}. Here it goes on from event {parted.fork} to {parted.here}: if this one leads, demote it there "
            f"(`pyrepl demote {group} --force`), and add a link from here to there"
        )
    unsent = f"events up to {parted.here} were never sent: they are lost, and what they made is kept as lost-..."
    if parted.theirs:
        here = f"here {unsent}" if parted.here > parted.fork else "here nothing was written since"
        return (
            f"{both}. There it goes on from event {parted.fork} to {parted.there}, {here}: "
            f"demote it here (`pyrepl demote {group} --force`), and that one leads it back"
        )
    if parted.here > parted.fork:
        return (
            f"{both}, which took over at event {parted.fork}. Here {unsent} if it is demoted here (`pyrepl demote "
            f"{group} --force`), and that one leads it back"
        )
    if parted.there > parted.fork:
        return (
            f"{both}; here it took over at event {parted.fork}. What the one that asks has after that, up to "
            f"{parted.there}, was never sent: it is lost, and what it made is kept as lost-..., if that one is demoted "
            f"(`pyrepl demote {group} --force` there), and this one leads it back"
        )
    return (
        f"{both}. When they met, neither had written since event {parted.fork}: demote it at one of them (`pyrepl "
        f"demote {group} --force`), and let the other have a link to it"
    )
