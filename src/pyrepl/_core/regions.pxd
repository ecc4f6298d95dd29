from libc.stdint cimport uint64_t


cdef extern from "regions.h" nogil:
    ctypedef struct pr_regions:
        pass


cdef class RegionMap:
    cdef pr_regions *ptr
    cdef int _range(self, object first, object count) except -1
