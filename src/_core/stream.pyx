"""The stream of a link for Python: takes buffers and windows, checks numbers, one call of stream.c without the GIL.

Decides: what lives as long as a connection, and how what went wrong is worded. Loops and their rules are in stream.c.
"""
import errno as errno_names
import os

from cpython.buffer cimport PyBUF_SIMPLE, PyBUF_WRITABLE, PyBuffer_Release, PyObject_GetBuffer
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize
from libc.errno cimport EAGAIN, ETIMEDOUT
from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t, uintptr_t
from libc.string cimport memcpy, memset

from pyrepl._core.window cimport Window, pr_entry, pr_window, raise_misuse

cdef extern from "layout.h" nogil:
    enum:
        PR_MAX_PAYLOAD, PR_BLOCK

cdef extern from "stream.h" nogil:
    enum:
        PR_LOT, PR_TIME_OVER
        PR_FRAME_MAGIC_WRONG, PR_FRAME_VERSION_WRONG, PR_FRAME_CRC_WRONG
        PR_STREAM_MORE, PR_STREAM_OTHER, PR_INLET_ENDED
    struct pr_frame:
        uint16_t version, type
        uint32_t length, body_crc
        uint64_t sequence
        uint32_t session
    void pr_frame_seal(pr_frame *frame, uint16_t type, uint32_t length, uint32_t body_crc, uint64_t sequence,
                       uint32_t session)
    int pr_frame_judge(const pr_frame *frame)
    ctypedef struct pr_reach:
        uint64_t sequence, lsn, previous
        uint32_t session, alignment
        bint known
        uint8_t group[16]
        uint8_t generation[16]
        uint64_t position, batches, bytes
    size_t pr_stream_take(pr_window *window, pr_reach *reach, const uint8_t *data, size_t length, uint64_t most,
                          uint64_t quiet, int64_t timeout, int *code)
    ctypedef struct pr_inlet:
        uint8_t *memory
        size_t size, at, end
        uint64_t received
        int fd
    int pr_inlet_fill(pr_inlet *inlet, size_t length)
    bint pr_inlet_whole(const pr_inlet *inlet)
    int pr_inlet_take(pr_inlet *inlet, pr_window *window, pr_reach *reach, uint64_t most, uint64_t quiet,
                      int64_t timeout, int *peer)
    ctypedef struct pr_lot:
        uint32_t count
        pr_entry entries[PR_LOT]
        uint8_t *memory
    int pr_window_lot(pr_window *window, uint64_t position, uint64_t until, uint64_t most, pr_lot *lot)
    ctypedef struct pr_outlet:
        pr_lot lot
        uint64_t length, sent
    uint64_t pr_outlet_length(const pr_entry *entry)
    void pr_outlet_seal(pr_outlet *outlet, uint64_t sequence, uint32_t session)
    int pr_outlet_send(pr_outlet *outlet, pr_window *window, int fd, int patience, int dead)
    void pr_outlet_release(pr_outlet *outlet, pr_window *window)
    void pr_outlet_copy(const pr_outlet *outlet, uint8_t *target)

cdef extern from * nogil:
    """
    #include "stream.h"
    static uint32_t pr_longest(const pr_entry *e)
    {
        uint32_t most = 0;
        for (uint32_t i = 0; i < e->travel->count; i++)
            most = e->records[i].length > most ? e->records[i].length : most;
        return most;
    }
    static size_t pr_head_length(const pr_entry *e)
    {
        return sizeof *e->travel + e->travel->count * sizeof *e->records;
    }
    """
    uint32_t pr_longest(const pr_entry *entry)
    size_t pr_head_length(const pr_entry *entry)

LOT = PR_LOT

cdef enum:
    SLICE = 100_000_000     # ns: a wait for room looks for signals this often


def pack_frame(uint16_t kind, uint32_t length, uint32_t body_crc, uint64_t sequence, uint32_t session):
    cdef pr_frame frame
    pr_frame_seal(&frame, kind, length, body_crc, sequence, session)
    return PyBytes_FromStringAndSize(<const char *>&frame, sizeof(pr_frame))


def unpack_frame(const uint8_t[::1] header not None):
    cdef pr_frame frame
    cdef int wrong
    if header.shape[0] != <Py_ssize_t>sizeof(pr_frame):
        raise ValueError(f"a frame has {sizeof(pr_frame)} bytes, not {header.shape[0]}")
    memcpy(&frame, &header[0], sizeof(pr_frame))
    wrong = pr_frame_judge(&frame)
    if wrong == PR_FRAME_MAGIC_WRONG:
        raise ValueError("no frame: the magic is wrong")
    if wrong == PR_FRAME_VERSION_WRONG:
        raise ValueError(f"version {frame.version} of the frame cannot be read")
    if wrong:
        raise ValueError("the checksum of the frame is wrong")
    return frame.type, frame.length, frame.body_crc, frame.sequence, frame.session


cdef class Reach:
    """Where a stream of events stands at its receiver; see stream.pyi."""
    cdef pr_reach reach

    def __cinit__(self, *, uint32_t alignment):
        memset(&self.reach, 0, sizeof(pr_reach))
        self.reach.alignment = alignment

    def begin(self, bytes group not None, bytes generation not None, uint32_t session, uint64_t sequence, uint64_t lsn,
              previous):
        if len(group) != 16 or len(generation) != 16:
            raise ValueError("group and generation have 16 bytes each")
        memcpy(self.reach.group, PyBytes_AS_STRING(group), 16)
        memcpy(self.reach.generation, PyBytes_AS_STRING(generation), 16)
        self.reach.session, self.reach.sequence, self.reach.lsn = session, sequence, lsn
        self.reach.known = previous is not None
        self.reach.previous = previous if previous is not None else 0
        self.reach.position = self.reach.batches = self.reach.bytes = 0

    @property
    def batches(self):
        return self.reach.batches

    @property
    def bytes(self):
        return self.reach.bytes

    @property
    def sequence(self):
        return self.reach.sequence

    @property
    def lsn(self):
        return self.reach.lsn

    @property
    def previous(self):
        return self.reach.previous if self.reach.known else None

    @property
    def position(self):
        return self.reach.position


def take(Window window not None, Reach reach not None, const uint8_t[::1] data not None):
    cdef size_t taken = 0
    cdef int code = 0
    if data.shape[0] == 0:
        return 0
    if <uintptr_t>&data[0] % 8:
        data = bytes(data)
    with nogil:
        taken = pr_stream_take(window.ptr, &reach.reach, &data[0], data.shape[0], <uint64_t>-1, 0, 0, &code)
    if code != PR_STREAM_OTHER and code != PR_TIME_OVER:
        raise_misuse(window, code, "received batches")
    return taken


cdef class Inlet:
    """What a connection has received and nobody has taken yet; see stream.pyi."""
    cdef pr_inlet inlet
    cdef Py_buffer memory
    cdef bint held

    def __cinit__(self, int fd, memory):
        PyObject_GetBuffer(memory, &self.memory, PyBUF_SIMPLE | PyBUF_WRITABLE)
        self.held = True
        memset(&self.inlet, 0, sizeof(pr_inlet))
        self.inlet.memory, self.inlet.size, self.inlet.fd = <uint8_t *>self.memory.buf, self.memory.len, fd
        if self.inlet.size < sizeof(pr_frame) + PR_BLOCK + PR_MAX_PAYLOAD + 8:
            raise ValueError("an inlet has room for the longest frame")

    def __dealloc__(self):
        if self.held:
            PyBuffer_Release(&self.memory)

    @property
    def received(self):
        return self.inlet.received

    @property
    def at_hand(self):
        return self.inlet.end - self.inlet.at

    @property
    def is_whole(self):
        return pr_inlet_whole(&self.inlet)

    cdef int raise_for(self, int code) except -1:
        if code == PR_INLET_ENDED:
            raise EOFError("the peer sends no more")
        if code == -EAGAIN:
            raise BlockingIOError(errno_names.EAGAIN, "nothing was received")
        if code < 0:
            raise OSError(-code, os.strerror(-code))
        return 0

    def fill(self, size_t length):
        cdef int code
        if length > self.inlet.size:
            raise ValueError(f"{length} bytes do not fit")
        with nogil:
            code = pr_inlet_fill(&self.inlet, length)
        self.raise_for(code)
        return self.inlet.at

    def skip(self, size_t length):
        if length > self.inlet.end - self.inlet.at:
            raise ValueError(f"{length} bytes are not at hand")
        self.inlet.at += length

    def take(self, Window window not None, Reach reach not None, uint64_t most, uint64_t quiet):
        cdef int code, peer = 0
        with nogil:
            code = pr_inlet_take(&self.inlet, window.ptr, &reach.reach, most, quiet, SLICE, &peer)
        if peer:
            self.raise_for(code)
        if code == PR_STREAM_OTHER:
            return False
        if code != PR_TIME_OVER:
            raise_misuse(window, code, "received batches")
        return True


cdef class Outlet:
    """A lot of batches of events with their frames; see stream.pyi."""
    cdef pr_outlet outlet
    cdef Window window

    def __cinit__(self, Window window not None):
        memset(&self.outlet, 0, sizeof(pr_outlet))
        self.window = window

    def __dealloc__(self):
        self.release()

    @property
    def count(self):
        return self.outlet.lot.count

    @property
    def first_lsn(self):
        return self.outlet.lot.entries[0].first_lsn if self.outlet.lot.count else 0

    def fetch(self, uint64_t position, uint64_t until, uint64_t most):
        cdef int code
        self.release()
        with nogil:
            code = pr_window_lot(self.window.ptr, position, until, most, &self.outlet.lot)
        raise_misuse(self.window, code, f"position {position}")
        return self.outlet.lot.count

    def marks(self):
        cdef list result = []
        cdef const pr_entry *e
        cdef uint32_t i
        for i in range(self.outlet.lot.count):
            e = &self.outlet.lot.entries[i]
            result.append((pr_outlet_length(e), e.last_lsn, e.position + e.length, pr_longest(e)))
        return result

    def head(self, uint32_t number):
        if number >= self.outlet.lot.count:
            raise IndexError(f"batch {number} of {self.outlet.lot.count}")
        cdef const pr_entry *e = &self.outlet.lot.entries[number]
        return PyBytes_FromStringAndSize(<const char *>e.travel, pr_head_length(e))

    def seal(self, uint64_t sequence, uint32_t session):
        pr_outlet_seal(&self.outlet, sequence, session)

    @property
    def length(self):
        return self.outlet.length - self.outlet.sent

    def send(self, int fd, int patience, int dead):
        cdef int code
        cdef uint64_t before = self.outlet.sent
        with nogil:
            code = pr_outlet_send(&self.outlet, self.window.ptr, fd, patience, dead)
        if code == -ETIMEDOUT:
            raise TimeoutError(ETIMEDOUT, "the peer takes no data")
        if code < 0:
            raise OSError(-code, os.strerror(-code))
        return self.outlet.sent - before

    def __bytes__(self):
        cdef bytes made = PyBytes_FromStringAndSize(NULL, self.outlet.length - self.outlet.sent)
        pr_outlet_copy(&self.outlet, <uint8_t *>PyBytes_AS_STRING(made))
        return made

    def release(self):
        pr_outlet_release(&self.outlet, self.window.ptr)
