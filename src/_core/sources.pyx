"""SourceMap for Python: takes arguments, checks ranges, calls sources.c. Knows neither stores nor devices."""
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize
from libc.stdint cimport uint8_t, uint16_t, uint64_t


cdef extern from "sources.h" nogil:
    pr_sources *pr_sources_new(uint64_t count, uint16_t source)
    void pr_sources_free(pr_sources *map)
    uint64_t pr_sources_size(const pr_sources *map)
    int pr_sources_resize(pr_sources *map, uint64_t count, uint16_t source)
    uint16_t pr_sources_get(const pr_sources *map, uint64_t region)
    int pr_sources_set(pr_sources *map, uint64_t first, uint64_t n, uint16_t source)
    int pr_sources_copy(pr_sources *target, const pr_sources *source, uint64_t first, uint64_t n, uint64_t *changed)
    uint64_t pr_sources_run(const pr_sources *map, uint64_t start, uint64_t most, uint16_t *source)
    uint64_t pr_sources_find(const pr_sources *map, uint64_t start, uint16_t source, int want, uint64_t most,
                             uint64_t *first)
    int pr_sources_equal(const pr_sources *a, const pr_sources *b)
    uint64_t pr_sources_memory(const pr_sources *map)
    size_t pr_sources_encoded_bound(const pr_sources *map)
    size_t pr_sources_encode(const pr_sources *map, uint8_t *into)
    pr_sources *pr_sources_decode(const uint8_t *data, size_t length)


cdef uint64_t EVERYTHING = 0xFFFFFFFFFFFFFFFF


cdef class SourceMap:
    def __cinit__(self):
        self.ptr = NULL

    def __init__(self, uint64_t size, uint16_t source):
        cdef pr_sources *map
        with nogil:
            map = pr_sources_new(size, source)
        if map == NULL:
            raise MemoryError
        pr_sources_free(self.ptr)
        self.ptr = map

    def __dealloc__(self):
        pr_sources_free(self.ptr)

    cdef int check(self, uint64_t first, uint64_t count) except -1:
        cdef uint64_t size = pr_sources_size(self.ptr)
        if count > size or first > size - count:
            raise ValueError(f"regions {first} + {count} are outside a map of {size}")
        return 0

    @property
    def size(self):
        return pr_sources_size(self.ptr)

    @property
    def memory_bytes(self):
        return pr_sources_memory(self.ptr)

    def __getitem__(self, uint64_t region):
        if region >= pr_sources_size(self.ptr):
            raise IndexError(f"region {region} is outside a map of {pr_sources_size(self.ptr)}")
        return pr_sources_get(self.ptr, region)

    def set(self, uint64_t first, uint64_t count, uint16_t source):
        cdef int code
        self.check(first, count)
        with nogil:
            code = pr_sources_set(self.ptr, first, count, source)
        if code < 0:
            raise MemoryError

    def copy_range(self, SourceMap other not None, uint64_t first, uint64_t count):
        cdef uint64_t changed = 0
        cdef int code
        self.check(first, count)
        other.check(first, count)
        with nogil:
            code = pr_sources_copy(self.ptr, other.ptr, first, count, &changed)
        if code < 0:
            raise MemoryError
        return changed

    def copy(self):
        cdef uint64_t size = pr_sources_size(self.ptr)
        cdef SourceMap twin = SourceMap(size, 0)
        with nogil:
            pr_sources_copy(twin.ptr, self.ptr, 0, size, NULL)  # whole pages: takes no memory
        return twin

    def resize(self, uint64_t size, uint16_t source):
        cdef int code
        with nogil:
            code = pr_sources_resize(self.ptr, size, source)
        if code < 0:
            raise MemoryError

    def runs(self, uint64_t start=0):
        cdef uint64_t count
        cdef uint16_t source = 0
        while True:
            with nogil:
                count = pr_sources_run(self.ptr, start, EVERYTHING, &source)
            if count == 0:
                return
            yield start, count, source
            start += count

    def find(self, uint16_t source, *, uint64_t start=0, bint equal=True):
        cdef uint64_t first = 0
        cdef uint64_t count
        with nogil:
            count = pr_sources_find(self.ptr, start, source, equal, EVERYTHING, &first)
        return (first, count) if count else None

    def encode(self):
        cdef bytes data = PyBytes_FromStringAndSize(NULL, pr_sources_encoded_bound(self.ptr))
        cdef uint8_t *into = <uint8_t *> PyBytes_AS_STRING(data)
        cdef size_t length
        with nogil:
            length = pr_sources_encode(self.ptr, into)
        return data[:length]

    @staticmethod
    def decode(data):
        cdef const uint8_t[::1] view = memoryview(data).cast("B")
        cdef SourceMap map = SourceMap(0, 0)
        cdef pr_sources *decoded = NULL
        cdef size_t length = view.shape[0]
        if length:
            with nogil:
                decoded = pr_sources_decode(&view[0], length)
        if decoded == NULL:
            raise ValueError("malformed source map")
        pr_sources_free(map.ptr)
        map.ptr = decoded
        return map

    def __eq__(self, other):
        if not isinstance(other, SourceMap):
            return NotImplemented
        return bool(pr_sources_equal(self.ptr, (<SourceMap> other).ptr))

    __hash__ = None
