"""What a store shows now, for Python: ranges of any alignment, read and written.

Decides: how unaligned ranges become aligned ones, and which errors they raise. Rules and loops of reading are in
view.c.
"""
import os

from cpython.bool cimport PyBool_Check
from cpython.buffer cimport PyBUF_C_CONTIGUOUS, PyBUF_WRITABLE, PyBuffer_Release, PyObject_GetBuffer
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize
from cpython.exc cimport PyErr_CheckSignals
from cpython.number cimport PyIndex_Check
from libc.errno cimport ENOENT, ENOMEM, ERANGE
from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t, uintptr_t
from libc.string cimport memcpy, memset

from pyrepl._core.device cimport Device, pr_device, raise_device
from pyrepl._core.stores cimport Stores, pr_stores
from pyrepl._core.window cimport Window, pr_submission, pr_window, raise_misuse

cdef extern from "view.h" nogil:
    ctypedef struct pr_run:
        uint64_t offset
        uint64_t length
    int pr_view_read_runs(pr_window *window, pr_stores *stores, uint32_t id, const pr_run *runs, uint32_t count,
                          uint8_t *target,
                          pr_device **bad)
    ctypedef struct pr_edges:
        uint64_t first, end
    void pr_view_edges(const pr_stores *stores, uint64_t offset, uint64_t length, pr_edges *edges)
    int pr_view_merge(pr_window *window, pr_stores *stores, uint32_t id, uint64_t offset, const uint8_t *data,
                      uint64_t length, pr_edges *edges, uint8_t *merged, int64_t timeout, pr_device **bad)
    void pr_view_release(pr_window *window, const pr_stores *stores, uint32_t id, pr_edges *edges)
    ctypedef struct pr_allocation:
        uint64_t length
        bint zero
    int pr_view_allocation(pr_window *window, pr_stores *stores, uint32_t id, uint64_t offset, uint64_t length,
                           pr_allocation *runs, uint32_t most)

cdef extern from "window.h" nogil:
    enum:
        PR_NO_STORE, PR_TIME_OVER, PR_SUBMIT_FUA, PR_SUBMIT_HELD

cdef extern from "layout.h" nogil:
    enum:
        PR_WRITE

cdef extern from "buffers.h" nogil:
    void *pr_buffer_take(size_t length)
    void pr_buffer_give(void *buffer, size_t length)

cdef enum:
    PIECE = 4 << 20     # PR_MAX_PAYLOAD: what one look at window and map covers
    SLICE = 100_000_000     # ns: a wait looks for signals this often
    RUNS = 1024


cdef int raise_view(Stores stores, tuple devices, uint32_t store, int code, pr_device *bad) except -1:
    """-errno of a read -> the error for people; `bad` is the device that failed."""
    if code >= 0:
        return 0
    if code == -ENOENT and bad == NULL:
        raise LookupError(f"no store {store}")
    if code == -ERANGE and bad == NULL:
        raise ValueError(f"the range is outside store {store}")
    for device in devices:
        if (<Device>device).ptr == bad:
            raise_device(device, code)
    raise OSError(-code, os.strerror(-code), f"store {store}")


cdef int fill(pr_window *window, pr_stores *stores, uint32_t store, uint64_t offset, uint8_t *memory, uint64_t length,
              pr_device **bad) noexcept nogil:
    """A range of any alignment into memory of any alignment, in pieces of whole blocks."""
    cdef uint64_t unit = stores.alignment, done = 0, lead, n, size
    cdef uint8_t *bounce = NULL
    cdef pr_run run
    cdef int code = 0
    bad[0] = NULL
    if offset > <uint64_t>-1 - length or offset + length > <uint64_t>-1 - unit:
        return -ERANGE
    size = min(<uint64_t>PIECE, (offset + length + unit - 1) // unit * unit - offset // unit * unit)
    while done < length and not code:
        lead = (offset + done) % unit
        n = min(<uint64_t>PIECE - lead, length - done)
        run.offset = offset + done - lead
        run.length = (lead + n + unit - 1) // unit * unit
        if run.length == n and not <uintptr_t>(memory + done) & (unit - 1):
            code = pr_view_read_runs(window, stores, store, &run, 1, memory + done, bad)
        else:
            if bounce == NULL:
                bounce = <uint8_t *>pr_buffer_take(size)
                if bounce == NULL:
                    return -ENOMEM
            code = pr_view_read_runs(window, stores, store, &run, 1, bounce, bad)
            if not code:
                memcpy(memory + done, bounce + lead, n)
        done += n
    pr_buffer_give(bounce, size)
    return code


cdef int read_into(Window window, Stores stores, uint32_t store, uint64_t offset, uint8_t *memory,
                   uint64_t length) except -1:
    # what leaves the table meanwhile lives until the read is over
    cdef tuple devices = tuple(stores.devices.values())
    cdef pr_device *bad = NULL
    cdef int code
    with nogil:
        code = fill(window.ptr, stores.ptr, store, offset, memory, length, &bad)
    return raise_view(stores, devices, store, code, bad)


cdef int check(offset, length) except -1:
    """Before a number of Python's becomes one of C's."""
    if not (PyIndex_Check(offset) and PyIndex_Check(length)) or PyBool_Check(offset) or PyBool_Check(length):
        raise TypeError(f"offset {offset!r} and length {length!r} must be whole numbers")
    if not (0 <= offset < 1 << 63 and 0 <= length < 1 << 63):
        raise ValueError(f"offset {offset} and length {length} must be from 0 to 2**63 - 1")
    return 0


cdef int inside(Window window, uint32_t store, offset, length) except -1:
    """A range of a live store. The size is the window's: that of the events that are admitted."""
    size = window.store_size(store)
    if size is None:
        raise LookupError(f"no store {store}")
    if offset + length > size:
        raise ValueError(f"[{offset}, {offset} + {length}) is outside store {store} of {size} bytes")
    return 0


def read(Window window not None, Stores stores not None, uint32_t store, offset, length):
    check(offset, length)
    inside(window, store, offset, length)       # before memory is taken for it
    result = PyBytes_FromStringAndSize(NULL, length)
    read_into(window, stores, store, offset, <uint8_t *>PyBytes_AS_STRING(result), length)
    return result


def readinto(Window window not None, Stores stores not None, uint32_t store, offset, buffer):
    cdef Py_buffer view
    PyObject_GetBuffer(buffer, &view, PyBUF_C_CONTIGUOUS | PyBUF_WRITABLE)
    try:
        check(offset, view.len)
        inside(window, store, offset, view.len)
        read_into(window, stores, store, offset, <uint8_t *>view.buf, view.len)
    finally:
        PyBuffer_Release(&view)


cdef write_piece(Window window, Stores stores, uint32_t store, uint64_t offset, const uint8_t *data, uint64_t length,
                 bint fua):
    """At most PIECE bytes with their edges: whole blocks are made of them while nobody else can write the edges."""
    cdef tuple devices = tuple(stores.devices.values())     # as in read_into
    cdef pr_device *bad = NULL
    cdef pr_submission m
    cdef pr_edges edges
    cdef uint8_t *merged
    cdef int code = PR_TIME_OVER
    pr_view_edges(stores.ptr, offset, length, &edges)
    merged = <uint8_t *>pr_buffer_take(edges.end - edges.first)
    if merged == NULL:
        raise MemoryError()
    try:
        while code == PR_TIME_OVER:
            PyErr_CheckSignals()
            with nogil:
                code = pr_view_merge(window.ptr, stores.ptr, store, offset, data, length, &edges, merged, SLICE, &bad)
        if code <= PR_NO_STORE:     # one of the window's own: an edge could not be held
            raise_misuse(window, code, f"store {store}, [{offset}, {offset} + {length})")
        raise_view(stores, devices, store, code, bad)
        try:
            memset(&m, 0, sizeof(pr_submission))
            m.store, m.kind, m.flags = store, PR_WRITE, PR_SUBMIT_HELD | (PR_SUBMIT_FUA if fua else 0)
            m.offset, m.length, m.data = edges.first, edges.end - edges.first, merged
            window.give(&m)
        finally:
            pr_view_release(window.ptr, stores.ptr, store, &edges)
    finally:
        pr_buffer_give(merged, edges.end - edges.first)
    window.wait_for(m.target, m.lsn, fua)
    return m.lsn


def write_unaligned(Window window not None, Stores stores not None, uint32_t store, offset, data, *, bint fua=False):
    cdef Py_buffer view
    cdef uint64_t at, done = 0, n, total, unit = stores.ptr.alignment
    PyObject_GetBuffer(data, &view, PyBUF_C_CONTIGUOUS)
    try:
        total = view.len
        check(offset, total)
        if not total:
            raise ValueError("nothing to write")
        inside(window, store, offset, total)
        at = offset
        lsn = 0
        while done < total:
            n = min(<uint64_t>PIECE - (at + done) % unit, total - done)
            # What becomes durable takes everything before it along: the last piece is enough.
            lsn = write_piece(window, stores, store, at + done, <const uint8_t *>view.buf + done, n,
                              fua and done + n == total)
            done += n
        return lsn
    finally:
        PyBuffer_Release(&view)


def allocation(Window window not None, Stores stores not None, uint32_t store, offset, length):
    cdef pr_allocation runs[RUNS]
    cdef uint64_t start, count
    cdef int code
    check(offset, length)
    inside(window, store, offset, length)
    start, count = offset, length
    if not count:
        return []
    with nogil:
        code = pr_view_allocation(window.ptr, stores.ptr, store, start, count, runs, RUNS)
    raise_view(stores, (), store, code, NULL)
    return [(runs[i].length, bool(runs[i].zero)) for i in range(code)]
