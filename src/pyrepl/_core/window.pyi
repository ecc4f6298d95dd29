"""The window: the end of the journal in memory; writers, group commit, hand-over (window.h says the rules)."""
from collections.abc import Sequence
from typing import Any, NamedTuple

from typing_extensions import Buffer

from pyrepl._core.device import Device

class WindowState(NamedTuple):
    end_position: int
    written_position: int
    durable_position: int
    applied_position: int
    tail_position: int
    end_lsn: int
    written_lsn: int
    durable_lsn: int
    applied_lsn: int
    peer_lsn: int
    chain: int  # at written_position: the two together are where a scan may begin
    log_size: int
    ring_size: int
    ring_used: int  # bytes; notes and loaded batches have memory of their own
    notes: int  # bytes of the log kept free for the notes that applying the unapplied may need (set_notes)
    batches: int
    records: int
    payload_bytes: int
    commits: int
    flushes: int
    failed: int  # errno, 0: not; ESHUTDOWN: closed
    shown_position: int | None  # what is parked begins here; None: nothing is
    wants: int  # so often somebody has begun to wait for room of the log
    wanting: bool  # ... and has found none since some was made

class Entry:
    """A record of the log: pinned in memory while this object lives (release() ends it early), or read back. A memoryview of it
    that is still out keeps the pin beyond release(). After release() every attribute is a ValueError."""
    position: int
    length: int
    next_position: int
    kind: int  # RECORD_BATCH, RECORD_NOTE
    note: int
    chain: int  # the chain value before it: where a scan that begins at `position` continues
    batch_kind: int  # BATCH_EVENTS ..., 0 for a note
    first_lsn: int  # of an item: the LSN that the stream had reached; of a note 0
    last_lsn: int
    count: int
    item: int
    read_end: int
    time_ns: int  # of events: when the primary closed the batch, ns since 1970; 0: not known
    generation: bytes
    digest: int  # what the `previous` of the next batch of events names: crc of the travel part << 32 | low 32 bits of first_lsn; 0 for a note
    head: memoryview  # travel part and descriptors, as they travel
    payload: memoryview  # of an operation or item: see body
    body: bytes  # a note's body; of an operation or item: its encoded record
    def stores(self) -> set[int]:
        """The stores that its writes, zeros and discards touch; empty for operations, items and notes."""
    def release(self) -> None: ...
    def __enter__(self) -> Entry: ...
    def __exit__(self, *args: Any) -> None: ...

class Ticket:
    """A submitted write."""
    lsn: int
    def done(self) -> bool: ...
    def wait(self, timeout: float | None = None) -> int:
        """Blocks until the write is written (and, if it was submitted so, durable or at the peer); the LSN. WaitTimeout is
        TimeoutError here; OSError if the journal failed."""

class Window:
    def __init__(self, *, ring: int, alignment: int, reserve: int) -> None:
        """`ring`: bytes of memory (a multiple of PR_BLOCK, at least 4 * (PR_MAX_PAYLOAD + PR_BLOCK)); `reserve`: bytes of the log
        kept for notes. ValueError: any of them impossible."""
    # -- life
    def open(self, device: Device, *, log_offset: int, log_size: int, position: int, tail: int, chain: int, lsn: int, applied_position: int,
             applied_lsn: int, group: bytes, generation: bytes, seed: int, previous: int = 0) -> None:
        """The log goes on at `position`, after event `lsn`. Positions below it, down to applied_position, may be loaded (load).
        Flushes the device first: what the process before wrote may be in its cache, and `position` counts as durable from here on.
        log_size must be at least reserve + 16 * PR_BLOCK; in a log of less than 2 MiB events are split smaller, and an operation or a
        received batch that is longer than the log without its reserve is an OSError (ENOSPC), not a wait. ValueError; OSError: the device."""
    def load(self, record: Buffer, *, blocks: Sequence[int] = (), parked: bool = False) -> None:
        """Recovery: the record of the log at the next position from applied_position on, before open(): batches only, kept in memory of
        their own until applied, indexed for readers. `blocks` as for submit_operation. `parked`: it stays in the log only, see park; all are, or
        none; what stands behind its descriptors need not be given. ValueError: not such a record."""
    def set_generation(self, generation: bytes, group: bytes) -> None:
        """Closes the open batch; what is appended from now on is of this generation (and group)."""
    def fail(self, errno: int) -> None:
        """As if the log had failed with this errno. The first failure stays."""
    def close(self) -> None:
        """Wakes every waiter with ESHUTDOWN; returns when no I/O is in flight. What is laid out and not written is not written."""
    def state(self) -> WindowState: ...
    # -- which stores can be written, and how long they are; changed at admission, atomically with the operation's LSN
    def set_store(self, store: int, size: int, writable: bool = True) -> None:
        """`store` from 1 on; size in bytes. OSError (ENOSPC): more than PR_MAX_STORES."""
    def drop_store(self, store: int) -> None:
        """LookupError: no such store."""
    def announce(self, store: int, size: int) -> None:
        """What was received makes, resizes or (size 0) deletes a store. Readers see that at once; if it is parked, when show_store says so."""
    def show_store(self, store: int, size: int) -> None:
        """What was parked and did that is performed: readers see it from here on. Nothing if nothing is parked."""
    def set_notes(self, region_size: int, cost: int) -> None:
        """From here on an event is given its place only where the log has room for `cost` bytes of notes for each region of that size
        that it touches too, until it is applied; one event always is. 0: none (at first). ValueError: no such size or cost."""
    def set_time(self, ns: int) -> None:
        """For simulations: batches that are closed from here on carry this time, ns since 1970, unless it is less than before; 0: that of
        the clock."""
    def time(self) -> int:
        """What the clock says, or what set_time said: ns since 1970."""
    def store_size(self, store: int) -> int | None: ...
    # -- writers (any thread). Offsets and lengths in bytes; unaligned ones are the caller's business: ValueError here.
    # LookupError: no such store; PermissionError: not writable; ValueError: outside, unaligned, nothing; OSError: the log failed.
    def write(self, store: int, offset: int, data: Buffer, *, fua: bool = False) -> int:
        """Submit and wait until written (fua: durable; and at the peer in sync mode). Splits into events of PR_MAX_EVENT. The last LSN."""
    def zero(self, store: int, offset: int, length: int, *, discard: bool = False, wait: bool = True) -> int:
        """Like write(), in events of PR_MAX_EVENT without data."""
    def submit(self, store: int, offset: int, data: Buffer, *, fua: bool = False, wait: bool = True) -> Ticket:
        """Does not wait for the log. BlockingIOError if not wait and there is no room: then nothing was submitted."""
    def submit_operation(self, body: Buffer, *, blocks: list[int], sizes: list[tuple[int, int, bool]], dropped: list[int],
                         wait: bool = True) -> int:
        """A batch of its own. `blocks`: stores whose reads wait until it is applied; `sizes`: (store, size, writable) and
        `dropped` take effect with its LSN, which is returned. It is not written yet: commit(lsn)."""
    def hold_blocks(self, store: int, offset: int, length: int, *, wait: bool = True) -> None:
        """For read-modify-write of unaligned edges: later submits that touch the range wait until release_blocks."""
    def release_blocks(self, store: int, offset: int, length: int) -> None:
        """The same range. ValueError: not held."""
    def write_held(self, store: int, offset: int, data: Buffer, *, fua: bool = False, wait: bool = True) -> int:
        """write() of the one who holds the blocks."""
    def commit(self, lsn: int) -> None:
        """Returns when event `lsn` is written (and at the peer, in sync mode). Leads the group commit if nobody does.
        In sync mode this, write() and Ticket.wait() make the event durable first: only what is durable is sent. ValueError: no such event."""
    def flush(self) -> int:
        """Makes everything that was submitted before the call durable (at the peer too, in sync mode); the LSN up to which."""
    def latencies(self) -> dict[str, tuple[list[tuple[float, int]], int, float]]:
        """Of "write", "flush" (as their callers waited) and "operation" (from its place to its performance here): ([(upper bound in
        seconds, how many took no longer)], how many in all, their seconds)."""
    def run_committer(self) -> None:
        """Body of a thread: writes what nobody waits for, until close()."""
    def commit_pending(self) -> bool:
        """One step of that, for simulations: writes all that is laid out; False if there was nothing."""
    # -- the engine
    def append_note(self, note_type: int, body: Buffer) -> int:
        """Its place in the log; the position after it is returned. Not written yet: make_durable(position).
        Never waits. OSError (ENOSPC): not even the reserve has room; ValueError: longer than PR_MAX_NOTE."""
    def append_received(self, head: Buffer, payload: Buffer, *, blocks: Sequence[int] = (), wait: bool = True,
                        timeout: float | None = None) -> tuple[int, int]:
        """A secondary appends a judged batch unchanged: (position, position after it). Events and operations move the LSN.
        Waits for room; TimeoutError: for so many seconds in vain.
        The judge is the caller's (pyrepl._core.batch.judge); ValueError: lengths or descriptors that do not fit together."""
    def write_out(self, position: int) -> None:
        """Returns when the log is written up to `position`. ValueError: beyond the end."""
    def make_durable(self, position: int) -> None:
        """The same for durable. One flush is in flight at a time; who comes meanwhile shares the next."""
    def wait_durable(self, beyond: int, timeout: float) -> int:
        """Waits until durable_position > beyond, or the time (seconds) is over, or close(); the durable position. For senders.
        OSError: the log failed."""
    def wait_written(self, beyond: int, timeout: float, *, wants: int | None = None) -> int:
        """The same of the written position. Ends too when state().wants is beyond `wants`, if that is given. For the applier."""
    def wait_applied(self, lsn: int, timeout: float | None = None) -> bool:
        """Waits until applied_lsn >= lsn. False: time over. OSError: failed or closed."""
    def entry(self, position: int) -> Entry | None:
        """The record at this position (>= tail), from memory or read back from the log; None if it is the end.
        ValueError: what was read back is not valid."""
    def applied(self, position: int, lsn: int) -> None:
        """Everything before `position` is in the stores: memory is given back, readers look at the devices. One caller at a time.
        ValueError: not a record's place, not written, or behind an earlier one."""
    def park(self, parking: bool) -> None:
        """True: what is appended from here on is parked: it is in the log only, takes no memory once written, and readers do not see it;
        operations that are parked do not make them wait. False: so it goes on until unpark() says that nothing is parked any more."""
    def show(self, until: int, cutoff: int, most: int) -> tuple[int, int]:
        """Parked records are parked no more, in their order, before they are applied: those before `until`, a record's place that is durable,
        until one was closed after `cutoff` (ns since 1970), or about `most` bytes are: (up to which place, when the next one was closed or 0).
        One caller at a time. ValueError: what was read back is not valid."""
    def unpark(self) -> bool:
        """Whether nothing is parked any more: all that is left is in memory, and shown now. False: it is not, or parking goes on."""
    def set_tail(self, position: int) -> None:
        """The log before `position` is not needed any more. ValueError: beyond the applied position, or going back."""
    # -- readers (C uses pr_window_settle and pr_window_overlay; here for tests and tools)
    def settle(self, store: int, *, wait: bool = True) -> None:
        """Waits until no operation on this store is unapplied. BlockingIOError if not wait and one is."""
    def overlay(self, store: int, offset: int, length: int) -> tuple[bytes, bytes]:
        """(data, have): have[i] is 1 for each block that the window holds; the others are zeros in data."""
    # -- sync mode
    def set_sync(self, mode: int) -> None:
        """0: writes do not wait for a peer; 1: write waits until peer_lsn reaches it."""
    def set_peer(self, lsn: int) -> None: ...
    def set_bound(self, position: int | None) -> None:
        """While the log ends at this position or beyond, a write waits for its place as for room (operations do not). None: no bound."""
    def set_lsn(self, lsn: int) -> None:
        """A secondary jumps (skip, fork): the next event is lsn + 1."""

def scan_log(device: Device, *, log_offset: int, log_size: int, position: int, chain: int, alignment: int, group: bytes | None = None,
             most: int = ...) -> tuple[list[tuple[int, bytes]], int, int, int, int]:
    """Walks the log along the chain: ([(position, record)], end position, chain there, reason code of what stands at the end (batch.REASONS),
    and the highest durable position named by any valid record, those beyond the end (within PR_MAX_UNFLUSHED + the largest record) included).
    The caller decides: end < highest durable -> corruption at the end position. At most `most` bytes of records are returned at a time;
    (reason code 0: there is more, call again from the end; the highest durable position is this call's, so keep the maximum).
    With `group`, a batch of another group is bad. Records of an earlier format of the same device cannot be told from this log's
    by a note's head alone: a new journal should begin at a position that no earlier one used. OSError: the device; ValueError: the numbers."""
