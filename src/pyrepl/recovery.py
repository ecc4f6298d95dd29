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
    I     a note "generation"                            the lineage grows, whatever its position
    L     a note "given", likewise                       the device of a store that is still to be created
    J     a batch before the applied position            moves the point (LSN, lineage, flag, catalog), not the stores
    K     a batch after it                               kept for the applier, which redoes it as if it were new

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
    records = list(
        journal.walk(checkpoint.scan_position, checkpoint.scan_chain, checkpoint.durable_position, ends.append)
    )
    journal.device.flush()
    here = Point(lsn=body.lsn, lineage=Lineage(tuple(body.lineage)), consistent=body.consistent, item=body.item,
                 catalog=Catalog({store.id: store for store in body.stores}, body.next_id))
    site.shelf.restore(places=body.places, sizes={store.id: store.size for store in body.stores}, zombies=body.zombies,
                       scratch=body.scratch, scratch_size=body.scratch_size, maps=body.maps)
    applied = checkpoint.applied_position
    for position, record in records:  # cases F, G, H
        local = batch.local(record)
        if local.kind == layout.RECORD_NOTE and position >= checkpoint.note_position:
            applied = max(applied, _take_note(site, local.note, _note_body(record, local)))
    end = here.copy()
    redo, given = [], dict(body.given)
    for position, record in records:  # cases I, J, K
        local = batch.local(record)
        if local.kind == layout.RECORD_NOTE:
            if local.note == notes.GENERATION:
                end.begin(notes.decode_generation(_note_body(record, local)).generation)
            elif local.note == notes.GIVEN:
                given.update(notes.decode_given(_note_body(record, local)).paths)
            continue
        if position < applied:
            _take_batch(here, record)
        else:
            redo.append((position, record))
        _take_batch(end, record)
    if site.role == "primary":
        here.lineage = end.lineage.reached(here.lsn)
    site.here, site.end = here, end
    site.reserved = {store: (path, False) for store, path in given.items()
                     if path and store in end.catalog and store not in here.catalog}
    site.begin_window(applied, redo)
    return ends[0]


def _note_body(record: bytes, local: batch.Local) -> bytes:
    return bytes(record[layout.LOCAL_SIZE:layout.LOCAL_SIZE + local.body_length])


def _take_note(site: Site, kind: int, body: bytes) -> int:
    """Puts a note into maps and table; the position up to which it says that all is applied."""
    if kind == notes.MAP:
        site.stores.repoint(body)
    elif kind == notes.RELEASED:
        site.shelf.release(notes.decode_released(body).slot)
    elif kind == notes.PERFORMED:
        note = notes.decode_performed(body)
        site.shelf.perform(_effects(site, note), note.placed, note.scratch, note.scratch_size)
        return note.position
    return 0


def _effects(site: Site, note: notes.Performed) -> list[Effect]:
    if not note.is_item:
        return operations.decode(note.body).effects(site.region_size)
    match items.decode(note.body):
        case items.Make(info):
            return [Created(info.id, info.size // site.region_size, False)]
        case items.Drop(store):
            return [Deleted(store)]
        case _:
            return []


def _take_batch(point: Point, record: bytes) -> None:
    travelling = memoryview(record)[TRAVEL:]
    head = batch.head(travelling)
    if head.kind == layout.BATCH_EVENTS:
        point.take_events(head.first_lsn + head.count - 1)
    elif head.kind == layout.BATCH_OPERATION:
        point.take_operation(operations.decode(body_of(record)), head.first_lsn)
    elif head.kind == layout.BATCH_COPIED:
        point.take_copied(head.item)
    else:
        point.take_item(items.decode(body_of(record)), head.item)


def body_of(record: bytes) -> bytes:
    """The encoded operation or item in a record of the log."""
    descriptor = batch.records(memoryview(record)[TRAVEL:])[0]
    start = layout.BLOCK + descriptor.payload
    return bytes(record[start:start + descriptor.length])
