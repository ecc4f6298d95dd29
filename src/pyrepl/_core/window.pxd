from libc.stdint cimport uint8_t, uint32_t, uint64_t

from pyrepl._core.device cimport Device


cdef extern from "window.h" nogil:
    ctypedef struct pr_window:
        pass
    ctypedef struct pr_submission:
        uint32_t store
        uint8_t kind, flags
        uint64_t offset, length
        const uint8_t *data
        uint64_t done, lsn, target
    struct pr_travel:
        uint8_t kind
        uint8_t generation[16]
        uint64_t first_lsn
        uint32_t count, payload_length
        uint64_t item, read_end, time_ns
    struct pr_record:
        uint8_t kind
        uint32_t store
        uint64_t offset
        uint32_t length
        uint32_t payload
    ctypedef struct pr_entry:
        uint64_t position, length
        uint8_t kind, note
        uint64_t first_lsn, last_lsn
        const uint8_t *memory
        const pr_travel *travel
        const pr_record *records
        const uint8_t *payload


cdef class Window:
    cdef pr_window *ptr
    cdef Device device
    cdef uint32_t unit  # the alignment
    cdef object __weakref__

    cdef int give(self, pr_submission *m) except -1
    cdef int wait_for(self, uint64_t target, uint64_t lsn, bint fua, object timeout=*) except -1
    cdef int prepare(self, pr_submission *m, object store, object offset, object length, int kind, int flags) except -1
    cdef object write_data(self, object store, object offset, object data, bint fua, int flags)
    cdef object beyond(self, bint durable, object beyond, object timeout, object wants=*)


cdef class Entry:
    cdef pr_entry entry
    cdef Window window
    cdef bint held
    cdef bint given_up  # released while views of it are out: they keep the pin
    cdef uint32_t views

    cdef void drop(self) noexcept
    cdef int check(self) except -1


cdef int raise_misuse(Window window, int code, str what) except -1  # a code of window.c as an exception
