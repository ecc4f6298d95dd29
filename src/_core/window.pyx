"""The window for Python: takes buffers, checks numbers, one call of window.c without the GIL, words what came back.

Decides: how long a call waits before it looks for signals, and which exception a code is. Must not know what a record
means.
"""
import errno as errno_names
import os
from collections import namedtuple

from cpython.bool cimport PyBool_Check
from cpython.buffer cimport PyBUF_SIMPLE, PyBuffer_FillInfo, PyBuffer_Release, PyObject_GetBuffer
from cpython.bytes cimport PyBytes_FromStringAndSize
from cpython.exc cimport PyErr_CheckSignals
from cpython.number cimport PyIndex_Check
from libc.errno cimport EAGAIN, EBADMSG, ENOENT, ENOMEM, ENOSPC, ESHUTDOWN
from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free
from libc.string cimport memcpy, memset

from pyrepl._core.device cimport Device, pr_device, raise_device


cdef extern from "layout.h" nogil:
    enum:
        PR_BLOCK, PR_MAX_PAYLOAD, PR_MAX_STORES, PR_RECORD_NOTE
        PR_BATCH_OPERATION, PR_BATCH_ITEM, PR_WRITE, PR_ZERO, PR_DISCARD

    struct pr_local:
        uint64_t chain
        uint32_t body_length


cdef extern from "latency.h" nogil:
    enum:
        PR_LATENCY_FIRST, PR_LATENCY_BUCKETS
    ctypedef struct pr_latency:
        uint64_t buckets[PR_LATENCY_BUCKETS]
        uint64_t total_ns
    uint64_t pr_now()
    void pr_latency_add(pr_latency *latency, uint64_t ns)


cdef extern from "window.h" nogil:
    enum:
        PR_LATENCY_WRITE, PR_LATENCY_FLUSH, PR_LATENCY_OPERATION
    pr_latency *pr_window_latency(pr_window *window, int which)
    enum:
        PR_NO_STORE, PR_NOT_WRITABLE, PR_OUTSIDE, PR_UNALIGNED, PR_MALFORMED, PR_NO_ROOM, PR_TIME_OVER, PR_NOT_OPEN
        PR_TWICE, PR_LOG_FULL, PR_TOO_MANY
        PR_SUBMIT_FUA, PR_SUBMIT_HELD, PR_SUBMIT_NOWAIT, PR_SUBMIT_ALONE

    ctypedef struct pr_window_state:
        uint64_t end_position, written_position, durable_position, applied_position, tail_position
        uint64_t end_lsn, written_lsn, durable_lsn, applied_lsn, peer_lsn
        uint64_t chain, shown_position, log_size, ring_size, ring_used, notes
        uint64_t batches, records, payload_bytes, commits, flushes, wants
        bint wanting
        int failed

    ctypedef struct pr_window_log:
        pr_device *device
        uint64_t offset, size, position, tail, chain, lsn, applied_position, applied_lsn, seed, previous
        uint8_t group[16]
        uint8_t generation[16]

    ctypedef struct pr_store_change:
        uint32_t store
        uint64_t size
        bint writable, dropped

    ctypedef struct pr_scan:
        pr_device *device
        uint64_t log_offset, log_size
        uint32_t alignment
        const uint8_t *group
        uint64_t position, chain, durable
        int reason

    pr_window *pr_window_new(uint64_t ring, uint32_t alignment, uint64_t reserve)
    void pr_window_free(pr_window *window)
    int pr_window_load(pr_window *window, const uint8_t *record, uint64_t length, const uint32_t *blocks,
                       uint32_t block_count)
    int pr_window_load_parked(pr_window *window, const uint8_t *record, uint64_t length, const uint32_t *blocks,
                              uint32_t block_count)
    int pr_window_announce(pr_window *window, uint32_t store, uint64_t size)
    int pr_window_show_store(pr_window *window, uint32_t store, uint64_t size)
    void pr_window_park(pr_window *window, bint parking)
    int pr_window_show(pr_window *window, uint64_t until, uint64_t cutoff, uint64_t most, uint64_t *shown,
                       uint64_t *next)
    int pr_window_unpark(pr_window *window)
    int pr_window_open(pr_window *window, const pr_window_log *log)
    int pr_window_set_generation(pr_window *window, const uint8_t *generation, const uint8_t *group)
    void pr_window_fail(pr_window *window, int code)
    void pr_window_close(pr_window *window)
    void pr_window_look(pr_window *window, pr_window_state *state)
    int pr_window_set_store(pr_window *window, uint32_t store, uint64_t size, bint writable)
    int pr_window_drop_store(pr_window *window, uint32_t store)
    int pr_window_store_size(pr_window *window, uint32_t store, uint64_t *size)
    int pr_window_submit(pr_window *window, pr_submission *submission, int64_t timeout)
    int pr_window_wait(pr_window *window, uint64_t target, uint64_t lsn, bint fua, int64_t timeout)
    bint pr_window_done(pr_window *window, uint64_t target, uint64_t lsn, bint fua)
    int pr_window_operation(pr_window *window, const uint8_t *body, uint32_t length, const uint32_t *blocks,
                            uint32_t block_count, const pr_store_change *changes, uint32_t change_count, bint nowait,
                            int64_t timeout, uint64_t *lsn)
    int pr_window_hold(pr_window *window, uint32_t store, uint64_t offset, uint64_t length, bint nowait,
                       int64_t timeout)
    int pr_window_unhold(pr_window *window, uint32_t store, uint64_t offset, uint64_t length)
    int pr_window_commit(pr_window *window, uint64_t lsn, int64_t timeout)
    void pr_window_submitted(pr_window *window, uint64_t *position, uint64_t *lsn)
    int pr_window_commit_pending(pr_window *window)
    int pr_window_committer(pr_window *window, int64_t timeout)
    int pr_window_note(pr_window *window, uint8_t kind, const uint8_t *body, uint32_t length, uint64_t *end)
    int pr_window_received(pr_window *window, const uint8_t *head, uint64_t head_length, const uint8_t *payload,
                           uint64_t payload_length, const uint32_t *blocks, uint32_t block_count, bint nowait,
                           int64_t timeout, uint64_t *position, uint64_t *end)
    int pr_window_write_out(pr_window *window, uint64_t position, int64_t timeout)
    int pr_window_make_durable(pr_window *window, uint64_t position, int64_t timeout)
    int pr_window_wait_beyond(pr_window *window, bint durable, uint64_t beyond, const uint64_t *wants, int64_t timeout,
                              uint64_t *position)
    int pr_window_wait_applied(pr_window *window, uint64_t lsn, int64_t timeout)
    int pr_window_applied(pr_window *window, uint64_t position, uint64_t lsn)
    int pr_window_set_tail(pr_window *window, uint64_t position)
    void pr_window_set_sync(pr_window *window, bint sync)
    int pr_window_set_notes(pr_window *window, uint64_t region_size, uint64_t cost)
    void pr_window_set_time(pr_window *window, uint64_t ns)
    uint64_t pr_window_time(pr_window *window)
    void pr_window_set_peer(pr_window *window, uint64_t lsn)
    void pr_window_set_bound(pr_window *window, uint64_t position)
    int pr_window_set_lsn(pr_window *window, uint64_t lsn)
    int pr_window_entry(pr_window *window, uint64_t position, pr_entry *entry)
    void pr_entry_release(pr_window *window, pr_entry *entry)
    int pr_window_settle(pr_window *window, uint32_t store, bint nowait)
    uint64_t pr_window_overlay(pr_window *window, uint32_t store, uint64_t offset, uint64_t length, uint8_t *target,
                               uint8_t *have)
    uint64_t pr_digest(const pr_travel *travel)
    int pr_scan_next(pr_scan *scan, const uint8_t **record, uint64_t *length)
    int pr_scan_beyond(pr_scan *scan)
    void pr_scan_close(pr_scan *scan)


cdef enum:
    SLICE = 100_000_000     # ns: a wait looks for signals this often

WindowState = namedtuple("WindowState", (
    "end_position", "written_position", "durable_position", "applied_position", "tail_position",
    "end_lsn", "written_lsn", "durable_lsn", "applied_lsn", "peer_lsn", "chain", "log_size", "ring_size", "ring_used",
    "notes", "batches", "records", "payload_bytes", "commits", "flushes", "failed", "shown_position",
    "wants", "wanting"))


cdef uint64_t number(object value, str name, uint64_t most=<uint64_t>-1) except? 77:
    """A number that C can take. Python's may be negative or endless: misuse like any other."""
    if not PyIndex_Check(value) or PyBool_Check(value):
        raise TypeError(f"{name} {value!r} is not a whole number")
    if not 0 <= value <= most:
        raise ValueError(f"{name} {value} is outside [0, {most}]")
    return value


cdef int identity(object value, str name, uint8_t *target) except -1:
    cdef bytes raw = bytes(value)
    if len(raw) != 16:
        raise ValueError(f"{name} has {len(raw)} bytes, not 16")
    memcpy(target, <const uint8_t *>raw, 16)
    return 0


cdef int64_t nanoseconds(object seconds) except? 77:
    """A timeout for C; None: for ever."""
    return -1 if seconds is None else max(0, int(min(seconds, 1e9) * 1e9))


cdef int64_t slice_of(int64_t *left) noexcept:
    """The next slice of a wait. `left` below 0: for ever."""
    cdef int64_t part = SLICE if left[0] < 0 else min(left[0], <int64_t>SLICE)
    if left[0] > 0:
        left[0] -= part
    return part


cdef uint32_t *numbers(object values, uint32_t *count) except? NULL:
    """A list of store ids for C, to be freed. NULL: none."""
    cdef list items = [number(value, "store", 0xffffffff) for value in values]
    cdef uint32_t *result
    cdef uint32_t i
    count[0] = len(items)
    if not items:
        return NULL
    result = <uint32_t *>calloc(len(items), sizeof(uint32_t))
    if result == NULL:
        raise MemoryError()
    for i in range(count[0]):
        result[i] = items[i]
    return result


cdef int raise_misuse(Window window, int code, str what) except -1:
    """A code of window.c as an exception; 0 and above pass."""
    if code >= 0:
        return code
    if code == PR_NO_STORE:
        raise LookupError(f"{what}: no such store")
    if code == PR_NOT_WRITABLE:
        raise PermissionError(errno_names.EACCES, f"{what}: the store cannot be written")
    if code == PR_OUTSIDE:
        raise ValueError(f"{what}: outside its bounds")
    if code == PR_UNALIGNED:
        raise ValueError(f"{what}: offset and length must be multiples of {window.unit}, and not nothing")
    if code == PR_MALFORMED:
        raise ValueError(f"{what}: malformed or of an impossible length")
    if code == PR_NO_ROOM:
        raise BlockingIOError(errno_names.EAGAIN, f"{what}: would have to wait")
    if code == PR_TIME_OVER:
        raise TimeoutError(errno_names.ETIMEDOUT, f"{what}: time is over")
    if code == PR_NOT_OPEN:
        raise ValueError(f"{what}: the window is not open")
    if code == PR_TWICE:
        raise ValueError(f"{what}: not at this time")
    if code == PR_LOG_FULL:
        raise OSError(ENOSPC, f"{what}: the log is full")
    if code == PR_TOO_MANY:
        raise OSError(ENOSPC, f"{what}: more than {PR_MAX_STORES} stores")
    if code == -ENOMEM:
        raise MemoryError()
    if code == -ESHUTDOWN or window.device is None:
        raise OSError(-code, f"{what}: the window is closed" if code == -ESHUTDOWN else os.strerror(-code))
    return raise_device(window.device, code)


cdef class Span:
    """A part of an entry's memory. Keeps the entry pinned while somebody looks at it."""
    cdef Entry entry
    cdef const uint8_t *start
    cdef Py_ssize_t length

    def __getbuffer__(self, Py_buffer *buffer, int flags):
        PyBuffer_FillInfo(buffer, self, <void *>self.start, self.length, 1, flags)
        self.entry.views += 1

    def __releasebuffer__(self, Py_buffer *buffer):
        self.entry.views -= 1
        if self.entry.given_up and self.entry.views == 0:
            self.entry.drop()


cdef object span(Entry entry, const uint8_t *start, uint64_t length):
    cdef Span result = Span.__new__(Span)
    result.entry = entry
    result.start = start
    result.length = length
    return memoryview(result)


cdef class Entry:
    """A record of the log; see window.pyi."""

    cdef void drop(self) noexcept:
        if self.held:
            self.held = False
            pr_entry_release(self.window.ptr, &self.entry)

    def __dealloc__(self):
        self.drop()

    cdef int check(self) except -1:
        if not self.held or self.given_up:
            raise ValueError("this entry was released")
        return 0

    @property
    def position(self):
        self.check()
        return self.entry.position

    @property
    def length(self):
        self.check()
        return self.entry.length

    @property
    def next_position(self):
        self.check()
        return self.entry.position + self.entry.length

    @property
    def kind(self):
        self.check()
        return self.entry.kind

    @property
    def note(self):
        self.check()
        return self.entry.note

    @property
    def chain(self):
        self.check()
        return (<const pr_local *>self.entry.memory).chain

    @property
    def batch_kind(self):
        self.check()
        return self.entry.travel.kind if self.entry.travel != NULL else 0

    @property
    def first_lsn(self):
        self.check()
        return self.entry.first_lsn

    @property
    def last_lsn(self):
        self.check()
        return self.entry.last_lsn

    @property
    def count(self):
        self.check()
        return self.entry.travel.count if self.entry.travel != NULL else 0

    @property
    def item(self):
        self.check()
        return self.entry.travel.item if self.entry.travel != NULL else 0

    @property
    def read_end(self):
        self.check()
        return self.entry.travel.read_end if self.entry.travel != NULL else 0

    @property
    def time_ns(self):
        self.check()
        return self.entry.travel.time_ns if self.entry.travel != NULL else 0

    @property
    def generation(self):
        self.check()
        return self.entry.travel.generation[:16] if self.entry.travel != NULL else b""

    @property
    def digest(self):
        self.check()
        return pr_digest(self.entry.travel) if self.entry.travel != NULL else 0

    @property
    def head(self):
        self.check()
        if self.entry.travel == NULL:
            return memoryview(b"")
        return span(self, <const uint8_t *>self.entry.travel,
                    sizeof(pr_travel) + self.entry.travel.count * sizeof(pr_record))

    @property
    def payload(self):
        self.check()
        if self.entry.travel == NULL:
            return memoryview(b"")
        return span(self, self.entry.payload, self.entry.travel.payload_length)

    @property
    def body(self):
        self.check()
        if self.entry.kind == PR_RECORD_NOTE:
            return PyBytes_FromStringAndSize(<const char *>self.entry.memory + sizeof(pr_local),
                                             (<const pr_local *>self.entry.memory).body_length)
        if self.entry.travel.kind == PR_BATCH_OPERATION or self.entry.travel.kind == PR_BATCH_ITEM:
            return PyBytes_FromStringAndSize(<const char *>self.entry.payload + self.entry.records.payload,
                                             self.entry.records.length)
        return b""

    def stores(self):
        cdef uint32_t i
        cdef set result = set()
        self.check()
        if self.entry.travel != NULL and self.entry.travel.kind not in (PR_BATCH_OPERATION, PR_BATCH_ITEM):
            for i in range(self.entry.travel.count):
                result.add(self.entry.records[i].store)
        return result

    def release(self):
        self.given_up = True
        if self.views == 0:
            self.drop()

    def __enter__(self):
        return self

    def __exit__(self, *args):
        self.release()


cdef class Ticket:
    """A submitted write; see window.pyi."""
    cdef Window window
    cdef uint64_t target, number
    cdef bint fua

    @property
    def lsn(self):
        return self.number

    def done(self):
        return pr_window_done(self.window.ptr, self.target, self.number, self.fua)

    def wait(self, timeout=None):
        self.window.wait_for(self.target, self.number, self.fua, timeout)
        return self.number


cdef class Window:
    """The window; see window.pyi."""

    def __cinit__(self, *, ring, alignment, reserve):
        cdef uint64_t ring_bytes = number(ring, "ring", 1 << 46), kept = number(reserve, "reserve", 1 << 46)
        if alignment not in (512, 4096):
            raise ValueError(f"alignment must be 512 or 4096, not {alignment}")
        if ring_bytes % PR_BLOCK or ring_bytes < 4 * (PR_MAX_PAYLOAD + PR_BLOCK):
            raise ValueError(f"ring must be a multiple of {PR_BLOCK} and at least {4 * (PR_MAX_PAYLOAD + PR_BLOCK)}, "
                             f"not {ring}")
        if kept % PR_BLOCK:
            raise ValueError(f"reserve must be a multiple of {PR_BLOCK}, not {reserve}")
        self.unit = alignment
        self.ptr = pr_window_new(ring_bytes, self.unit, kept)
        if self.ptr == NULL:
            raise MemoryError()

    def __dealloc__(self):
        pr_window_free(self.ptr)    # whoever is inside holds a reference, and so does every entry

    # -- life

    def open(self, Device device not None, *, log_offset, log_size, position, tail, chain, lsn, applied_position,
             applied_lsn, group, generation, seed, previous=0):
        cdef pr_window_log log
        cdef int code
        if device.ptr.sector > self.unit:
            raise ValueError(f"{device.name} has sectors of {device.ptr.sector} bytes, more than the alignment of "
                             f"{self.unit}")
        memset(&log, 0, sizeof(log))
        log.device = device.ptr
        log.offset = number(log_offset, "log_offset")
        log.size = number(log_size, "log_size")
        log.position = number(position, "position")
        log.tail = number(tail, "tail")
        log.chain = number(chain, "chain")
        log.lsn = number(lsn, "lsn")
        log.applied_position = number(applied_position, "applied_position")
        log.applied_lsn = number(applied_lsn, "applied_lsn")
        log.seed = number(seed, "seed")
        log.previous = number(previous, "previous")
        identity(group, "group", log.group)
        identity(generation, "generation", log.generation)
        if self.device is None:
            self.device = device
        with nogil:
            code = pr_window_open(self.ptr, &log)
        raise_misuse(self, code, "open")

    def load(self, record, *, blocks=(), parked=False):
        cdef Py_buffer view
        cdef uint32_t count = 0
        cdef uint32_t *ids = numbers(blocks, &count)
        cdef int code
        try:
            PyObject_GetBuffer(record, &view, PyBUF_SIMPLE)
            try:
                if parked:
                    code = pr_window_load_parked(self.ptr, <const uint8_t *>view.buf, view.len, ids, count)
                else:
                    with nogil:
                        code = pr_window_load(self.ptr, <const uint8_t *>view.buf, view.len, ids, count)
            finally:
                PyBuffer_Release(&view)
        finally:
            free(ids)
        raise_misuse(self, code, "load")

    def set_generation(self, generation, group):
        cdef uint8_t first[16]
        cdef uint8_t second[16]
        identity(generation, "generation", first)
        identity(group, "group", second)
        pr_window_set_generation(self.ptr, first, second)

    def fail(self, errno):
        pr_window_fail(self.ptr, -<int>number(errno or 5, "errno", 4095))

    def close(self):
        with nogil:
            pr_window_close(self.ptr)

    def state(self):
        cdef pr_window_state s
        with nogil:
            pr_window_look(self.ptr, &s)
        return WindowState(
            s.end_position, s.written_position, s.durable_position, s.applied_position, s.tail_position, s.end_lsn,
            s.written_lsn, s.durable_lsn, s.applied_lsn, s.peer_lsn, s.chain, s.log_size, s.ring_size, s.ring_used,
            s.notes, s.batches, s.records, s.payload_bytes, s.commits, s.flushes, -s.failed,
            None if s.shown_position == 0xFFFFFFFFFFFFFFFF else s.shown_position, s.wants, bool(s.wanting))

    # -- stores

    def set_store(self, store, size, writable=True):
        cdef uint32_t which = number(store, "store", 0xffffffff)
        cdef uint64_t length = number(size, "size", (1 << 63) - 1)
        if which == 0:
            raise ValueError("a store's id is from 1 on")
        raise_misuse(self, pr_window_set_store(self.ptr, which, length, writable), "set_store")

    def drop_store(self, store):
        raise_misuse(self, pr_window_drop_store(self.ptr, number(store, "store", 0xffffffff)), f"store {store}")

    def announce(self, store, size):
        cdef uint64_t length = number(size, "size", (1 << 63) - 1)
        raise_misuse(self, pr_window_announce(self.ptr, number(store, "store", 0xffffffff), length), "announce")

    def show_store(self, store, size):
        cdef uint64_t length = number(size, "size", (1 << 63) - 1)
        raise_misuse(self, pr_window_show_store(self.ptr, number(store, "store", 0xffffffff), length), "show_store")

    def set_notes(self, region_size, cost):
        cdef uint64_t region = number(region_size, "region_size"), most = number(cost, "cost")
        raise_misuse(self, pr_window_set_notes(self.ptr, region, most), "set_notes")

    def set_time(self, ns):
        pr_window_set_time(self.ptr, number(ns, "ns", (1 << 63) - 1))

    def time(self):
        return pr_window_time(self.ptr)

    def store_size(self, store):
        cdef uint64_t size
        if pr_window_store_size(self.ptr, number(store, "store", 0xffffffff), &size):
            return None
        return size

    # -- writers

    cdef int give(self, pr_submission *m) except -1:
        """Submits, with a look at signals now and then."""
        cdef int code
        while True:
            with nogil:
                code = pr_window_submit(self.ptr, m, SLICE)
            if code != PR_TIME_OVER:
                break
            PyErr_CheckSignals()
        if code:
            raise_misuse(self, code, f"store {m.store}, [{m.offset}, {m.offset} + {m.length})")
        return 0

    cdef int wait_for(self, uint64_t target, uint64_t lsn, bint fua, object timeout=None) except -1:
        cdef int64_t left = nanoseconds(timeout), part
        cdef int code
        while True:
            part = slice_of(&left)
            with nogil:
                code = pr_window_wait(self.ptr, target, lsn, fua, part)
            if code != PR_TIME_OVER or left == 0:
                break
            PyErr_CheckSignals()
        return raise_misuse(self, code, f"event {lsn}")

    cdef int prepare(self, pr_submission *m, object store, object offset, object length, int kind, int flags) except -1:
        memset(m, 0, sizeof(pr_submission))
        m.store = number(store, "store", 0xffffffff)
        m.offset = number(offset, "offset")
        m.length = number(length, "length")
        m.kind = kind
        m.flags = flags
        return 0

    cdef object write_data(self, object store, object offset, object data, bint fua, int flags):
        cdef pr_submission m
        cdef Py_buffer view
        cdef uint64_t begun = pr_now()
        self.prepare(&m, store, offset, 0, PR_WRITE, flags | (PR_SUBMIT_FUA if fua else 0))
        PyObject_GetBuffer(data, &view, PyBUF_SIMPLE)
        try:
            m.data = <const uint8_t *>view.buf
            m.length = view.len
            self.give(&m)
        finally:
            PyBuffer_Release(&view)
        self.wait_for(m.target, m.lsn, fua)
        pr_latency_add(pr_window_latency(self.ptr, PR_LATENCY_WRITE), pr_now() - begun)
        return m.lsn

    def write(self, store, offset, data, *, bint fua=False):
        return self.write_data(store, offset, data, fua, 0)

    def write_held(self, store, offset, data, *, bint fua=False, bint wait=True):
        return self.write_data(store, offset, data, fua, PR_SUBMIT_HELD | (0 if wait else PR_SUBMIT_NOWAIT))

    def zero(self, store, offset, length, *, bint discard=False, bint wait=True):
        cdef pr_submission m
        self.prepare(&m, store, offset, length, PR_DISCARD if discard else PR_ZERO, 0 if wait else PR_SUBMIT_NOWAIT)
        self.give(&m)
        self.wait_for(m.target, m.lsn, False)
        return m.lsn

    def submit(self, store, offset, data, *, bint fua=False, bint wait=True):
        cdef pr_submission m
        cdef Py_buffer view
        cdef Ticket ticket = Ticket.__new__(Ticket)
        self.prepare(&m, store, offset, 0, PR_WRITE,
                     PR_SUBMIT_ALONE | (PR_SUBMIT_FUA if fua else 0) | (0 if wait else PR_SUBMIT_NOWAIT))
        PyObject_GetBuffer(data, &view, PyBUF_SIMPLE)
        try:
            m.data = <const uint8_t *>view.buf
            m.length = view.len
            self.give(&m)
        finally:
            PyBuffer_Release(&view)
        ticket.window = self
        ticket.target = m.target
        ticket.number = m.lsn
        ticket.fua = fua
        return ticket

    def submit_operation(self, body, *, blocks, sizes, dropped, bint wait=True):
        cdef Py_buffer view
        cdef list changes = [
            (number(i, "store", 0xffffffff), number(size, "size", (1 << 63) - 1), bool(writable), False)
            for i, size, writable in sizes]
        changes += [(number(i, "store", 0xffffffff), 0, False, True) for i in dropped]
        cdef uint32_t count = 0, change_count = len(changes), i
        cdef pr_store_change *list_ = NULL
        cdef uint32_t *ids = NULL
        cdef uint64_t lsn = 0
        cdef int code = PR_TIME_OVER
        PyObject_GetBuffer(body, &view, PyBUF_SIMPLE)
        try:
            if view.len > PR_MAX_PAYLOAD:
                raise ValueError(f"an operation of {view.len} bytes is longer than {PR_MAX_PAYLOAD}")
            ids = numbers(blocks, &count)
            list_ = <pr_store_change *>calloc(change_count + 1, sizeof(pr_store_change))
            if list_ == NULL:
                raise MemoryError()
            for i in range(change_count):
                list_[i].store, list_[i].size, list_[i].writable, list_[i].dropped = changes[i]
            while code == PR_TIME_OVER:
                with nogil:
                    code = pr_window_operation(self.ptr, <const uint8_t *>view.buf, view.len, ids, count, list_,
                                               change_count, not wait, SLICE, &lsn)
                if code == PR_TIME_OVER:
                    PyErr_CheckSignals()
        finally:
            free(list_)
            free(ids)
            PyBuffer_Release(&view)
        raise_misuse(self, code, "operation")
        return lsn

    def hold_blocks(self, store, offset, length, *, bint wait=True):
        cdef uint32_t which = number(store, "store", 0xffffffff)
        cdef uint64_t start = number(offset, "offset"), size = number(length, "length")
        cdef int code = PR_TIME_OVER
        while code == PR_TIME_OVER:
            with nogil:
                code = pr_window_hold(self.ptr, which, start, size, not wait, SLICE)
            if code == PR_TIME_OVER:
                PyErr_CheckSignals()
        raise_misuse(self, code, f"store {store}, [{offset}, {offset} + {length})")

    def release_blocks(self, store, offset, length):
        cdef uint32_t which = number(store, "store", 0xffffffff)
        cdef uint64_t start = number(offset, "offset"), size = number(length, "length")
        cdef int code = pr_window_unhold(self.ptr, which, start, size)
        raise_misuse(self, code, f"store {store}, [{offset}, {offset} + {length}), not held")

    def commit(self, lsn):
        cdef uint64_t which = number(lsn, "lsn")
        cdef int code = PR_TIME_OVER
        while code == PR_TIME_OVER:
            with nogil:
                code = pr_window_commit(self.ptr, which, SLICE)
            if code == PR_TIME_OVER:
                PyErr_CheckSignals()
        raise_misuse(self, code, f"event {lsn}")

    def flush(self):
        cdef uint64_t position, lsn, begun = pr_now()
        pr_window_submitted(self.ptr, &position, &lsn)
        self.make_durable(position)
        self.wait_for(0, lsn, False)    # the peer, in sync mode
        pr_latency_add(pr_window_latency(self.ptr, PR_LATENCY_FLUSH), pr_now() - begun)
        return lsn

    def latencies(self):
        cdef pr_latency *latency
        cdef uint64_t count
        result = {}
        for name, which in (("write", PR_LATENCY_WRITE), ("flush", PR_LATENCY_FLUSH),
                            ("operation", PR_LATENCY_OPERATION)):
            latency = pr_window_latency(self.ptr, which)
            buckets, count = [], 0
            for i in range(PR_LATENCY_BUCKETS):
                count += latency.buckets[i]
                buckets.append(((1 << (PR_LATENCY_FIRST + i)) / 1e9, count))
            result[name] = (buckets, count, latency.total_ns / 1e9)
        return result

    def run_committer(self):
        cdef int code = PR_TIME_OVER
        while code == PR_TIME_OVER:
            with nogil:
                code = pr_window_committer(self.ptr, SLICE)
            if code == PR_TIME_OVER:
                PyErr_CheckSignals()

    def commit_pending(self):
        cdef int code
        with nogil:
            code = pr_window_commit_pending(self.ptr)
        return raise_misuse(self, code, "commit_pending") > 0

    # -- the engine

    def append_note(self, note_type, body):
        cdef Py_buffer view
        cdef uint8_t kind = number(note_type, "note_type", 255)
        cdef uint64_t end = 0
        cdef int code
        PyObject_GetBuffer(body, &view, PyBUF_SIMPLE)
        try:
            if view.len > <Py_ssize_t>0xffffffff:
                code = PR_MALFORMED
            else:
                with nogil:
                    code = pr_window_note(self.ptr, kind, <const uint8_t *>view.buf, view.len, &end)
        finally:
            PyBuffer_Release(&view)
        raise_misuse(self, code, "note")
        return end

    def append_received(self, head, payload, *, blocks=(), bint wait=True, timeout=None):
        cdef int64_t left = nanoseconds(timeout), part
        cdef Py_buffer first
        cdef Py_buffer second
        cdef uint32_t count = 0
        cdef uint32_t *ids = numbers(blocks, &count)
        cdef uint64_t position = 0, end = 0
        cdef int code = PR_TIME_OVER
        try:
            PyObject_GetBuffer(head, &first, PyBUF_SIMPLE)
            try:
                PyObject_GetBuffer(payload, &second, PyBUF_SIMPLE)
                try:
                    while True:
                        part = slice_of(&left)
                        with nogil:
                            code = pr_window_received(
                                self.ptr, <const uint8_t *>first.buf, first.len, <const uint8_t *>second.buf,
                                second.len, ids, count, not wait, part, &position, &end)
                        if code != PR_TIME_OVER or left == 0:
                            break
                        PyErr_CheckSignals()
                finally:
                    PyBuffer_Release(&second)
            finally:
                PyBuffer_Release(&first)
        finally:
            free(ids)
        raise_misuse(self, code, "received batch")
        return position, end

    def write_out(self, position):
        cdef uint64_t target = number(position, "position")
        cdef int code = PR_TIME_OVER
        while code == PR_TIME_OVER:
            with nogil:
                code = pr_window_write_out(self.ptr, target, SLICE)
            if code == PR_TIME_OVER:
                PyErr_CheckSignals()
        raise_misuse(self, code, f"position {position}")

    def make_durable(self, position):
        cdef uint64_t target = number(position, "position")
        cdef int code = PR_TIME_OVER
        while code == PR_TIME_OVER:
            with nogil:
                code = pr_window_make_durable(self.ptr, target, SLICE)
            if code == PR_TIME_OVER:
                PyErr_CheckSignals()
        raise_misuse(self, code, f"position {position}")

    cdef object beyond(self, bint durable, object beyond, object timeout, object wants=None):
        cdef uint64_t start = number(beyond, "beyond"), position = 0
        cdef uint64_t most = 0 if wants is None else number(wants, "wants")
        cdef const uint64_t *asked = NULL
        cdef int64_t left = nanoseconds(timeout), part
        cdef int code
        if wants is not None:
            asked = &most
        while True:
            part = slice_of(&left)
            with nogil:
                code = pr_window_wait_beyond(self.ptr, durable, start, asked, part, &position)
            if code != PR_TIME_OVER or left == 0:
                break
            PyErr_CheckSignals()
        if code != PR_TIME_OVER:
            raise_misuse(self, code, "wait")
        return position

    def wait_durable(self, beyond, timeout):
        return self.beyond(True, beyond, timeout)

    def wait_written(self, beyond, timeout, *, wants=None):
        return self.beyond(False, beyond, timeout, wants)

    def wait_applied(self, lsn, timeout=None):
        cdef uint64_t which = number(lsn, "lsn")
        cdef int64_t left = nanoseconds(timeout), part
        cdef int code
        while True:
            part = slice_of(&left)
            with nogil:
                code = pr_window_wait_applied(self.ptr, which, part)
            if code != PR_TIME_OVER or left == 0:
                break
            PyErr_CheckSignals()
        if code == PR_TIME_OVER:
            return False
        raise_misuse(self, code, f"event {lsn}")
        return True

    def entry(self, position):
        cdef Entry entry = Entry.__new__(Entry)
        cdef uint64_t place = number(position, "position")
        cdef int code
        entry.window = self
        with nogil:
            code = pr_window_entry(self.ptr, place, &entry.entry)
        if code == -ENOENT:
            return None
        if code == -EBADMSG:
            raise ValueError(f"position {position}: what the log holds there is not a valid record")
        raise_misuse(self, code, f"position {position}")
        entry.held = True
        return entry

    def park(self, parking):
        pr_window_park(self.ptr, bool(parking))

    def show(self, until, cutoff, most):
        cdef uint64_t place = number(until, "until"), latest = number(cutoff, "cutoff"), limit = number(most, "most")
        cdef uint64_t shown = 0, next_time = 0
        cdef int code
        with nogil:
            code = pr_window_show(self.ptr, place, latest, limit, &shown, &next_time)
        if code == -EBADMSG:
            raise ValueError(f"before position {until}: what the log holds there is not a valid record")
        raise_misuse(self, code, f"position {until}")
        return shown, next_time

    def unpark(self):
        cdef int code
        with nogil:
            code = pr_window_unpark(self.ptr)
        if code < 0:
            raise_misuse(self, code, "unpark")
        return bool(code)

    def applied(self, position, lsn):
        cdef uint64_t place = number(position, "position"), event = number(lsn, "lsn")
        cdef int code
        with nogil:
            code = pr_window_applied(self.ptr, place, event)
        raise_misuse(self, code, f"applied position {position}")

    def set_tail(self, position):
        raise_misuse(self, pr_window_set_tail(self.ptr, number(position, "position")), f"tail {position}")

    def settle(self, store, *, bint wait=True):
        cdef uint32_t which = number(store, "store", 0xffffffff)
        cdef int code
        with nogil:
            code = pr_window_settle(self.ptr, which, not wait)
        raise_misuse(self, PR_NO_ROOM if code == -EAGAIN else code, f"store {store}, an operation")

    def overlay(self, store, offset, length):
        cdef uint32_t which = number(store, "store", 0xffffffff)
        cdef uint64_t start = number(offset, "offset"), size = number(length, "length", 1 << 30)
        if start % self.unit or size % self.unit:
            raise ValueError(f"offset and length must be multiples of {self.unit}")
        cdef bytearray target = bytearray(size), have = bytearray(size // self.unit)
        cdef uint8_t *data = target
        cdef uint8_t *flags = have
        with nogil:
            pr_window_overlay(self.ptr, which, start, size, data, flags)
        return bytes(target), bytes(have)

    # -- sync mode

    def set_sync(self, mode):
        if mode not in (0, 1):
            raise ValueError(f"sync mode must be 0 or 1, not {mode}")
        pr_window_set_sync(self.ptr, mode)

    def set_peer(self, lsn):
        pr_window_set_peer(self.ptr, number(lsn, "lsn"))

    def set_bound(self, position):
        pr_window_set_bound(self.ptr, 0xFFFFFFFFFFFFFFFF if position is None else number(position, "position"))

    def set_lsn(self, lsn):
        raise_misuse(self, pr_window_set_lsn(self.ptr, number(lsn, "lsn")), "set_lsn")


def scan_log(Device device not None, *, log_offset, log_size, position, chain, alignment, group=None, most=64 << 20):
    """Walks the log along the chain; see window.pyi."""
    cdef pr_scan scan
    cdef const uint8_t *record = NULL
    cdef uint64_t length = 0, taken = 0, limit = number(most, "most")
    cdef uint8_t own[16]
    cdef int code = 1
    memset(&scan, 0, sizeof(scan))
    scan.device = device.ptr
    scan.log_offset = number(log_offset, "log_offset")
    scan.log_size = number(log_size, "log_size")
    scan.position = number(position, "position")
    scan.chain = number(chain, "chain")
    if alignment not in (512, 4096):
        raise ValueError(f"alignment must be 512 or 4096, not {alignment}")
    if scan.log_size == 0 or scan.log_size % PR_BLOCK or scan.log_offset % PR_BLOCK or scan.position % PR_BLOCK:
        raise ValueError(f"log_offset, log_size and position must be multiples of {PR_BLOCK}")
    if scan.log_offset > device.ptr.size or scan.log_size > device.ptr.size - scan.log_offset:
        raise ValueError(f"{device.name}: the log is outside the device")
    scan.alignment = alignment
    if group is not None:
        identity(group, "group", own)
        scan.group = own
    cdef list records = []
    cdef uint64_t place
    try:
        while code == 1 and (taken < limit or taken == 0):
            place = scan.position
            with nogil:
                code = pr_scan_next(&scan, &record, &length)
            if code == 1:
                records.append((place, PyBytes_FromStringAndSize(<const char *>record, length)))
                taken += length
                PyErr_CheckSignals()
        if code == 0:
            with nogil:
                code = pr_scan_beyond(&scan)
    finally:
        pr_scan_close(&scan)
    if code == -ENOMEM:
        raise MemoryError()
    raise_device(device, min(code, 0))
    return records, scan.position, scan.chain, scan.reason, scan.durable
