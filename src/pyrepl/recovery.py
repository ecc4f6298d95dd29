"""Recovery: from what stands on the journal device to a site whose stores are on their way to its end.

    case  what is on disk                                what is done
    A     neither superblock whole                       Corrupt: not a journal (journal.find)
    B     no valid checkpoint                            Corrupt (journal.read_checkpoint)
    C     one or two valid checkpoints                   the one with the higher sequence
    D     the log ends at or above every durable mark    that is its end; what lies behind was never promised
    E     the log ends below a durable mark              Corrupt: damaged, not ended (journal.walk)
    F     a note of type map, at or after note_position  put into the maps, before anything is redone
    G     a note "performed", likewise                   performed again by the same code; applied jumps behind it
    H     a note "released", likewise                    the device leaves the table again
    I     a note "generation"                            the lineage grows, unless the checkpoint has it
    L     a note "given", likewise                       the device of a store that is still to be created
    M     a note "opened", likewise                      the view is there, for the notes of maps that follow
    N     a note "closed", likewise                      it is gone; those that are left are closed once all is read
    O     a note "refused"                               of the operation to come, not all is performed here
    J     a batch before the applied position            moves the point (LSN, lineage, flag, catalog), not the stores
    K     a batch after it                               kept for the applier, which redoes it as if it were new
    P     the same at a delayed secondary                left in the log until it is old enough (parked)

Order: scan everything; flush the journal device (rules rec_flush_journal, rec_flush_ckpt); then maps; then events (rule
notes_first). Nothing is written before the flush. Decides this order; what each record does is ``point``, ``shelf`` and
``applier``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pyrepl import items, notes, operations
from pyrepl._core import batch, layout
from pyrepl.catalog import Catalog
from pyrepl.journal import Checkpoint, Scan
from pyrepl.lineage import Lineage
from pyrepl.operations import Created, Deleted, Effect
from pyrepl.point import Point

if TYPE_CHECKING:
    from pyrepl.site import Site

TRAVEL = layout.LOCAL_SIZE  # where the travelling part begins in a record


def recover(site: Site, checkpoint: Checkpoint) -> Scan:
    """Makes the site what its journal says; batches that are not applied are in its window afterwards, not redone
    yet."""
    journal, body = site.journal, checkpoint.body
    ends: list[Scan] = []
    walked = journal.walk(checkpoint.scan_position, checkpoint.scan_chain, checkpoint.durable_position, ends.append)
    records, kept, most, secondary = [], 0, site.options.ring_bytes, site.role == "secondary"
    for position, record in walked:
        kept += len(record)
        # Rule rec_payload: at a secondary what fits no ring is parked in the log, and its data are read again when they
        # are applied. A primary redoes all of it from memory: a ring, and what it had applied since the checkpoint.
        records.append((position, record if not secondary or kept <= most else _without_payload(record)))
    journal.device.flush()
    here = Point(lsn=body.lsn, lineage=Lineage(tuple(body.lineage)), consistent=body.consistent, item=body.item,
                 catalog=Catalog({store.id: store for store in body.stores}, body.next_id),
                 handed_over=body.handed_over, succession=body.succession, tails=body.tails,
                 yields=body.yields,
                 refusals=tuple(body.refusals), waived=body.waived, decided=body.decided, different=body.different)
    sizes = {store.id: store.size for store in body.stores} | {view.id: view.size for view in body.views}
    site.shelf.restore(places=body.places, sizes=sizes, zombies=body.zombies, scratch=body.scratch,
                       scratch_size=body.scratch_size, maps=body.maps, images=body.images)
    site.views.restore(body.views, body.next_view)
    site.protective.restore(body.protective)
    applied = checkpoint.applied_position
    site.outcomes.known = dict(body.outcomes)
    differs: dict[int, str] = {}  # position after an operation -> why this site has not what its plug-ins did
    for position, record in records:  # cases F, G, H, M, N
        local = batch.local(record)
        if local.kind == layout.RECORD_NOTE and position >= checkpoint.note_position:
            applied = max(applied, _take_note(site, local.note, _note_body(record, local), differs))
    end = here.copy()
    redo, given, refusing = [], dict(body.given), dict(body.refusing)
    for position, record in records:  # cases I, J, K, L, O
        local = batch.local(record)
        if local.kind == layout.RECORD_NOTE:
            if local.note == notes.GENERATION:
                begun = notes.decode_generation(_note_body(record, local))
                # What the checkpoint's lineage has by now may have been folded there.
                if position >= checkpoint.note_position or begun.lsn > body.lsn:
                    end.begin(begun.generation)
            elif local.note == notes.GIVEN:
                given.update(notes.decode_given(_note_body(record, local)).paths)
            elif local.note == notes.REFUSED:
                refusal = notes.decode_refused(_note_body(record, local))
                refusing[refusal.lsn] = refusal.reason
            continue
        if batch.head(memoryview(record)[TRAVEL:]).kind in (layout.BATCH_COPIED, layout.BATCH_ITEM):
            site.intake.items_until = position + local.length
        refused = refusing.get(batch.head(memoryview(record)[TRAVEL:]).first_lsn, "") if _is_operation(record) else ""
        differed = refused or differs.get(position + local.length, "")
        if position < applied:
            _take_batch(here, record, differed, secondary=secondary)
            if refused:
                del refusing[here.lsn]
        else:
            blocks: list[int] = []  # a plug-in takes its time
            if _is_operation(record) and operations.works(operation := operations.decode(body_of(record))):
                site.outcomes.received_until, blocks = position + local.length, operation.blocks
                site.outcomes.receive(len(end.catalog.stores))
            redo.append((record, blocks))
        _take_batch(end, record, differed, secondary=secondary)
    if site.role == "primary":
        here.lineage = end.lineage.reached(here.lsn)
    site.here, site.end = here, end
    site.reserved = {store: (path, False) for store, path in given.items()
                     if path and store in end.catalog and store not in here.catalog}
    site.refusing = {lsn: reason for lsn, reason in refusing.items() if reason}
    for record, _ in redo:
        if _is_operation(record) and batch.head(memoryview(record)[TRAVEL:]).first_lsn not in site.refusing:
            site.gallery.hold(operations.decode(body_of(record)).effects(site.region_size))
    site.gallery.settle()
    site.begin_window(applied, redo, parked=secondary and (bool(body.delay) or kept > most))
    return ends[0]


def _without_payload(record: bytes) -> bytes:
    local = batch.local(record)
    if local.kind == layout.RECORD_NOTE:
        return record
    head = batch.head(memoryview(record)[TRAVEL:])
    if head.kind not in (layout.BATCH_EVENTS, layout.BATCH_COPIED):
        return record
    return bytes(record[: TRAVEL + batch.head_length(head.count)])


def _note_body(record: bytes, local: batch.Local) -> bytes:
    return bytes(record[layout.LOCAL_SIZE:layout.LOCAL_SIZE + local.body_length])


def _take_note(site: Site, kind: int, body: bytes, differs: dict[int, str]) -> int:
    """Puts a note into maps and table; the position up to which it says that all is applied."""
    if kind == notes.MAP:
        site.stores.repoint(body)
    elif kind == notes.RELEASED:
        site.shelf.release(notes.decode_released(body).slot)
    elif kind == notes.PERFORMED:
        note = notes.decode_performed(body)
        site.shelf.perform(_effects(site, note), note.placed, note.scratch, note.scratch_size, refused=note.refused,
                           worked=note.worked)
        if note.outcomes:
            site.outcomes.known[note.lsn] = note.outcomes
        if note.differs:
            differs[note.position] = note.differs
        for worked in note.worked:
            site.views.next_id = max(site.views.next_id, worked.placed.store + 1)
        return note.position
    elif kind == notes.OPENED:
        site.views.take_opened(notes.decode_opened(body))
    elif kind == notes.CLOSED:
        site.views.take_closed(notes.decode_closed(body))
    return 0


def _effects(site: Site, note: notes.Performed) -> list[Effect]:
    if not note.is_item:
        operation = operations.decode(note.body)
        if site.role == "secondary":  # it was when it wrote the note: a change of role is a checkpoint
            return operations.effects_there(operation, site.region_size)
        return operation.effects(site.region_size)
    match items.decode(note.body):
        case items.Make(info):
            return [Created(info.id, info.size // site.region_size, False)]
        case items.Drop(store):
            return [Deleted(store)]
        case _:
            return []


def _is_operation(record: bytes) -> bool:
    return batch.head(memoryview(record)[TRAVEL:]).kind == layout.BATCH_OPERATION


def _take_batch(point: Point, record: bytes, refused: str, *, secondary: bool) -> None:
    travelling = memoryview(record)[TRAVEL:]
    head = batch.head(travelling)
    if head.kind == layout.BATCH_EVENTS:
        point.take_events(head.first_lsn + head.count - 1)
    elif head.kind == layout.BATCH_OPERATION:
        point.take_operation(operations.decode(body_of(record)), head.first_lsn, refused, secondary=secondary)
    elif head.kind == layout.BATCH_COPIED:
        point.take_copied(head.item)
    else:
        point.take_item(items.decode(body_of(record)), head.item)


def body_of(record: bytes) -> bytes:
    """The encoded operation or item in a record of the log."""
    descriptor = batch.records(memoryview(record)[TRAVEL:])[0]
    start = layout.BLOCK + descriptor.payload
    return bytes(record[start:start + descriptor.length])
