"""Stores for Python: takes arguments, checks what C leaves to its caller, words errors. The rules stand in stores.h."""
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize
from libc.errno cimport EBUSY, EEXIST, EINVAL, ENOENT, ENOMEM, ENOSPC, ERANGE
from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t

from pyrepl._core.device cimport Device, pr_device, raise_device
from pyrepl._core.sources cimport pr_sources

import os


cdef extern from "layout.h" nogil:
    enum:
        PR_MAX_STORES
        PR_MAX_REGION
        PR_BLOCK

    struct pr_map_entry:
        uint64_t first, count
        uint32_t slot, source


cdef extern from "sources.h" nogil:
    void pr_sources_free(pr_sources *map)
    uint64_t pr_sources_size(const pr_sources *map)
    uint16_t pr_sources_get(const pr_sources *map, uint64_t region)
    uint64_t pr_sources_run(const pr_sources *map, uint64_t start, uint64_t most, uint16_t *source)
    uint64_t pr_sources_count(const pr_sources *map, uint16_t source, uint64_t most)
    size_t pr_sources_encoded_bound(const pr_sources *map)
    size_t pr_sources_encode(const pr_sources *map, uint8_t *into)
    pr_sources *pr_sources_decode(const uint8_t *data, size_t length)


cdef extern from "stores.h" nogil:
    ctypedef struct pr_store:
        uint32_t id, slot
        uint64_t size
        pr_sources *map

    ctypedef struct pr_extent:
        uint32_t slot
        uint64_t offset, length

    pr_stores *pr_stores_new(uint32_t region_size, uint32_t alignment)
    void pr_stores_free(pr_stores *stores)
    int pr_stores_add(pr_stores *stores, uint32_t slot, uint32_t id, pr_device *device, uint64_t size, uint16_t source)
    int pr_stores_drop_map(pr_stores *stores, uint32_t slot)
    int pr_stores_remove(pr_stores *stores, uint32_t slot)
    uint64_t pr_stores_shown(pr_stores *stores, uint32_t slot, uint64_t most)
    uint64_t pr_stores_memory(pr_stores *stores)
    int pr_stores_differing(pr_stores *stores, uint32_t target, uint32_t source, uint64_t first, uint64_t n,
                            uint64_t *count)
    int pr_stores_copy(pr_stores *stores, uint32_t target, uint32_t source, uint64_t first, uint64_t n,
                       uint64_t *changed)
    int pr_stores_resize(pr_stores *stores, uint32_t slot, uint64_t size)
    int pr_stores_repoint(pr_stores *stores, const pr_map_entry *entries, size_t count)
    int pr_stores_set_scratch(pr_stores *stores, uint32_t slot)
    int pr_stores_set_map(pr_stores *stores, uint32_t slot, pr_sources *map)
    int pr_stores_flush(pr_stores *stores, uint32_t *failed)
    int pr_stores_resolve(pr_stores *stores, uint32_t id, uint64_t offset, uint64_t length, pr_extent *extents,
                          uint32_t most, uint64_t *covered, uint64_t *version)
    uint64_t pr_stores_version(pr_stores *stores, uint32_t id, uint64_t offset, uint64_t length)
    int pr_stores_turn(pr_stores *stores)


cdef extern from *:
    """
    #define pyx_slot(stores, slot) ((stores)->slots[slot])      /* a field that the face (stores.pxd) does not show */
    """
    pr_store *pyx_slot(pr_stores *stores, uint32_t slot) nogil


cdef int misuse(int code, object what) except -1:
    """A negative code of stores.c that the caller is to blame for, as an exception."""
    if code == -ENOMEM:
        raise MemoryError(what)
    if code == -ENOENT:
        raise LookupError(what)
    if code in (-EINVAL, -ERANGE):
        raise ValueError(what)
    raise OSError(-code, f"{os.strerror(-code)}: {what}")


cdef pr_store *live(Stores stores, uint32_t slot) except NULL:
    """The live store in a slot."""
    cdef pr_store *store = pyx_slot(stores.ptr, slot) if 0 < slot < PR_MAX_STORES else NULL
    if store == NULL or store.map == NULL:
        raise LookupError(f"no live store in slot {slot}")
    return store


cdef class Stores:
    def __cinit__(self):
        self.ptr = NULL
        self.devices = {}
        self.gone = []
        self.going = []

    def __init__(self, *, uint32_t region_size, uint32_t alignment):
        if self.ptr != NULL:
            raise RuntimeError("Stores.__init__ is called once")
        if alignment not in (512, 4096):
            raise ValueError(f"alignment = {alignment}: must be 512 or 4096")
        if not PR_BLOCK <= region_size <= PR_MAX_REGION or region_size & (region_size - 1):
            raise ValueError(f"region_size = {region_size}: must be a power of two from {PR_BLOCK} to {PR_MAX_REGION}")
        self.ptr = pr_stores_new(region_size, alignment)
        if self.ptr == NULL:
            raise MemoryError

    def __dealloc__(self):
        pr_stores_free(self.ptr)

    @property
    def region_size(self):
        return self.ptr.region_size

    def add(self, uint32_t slot, Device device not None, *, uint32_t store=0, uint64_t size=0, bint zero=False):
        cdef int code
        cdef pr_device *ptr = device.ptr
        cdef uint16_t source = 0 if zero else <uint16_t> slot
        if not 0 < slot < PR_MAX_STORES:
            raise ValueError(f"slot {slot}: must be from 1 to {PR_MAX_STORES - 1}")
        if ptr == NULL:
            raise ValueError(f"device {device.name} is closed")
        if store and size % self.ptr.alignment:
            raise ValueError(f"size {size} is not a multiple of the alignment {self.ptr.alignment}")
        if store and size > ptr.size:
            raise ValueError(f"size {size} is beyond the end of device {device.name} at {ptr.size}")
        if ptr.sector > self.ptr.alignment:
            raise ValueError(f"device {device.name} has sectors of {ptr.sector}, the alignment is {self.ptr.alignment}")
        with nogil:
            code = pr_stores_add(self.ptr, slot, store, ptr, size, source)
        if code == -EEXIST:
            raise ValueError(f"slot {slot} or store {store} is in the table already")
        if code < 0:
            misuse(code, f"slot {slot}, store {store}")
        self.devices[slot] = device

    def set_scratch(self, uint32_t slot):
        cdef int code
        with nogil:
            code = pr_stores_set_scratch(self.ptr, slot)
        if code < 0:
            misuse(code, f"slot {slot} cannot be the scratch device")

    def drop_map(self, uint32_t slot):
        cdef int code
        with nogil:
            code = pr_stores_drop_map(self.ptr, slot)
        if code < 0:
            misuse(code, f"no live store in slot {slot}")

    def remove(self, uint32_t slot):
        cdef int code
        with nogil:
            code = pr_stores_remove(self.ptr, slot)
        if code < 0:
            misuse(code, f"slot {slot} is shown by a store" if code == -EBUSY else f"no device in slot {slot}")
        self.gone.append(self.devices.pop(slot))
        if pr_stores_turn(self.ptr):
            self.going, self.gone = self.gone, []   # frees what nobody can read any more

    def device(self, slot):
        return self.devices[slot]

    def slots(self):
        return sorted(self.devices)

    def free_slot(self):
        for slot in range(1, <int> PR_MAX_STORES):
            if slot not in self.devices:
                return slot
        raise OSError(ENOSPC, f"all {PR_MAX_STORES - 1} slots are in use")

    def shown(self, uint32_t slot, uint64_t most=0xFFFFFFFFFFFFFFFF):
        cdef uint64_t count
        if slot not in self.devices:
            raise LookupError(f"no device in slot {slot}")
        with nogil:
            count = pr_stores_shown(self.ptr, slot, most)
        return count

    def foreign(self, uint32_t slot):
        cdef pr_sources *map = live(self, slot).map
        cdef uint64_t count
        with nogil:
            count = (pr_sources_size(map) - pr_sources_count(map, <uint16_t> slot, 0xFFFFFFFFFFFFFFFF)
                     - pr_sources_count(map, 0, 0xFFFFFFFFFFFFFFFF))
        return count

    def copy(self, uint32_t target, uint32_t source, uint64_t first, uint64_t count):
        cdef uint64_t changed = 0
        cdef int code
        with nogil:
            code = pr_stores_copy(self.ptr, target, source, first, count, &changed)
        if code == -ERANGE:
            raise ValueError(f"regions {first} + {count} are outside the store in slot {target} or {source}")
        if code < 0:
            misuse(code, f"slot {target} or {source} holds no live store")
        return changed

    def differing(self, uint32_t target, uint32_t source, uint64_t first, uint64_t count):
        cdef uint64_t regions = 0
        cdef int code
        with nogil:
            code = pr_stores_differing(self.ptr, target, source, first, count, &regions)
        if code == -ERANGE:
            raise ValueError(f"regions {first} + {count} are outside the store in slot {target} or {source}")
        if code < 0:
            misuse(code, f"slot {target} or {source} holds no live store")
        return regions

    def resize(self, uint32_t slot, uint64_t size):
        cdef int code
        with nogil:
            code = pr_stores_resize(self.ptr, slot, size)
        if code < 0:
            misuse(code, f"slot {slot}: no live store, or {size} is not a multiple of {self.ptr.alignment}")

    def source(self, uint32_t slot, uint64_t region):
        cdef pr_sources *map = live(self, slot).map
        if region >= pr_sources_size(map):
            raise IndexError(f"region {region} is outside a store of {pr_sources_size(map)}")
        return pr_sources_get(map, region)

    def runs(self, uint32_t slot):
        cdef pr_sources *map = live(self, slot).map
        cdef uint64_t at = 0
        cdef uint64_t count
        cdef uint16_t source = 0
        cdef list result = []
        while (count := pr_sources_run(map, at, 0xFFFFFFFFFFFFFFFF, &source)) != 0:
            result.append((at, count, source))
            at += count
        return result

    def resolve(self, uint32_t store, uint64_t offset, uint64_t length, uint32_t most=64):
        cdef pr_extent extents[64]
        cdef uint64_t covered = 0
        cdef uint64_t version = 0
        cdef int count
        with nogil:
            count = pr_stores_resolve(self.ptr, store, offset, length, extents, min(most, 64), &covered, &version)
        if count == -ENOENT:
            raise LookupError(f"no store {store}")
        if count < 0:
            raise ValueError(f"{offset} + {length} is outside store {store}")
        return [(extents[i].slot, extents[i].offset, extents[i].length) for i in range(count)], covered, version

    def version(self, uint32_t store, uint64_t offset, uint64_t length):
        return pr_stores_version(self.ptr, store, offset, length)

    def repoint(self, entries):
        cdef const uint8_t[::1] view = memoryview(entries).cast("B")
        cdef size_t length = view.shape[0]
        cdef int code
        if length % sizeof(pr_map_entry):
            raise ValueError(f"{length} bytes are no map entries of {sizeof(pr_map_entry)} each")
        if length == 0:
            return
        cdef const uint8_t *data = &view[0]
        with nogil:
            code = pr_stores_repoint(self.ptr, <const pr_map_entry *> data, length // sizeof(pr_map_entry))
        if code < 0:
            misuse(code, "a map entry names no slot or region of this table")

    def flush(self):
        cdef uint32_t failed = 0
        cdef int code
        with nogil:
            code = pr_stores_flush(self.ptr, &failed)
        if code < 0:
            raise_device(self.devices[failed], code)

    def encode_map(self, uint32_t slot):
        cdef pr_sources *map = live(self, slot).map
        cdef bytes data = PyBytes_FromStringAndSize(NULL, pr_sources_encoded_bound(map))
        cdef uint8_t *into = <uint8_t *> PyBytes_AS_STRING(data)
        cdef size_t length
        with nogil:
            length = pr_sources_encode(map, into)
        return data[:length]

    def decode_map(self, uint32_t slot, data):
        cdef const uint8_t[::1] view = memoryview(data).cast("B")
        cdef size_t length = view.shape[0]
        cdef pr_sources *map = NULL
        cdef int code
        live(self, slot)
        if length:
            map = pr_sources_decode(&view[0], length)
        if map == NULL:
            raise ValueError("malformed source map")
        with nogil:
            code = pr_stores_set_map(self.ptr, slot, map)
        if code < 0:
            pr_sources_free(map)
            misuse(code, f"the map is not one of the store in slot {slot}: its size, or a source not in the table")

    def map_memory(self):
        cdef uint64_t total
        with nogil:
            total = pr_stores_memory(self.ptr)
        return total
