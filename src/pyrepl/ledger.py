"""What a primary knows of one secondary and may not forget: it lives in the checkpoint.

    base     what holds at the secondary durably: position p and divergence D, moved by acknowledgements only, in order
    since    what has changed since the secondary was consistent, if it is not now (``since``)
    backlog  what the journal has dropped, or is about to, and the secondary lacks: skips and operations, in order

Decides what of the log is folded, when knowledge must be saved before a word of it is said (L2 of ``link``), and what
remains of it when a secondary stands elsewhere than it was thought to (model, "The link"). Must not know sessions,
frames or whether there is a connection.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Iterable
from typing import Any, NamedTuple

import msgspec

from pyrepl import items, operations
from pyrepl._core import layout, pump
from pyrepl._core.regions import RegionMap
from pyrepl.catalog import Catalog, Store
from pyrepl.divergence import Divergence
from pyrepl.errors import check
from pyrepl.items import FoundDifferent, Refusal
from pyrepl.knowledge import Knowledge, Passed, Performed, Piece, Skipped, kept_operation, moves, passed
from pyrepl.options import LinkOptions
from pyrepl.since import Since, SinceRecord

MOST_NOTES = 256  # that are passed over for the time of the event behind them
SAVE_EVERY = 256 << 20  # bytes of copied regions acknowledged: a primary that dies copies so much again at most


class PieceRecord(msgspec.Struct, array_like=True, forbid_unknown_fields=True):
    """A piece of the backlog in a checkpoint."""

    upto: int
    position: int
    regions: dict[int, bytes]
    operation: bytes
    time_ns: int = 0


class LinkRecord(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """A link in a checkpoint."""

    version: int = 1
    name: str
    address: str
    mode: str
    options: LinkOptions
    peer: bytes | None
    paused: bool
    doubted: bool
    overrules: bool = False
    lsn: int
    position: int
    stores: list[Store]
    next_id: int
    divergence: dict[int, bytes]
    backlog: list[PieceRecord]
    steady: bool = False
    turns: int | None = None
    since: SinceRecord | None = None
    found_different: FoundDifferent | None = None
    judged: bool = False
    refused: list[Refusal] = []
    refused_lsns: list[int] = []


class Verdict(NamedTuple):
    """What differs at the secondary, as this site has found, beside D."""

    found: FoundDifferent | None
    judged: bool


class Ledger:
    """Of one secondary.

    Args:
        site: the engine of the group (see ``site``).
        peer: node id of the secondary; None: whoever answers first, then that one for ever.
    """

    def __init__(self, site: Any, peer: bytes | None = None) -> None:
        self.site = site
        self.peer = peer
        self.begun = False
        self.base = Knowledge(0, 0, Catalog(), Divergence())
        self.backlog: deque[Piece] = deque()
        self.doubted = False  # D was marked by hand: the secondary's word that it is consistent does not empty it
        self.overrules = False  # the secondary is told to lose what only it has
        self.resync_reason = "first synchronization"
        self.turns: int | None = None  # the secondary's count of who fed it, when this was known; None: not told
        self.steady = False  # the secondary was consistent, and equal to this site, as of base
        self.since: Since | None = None  # ... it was, and is not any more
        self.found_different: FoundDifferent | None = None  # known beside D: nothing repairs it before it is asked for
        self.judged = False  # that, or that there is nothing, is this site's word; else the secondary's counts
        self.verdict = Verdict(None, judged=False)  # ... as a durable checkpoint holds it: only that is told
        self.heir = b""  # node that answered, of which the site remembers something
        self.kept = 0  # position of the record in the last durable checkpoint: a restart needs the log from here on
        self.checkpoint = 0  # the last durable checkpoint that was taken with this ledger
        self._fold = 0  # number of the knowledge that is to be saved
        self._captured = 0  # ... that the checkpoint being taken holds
        self._saved = 0  # ... that a durable checkpoint holds
        self._awaited = 0  # ... that must be saved before anything is sent
        self._captured_position = 0
        self._captured_verdict = self.verdict
        self._copied_unsaved = 0  # bytes of copied regions that were acknowledged since the last save

    # ---- begin and end

    def begin(self) -> None:
        """The stream begins where the stores are now. Called by the applier's thread, which owns the catalog."""
        state = self.site.window.state()
        # Nothing is known of the secondary: no store is there, each will be different everywhere once it is.
        self.base = Knowledge(state.applied_lsn, state.applied_position, self.site.catalog.copy(), Divergence())
        self.begun = True

    def begin_again(self, reason: str) -> None:
        """Nothing of the secondary is known any more; the stream begins where the stores are now. Called by the
        applier's thread. Saved before a word of it is said."""
        self.backlog.clear()
        self.begin()
        self.steady, self.since, self.resync_reason = False, None, reason
        self.await_save()

    def inherit(self, known: Ledger) -> None:
        """Takes over what is remembered of the same secondary."""
        self.peer, self.base, self.backlog = known.peer, known.base, known.backlog
        self.doubted, self.resync_reason = known.doubted, ""
        self.steady, self.since, self.turns = known.steady, known.since, known.turns
        self.found_different, self.judged = known.found_different, known.judged
        for piece in self.backlog:
            piece.fold = self._fold

    # ---- the log

    @property
    def position(self) -> int:
        """The log may not drop records at or after this position, unless :meth:`fold` has passed it."""
        return self.backlog[-1].position if self.backlog else self.base.position

    def fold(self, until: int, sent: int | None) -> bool:
        """Takes what the log is about to drop, up to the journal position ``until``, into the backlog. False: a part of
        it is what this site was sent beside the order by its own primary, which no backlog can tell.

        Args:
            sent: LSN up to which things were sent over a connection that is open; None: there is none.
        """
        position, catalog = self.position, self.folded_catalog()
        if position < until:
            self._fold += 1
        while position < until:
            entry = self.site.window.entry(position)
            check(entry is not None, "the log ends before what a link is to fold")
            assert entry is not None
            with entry:
                position = entry.next_position
                if entry.batch_kind == layout.BATCH_EVENTS:
                    piece = self._growing(entry.last_lsn, sent, entry.time_ns)
                    for store in entry.stores():
                        if store in catalog:
                            regions = piece.regions.get(store)
                            if regions is None:
                                size = catalog[store].size // self.site.region_size
                                regions = piece.regions[store] = RegionMap(size)
                            pump.enter(entry, store, regions, self.site.region_size)
                    piece.upto, piece.position, piece.fold = entry.last_lsn, position, self._fold
                elif entry.batch_kind == layout.BATCH_OPERATION:
                    operations.decode(bytes(entry.body)).apply(catalog)
                    self.backlog.append(Piece(entry.last_lsn, position, self._fold,
                                              operation=bytes(entry.head) + bytes(entry.payload),
                                              time_ns=entry.time_ns))
                else:
                    beside = passed(entry, self.site.region_size)
                    if beside is not None and moves(beside, self.backlog[-1].upto if self.backlog else self.base.lsn):
                        return False
                    if self.backlog:
                        self.backlog[-1].position = position
                    else:
                        self.base.position = position
        return True

    def _growing(self, lsn: int, sent: int | None, time_ns: int) -> Piece:
        """The piece of the backlog that takes in events up to ``lsn`` (L5 of ``link``)."""
        last = self.backlog[-1] if self.backlog else None
        boundary = sent is not None and last is not None and last.upto <= sent < lsn
        if last is None or last.operation or last.sent or boundary:
            last = Piece(lsn, 0, self._fold, time_ns=time_ns)
            self.backlog.append(last)
        return last

    def shorten(self) -> None:
        """A backlog that is too long for a checkpoint to keep becomes one skip, and all is copied after it. Only while
        there is no connection. Saved before a word of it is said. The secondary's word that it is consistent says
        nothing of what lies behind the skip: ``doubted``."""
        outcomes = self.site.outcomes.known
        size = sum(32 + len(piece.operation) + 256 * len(outcomes.get(piece.upto, ()))
                   + sum(len(regions.encode()) for regions in piece.regions.values())
                   for piece in self.backlog)  # bytes in a checkpoint, about
        if size <= self._share():
            return
        self.unsettled()  # while the backlog tells still what it holds
        self.await_save()  # of the stores it is told before the skip
        last, catalog = self.backlog[-1], self.folded_catalog()
        whole = Piece(last.upto, last.position, self._fold, time_ns=self.backlog[0].time_ns)
        whole.regions = self._everywhere(catalog)
        self.backlog = deque([whole])
        self.base.catalog = catalog  # of the skip's end: makes and drops come before it
        self.base.divergence, self.base.early = Divergence(), {}  # nothing is known of any store
        self.doubted = True
        self.resync_reason = "more operations than a backlog keeps"

    def _share(self) -> int:
        """Bytes that the backlog, and what changed since, may take in a checkpoint."""
        return int(self.site.journal.area_size) // (4 * max(1, len(self.site.followers)))

    def folded_catalog(self) -> Catalog:
        """The primary's catalog where the backlog ends."""
        catalog = self.base.catalog.copy()
        for piece in self.backlog:
            if piece.operation:
                kept_operation(piece.operation).apply(catalog)
        return catalog

    def next_piece(self, lsn: int) -> Piece | None:
        """What of the backlog follows this LSN."""
        return next((piece for piece in self.backlog if piece.upto > lsn), None)

    def unsent(self, lsns: Iterable[int]) -> list[int]:
        """Those of these LSNs of operations which the secondary may still be sent."""
        if not self.begun:
            return []
        folded = {piece.upto for piece in self.backlog if piece.operation}
        last = self.backlog[-1].upto if self.backlog else self.base.lsn
        return [lsn for lsn in lsns if lsn > last or (lsn in folded and lsn > self.base.lsn)]

    def oldest_ns(self) -> int:
        """When the oldest event was written that base lacks, ns since 1970; 0: not known, or there is none. Of one that
        was folded: when the oldest of its piece was."""
        piece = self.next_piece(self.base.lsn)
        if piece is not None:
            return piece.time_ns
        position = self.base.position
        for _ in range(MOST_NOTES):
            try:
                entry = self.site.window.entry(position)
            except ValueError:  # the tail has passed it just now
                return 0
            if entry is None:
                return 0
            with entry:
                if entry.batch_kind in (layout.BATCH_EVENTS, layout.BATCH_OPERATION):
                    return int(entry.time_ns)
                position = entry.next_position
        return 0

    # ---- acknowledgements, in order

    def pass_beside(self, beside: Passed) -> None:
        """Base passes what this site was sent beside the order. Of copied regions the secondary's word that it is
        consistent says nothing: it may have had from here what was repaired by them."""
        self.base.take(beside, self.site.region_size)
        if beside.runs:
            self.doubt("this site was sent regions itself, which it copies on")

    def arrived(self) -> None:
        """What base has passed is no longer needed."""
        while self.backlog and self.backlog[0].upto <= self.base.lsn:
            self.base.position = max(self.base.position, self.backlog.popleft().position)

    def agreed(self) -> None:
        """The secondary stands on this site's way: if it was told to lose something, it has lost it."""
        if self.overrules:
            self.overrules = False
            self._copied_unsaved = SAVE_EVERY  # worth a checkpoint: nothing else may be lost by that word

    def copied(self, length: int) -> None:
        """So many bytes of copied regions were acknowledged."""
        self._copied_unsaved += length

    def equal(self) -> None:
        """The secondary is consistent, and base knows of no difference."""
        if self.resync_reason:
            self._copied_unsaved = SAVE_EVERY  # worth a checkpoint: from here on a little is known to differ
        self.resync_reason, self.doubted = "", False
        self.steady, self.since = True, None

    def unsettled(self) -> None:
        """The secondary says that it is not consistent, or is about to become so. Before base moves: it was consistent
        as of that."""
        if self.steady:
            self.since, self.steady = self._since(), False

    def doubt(self, reason: str) -> None:
        """More differs than was known: the secondary's word that it is consistent, or was, does not count."""
        self.doubted, self.resync_reason = True, reason
        self.steady, self.since = False, None

    # ---- what a verification found, and nobody repaired (rule verdict_told)

    def judge(self, found: FoundDifferent | None) -> None:
        """A verification came to this; the next checkpoint makes it durable."""
        self.found_different, self.judged = found, True

    def hear(self, found: FoundDifferent | None) -> None:
        """The secondary was told this by whoever fed it before. It counts where this site knows nothing by itself: who
        led before may be gone, or its link was removed."""
        if found is not None and not self.judged:
            self.judge(found)

    # ---- a secondary that stands elsewhere

    def advance(self, lsn: int, refused: Collection[int] = ()) -> bool:
        """Moves base to this LSN by what backlog and journal say. False: they do not tell, base is void.

        Args:
            refused: LSNs of the operations of which the secondary could not perform all.
        """
        base = self.base
        while self.backlog and base.lsn < lsn:
            piece = self.backlog[0]
            if piece.upto > lsn:
                if piece.operation:
                    return False
                base.lsn = lsn  # so far it came as events; what a skip passes over enters when it was performed
                break
            if piece.operation:
                operation = kept_operation(piece.operation)
                performed = Performed(piece.upto, piece.position, operation, piece.upto in refused)
                base.take(performed, self.site.region_size)
            elif piece.sent:
                base.take(Skipped(piece), self.site.region_size)
            else:
                base.pass_over(piece)  # they came as events
            self.backlog.popleft()
        while base.lsn < lsn:
            try:
                entry = self.site.window.entry(base.position)
            except ValueError:
                return False
            if entry is None:
                return False
            with entry:
                if entry.batch_kind in (layout.BATCH_EVENTS, layout.BATCH_OPERATION):
                    if entry.first_lsn != base.lsn + 1 or entry.last_lsn > lsn:
                        return False
                    if entry.batch_kind == layout.BATCH_EVENTS:
                        size = self.site.region_size
                        base.take(base.events(entry.head, entry.last_lsn, entry.next_position, size), size)
                    else:
                        operation = operations.decode(bytes(entry.body))
                        refusal = entry.last_lsn in refused
                        performed = Performed(entry.last_lsn, entry.next_position, operation, refusal)
                        base.take(performed, self.site.region_size)
                else:
                    beside = passed(entry, self.site.region_size)
                    if beside is None:
                        base.position = entry.next_position
                        continue
                    match beside.item:
                        case items.Skip(skipped) if skipped > lsn:
                            return False
                        case items.Fork(_, fork) if fork != base.lsn:
                            return False
                    self.pass_beside(beside)
        base.divergence.arrive(base.lsn)
        return True

    def pass_to(self, known: Knowledge) -> None:
        """Base becomes what is known of a later place, which the secondary has passed."""
        check(known.lsn >= self.base.lsn, "a base does not go back", lsn=known.lsn, base=self.base.lsn)
        position = max(known.position, self.base.position)
        while self.backlog and self.backlog[0].upto <= known.lsn:
            position = max(position, self.backlog.popleft().position)  # the log may have dropped what stands before
        self.base, known.position = known, position

    def pass_items(self) -> None:
        """Moves base over what stands next in the journal beside the order, and is durable: where the secondary stands
        is judged behind that."""
        until = min(self.site.window.state().durable_position, self.site.intake.items_until)
        while self.begun and not self.backlog and self.base.position < until:
            entry = self.site.window.entry(self.base.position)
            if entry is None:
                return
            with entry:
                beside = passed(entry, self.site.region_size)
                if beside is not None and not isinstance(beside.item, items.Skip):
                    self.pass_beside(beside)
                elif entry.kind == layout.RECORD_BATCH:
                    return
                else:
                    self.base.position = entry.next_position

    def start_over(self, fork: int) -> None:
        """Nothing is known of the secondary but that it shares events up to ``fork``: it goes back there, or to where
        base is, skips to base, and all of it is copied. Saved before a word of it is said."""
        base = self.base
        self.await_save()
        if fork < base.lsn:
            # All of it differs behind the skip, whatever the secondary says when it connects again before that.
            piece = Piece(base.lsn, base.position, self._fold)
            piece.regions = self._everywhere(base.catalog)
            self.backlog.appendleft(piece)
            base.lsn = fork  # the catalog stays that of the skip's end: makes and drops come before it
        base.divergence, base.early = Divergence(self._everywhere(base.catalog)), {}

    def go_back(self, fork: int, there: Collection[items.StoreInfo]) -> bool:
        """The secondary has gone back to a state that it had at ``fork``: what has changed here since is skipped, and
        copied; nothing else differs in the stores that it has. Saved before a word of it is said. False: it is not
        known what has changed."""
        since, base = self.since, self.base
        if since is None or since.lsn > fork or fork >= base.lsn:
            return False
        since = since.copy()
        since.take(self.position)
        if since.is_lost:
            return False
        catalog, region_size = self.folded_catalog(), self.site.region_size
        last = self.backlog[-1] if self.backlog else None
        piece = Piece(base.lsn if last is None else last.upto, self.position, 0)
        for number, regions in since.changed(fork).items():
            if number in catalog:
                size = catalog[number].size // region_size
                piece.regions[number] = regions if regions.size == size else RegionMap(size, marked=size > 0)
        self.await_save()
        piece.fold = self._fold
        self.backlog = deque([piece])
        same = [store for store in there
                if store.id in catalog and (store.name, store.size) == (catalog[store.id].name, catalog[store.id].size)]
        # The catalog is that of the skip's end: makes and drops come before it.
        maps = {store.id: RegionMap(store.size // region_size) for store in same}
        self.base = Knowledge(fork, base.position, catalog, Divergence(maps))
        self.resync_reason = f"the secondary has gone back to its protective snapshot, of event {fork}"
        return True

    def start_later(self) -> bool:
        """A secondary that was never paired begins where the journal ends now, if other stores are there by now. Saved
        before it is used: a store that was created on the way is not the one that the secondary has prepared."""
        before = self.base.catalog.copy()
        if not self.advance(self.site.window.state().durable_lsn) or before.stores == self.base.catalog.stores:
            return False
        self.base.divergence = Divergence()
        self.await_save()
        return True

    def differs_by(self, divergence: Divergence) -> None:
        """Exactly this differs where base is. Saved before a word of it is said."""
        self.base.divergence, self.base.early = divergence, {}
        self.await_save()

    def differs_nowhere(self) -> None:
        """The secondary equals this site where base is: what an older checkpoint still says of D is outdated."""
        self.base.divergence = Divergence(
            {store.id: RegionMap(store.size // self.site.region_size) for store in self.base.catalog})

    def _everywhere(self, catalog: Catalog) -> dict[int, RegionMap]:
        return {store.id: RegionMap(store.size // self.site.region_size, marked=True) for store in catalog}

    # ---- what is asked of it

    def differing(self, store: int, regions: int) -> RegionMap:
        """The regions of a store that may differ at the secondary, as of the acknowledged position, and those that the
        backlog still has to say. A store that it lacks differs everywhere."""
        known = self.base.divergence.maps.get(store)
        result = RegionMap(regions, marked=known is None and regions > 0)
        if known is not None:
            result.union(known)
        for piece in self.backlog:
            if store in piece.regions:
                result.union(piece.regions[store])
        return result

    def tail(self, until: int | None = None) -> items.Tail | None:
        """What changed here since what the secondary has acknowledged, or since it was consistent if it is not. None:
        it is not known, or too long to tell.

        Args:
            until: position of the journal; None: up to which everything is applied.
        """
        if not self.begun or (self.doubted and self.since is None):
            return None
        return self._since().tail(self.site.window.state().applied_position if until is None else until)

    def _since(self) -> Since:
        if self.since is not None:
            return self.since
        return Since.after(self.site, self.base.lsn, self.base.position, self.base.catalog, self.backlog)

    # ---- checkpoints

    def await_save(self) -> None:
        """What is known has become another: nothing is sent before a checkpoint that holds it is durable."""
        self._fold += 1
        self._awaited = self._fold

    @property
    def is_awaited(self) -> bool:
        """Whether nothing may be sent before a checkpoint was taken."""
        return self._saved < self._awaited

    def is_saved(self, piece: Piece) -> bool:
        """Whether a durable checkpoint holds this piece as it is."""
        return piece.fold <= self._saved

    @property
    def wants_checkpoint(self) -> bool:
        """Whether something waits for a checkpoint, or much would be copied again without one."""
        return self._copied_unsaved >= SAVE_EVERY or bool(self.heir) or self.is_awaited

    def save(self, *, name: str, address: str, mode: str, options: LinkOptions, paused: bool,
             refused: Iterable[Refusal] = (), refused_lsns: Iterable[int] = ()) -> bytes:
        """What a checkpoint holds of a link with this ledger; :meth:`saved` says when it is durable."""
        self._copied_unsaved = 0
        self._captured, self._captured_position = self._fold, self.position
        self._captured_verdict = Verdict(self.found_different, self.judged)
        base, since = self.base, None
        if self.since is not None:
            self.since.take(self.position)  # the log may drop what stands before it
            since = self.since.save(self._share())
            if since is None:
                self.since = None
        return msgspec.msgpack.encode(
            LinkRecord(
                name=name,
                address=address,
                mode=mode,
                options=options,
                peer=self.peer,
                paused=paused,
                doubted=self.doubted,
                overrules=self.overrules,
                lsn=base.lsn,
                position=base.position,
                stores=list(base.catalog),
                next_id=base.catalog.next_id,
                divergence={store: regions.encode() for store, regions in base.divergence.maps.items()},
                backlog=[
                    PieceRecord(
                        piece.upto,
                        piece.position,
                        {store: regions.encode() for store, regions in piece.regions.items()},
                        piece.operation,
                        piece.time_ns,
                    )
                    for piece in self.backlog
                ],
                steady=self.steady,
                turns=self.turns,
                since=since,
                found_different=self.found_different,
                judged=self.judged,
                refused=list(refused),
                refused_lsns=list(refused_lsns),
            )
        )

    def saved(self, checkpoint: int) -> None:
        """The checkpoint that :meth:`save` was last called for is durable."""
        self._saved, self.kept = max(self._saved, self._captured), self._captured_position
        self.checkpoint, self.verdict = checkpoint, self._captured_verdict

    @classmethod
    def restore(cls, site: Any, record: LinkRecord) -> Ledger:
        """As its record says. Any skip of its backlog may have been sent since."""
        ledger = cls(site, record.peer)
        ledger.begun = True
        ledger.kept = record.backlog[-1].position if record.backlog else record.position
        ledger.doubted, ledger.overrules = record.doubted, record.overrules
        ledger.steady, ledger.turns = record.steady, record.turns
        ledger.found_different, ledger.judged = record.found_different, record.judged
        ledger.verdict = Verdict(record.found_different, record.judged)
        ledger.since = Since.restore(site, record.since) if record.since is not None else None
        ledger.base = Knowledge(
            record.lsn, record.position, Catalog({store.id: store for store in record.stores}, record.next_id),
            Divergence({store: RegionMap.decode(data) for store, data in record.divergence.items()}))
        for old in record.backlog:
            piece = Piece(old.upto, old.position, 0, operation=old.operation, sent=True, time_ns=old.time_ns)
            piece.regions = {store: RegionMap.decode(data) for store, data in old.regions.items()}
            ledger.backlog.append(piece)
        ledger.resync_reason = "" if record.peer is not None else ledger.resync_reason
        return ledger
