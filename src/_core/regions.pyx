"""RegionMap for Python. Decides which arguments are good; regions.c does the rest. Must not know what a mark means."""
from cpython.buffer cimport PyBUF_FORMAT, PyBUF_ND, PyBUF_SIMPLE, PyBUF_WRITABLE, PyBuffer_Release, PyObject_GetBuffer
from cpython.bytes cimport PyBytes_FromStringAndSize
from libc.errno cimport ENOMEM
from libc.stdint cimport uint8_t, uint64_t

from pyrepl._core.regions cimport RegionMap, pr_regions


cdef extern from "regions.h" nogil:
    const uint64_t PR_MAX_REGIONS
    pr_regions *pr_regions_new(uint64_t count)
    void pr_regions_free(pr_regions *map)
    uint64_t pr_regions_size(const pr_regions *map)
    int pr_regions_resize(pr_regions *map, uint64_t count)
    void pr_regions_mark(pr_regions *map, uint64_t first, uint64_t n)
    void pr_regions_clear(pr_regions *map, uint64_t first, uint64_t n)
    int pr_regions_test(const pr_regions *map, uint64_t region)
    uint64_t pr_regions_count(const pr_regions *map)
    int pr_regions_any(const pr_regions *map)
    uint64_t pr_regions_next(const pr_regions *map, uint64_t start, uint64_t most, uint64_t *first)
    int pr_regions_equal(const pr_regions *a, const pr_regions *b)
    uint64_t pr_regions_mark_pairs(pr_regions *map, const uint8_t *pairs, uint64_t n)
    void pr_regions_union(pr_regions *into, const pr_regions *other)
    void pr_regions_subtract(pr_regions *map, const pr_regions *other)
    void pr_regions_copy_range(pr_regions *into, const pr_regions *other, uint64_t first, uint64_t n)
    uint64_t pr_regions_encode(const pr_regions *map, uint8_t *into, uint64_t length)
    int pr_regions_decode(const uint8_t *data, uint64_t length, pr_regions **map)
    const uint64_t *pr_regions_words(const pr_regions *map)

cdef uint64_t EVERY = <uint64_t>-1
cdef char *WORD = b"Q"
cdef Py_ssize_t[1] STRIDE = [8]


cdef uint64_t number(object value) except? 0:
    """A number of regions; what no map can reach is as good as 2**64 - 1."""
    try:
        return value
    except OverflowError:
        if value < 0:
            raise ValueError(f"{value} regions: not below 0") from None
        return EVERY


cdef uint64_t size_of(object value) except? 0:
    cdef uint64_t size = number(value)
    if size > PR_MAX_REGIONS:
        raise ValueError(f"a map of {value} regions: at most {PR_MAX_REGIONS}")
    return size


cdef class RegionMap:
    def __cinit__(self, size, *, marked=False):
        cdef uint64_t count = size_of(size)
        self.ptr = pr_regions_new(count)
        if self.ptr == NULL:
            raise MemoryError(f"no memory for a map of {count} regions")
        if marked:
            with nogil:
                pr_regions_mark(self.ptr, 0, count)

    def __dealloc__(self):
        pr_regions_free(self.ptr)

    cdef int _range(self, object first, object count) except -1:
        cdef uint64_t size = pr_regions_size(self.ptr), start = number(first), n = number(count)
        if start > size or n > size - start:
            raise ValueError(f"regions {first} to {first + count} are outside a map of {size}")
        return 0

    @property
    def size(self):
        return pr_regions_size(self.ptr)

    def mark(self, first, count=1):
        self._range(first, count)
        pr_regions_mark(self.ptr, first, count)

    def clear(self, first, count=1):
        self._range(first, count)
        pr_regions_clear(self.ptr, first, count)

    def mark_ranges(self, ranges):
        cdef Py_buffer pairs
        cdef uint64_t n, bad
        PyObject_GetBuffer(ranges, &pairs, PyBUF_SIMPLE)
        try:
            if pairs.len % 16:
                raise ValueError("ranges are pairs of uint64 (first, count): a multiple of 16 bytes")
            n = pairs.len // 16
            with nogil:
                bad = pr_regions_mark_pairs(self.ptr, <const uint8_t *>pairs.buf, n)
        finally:
            PyBuffer_Release(&pairs)
        if bad < n:
            raise ValueError(f"range {bad} is outside a map of {self.size}: nothing was marked")

    def __contains__(self, region):
        cdef uint64_t wanted = number(region)
        if wanted >= pr_regions_size(self.ptr):
            raise ValueError(f"region {region} is outside a map of {self.size}")
        return pr_regions_test(self.ptr, wanted) != 0

    def __bool__(self):
        return pr_regions_any(self.ptr) != 0

    def count(self):
        cdef uint64_t n
        with nogil:
            n = pr_regions_count(self.ptr)
        return n

    def next_run(self, start=0, most=EVERY):
        cdef uint64_t first = 0, run
        run = pr_regions_next(self.ptr, number(start), number(most), &first)
        return (first, run) if run else None

    def runs(self):
        cdef uint64_t at = 0, first = 0, run
        while True:
            run = pr_regions_next(self.ptr, at, EVERY, &first)
            if not run:
                return
            at = first + run
            yield first, run

    def union(self, RegionMap other not None):
        with nogil:
            pr_regions_union(self.ptr, other.ptr)

    def subtract(self, RegionMap other not None):
        with nogil:
            pr_regions_subtract(self.ptr, other.ptr)

    def copy_range(self, RegionMap other not None, first, count):
        cdef uint64_t start, n
        self._range(first, count)
        start, n = first, count
        with nogil:
            pr_regions_copy_range(self.ptr, other.ptr, start, n)

    def copy(self):
        cdef RegionMap made = RegionMap.__new__(RegionMap, pr_regions_size(self.ptr))
        with nogil:
            pr_regions_union(made.ptr, self.ptr)
        return made

    def resize(self, size):
        cdef uint64_t count = size_of(size)
        if self.views:
            raise BufferError("a map cannot be resized while an array shows its bits")
        if pr_regions_resize(self.ptr, count) < 0:
            raise MemoryError(f"no memory for a map of {count} regions")

    def __getbuffer__(self, Py_buffer *buffer, int flags):
        if flags & PyBUF_WRITABLE:
            raise BufferError("the bits of a map are shown read-only")
        self.shape = (pr_regions_size(self.ptr) + 63) // 64
        buffer.buf = <void *>pr_regions_words(self.ptr)
        buffer.len = self.shape * 8
        buffer.readonly = 1
        buffer.itemsize = 8
        buffer.format = WORD if flags & PyBUF_FORMAT else NULL
        buffer.ndim = 1
        buffer.shape = &self.shape if flags & PyBUF_ND else NULL
        buffer.strides = STRIDE if flags & PyBUF_ND else NULL
        buffer.suboffsets = NULL
        buffer.internal = NULL
        buffer.obj = self
        self.views += 1

    def __releasebuffer__(self, Py_buffer *buffer):
        self.views -= 1

    def array(self):
        import numpy
        return numpy.asarray(memoryview(self))

    def encode(self):
        cdef uint64_t length = 0, taken
        cdef uint8_t *into = NULL
        cdef bytes made
        while True:
            with nogil:
                taken = pr_regions_encode(self.ptr, into, length)
            if taken <= length:
                return made[:taken]  # all of it, and no copy, unless another thread marked meanwhile
            length = taken
            made = PyBytes_FromStringAndSize(NULL, length)
            into = <uint8_t *><char *>made

    @staticmethod
    def decode(const uint8_t[::1] data not None):
        cdef RegionMap made = RegionMap.__new__(RegionMap, 0)
        cdef pr_regions *decoded = NULL
        cdef uint64_t length = data.shape[0]
        cdef const uint8_t *start = &data[0] if length else NULL
        cdef int code
        with nogil:
            code = pr_regions_decode(start, length, &decoded)
        if code == -ENOMEM:
            raise MemoryError("no memory for an encoded region map")
        if code < 0:
            raise ValueError("not an encoded region map, or one of a later version")
        pr_regions_free(made.ptr)
        made.ptr = decoded
        return made

    def __eq__(self, other):
        if not isinstance(other, RegionMap):
            return NotImplemented
        return pr_regions_equal(self.ptr, (<RegionMap>other).ptr) != 0

    __hash__ = None

    def __repr__(self):
        return f"<RegionMap {self.count()} of {self.size}>"
