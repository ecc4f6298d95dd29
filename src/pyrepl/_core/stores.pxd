from libc.stdint cimport uint32_t


cdef extern from "stores.h" nogil:
    ctypedef struct pr_stores:
        uint32_t region_size, alignment


cdef class Stores:
    cdef pr_stores *ptr
    cdef dict devices  # slot -> Device, so that it outlives its use here
    cdef list gone, going  # devices that left the table, in this phase and in the one before: see pr_stores_enter
    cdef object __weakref__
