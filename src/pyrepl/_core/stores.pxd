from libc.stdint cimport uint32_t


cdef extern from "stores.h" nogil:
    ctypedef struct pr_stores:
        uint32_t region_size, alignment


cdef class Stores:
    cdef pr_stores *ptr
    cdef dict devices  # slot -> Device, so that it outlives its use here
    cdef object __weakref__
