"""The other secondaries of the one that feeds this site: what is kept here so that little is copied if this site leads.

    told     by the one that feeds this site: which they are, and how far each has got. It is not relied on (below)
    kept     for each of them a link without an address: D is empty for whoever stands consistent at its base, and what
             changes from there on is in the journal, or folded, as for any link
    mark     a later place of this site's journal, to which a base moves when its sibling has passed that: at
             checkpoints, so it costs nothing for a write, and what is held of the log is little

That D is empty at an event, for whoever stands there and is consistent, follows from the history alone (model, section
7). So who tells it, and whether the sibling was ever there, does not matter: one that stands before the base, or is
not consistent, is copied whole. What must hold is that base and journal are of the history of this site: a fork away
from its position, or a return to the protective snapshot, voids all of it (rule sibling_turn).

Decides for whom knowledge is kept and from where on; what this site tells its own secondaries of each other. Must not
know connections, nor what a ledger does with it (``ledger``).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from pyrepl._core.regions import RegionMap
from pyrepl.items import Tail
from pyrepl.lineage import Lineage, common
from pyrepl.protocol.messages import MOST_SIBLINGS

if TYPE_CHECKING:
    from pyrepl.knowledge import Knowledge
    from pyrepl.link import Link
    from pyrepl.site import Site

MOST_READ = 256 << 20  # bytes of the journal that are read for a tail: the one that asks waits for a few seconds
STRANGE = -1  # in place of a count of turns: of who was never fed from here, only its own word counts


class Siblings:
    """Of one site. :meth:`hear` is called by the thread that takes in the stream, :meth:`tell` by those that send,
    everything else between two steps."""

    def __init__(self, site: Site) -> None:
        self.site = site
        self.kept: dict[bytes, Link] = {}  # by node
        self.told: dict[bytes, int] | None = None  # by node, the LSN that it has got to, or 0; None: nothing was told
        self._marks: dict[bytes, Knowledge] = {}
        self._is_news = False  # somebody was told of, for whom nothing is kept
        self._has_room = True  # a checkpoint has, for what is kept
        self.heard: Callable[[], None] = lambda: None  # called when something is to be kept that is not yet

    # ---- told, from one to the other

    def tell(self, to: Link) -> list[tuple[bytes, int]] | None:
        """What the secondary of this link is to hear of the others; None: nothing new. With the guard. One is left out
        if more is known to differ there than its position says: then nobody is to go by that."""
        site, told = self.site, dict[bytes, int]()
        if site.role != "primary" and site.fed_by is None:
            return None  # it has stepped down, and forgets its links one after the other
        for link in site.followers:
            ledger = link.ledger
            if ledger.peer in (None, to.peer) or ledger.doubted or ledger.found_different is not None:
                continue
            told.setdefault(ledger.peer, self._reached(link, ledger.peer))
        return list(told.items())[:MOST_SIBLINGS]

    def _reached(self, link: Link, node: bytes) -> int:
        """The last LSN at which it is known to be consistent; 0: there is none."""
        ledger = link.ledger
        if node in self.kept:
            return (self.told or {}).get(node, 0)
        if ledger.steady or node in self.site.remembered:
            return ledger.base.lsn
        return ledger.since.lsn if ledger.since is not None else 0

    def hear(self, told: list[tuple[bytes, int]]) -> None:
        """The one that feeds this site has told of its other secondaries: all that there are."""
        self.told = dict(told)
        self._is_news = bool(self._new())
        if self._is_news:
            self.heard()

    def _wanted(self) -> dict[bytes, int]:
        """Those for whom something is to be kept: not of who is fed from here."""
        told = self.told if self.told is not None else dict.fromkeys(self.kept, 0)
        known = {self.site.node_id, *(link.peer for link in list(self.site.links.values()))}
        return {node: lsn for node, lsn in told.items() if node not in known}

    def _new(self) -> list[bytes]:
        """Those of them for whom it is not yet, and may be."""
        new = [node for node, lsn in self._wanted().items() if lsn and node not in self.kept]
        return [node for node in new if node != self.site.fed_by][: max(0, MOST_SIBLINGS - len(self.kept))]

    # ---- kept

    @property
    def is_due(self) -> bool:
        """Whether a checkpoint is to begin to keep something."""
        return self._is_news and self._has_room and self._may_begin()

    def _may_begin(self) -> bool:
        """Whether the place where the stores are is one of the order, and the way from there to the journal's end leads
        nowhere else."""
        site, intake = self.site, self.site.intake
        if site.role != "secondary" or site.group_id is None or site.delay.seconds or site.delay.is_parking:
            return False
        if intake.is_coming or site.window.state().applied_position < intake.items_until:
            return False  # rule sibling_turn: it may be a fork
        return site.here.consistent and site.end.consistent

    def settle(self) -> None:
        """A checkpoint begins, which makes durable what this does: takes in what was told."""
        site = self.site
        if site.role != "secondary":
            return
        with site.guard:
            wanted, may_begin = self._wanted(), self._may_begin() and self._has_room
            for node, link in list(self.kept.items()):
                if link.ledger.doubted or site.delay.seconds or node not in wanted:
                    self._drop(node)
            for node, link in self.kept.items():
                mark = self._marks.get(node)
                if mark is not None and mark.lsn <= max(link.base.lsn, wanted.get(node, 0)):
                    del self._marks[node]
                    if mark.lsn > link.base.lsn:  # else `advance` has come further
                        link.ledger.pass_to(mark)
                        link.stand_at_base()
                if may_begin and node not in self._marks and site.here.lsn > link.base.lsn:
                    self._marks[node] = self._here()
            if not may_begin:
                return
            self._is_news = False
            for node in self._new():
                self.kept[node] = self._begin(node)

    def turn_from(self, node: bytes) -> None:
        """Another site than this one feeds this site from here on; it may come back as that one's secondary."""
        with self.site.guard:
            if self.told is not None:
                self.told = {**self.told, node: 0}  # until the new one has told
            if self._may_begin() and self._has_room and len(self.kept) < MOST_SIBLINGS:
                self.kept.setdefault(node, self._begin(node))

    def _begin(self, node: bytes) -> Link:
        from pyrepl.link import Link  # which knows Site

        link = Link(self.site, "sibling", address="", peer=node, guard=self.site.guard)
        link.begin()
        link.ledger.pass_to(self._here())
        link.stand_at_base()
        link.ledger.turns = STRANGE
        return link

    def _here(self) -> Knowledge:
        from pyrepl.divergence import Divergence  # and with it numpy, which a node without groups can do without
        from pyrepl.knowledge import Knowledge

        site, state = self.site, self.site.window.state()
        maps = {store.id: RegionMap(store.size // site.region_size) for store in site.here.catalog}
        return Knowledge(site.here.lsn, state.applied_position, site.here.catalog.copy(), Divergence(maps))

    def advance(self) -> None:
        """The journal is about to be folded: what the siblings have of it is not."""
        with self.site.guard:
            for node, lsn in self._wanted().items():
                link = self.kept.get(node)
                if link is not None and link.base.lsn < min(lsn, self.site.here.lsn):
                    link.ledger.advance(min(lsn, self.site.here.lsn))

    def _drop(self, node: bytes) -> None:
        self.kept.pop(node, None)
        self._marks.pop(node, None)

    def drop(self) -> None:
        """Nothing is kept any more; it is begun again, if it can be."""
        for node in list(self.kept):
            self._drop(node)

    def forget(self) -> None:
        """The history of this site goes another way than what is kept here."""
        self.told, self._is_news = None, False
        self.drop()

    # ---- checkpoints

    def save(self) -> dict[bytes, bytes]:
        """What a checkpoint holds of it: nothing, if that would take more than an eighth of its area. With the
        guard."""
        saved = {node: link.save() for node, link in self.kept.items()}
        length = sum(len(record) for record in saved.values())
        if length and (8 * length > self.site.journal.area_size or not self.site.has_checkpoint_room(length)):
            self._has_room = False
            self.drop()
            return {}
        return saved

    def restore(self, saved: dict[bytes, bytes]) -> None:
        """Becomes what a checkpoint says."""
        from pyrepl.link import Link

        self.kept = {node: Link.restore(self.site, record) for node, record in saved.items()}

    # ---- this site leads, or another one does

    def lead(self, *, returned: bool) -> None:
        """This site takes the lead where it stands: what was kept is remembered, until a link finds that node. Before
        its generation is durable.

        Args:
            returned: it went back to its protective snapshot: only who stands there, or went further, is known.
        """
        site = self.site
        for node in self._wanted():
            link = self.kept.get(node)
            if node == site.fed_by:
                continue
            if link is None or returned or link.ledger.doubted:
                site.remember(node, STRANGE)
            else:
                site.remembered[node] = link
        self.forget()

    def tail(self, lineage: Lineage, lsn: int) -> Tail | None:
        """What this site, a consistent secondary, has beyond the last event that it shares with one that leads now, at
        ``lsn`` of its lineage; None: there is nothing, or it is not known. All that arrived is durable."""
        end = self.site.end
        fork = common(end.lineage, end.lsn, lineage, lsn)
        if not 0 <= fork < end.lsn or not end.consistent or not self.kept:
            return None
        tail: Tail | None = self.site.exclusive(lambda: self._tail(fork))
        return tail

    def _tail(self, fork: int) -> Tail | None:
        with self.site.guard:
            ledgers = [link.ledger for link in self.kept.values() if link.base.lsn <= fork]
            if not ledgers:
                return None
            ledger, end = max(ledgers, key=lambda ledger: ledger.base.lsn), self.site.window.state().end_position
            return ledger.tail(end) if end - ledger.position <= MOST_READ else None
