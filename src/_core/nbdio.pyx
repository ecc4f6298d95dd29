"""The transmission phase of NBD connections for Python: an object for each, one call for all of it, without the GIL.

Decides: what lives as long as a connection, and how the rare requests reach Python. Rules and loops are in nbdio.c.
"""
from cpython.bytes cimport PyBytes_AS_STRING
from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from libc.stdlib cimport malloc
from libc.string cimport memcpy, memset

from pyrepl._core.stores cimport Stores, pr_stores
from pyrepl._core.window cimport Window, pr_window

cdef extern from "nbd.h" nogil:
    enum:
        NBD_READ, NBD_WRITE, NBD_DISC, NBD_FLUSH, NBD_TRIM, NBD_CACHE, NBD_WRITE_ZEROES, NBD_BLOCK_STATUS, NBD_COMMANDS
        NBD_EIO

cdef extern from "nbdio.h" nogil:
    enum:
        NBD_PAYLOAD_MOST, NBD_FLIGHT, NBD_WORKERS, NBD_READ_MOST
        NBD_LEFT, NBD_LOST, NBD_GARBLED, NBD_TOO_LONG
    ctypedef struct pr_nbd_request:
        uint64_t cookie, offset
        uint32_t length
        uint16_t command, flags
    ctypedef struct pr_nbd_target:
        pr_window *window
        pr_stores *stores
        uint64_t size
        uint32_t store
        bint read_only, structured, statuses
        uint32_t (*rare)(void *context, const pr_nbd_request *request, uint8_t **answer,
                         uint32_t *length) noexcept nogil
        void *context
    ctypedef struct pr_nbd_counts:
        uint64_t requests[NBD_COMMANDS]
        uint64_t errors, bytes_read, bytes_written
    ctypedef struct pr_nbd:
        pass
    pr_nbd *pr_nbd_new(const pr_nbd_target *target, int fd, pr_nbd_counts *counts)
    int pr_nbd_serve(pr_nbd *connection)
    void pr_nbd_stop(pr_nbd *connection)
    void pr_nbd_free(pr_nbd *connection)

PAYLOAD_MOST = NBD_PAYLOAD_MOST
FLIGHT = NBD_FLIGHT
WORKERS = NBD_WORKERS
READ_MOST = NBD_READ_MOST
COMMANDS = {"read": NBD_READ, "write": NBD_WRITE, "disconnect": NBD_DISC, "flush": NBD_FLUSH, "trim": NBD_TRIM,
            "cache": NBD_CACHE, "write_zeroes": NBD_WRITE_ZEROES, "block_status": NBD_BLOCK_STATUS}
ENDS = {NBD_LEFT: "left", NBD_LOST: "lost", NBD_GARBLED: "garbled", NBD_TOO_LONG: "too-long"}


cdef uint32_t ask_python(void *context, const pr_nbd_request *request, uint8_t **answer,
                         uint32_t *length) noexcept with gil:
    """A rare request. What Python raises is logged there; here it is an I/O error."""
    cdef Connection connection = <Connection>context
    try:
        error, reply = connection.rare(request.command, request.flags, request.cookie, request.offset, request.length)
        if error == 0 and reply:
            answer[0] = <uint8_t *>malloc(len(reply))
            if answer[0] == NULL:
                raise MemoryError()
            memcpy(answer[0], PyBytes_AS_STRING(reply), len(reply))
            length[0] = len(reply)
        return error
    except BaseException as error:
        connection.failure = error
        return NBD_EIO


cdef class Connection:
    """See nbdio.pyi."""
    cdef pr_nbd *ptr
    cdef pr_nbd_counts counted
    cdef Window window
    cdef Stores stores
    cdef object rare
    cdef readonly object failure
    cdef bint served

    def __cinit__(self):
        memset(&self.counted, 0, sizeof(pr_nbd_counts))

    def __init__(self, Window window not None, Stores stores not None, *, uint32_t store, uint64_t size, int fd,
                 bint read_only, bint structured, bint statuses, rare):
        cdef pr_nbd_target target
        if self.ptr != NULL:
            raise RuntimeError("Connection.__init__ is called once")
        self.window, self.stores, self.rare = window, stores, rare
        target.window, target.stores = window.ptr, stores.ptr
        target.size, target.store = size, store
        target.read_only, target.structured, target.statuses = read_only, structured, statuses
        target.rare, target.context = ask_python, <void *>self
        self.ptr = pr_nbd_new(&target, fd, &self.counted)
        if self.ptr == NULL:
            raise MemoryError()

    def __dealloc__(self):
        pr_nbd_free(self.ptr)

    def serve(self):
        cdef int end
        if self.ptr == NULL or self.served:
            raise RuntimeError("a connection is served once")
        self.served = True
        with nogil:
            end = pr_nbd_serve(self.ptr)
        return ENDS[end]

    def stop(self):
        if self.ptr != NULL:
            pr_nbd_stop(self.ptr)

    def counts(self):
        result = {name: self.counted.requests[number] for name, number in COMMANDS.items()}
        return {"requests": result, "errors": self.counted.errors, "bytes_read": self.counted.bytes_read,
                "bytes_written": self.counted.bytes_written}
