"""Roles: who of a group's sites may append, and how that changes. Durable, and never torn.

    role          what the newest checkpoint says. A change is one checkpoint, taken when everything is applied and no
                  batch arrives: a crash leaves the site in the old role or in the new one (rule role_checkpoint)
    step_down     primary -> secondary. Nobody can write any more, then the checkpoint forgets the links, then the
                  secondaries that have everything are told so (the item *handover*). With a successor the checkpoint
                  keeps the link to it: the handover asks it to lead, and is sent until it is known to have heard
    take_lead     secondary -> primary. A generation begins in the same checkpoint, before the first append; the primary
                  that fed this site is remembered with what changes from here on (a link without an address), so that
                  only that is copied when it comes back. A successor's links are in the same checkpoint
    follow        another primary feeds this secondary from here on; durable before anything of it is taken in

Decides which role may follow which, and whether a primary's history continues this site's. Must not know how links and
connections are ended before (``group``), nor how the other site is led back (``link``).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from datetime import datetime
from typing import TYPE_CHECKING, Any

import msgspec

from pyrepl.catalog import MOST_VIEWS, VOLUME, Store
from pyrepl.errors import Refused, check
from pyrepl.history import History, Overtaken
from pyrepl.lineage import Lineage, common
from pyrepl.parting import FORGOTTEN, Parting, parting, words
from pyrepl.shortage import NoRoom

if TYPE_CHECKING:
    from pyrepl.items import FoundDifferent, LinkInfo
    from pyrepl.link import Link
    from pyrepl.point import Point
    from pyrepl.site import Site

PRIMARY, SECONDARY = "primary", "secondary"
NOBODY = bytes(16)  # in place of the node that feeds a secondary which nobody feeds
MOST_ABOVE = 14  # sites above the one that feeds a secondary: what that tells its own links has room for two more
MOST_PARTED = 16  # nodes with which there is a split brain that are remembered


class Roles:
    """The role of one site. All but :meth:`hold` and :meth:`judge` change it between two steps of the applier."""

    def __init__(self, site: Site) -> None:
        self.site = site
        self.held = False  # a primary that gives no place to new events
        self.changing = False  # no primary may begin to feed this site
        self.asking = False  # a primary that was started: not active before its peers have answered
        self.beginning = False  # they have, or need not, and it is about to lead
        self.overruling = b""  # node of a primary that has told this one to lose: it is to step down
        self.refused = ""  # why the last primary that knocked was sent away
        self.refused_at: float | None = None  # when, seconds since 1970
        self._refused_node = b""
        self.parted: dict[bytes, Parting] = {}  # nodes met since the start, with which there is a split brain
        self.asked: Callable[[], None] = lambda: None  # called when a primary has asked this site to lead
        self.feeding: Callable[[], str] = lambda: ""  # the link by which somebody feeds this site now

    # ---- a primary that was started

    def activate(self) -> None:
        """A primary that was started, and held back, begins a generation; durable on return. Its connections have told
        the lineage before that: they end, then :meth:`hold` lets writers in."""
        self.site.exclusive(self._activate)

    def _activate(self) -> None:
        if self.asking and self.site.role == PRIMARY:
            self.asking = False
            self.site.activate()

    @property
    def awaited(self) -> list[str]:
        """The links whose answer a primary that was started awaits before it leads; of all, while it begins to."""
        if not (self.asking or self.beginning):
            return []
        links = list(self.site.links.values())
        return [link.name for link in links if not link.answered] or [link.name for link in links]

    # ---- a primary steps down

    def hold(self, held: bool) -> None:
        """Stops giving new events their place, or begins again. Called with the admission lock held: what has its place
        keeps it, and nothing comes after it."""
        site = self.site
        self.held = held
        for store in site.end.catalog:
            site.window.set_store(store.id, store.size, site.role == PRIMARY and not held)

    def step_down(
        self, successor: str = "", succession: list[LinkInfo] | None = None, *, yields: bool = False
    ) -> int:
        """This site is a secondary from here on; durable on return. The LSN at which it stepped down.

        It may be promoted again without asking anybody only if it has no links: nobody else can have been told.

        Args:
            successor: the link whose secondary is asked to lead; the only one that outlives a restart from here on.
            succession: the links that it is to have.
            yields: see :meth:`give_way`.
        """
        return int(self.site.exclusive(lambda: self._step_down(successor, succession, yields)))

    def _step_down(self, successor: str, succession: list[LinkInfo] | None, yields: bool) -> int:
        site = self.site
        if site.role != PRIMARY:
            raise Refused(f"group {site.name!r} is a secondary here already", reason="role")
        check(self.held, "a primary stops accepting before it steps down")
        site.applier.finish()
        site.shortage.check("step down")
        here = site.here
        lsn = site.window.state().end_lsn
        check(here.lsn == lsn and here.catalog.stores == site.end.catalog.stores, "everything is applied")
        here.lineage = site.end.lineage.reached(lsn)
        here.handed_over, here.tails, here.yields = not site.links and not yields, {}, yields
        room = site.journal.area_size // 4  # bytes of a checkpoint, for all tails
        for link in site.followers:
            with link.guard:
                link.is_ending = link.name != successor
                tail = link.ledger.tail()
            if link.peer is not None and tail is not None and tail.length <= room:
                here.tails[link.peer] = tail
                room -= tail.length
        site.successor, here.succession = successor, succession
        site.end = here.copy()
        self.asking = False
        site.role, site.fed_by, site.above = SECONDARY, None, []
        site.remembered.clear()
        site.delay.begin()
        site.checkpoint()  # rule role_checkpoint: it names the role, and no links
        return lsn

    def give_way(self) -> None:
        """A secondary is told to lose what no other site has, even if that is a split brain: whoever leads may take it
        back to where they agree. Durable on return; it ends with the next thing that comes from a primary."""
        self.site.exclusive(self._give_way)

    def _give_way(self) -> None:
        site = self.site
        check(site.role == SECONDARY, "a primary steps down before it gives way")
        site.applier.catch_up()
        site.here.yields = site.end.yields = True
        site.checkpoint()

    def end_succession(self) -> None:
        """The successor has heard that it is to lead, or somebody leads: nobody is asked any more. Durable on
        return."""
        self.site.exclusive(self._end_succession)

    def _end_succession(self) -> None:
        if self.site.successor:
            self._forget_successor()
            self.site.checkpoint()

    def _forget_successor(self) -> None:
        site = self.site
        site.links.pop(site.successor, None)
        site.successor = ""
        for point in (site.here, site.end):
            point.succession = None

    # ---- a secondary becomes primary

    def take_lead(self, *, alone: bool, links: Iterable[Link] = (), force: bool = False) -> int:
        """This site is primary from here on; durable on return. The LSN after which its generation begins.

        Args:
            alone: whether its primary has stepped down does not matter.
            links: that it has from then on; made, not begun.
            force: although what it holds was found different.

        Raises:
            Refused: a primary already; no earlier state of its primary; the primary has not stepped down; or what this
                site holds was found different, and its primary has not asked it to lead all the same.
        """
        return int(self.site.exclusive(lambda: self._take_lead(alone, list(links), force)))

    def check_lead(self, point: Point, *, alone: bool, force: bool) -> None:
        """Whether a secondary that stands at this point may take the lead; see :meth:`take_lead`."""
        site = self.site
        if site.group_id is None:
            raise Refused(
                f"group {site.name!r} was never paired with a primary and holds nothing: make a primary instead",
                reason="inconsistent",
            )
        kept = site.protective.snapshot
        if not point.consistent and kept is None:
            raise Refused(
                f"group {site.name!r} is not an earlier state of its primary here, and keeps none: regions that differ "
                f"are missing, so its stores are of no one moment. Let the primary synchronize it first",
                reason="inconsistent",
            )
        if not point.consistent and kept is not None and not alone:
            raise Refused(
                f"group {site.name!r} is being resynchronized here. It can go back to its protective snapshot, of LSN "
                f"{kept.lsn}, and lead from there; what came after is lost then: take over, or promote it alone",
                reason="inconsistent",
            )
        if site.successor and not alone:
            raise Refused(
                f"group {site.name!r} has stepped down here and asks the site of link {site.successor!r} to lead: it "
                f"may have heard. Promote it there; promote this site alone to take the lead back here, if it has not",
                reason="primary",
            )
        if not point.handed_over and not alone:
            raise Refused(
                f"group {site.name!r}: its primary has not stepped down, as far as this site has heard: demote it "
                f"there first; if it is gone, take over; to promote it alone asks nobody",
                reason="primary",
            )

        if point.different is not None and point.succession is None and not force:
            raise Refused(
                f"group {site.name!r}: {words_of_difference(point.different)}. If this site leads, its content is the "
                f"one that counts, and what others hold there is lost at the next repair. Let its primary repair it "
                f"first (`pyrepl verify {site.name}` there), let another secondary lead, or repeat it with force",
                reason="different",
                **msgspec.structs.asdict(point.different),
            )

    def _take_lead(self, alone: bool, links: list[Link], force: bool) -> int:
        site = self.site
        if site.role != SECONDARY:
            raise Refused(f"group {site.name!r} is a primary here already", reason="role")
        site.applier.finish()
        site.shortage.check("lead")
        self.check_lead(site.here, alone=alone, force=force)
        site.delay.end()
        returned = not site.here.consistent
        if returned:
            try:
                site.protective.go_back()  # rule protect_return: durable with the role
            except NoRoom:
                site.delay.begin()
                raise
            for link in site.links.values():
                with link.guard:
                    link.begin_again("this site went back to its protective snapshot")
        state = site.window.state()
        check(state.durable_position == state.end_position, "what is applied is durable")
        here, generation, group = site.here, site.entropy(16), site.group_id
        assert group is not None
        here.lineage = here.lineage.begin(generation, here.lsn).pruned(here.lsn)
        here.handed_over, here.tails, here.yields, here.waived = False, {}, False, False
        self._forget_successor()
        here.succession = None
        site.end = here.copy()
        self.held = True  # until all of this is durable
        site.role = PRIMARY
        if site.fed_by is not None:
            site.remember(site.fed_by, site.turns_there)
        site.siblings.lead(returned=returned)
        if here.different is not None:  # this site differs from all others
            with site.guard:
                for known in site.followers:
                    known.ledger.judge(here.different)
        here.different = site.end.different = None
        site.fed_by, site.above = None, []
        for link in links:
            link.begin()
            site.links[link.name] = link
        site.checkpoint()  # rule role_checkpoint: role and generation in one, before the first append
        site.window.set_generation(generation, group)
        self.hold(False)
        return here.lsn

    # ---- a secondary and the primaries that knock

    def judge(self, node: bytes, lineage: Lineage, lsn: int, *, path: Collection[bytes] = (), link: str = "",
              overrules: bool = False) -> None:
        """Whether this primary's history continues that of this secondary; changes nothing.

        Args:
            path: nodes that feed the one that asks, which is a secondary itself.
            link: by which it asks.
            overrules: this site is told to lose what only it has.

        Raises:
            Refused: no, and why.
        """
        site, mine = self.site, self.site.end
        parted = parting(mine.lineage, mine.lsn, lineage, lsn)
        if parted is None:
            raise Refused(f"the primary's history has nothing in common with what this site holds ({FORGOTTEN}): make "
                          f"the group anew here, and it is copied", reason="lineage")
        if parted.ours and not (mine.yields or overrules):
            self.meet(node, parted)
            raise Refused(words(parted, site.name, me="this secondary", other="the primary"), reason="lineage")
        feeding = self.feeding()
        if site.fed_by == node and feeding not in ("", link):
            raise Refused(f"link {feeding!r} of the same node feeds this secondary now, and one is enough: remove link "
                          f"{link!r} there", reason="busy", retryable=True)
        if site.fed_by in (None, node) or overrules:
            return
        if {node, *path} & ({site.fed_by, *site.above} - {NOBODY}):  # of one chain: all of it has the same order
            if feeding:
                raise Refused(f"node {site.fed_by.hex()} feeds this secondary now, and one is enough: remove that link "
                              f"there if this one is to", reason="identity")
            return
        if not lineage.starts_with(mine.lineage):
            raise Refused("the group was paired with another primary, whose history this one does not know",
                          reason="identity")
        if lineage.generation == mine.lineage.generation:
            raise Refused("the group was paired with another primary, and this one has not taken over from it",
                          reason="identity")

    def sent_away(self, why: str, node: bytes, at: float | None) -> None:
        """A primary that knocked was refused; told until one is followed, or the two have met otherwise."""
        self.refused, self._refused_node, self.refused_at = why, node, at

    def meet(self, node: bytes, parted: Parting | None) -> None:
        """What was found when this node was met: a split brain with it is told until it is met without one."""
        self.parted.pop(node, None)
        if parted is None and node == self._refused_node:  # the two agree by now
            self.sent_away("", b"", None)
        if parted is not None and parted.is_split_brain:
            self.parted[node] = parted
            if len(self.parted) > MOST_PARTED:  # a peer names itself
                del self.parted[next(iter(self.parted))]

    def split_brain(self) -> list[dict[str, Any]]:
        """With whom there is one of which nobody has said who loses, as far as is known here."""
        site = self.site
        if site.end.yields:
            return []
        here = site.window.state().end_lsn
        links = {link.peer or link.met: link for link in list(site.links.values())}
        return [
            parted.status(node, links[node].name if node in links else None, here)
            for node, parted in list(self.parted.items())
            if node not in links or not links[node].ledger.overrules
        ]

    def overruled(self, node: bytes, lineage: Lineage, lsn: int) -> bool:
        """Whether a primary that overrules this one, which is a primary too, may: they share a history, and this site
        knows that node. It steps down then, by itself and soon.

        Raises:
            Refused: they do not.
        """
        site, mine = self.site, self.site.end
        known = {link.peer for link in site.followers} | set(mine.tails)
        if node not in known or common(mine.lineage, mine.lsn, lineage, lsn) < 0:
            return False
        self.overruling = node
        self.asked()
        return True

    def gives_way(self, node: bytes, parted: Parting, *, leads: bool) -> bool:
        """Whether this site, a primary that was started and does not lead yet, steps down by itself, and soon: another
        one ``leads``, and has all that it has. If it has more, people decide."""
        if not self.asking or not leads or parted.here > parted.fork:
            return False
        self.overruling = node
        self.asked()
        return True

    def keep_tail(self, fork: int) -> None:
        """Before this secondary goes back to the event ``fork``: what it shows now, and would lose by that, is kept as
        ``lost-<generation>``.

        Raises:
            Refused: there is no room for it.
        """
        stores = self._tail_to_keep(fork)
        if stores:
            self.site.views.keep(self._label(), [store.id for store in stores])

    def _label(self) -> str:
        lsn = self.site.window.state().end_lsn
        return f"lost-{self.site.end.lineage.at(lsn).hex()[:8]}"

    def tail_to_keep(self, fork: int) -> list[tuple[str, str]]:
        """The stores that :meth:`keep_tail` would keep now, and under which label."""
        return [(store.name, self._label()) for store in self._tail_to_keep(fork)]

    def _tail_to_keep(self, fork: int) -> list[Store]:
        """The volumes, and the snapshots that were made or changed after the fork: the other site may have made one of
        the same number and name since, so its list of stores says nothing. Where the journal does not tell any more,
        all; but no more than can be kept at all, the newest ones, for nobody can delete a snapshot at a secondary."""
        site = self.site
        if fork >= site.window.state().end_lsn or not site.end.consistent:
            return []  # of a primary the window knows the end: no Python runs where it is written to
        try:
            touched = History.find(site.journal, site.write_out).touched(fork, site.region_size)
        except Overtaken:
            touched = None
        volumes = [store for store in site.end.catalog if store.kind == VOLUME]
        snapshots = [store for store in site.end.catalog
                     if store.kind != VOLUME and (touched is None or store.id in touched)]
        snapshots.sort(key=lambda store: store.id, reverse=True)
        return volumes + snapshots[: max(MOST_VIEWS - len(volumes), 0)]

    def follow(self, node: bytes, path: list[bytes], turns: int) -> None:
        """It was judged, and feeds this site from here on.

        Args:
            path: who feeds it, if it is a secondary itself.
            turns: how often that has changed.
        """
        site, above = self.site, path[:MOST_ABOVE]
        if (site.fed_by, site.above, site.turns_there) != (node, above, turns):
            site.exclusive(lambda: self._follow(node, above, turns))
        self.sent_away("", b"", None)
        self.meet(node, None)

    def _follow(self, node: bytes, above: list[bytes], turns: int) -> None:
        before = self.site.fed_by
        if before is not None and before != node:
            self.site.turns += 1
            if before not in above:
                self.site.siblings.turn_from(before)
        self.site.fed_by, self.site.above, self.site.turns_there = node, above, turns
        self._forget_successor()
        self.site.checkpoint()


def words_of_difference(found: FoundDifferent) -> str:
    """What a verification found different at a secondary, as a sentence without its full stop."""
    when = datetime.fromtimestamp(found.time).astimezone().isoformat(sep=" ", timespec="seconds")
    return (f"what is here differs from what its primary had in {found.bytes // 1024} KiB, as the verification at LSN "
            f"{found.lsn} found at {when}, and was not repaired")
