"""RegionMap for Python. Decides the arguments that are good and the encoding of a map; regions.c does the rest."""
from libc.stdint cimport uint32_t, uint64_t
from libc.string cimport memcpy

from pyrepl._core.regions cimport RegionMap, pr_regions


cdef extern from "regions.h" nogil:
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
    void pr_regions_union(pr_regions *into, const pr_regions *other)
    void pr_regions_subtract(pr_regions *map, const pr_regions *other)
    void pr_regions_copy_range(pr_regions *into, const pr_regions *other, uint64_t first, uint64_t n)
    const uint64_t *pr_regions_words(const pr_regions *map)

cdef extern from *:
    """
    #include "regions.h"
    #include <string.h>
    /* Marks `n` pairs (first, count); the number of the first pair that is outside, or n. */
    static uint64_t mark_pairs(pr_regions *map, const uint64_t *pairs, uint64_t n)
    {
        uint64_t size = pr_regions_size(map);
        for (uint64_t i = 0; i < n; i++)
            if (pairs[2 * i] > size || pairs[2 * i + 1] > size - pairs[2 * i])
                return i;
        for (uint64_t i = 0; i < n; i++)
            pr_regions_mark(map, pairs[2 * i], pairs[2 * i + 1]);
        return n;
    }
    /* Writes up to `room` runs as pairs from *at on; moves *at behind the last one; the number of runs. */
    static uint64_t take_pairs(const pr_regions *map, uint64_t *at, unsigned char *into, uint64_t room)
    {
        uint64_t n = 0, pair[2];
        while (n < room && (pair[1] = pr_regions_next(map, *at, UINT64_MAX, &pair[0]))) {
            memcpy(into + 16 * n++, pair, sizeof pair);
            *at = pair[0] + pair[1];
        }
        return n;
    }
    static void from_bits(pr_regions *map, const unsigned char *bits, uint64_t words)
    {
        for (uint64_t i = 0; i < words; i++) {
            uint64_t word;
            memcpy(&word, bits + 8 * i, sizeof word);
            while (word) {                              /* run by run, so that the summary is kept */
                unsigned from = (unsigned)__builtin_ctzll(word), run = ~(word >> from) ? (unsigned)__builtin_ctzll(~(word >> from)) : 64;
                pr_regions_mark(map, i * 64 + from, run);
                word = from + run >= 64 ? 0 : word & ~0ull << (from + run);
            }
        }
    }
    """
    uint64_t mark_pairs(pr_regions *map, const uint64_t *pairs, uint64_t n) nogil
    uint64_t take_pairs(const pr_regions *map, uint64_t *at, unsigned char *into, uint64_t room) nogil
    void from_bits(pr_regions *map, const unsigned char *bits, uint64_t words) nogil

cdef enum:
    BY_RUNS = 1  # encoding: u8 kind, u64 size, then pairs (first, count) ...
    BY_BITS = 2  # ... or the words

cdef uint64_t EVERY = <uint64_t>-1
cdef uint64_t MOST_REGIONS = <uint64_t>1 << 40


cdef RegionMap _new(uint64_t size):
    cdef RegionMap made = RegionMap.__new__(RegionMap)
    made.ptr = pr_regions_new(size)
    if made.ptr == NULL:
        raise MemoryError(f"no memory for a map of {size} regions")
    return made


class _View:
    """An array's memory together with the map that owns it."""

    def __init__(self, owner, array):
        self.owner = owner
        self.__array_interface__ = {**array.__array_interface__, "data": (array.__array_interface__["data"][0], True)}


cdef class RegionMap:
    def __init__(self, size, *, marked=False):
        if not 0 <= size <= MOST_REGIONS:
            raise ValueError(f"a map of {size} regions: 0 to {MOST_REGIONS}")
        if self.ptr != NULL:
            raise ValueError("the map is made already")
        self.ptr = pr_regions_new(size)
        if self.ptr == NULL:
            raise MemoryError(f"no memory for a map of {size} regions")
        if marked:
            pr_regions_mark(self.ptr, 0, size)

    def __dealloc__(self):
        pr_regions_free(self.ptr)

    cdef int _range(self, object first, object count) except -1:
        cdef uint64_t size = pr_regions_size(self.ptr)
        if first < 0 or count < 0 or first > size or count > size - first:
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

    def mark_ranges(self, const unsigned char[::1] ranges not None):
        cdef uint64_t n = ranges.shape[0] // 16, bad
        cdef const uint64_t *pairs = <const uint64_t *>&ranges[0] if n else NULL
        if ranges.shape[0] % 16:
            raise ValueError("ranges are pairs of uint64: (first, count)")
        with nogil:
            bad = mark_pairs(self.ptr, pairs, n)
        if bad < n:
            raise ValueError(f"range {bad} ({pairs[2 * bad]}, {pairs[2 * bad + 1]}) is outside a map of {self.size}")

    def __contains__(self, region):
        if not 0 <= region < self.size:
            raise ValueError(f"region {region} is outside a map of {self.size}")
        return bool(pr_regions_test(self.ptr, region))

    def __bool__(self):
        return bool(pr_regions_any(self.ptr))

    def count(self):
        cdef uint64_t n
        with nogil:
            n = pr_regions_count(self.ptr)
        return n

    def next_run(self, start=0, most=EVERY):
        cdef uint64_t first = 0, run
        if start < 0 or most < 0:
            raise ValueError(f"next_run({start}, {most}): not below 0")
        run = pr_regions_next(self.ptr, min(start, EVERY), min(most, EVERY), &first)
        return (first, run) if run else None

    def runs(self):
        at = 0
        while (run := self.next_run(at)) is not None:
            yield run
            at = run[0] + run[1]

    def union(self, RegionMap other not None):
        with nogil:
            pr_regions_union(self.ptr, other.ptr)

    def subtract(self, RegionMap other not None):
        with nogil:
            pr_regions_subtract(self.ptr, other.ptr)

    def copy_range(self, RegionMap other not None, first, count):
        self._range(first, count)
        if other is not self:
            pr_regions_copy_range(self.ptr, other.ptr, first, count)

    def copy(self):
        cdef RegionMap made = _new(pr_regions_size(self.ptr))
        with nogil:
            pr_regions_union(made.ptr, self.ptr)
        return made

    def resize(self, size):
        if not 0 <= size <= MOST_REGIONS:
            raise ValueError(f"a map of {size} regions: 0 to {MOST_REGIONS}")
        if pr_regions_resize(self.ptr, size) < 0:
            raise MemoryError(f"no memory for a map of {size} regions")

    def array(self):
        import numpy
        cdef uint64_t words = (pr_regions_size(self.ptr) + 63) // 64
        if not words:
            return numpy.zeros(0, dtype=numpy.uint64)
        made = numpy.asarray(<const uint64_t[:words]><uint64_t *>pr_regions_words(self.ptr))
        made.flags.writeable = False
        return numpy.asarray(_View(self, made))

    def encode(self):
        cdef uint64_t size = pr_regions_size(self.ptr), words = (size + 63) // 64, at = 0, n, first = 0, room = words // 2
        cdef bytearray into = bytearray(9 + words * 8)
        cdef unsigned char[::1] view = into
        memcpy(&view[1], &size, 8)
        if words:
            n = take_pairs(self.ptr, &at, &view[9], room) if room else 0
            if pr_regions_next(self.ptr, at, EVERY, &first) == 0:
                view[0] = BY_RUNS
                return bytes(into[:9 + n * 16])
            memcpy(&view[9], pr_regions_words(self.ptr), words * 8)
            view[0] = BY_BITS
            return bytes(into)
        view[0] = BY_RUNS
        return bytes(into[:9])

    @staticmethod
    def decode(const unsigned char[::1] data not None):
        cdef uint64_t size, n
        cdef RegionMap made
        if data.shape[0] < 9 or data[0] not in (BY_RUNS, BY_BITS):
            raise ValueError("not an encoded region map that this version knows")
        memcpy(&size, &data[1], 8)
        if size > MOST_REGIONS:
            raise ValueError(f"a map of {size} regions: 0 to {MOST_REGIONS}")
        body = bytes(data[9:])
        if data[0] == BY_RUNS:
            if len(body) % 16:
                raise ValueError("an encoded region map with half a run")
            made = _new(size)
            made.mark_ranges(body)
            return made
        if <uint64_t>len(body) != (size + 63) // 64 * 8 or (size % 64 and int.from_bytes(body[-8:], "little") >> (size % 64)):
            raise ValueError("an encoded region map whose bits do not fit its size")
        made = _new(size)
        from_bits(made.ptr, &data[9] if size else NULL, (size + 63) // 64)
        return made

    def __eq__(self, other):
        if not isinstance(other, RegionMap):
            return NotImplemented
        return self.encode() == other.encode()

    __hash__ = None

    def __repr__(self):
        return f"<RegionMap {self.count()} of {self.size}>"
