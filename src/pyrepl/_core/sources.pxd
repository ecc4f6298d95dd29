from libc.stdint cimport uint64_t


cdef extern from "sources.h" nogil:
    ctypedef struct pr_sources:
        pass


cdef class SourceMap:
    cdef pr_sources *ptr
    cdef int check(self, uint64_t first, uint64_t count) except -1
