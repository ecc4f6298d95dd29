"""The primary's side of a handshake: who answers, whether it may be fed, and where it stands.

Decides by the ledger and the secondary's welcome what of it is known still (model, "The link"; L3 of ``link``): the
rest is copied. Writes nothing and sends only what the handshake needs. Must not know the stream that follows.
"""

from __future__ import annotations

from typing import Any, NoReturn

from pyrepl._core import layout
from pyrepl._core.regions import RegionMap
from pyrepl.catalog import VOLUME, Catalog, Store
from pyrepl.divergence import Divergence
from pyrepl.errors import ProtocolError, Refused
from pyrepl.items import FoundDifferent, Refusal, StoreInfo
from pyrepl.ledger import Ledger
from pyrepl.lineage import Lineage, is_valid
from pyrepl.pairing import describe_limits, info_of, introduce, mismatch
from pyrepl.parting import FORGOTTEN, parting, words
from pyrepl.protocol import messages
from pyrepl.protocol.messages import Hello, Pair, Paired, Welcome
from pyrepl.protocol.session import Session


class Greeting:
    """Of one connection; ``done`` when the stream may begin, with what the secondary has said of itself.

    Args:
        site: the engine of the group (see ``site``).
        name: of the link.
        path: the nodes that feed this site, if it is a secondary itself, nearest first.
    """

    def __init__(self, site: Any, name: str, mode: str, ledger: Ledger, session: Session,
                 path: list[bytes] | None = None) -> None:
        self.site = site
        self.path = path or []
        self.name, self.mode = name, mode
        self.ledger = ledger
        self.session = session
        self.done = False
        self.consistent = False
        self.item = 0  # number of the last item at the secondary
        self.applied_lsn = self.received_lsn = 0
        self.refusals: list[Refusal] = []  # operations of which it could not perform all, since it was last consistent
        self.lost = ""  # why what was known of it is not true any more
        self.different: FoundDifferent | None = None  # what it was told of itself
        self.remake: list[int] = []  # stores that are dropped and made again: not ours in size or name
        self._stores: list[Store] = []  # at a first pairing
        self._peer = b""

    def hello(self) -> bytes:
        """The frame that opens it."""
        site = self.site
        return self.session.send(
            Hello(
                versions=[layout.WIRE_VERSION],
                group=site.group_id,
                group_name=site.name,
                node=site.node_id,
                link=self.name,
                limits=messages.limits(site.alignment, site.region_size),
                mode=self.mode,
                lineage=site.lineage.encode(),
                lsn=site.window.state().durable_lsn,
                stores=introduce(site.end.catalog),
                overrules=self.ledger.overrules,
                asks=site.roles.asking,
                path=self.path,
                turns=site.turns,
            )
        )

    def welcomed(self, welcome: Welcome) -> bytes:
        """The secondary has answered: the pair that is to be sent, or nothing: it is done.

        Raises:
            Refused: it must not be fed; nothing was written on either side.
            ProtocolError: an answer that cannot be.
        """
        site, peer = self.site, self.ledger.peer
        if welcome.version != layout.WIRE_VERSION:
            self._refuse(
                f"the secondary speaks version {welcome.version} of the protocol, this site {layout.WIRE_VERSION}",
                "version",
            )
        if welcome.limits != messages.limits(site.alignment, site.region_size):
            self._refuse(
                f"the secondary's group has {describe_limits(welcome.limits)}, this one has "
                f"{describe_limits(messages.limits(site.alignment, site.region_size))}: both must be made alike",
                "limits",
            )
        if welcome.node == site.node_id:
            self._refuse("the address leads to this very node", "identity")
        if peer is not None and welcome.node != peer:
            self._refuse(f"node {welcome.node.hex()} answers where node {peer.hex()} was paired", "identity")
        if any(not 0 < info.id < layout.FIRST_LOCAL for info in welcome.stores):
            raise ProtocolError("a welcome with store numbers that cannot be")
        self.item, self.different = welcome.item, welcome.different
        if welcome.group is None:
            if peer is not None:
                self._refuse("the secondary is fresh, but this link was paired: remove the link and add it again "
                             "to synchronize from nothing", "identity")
            return self._pair(welcome)
        if welcome.group != site.group_id:
            self._refuse("the secondary holds another group", "group")
        if welcome.lineage is None or not is_valid(welcome.lineage):
            raise ProtocolError("a welcome without a lineage")
        if peer is None and welcome.node in site.remembered:
            self.ledger.heir = welcome.node
            self._refuse("this site looks up what has changed since that node fed it, then tries again", "busy")
        self._resume(welcome, Lineage.decode(welcome.lineage))
        return b""

    def paired(self, paired: Paired) -> None:
        """The secondary has taken over this group's identity: it is done."""
        base = self.ledger.base
        if paired.lsn != base.lsn:
            raise ProtocolError(f"the secondary was paired at {base.lsn} and says {paired.lsn}")
        self.ledger.peer = self._peer
        for store in self._stores:
            base.divergence.add(store.id, store.size // self.site.region_size, differs=True)
        self.done = True

    def _pair(self, welcome: Welcome) -> bytes:
        """First pairing: stores are matched by name and size."""
        site, base = self.site, self.ledger.base
        problem = mismatch(base.catalog, welcome.stores)
        if problem and self.ledger.start_later():
            self._refuse("this site takes in what changed since the link was made, then tries again", "busy")
        if problem:
            self._refuse(problem, "stores")
        self.ledger.turns = welcome.turns
        self._stores = [store for store in base.catalog if store.kind == VOLUME]
        self._peer = welcome.node
        return self.session.send(
            Pair(
                group=site.group_id,
                node=site.node_id,
                lineage=site.lineage.reached(base.lsn).encode(),
                lsn=base.lsn,
                stores=[info_of(store) for store in self._stores],
            )
        )

    def _resume(self, welcome: Welcome, lineage: Lineage) -> None:
        """From what is known of the secondary to where it says that it stands."""
        site, ledger = self.site, self.ledger
        base = ledger.base
        here = site.window.state().durable_lsn
        parted = parting(lineage, welcome.lsn, site.lineage, here)  # as the secondary sees it
        if parted is None:
            self._refuse(f"the secondary's history has nothing in common with this group's ({FORGOTTEN}): make the "
                         f"secondary's group anew, remove the link and add it again", "lineage")
        fork = parted.fork
        if parted.ours and not (welcome.yields or ledger.overrules):
            site.roles.meet(welcome.node, parted.turned())
            self._refuse(words(parted, site.name, me="the secondary", other="this primary"), "lineage")
        if self.path and welcome.lsn > here and lineage.starts_with(site.lineage):
            self._refuse(f"the secondary has events up to {welcome.lsn}, and this site, which is fed itself, up to "
                         f"{here}: it waits until its own primary has brought it as far", "busy")
        strange = ledger.peer is not None and ledger.turns not in (None, welcome.turns)
        known, ledger.peer = ledger.peer is not None and not strange, welcome.node
        self.consistent = welcome.consistent
        self.applied_lsn, self.received_lsn = min(welcome.applied, fork), fork
        lost = ""
        if not welcome.consistent or fork < welcome.lsn:
            ledger.unsettled()
        if fork < base.lsn and known and welcome.consistent and ledger.go_back(fork, welcome.stores):
            base = ledger.base
        if fork < welcome.lsn:
            lost = f"the secondary holds events up to {welcome.lsn} that are not in this group's history after {fork}"
        elif fork < base.lsn and not known:
            lost = f"nothing is known of what has changed since event {fork}, where the secondary stands"
        elif fork < base.lsn:
            lost = f"the secondary had acknowledged events up to {base.lsn} and stands at {fork}"
        told = base.lsn > fork or ledger.advance(fork, {refusal.lsn for refusal in welcome.refusals})
        if told:
            ledger.pass_items()  # what stores it is to have there: it may have been told, and made them
        if not lost and not told:
            lost = f"the journal does not tell what changed up to {fork}"
        if strange and not lost and not welcome.consistent:
            lost = "another site has fed it meanwhile, and has not made it consistent"
        there = {info.id: info for info in welcome.stores}
        tail = self._tail(welcome, fork) if fork < welcome.lsn and fork == base.lsn else None
        if tail is not None:
            ledger.differs_by(tail)
        elif lost:
            ledger.start_over(fork)
        elif self.consistent and not ledger.doubted and _are_alike(there, base.catalog):
            ledger.differs_nowhere()
        elif any(not refusal.lsn for refusal in welcome.refusals):
            base.divergence.enter_all()
        self.refusals, ledger.turns = welcome.refusals, welcome.turns
        self._match(there, lost)
        if lost:
            self.consistent = False
            self.lost = ledger.resync_reason = lost
        self.done = True

    def _tail(self, welcome: Welcome, fork: int) -> Divergence | None:
        """What differs at the fork, where base is, from a primary that has stepped down and had gone further: it was
        this site's state there (both were consistent), and says what it changed since. A store that it has deleted,
        made or resized is not told here: it is made, dropped or made anew. None: it does not say enough."""
        tail, region_size = welcome.tail, self.site.region_size
        if tail is None or tail.lsn > fork or not welcome.consistent or self.ledger.doubted:
            return None
        there = {info.id: (info.name, info.size) for info in welcome.stores}
        divergence = Divergence(
            {
                store.id: RegionMap(store.size // region_size)
                for store in self.ledger.base.catalog
                if there.get(store.id) == (store.name, store.size)
            }
        )
        for run in tail.runs:
            for store, data in run.regions.items():
                try:
                    changed = RegionMap.decode(data)
                except ValueError as error:
                    raise ProtocolError(f"a welcome with a tail that cannot be read: {error}") from error
                known = divergence.maps.get(store)
                if known is not None and run.upto > fork:
                    known.union(changed if changed.size == known.size else RegionMap(known.size, marked=known.size > 0))
        return divergence

    def _match(self, there: dict[int, StoreInfo], lost: str) -> None:
        """D is about the stores that are really there: one that D does not know is different everywhere."""
        base, region_size = self.ledger.base, self.site.region_size
        for store in [store for store in base.divergence.maps if store not in there]:
            base.divergence.remove(store)
        for info in there.values():
            ours = base.catalog.stores.get(info.id)
            known = info.id in base.divergence.maps
            if ours is not None and (info.size != ours.size or info.name != ours.name):
                if known and not lost:
                    self._refuse(
                        f"store {info.id} is {info.name!r} of {info.size} bytes at the secondary and {ours.name!r} of "
                        f"{ours.size} here at event {base.lsn}",
                        "stores",
                    )
                base.divergence.remove(info.id)
                self.remake.append(info.id)
            elif not known:
                base.divergence.add(info.id, info.size // region_size, differs=True)

    def _refuse(self, text: str, code: str) -> NoReturn:
        raise Refused(text, reason=code, retryable=code in messages.PASSING, link=self.name)


def _are_alike(there: dict[int, StoreInfo], catalog: Catalog) -> bool:
    """Whether the secondary's stores are those of this site there. A site that is fed itself may have been sent others
    beside the order than those of its LSN."""
    return {info.id: (info.name, info.size) for info in there.values()} == {
        store.id: (store.name, store.size) for store in catalog}
