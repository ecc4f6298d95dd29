"""The pool of aligned buffers, as a Python object: for tests, and for whoever hands memory to a device from Python.

Decides nothing. The pool is in buffers.c.
"""
from cpython.buffer cimport PyBuffer_FillInfo


cdef extern from "buffers.h" nogil:
    void *pr_buffer_take(size_t length)
    void pr_buffer_give(void *buffer, size_t length)


cdef class Buffer:
    """Writable memory, aligned to 4096 bytes; its contents are arbitrary until written."""
    cdef void *memory
    cdef size_t length

    def __cinit__(self, length):
        if not 0 < length < 1 << 46:
            raise ValueError(f"length must be above 0 and below 2**46, not {length}")
        self.length = length
        self.memory = pr_buffer_take(self.length)
        if self.memory == NULL:
            raise MemoryError(f"a buffer of {length} bytes")

    def __dealloc__(self):
        pr_buffer_give(self.memory, self.length)

    def __len__(self):
        return self.length

    def __getbuffer__(self, Py_buffer *view, int flags):
        PyBuffer_FillInfo(view, self, self.memory, self.length, 0, flags)

    def __releasebuffer__(self, Py_buffer *view):
        pass
