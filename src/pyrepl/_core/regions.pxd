from libc.stdint cimport uint64_t


cdef extern from "regions.h" nogil:
    ctypedef struct pr_regions:
        pass


cdef class RegionMap:
    cdef pr_regions *ptr  # never NULL
    cdef Py_ssize_t views  # arrays and buffers of the bits that are out
    cdef Py_ssize_t shape  # words, for those
    cdef int _range(self, object first, object count) except -1
