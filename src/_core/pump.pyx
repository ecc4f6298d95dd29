"""Bulk work for Python: copied batches, region maps, digests, comparing devices.

Decides: which arguments are misuse, and how errors are worded. The loops are in pump.c.
"""
import os

from cpython.buffer cimport PyBUF_C_CONTIGUOUS, PyBUF_WRITABLE, PyBuffer_Release, PyObject_GetBuffer
from cpython.bytes cimport PyBytes_FromStringAndSize
from libc.errno cimport E2BIG, ENOENT, ERANGE
from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.string cimport memcpy

from pyrepl._core.buffers import Buffer
from pyrepl._core.device cimport Device, pr_device, raise_device
from pyrepl._core.regions cimport RegionMap, pr_regions
from pyrepl._core.stores cimport Stores, pr_stores
from pyrepl._core.window cimport Entry, Window, pr_entry, pr_window

cdef extern from "pump.h" nogil:
    enum:
        PR_MAX_PAYLOAD, PR_MAX_RECORDS, PR_VIEW_RUNS
    ctypedef struct pr_run:
        uint64_t offset
        uint64_t length
    ctypedef struct pr_copied:
        uint8_t group[16]
        uint8_t generation[16]
        uint64_t lsn
        uint64_t item
        uint32_t count
        uint32_t payload_length
    int pr_pump_copied(pr_window *window, pr_stores *stores, uint32_t id, const pr_run *runs, uint32_t run_count,
                       uint8_t *payload, pr_copied *copied, pr_device **bad)
    int pr_pump_hash(pr_window *window, pr_stores *stores, uint32_t id, uint64_t length, uint8_t *digest,
                     pr_device **bad)
    int pr_pump_equal(pr_device *a, pr_device *b, uint64_t length, uint64_t *difference, pr_device **bad)

cdef extern from * nogil:
    """
    #include "pump.h"
    #include <errno.h>
    /* Entries are the window's; these keep its structures out of this file. -EINVAL: not a batch of events. */
    static int pr_entry_enter(const pr_entry *entry, uint32_t store, pr_regions *map, uint64_t region_size)
    {
        if (!entry->travel || entry->travel->kind != PR_BATCH_EVENTS)
            return -EINVAL;
        return pr_pump_enter(entry->travel, entry->records, store, map, region_size);
    }
    static int pr_entry_leave(const pr_entry *entry, uint32_t store, pr_regions *map, uint64_t region_size,
                               uint64_t store_size)
    {
        if (!entry->travel || entry->travel->kind != PR_BATCH_EVENTS)
            return -EINVAL;
        pr_pump_leave(entry->travel, entry->records, store, map, region_size, store_size);
        return 0;
    }
    static const char *pr_copied_head(const pr_copied *copied) { return (const char *)&copied->travel; }
    static size_t pr_copied_head_length(const pr_copied *copied)
    {
        _Static_assert(offsetof(pr_copied, records) == offsetof(pr_copied, travel) + sizeof(struct pr_travel),
                       "one head");
        return sizeof copied->travel + copied->count * sizeof(struct pr_record);
    }
    """
    int pr_entry_enter(const pr_entry *entry, uint32_t store, pr_regions *map, uint64_t region_size)
    int pr_entry_leave(const pr_entry *entry, uint32_t store, pr_regions *map, uint64_t region_size,
                       uint64_t store_size)
    const char *pr_copied_head(const pr_copied *copied)
    size_t pr_copied_head_length(const pr_copied *copied)


cdef int raise_pump(tuple devices, uint32_t store, int code, pr_device *bad) except -1:
    """-errno -> the error for people; `bad` is the device that failed."""
    if code >= 0:
        return 0
    if bad == NULL:
        if code == -ENOENT:
            raise LookupError(f"no store {store}")
        if code == -ERANGE:
            raise ValueError(f"the range is outside store {store}")
        if code == -E2BIG:
            raise ValueError(f"more than {PR_MAX_PAYLOAD} bytes or {PR_MAX_RECORDS} records do not fit into a batch")
    for device in devices:
        if (<Device>device).ptr == bad:
            raise_device(device, code)
    raise OSError(-code, os.strerror(-code), f"store {store}")


cdef int take_uuid(uint8_t *into, value, name) except -1:
    cdef bytes data = bytes(value)
    if len(data) != 16:
        raise ValueError(f"{name} must be 16 bytes, not {len(data)}")
    memcpy(into, <const char *>data, 16)
    return 0


def copied_batch(Window window not None, Stores stores not None, uint32_t store, runs, *, group, generation,
                 uint64_t lsn,
                 uint64_t item):
    cdef pr_run list[128]       # PR_VIEW_RUNS
    cdef pr_copied copied
    cdef pr_device *bad = NULL
    cdef Py_buffer view
    cdef uint8_t *memory
    cdef tuple own = tuple(runs)  # its length stays what is checked, whatever the items do
    cdef uint32_t count = len(own)
    cdef int code
    cdef tuple devices
    cdef uint64_t regions = 0
    if not 0 < count <= PR_VIEW_RUNS:
        raise ValueError(f"from 1 to {PR_VIEW_RUNS} runs, not {count}")
    for i, (first, length) in enumerate(own):
        if not (0 <= first < 1 << 52 and 0 < length < 1 << 32):
            raise ValueError(f"the run of {length} regions at {first} cannot be")
        list[i].offset, list[i].length = first, length
        regions += list[i].length
    if regions * stores.ptr.region_size > PR_MAX_PAYLOAD:
        raise ValueError(f"{regions} regions are more than {PR_MAX_PAYLOAD} bytes")
    take_uuid(copied.group, group, "group")
    take_uuid(copied.generation, generation, "generation")
    copied.lsn, copied.item = lsn, item
    devices = tuple(stores.devices.values())        # what leaves the table meanwhile lives until the read is over
    payload = Buffer(regions * stores.ptr.region_size)
    PyObject_GetBuffer(payload, &view, PyBUF_C_CONTIGUOUS | PyBUF_WRITABLE)
    memory = <uint8_t *>view.buf
    with nogil:
        code = pr_pump_copied(window.ptr, stores.ptr, store, list, count, memory, &copied, &bad)
    PyBuffer_Release(&view)
    raise_pump(devices, store, code, bad)
    head = PyBytes_FromStringAndSize(pr_copied_head(&copied), pr_copied_head_length(&copied))
    return head, memoryview(payload)[:copied.payload_length], copied.payload_length


cdef int check_regions(region_size) except -1:
    if region_size <= 0 or region_size & (region_size - 1) or region_size >= 1 << 63:
        raise ValueError(f"region_size must be a power of two, not {region_size}")
    return 0


def enter(Entry entry not None, uint32_t store, RegionMap regions not None, region_size):
    cdef uint64_t size
    cdef int code
    check_regions(region_size)
    size = region_size
    if not entry.held:
        raise ValueError("the entry was released")
    with nogil:
        code = pr_entry_enter(&entry.entry, store, regions.ptr, size)
    if code == -ERANGE:
        raise ValueError(f"an event of store {store} lies outside the map of {regions.size} regions")
    if code:
        raise ValueError("the entry is not a batch of events")


def leave(Entry entry not None, uint32_t store, RegionMap regions not None, region_size, uint64_t store_size):
    cdef uint64_t size
    cdef int code
    check_regions(region_size)
    size = region_size
    if not entry.held:
        raise ValueError("the entry was released")
    with nogil:
        code = pr_entry_leave(&entry.entry, store, regions.ptr, size, store_size)
    if code:
        raise ValueError("the entry is not a batch of events")


def hash_store(Window window not None, Stores stores not None, uint32_t store, length):
    cdef uint8_t digest[16]
    cdef pr_device *bad = NULL
    cdef tuple devices = tuple(stores.devices.values())
    cdef uint64_t n
    cdef int code
    if not 0 <= length < 1 << 63:
        raise ValueError(f"length {length} must be from 0 to 2**63 - 1")
    n = length
    with nogil:
        code = pr_pump_hash(window.ptr, stores.ptr, store, n, digest, &bad)
    raise_pump(devices, store, code, bad)
    return PyBytes_FromStringAndSize(<char *>digest, 16)


def equal(Device a not None, Device b not None, length):
    cdef uint64_t n, difference = 0
    cdef pr_device *bad = NULL
    cdef int code
    if not 0 <= length <= min(a.ptr.size, b.ptr.size) or length % max(a.ptr.sector, b.ptr.sector):
        raise ValueError(f"{length} bytes are not whole sectors inside both {a.name} and {b.name}")
    n = length
    with nogil:
        code = pr_pump_equal(a.ptr, b.ptr, n, &difference, &bad)
    if code:
        raise_device(b if bad == b.ptr else a, code)
    return -1 if difference == <uint64_t>-1 else difference
