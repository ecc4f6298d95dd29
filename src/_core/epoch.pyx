"""Epoch for Python: one call for each step of an epoch, errors worded. The rules stand in epoch.h and plan.c."""
from cpython.bytes cimport PyBytes_FromStringAndSize
from libc.errno cimport EBADMSG, EDEADLOCK, EINVAL, ENODEV, ENOENT, ENOMEM, ENOSPC
from libc.stdint cimport int64_t, uint32_t, uint64_t
from libc.stdlib cimport free, malloc

from pyrepl._core.device cimport raise_device
from pyrepl._core.stores cimport Stores, pr_stores
from pyrepl._core.window cimport Window, pr_window

import os


cdef extern from "layout.h" nogil:
    struct pr_map_entry:
        pass
    enum:
        PR_MAX_STORES


cdef extern from "epoch.h" nogil:
    enum:
        PR_PARTLY
        PR_WHOLE
        PR_ZEROED
        PR_VACATE

    ctypedef struct pr_move:
        uint64_t region
        uint32_t target, source

    ctypedef struct pr_stage:
        pr_move *moves
        uint32_t move_count
        pr_map_entry *entries
        uint32_t entry_count

    ctypedef struct pr_touch:
        uint64_t region
        uint32_t slot, how

    ctypedef struct pr_epoch:
        pass

    pr_epoch *pr_epoch_new(pr_stores *stores, pr_window *window)
    void pr_epoch_free(pr_epoch *epoch)
    void pr_epoch_clear(pr_epoch *epoch)
    int pr_epoch_gather(pr_epoch *epoch, uint64_t position, uint64_t limit_position, uint64_t limit_bytes,
                        uint64_t *next, uint64_t *lsn, uint64_t *item)
    int pr_epoch_plan(pr_epoch *epoch)
    int pr_epoch_plan_touches(pr_epoch *epoch, pr_touch *touches, size_t count)
    int pr_epoch_plan_move(pr_epoch *epoch, uint32_t slot, uint64_t start, uint64_t most, uint64_t *next)
    int pr_epoch_plan_vacate(pr_epoch *epoch, uint32_t slot, uint64_t start, uint64_t most, bint local, uint64_t *next)
    const pr_stage *pr_epoch_stage(pr_epoch *epoch, uint32_t stage)
    int64_t pr_epoch_copy(pr_epoch *epoch, uint32_t stage)
    int pr_epoch_repoint(pr_epoch *epoch, uint32_t stage)
    int64_t pr_epoch_write(pr_epoch *epoch)
    uint32_t pr_epoch_failed(const pr_epoch *epoch)


PARTLY = PR_PARTLY
WHOLE = PR_WHOLE
ZEROED = PR_ZEROED
VACATE = PR_VACATE


cdef class Epoch:
    cdef pr_epoch *ptr
    cdef Stores stores
    cdef Window window  # None: an epoch that only moves

    def __cinit__(self):
        self.ptr = NULL

    def __init__(self, Stores stores not None, Window window):
        if self.ptr != NULL:
            raise RuntimeError("Epoch.__init__ is called once")
        self.stores = stores
        self.window = window
        self.ptr = pr_epoch_new(stores.ptr, window.ptr if window is not None else NULL)
        if self.ptr == NULL:
            raise MemoryError

    def __dealloc__(self):
        pr_epoch_free(self.ptr)

    cdef int fault(self, int64_t code, str what) except -1:
        """A negative code as an exception; a device's error names the device."""
        cdef uint32_t slot = pr_epoch_failed(self.ptr)
        if slot:
            raise_device(self.stores.devices[slot], <int> code)
        if code == -ENOMEM:
            raise MemoryError(what)
        if code == -ENOENT:
            raise LookupError(f"{what}: no such store or device in the table")
        if code == -ENODEV:
            raise OSError(ENODEV, f"{what}: a ring of stores can be opened only by a scratch device, and there is none")
        if code == -ENOSPC:
            raise OSError(ENOSPC, f"{what}: every device that could keep a region is too short for it")
        if code == -EDEADLOCK:
            raise RuntimeError(f"{what}: a region cannot be planned; this is a bug")
        if code == -EBADMSG:
            raise ValueError(f"{what}: a record that was read back from the log is not valid")
        raise OSError(-code, f"{what}: {os.strerror(-code)}")

    def gather(self, uint64_t position, uint64_t limit_position, uint64_t limit_bytes):
        cdef uint64_t following = position
        cdef uint64_t lsn = 0
        cdef uint64_t item = 0
        cdef int code
        if self.window is None:
            raise RuntimeError("this epoch has no window to gather from")
        with nogil:
            code = pr_epoch_gather(self.ptr, position, limit_position, limit_bytes, &following, &lsn, &item)
        if code < 0:
            self.fault(code, "gather")
        return following, lsn, item

    def plan(self):
        cdef int code
        with nogil:
            code = pr_epoch_plan(self.ptr)
        if code < 0:
            self.fault(code, "plan")
        return code

    def plan_touches(self, touches):
        cdef tuple own = tuple(touches)  # its length stays what is allocated, whatever the items do
        cdef size_t count = len(own)
        cdef size_t i
        cdef int code
        cdef pr_touch *array = <pr_touch *> malloc((count + 1) * sizeof(pr_touch))
        if array == NULL:
            raise MemoryError
        try:
            for i, (region, slot, how) in enumerate(own):
                if slot not in self.stores.devices or how not in (PARTLY, WHOLE, ZEROED, VACATE):
                    raise ValueError(f"touch {(region, slot, how)}: no such slot, or no such way")
                if how != VACATE:
                    self.stores.source(slot, region)
                array[i] = pr_touch(region, slot, how)
            with nogil:
                code = pr_epoch_plan_touches(self.ptr, array, count)
        finally:
            free(array)
        if code < 0:
            self.fault(code, "plan")
        return code

    def plan_move(self, uint32_t slot, uint64_t start, uint64_t most):
        cdef uint64_t following = start
        cdef int code
        with nogil:
            code = pr_epoch_plan_move(self.ptr, slot, start, most, &following)
        if code < 0:
            self.fault(code, f"move slot {slot}")
        return code, following

    def plan_vacate(self, uint32_t slot, uint64_t start, uint64_t most, bint local=False):
        cdef uint64_t following = start
        cdef int code
        with nogil:
            code = pr_epoch_plan_vacate(self.ptr, slot, start, most, local, &following)
        if code < 0:
            self.fault(code, f"vacate slot {slot}")
        return code, following

    cdef const pr_stage *stage(self, uint32_t number) except NULL:
        cdef const pr_stage *found = pr_epoch_stage(self.ptr, number)
        if found == NULL:
            raise IndexError(f"stage {number} was not planned")
        return found

    def moves(self, uint32_t stage):
        cdef const pr_stage *planned = self.stage(stage)
        return [(planned.moves[i].region, planned.moves[i].target, planned.moves[i].source)
                for i in range(planned.move_count)]

    def copy(self, uint32_t stage):
        cdef int64_t code
        self.stage(stage)
        with nogil:
            code = pr_epoch_copy(self.ptr, stage)
        if code == -EINVAL and not pr_epoch_failed(self.ptr):
            raise ValueError(f"stage {stage} is not the next one")
        if code < 0:
            self.fault(code, "copy")
        return code

    def note(self, uint32_t stage):
        cdef const pr_stage *planned = self.stage(stage)
        return PyBytes_FromStringAndSize(<const char *> planned.entries, planned.entry_count * sizeof(pr_map_entry))

    def repoint(self, uint32_t stage):
        cdef int code
        self.stage(stage)
        with nogil:
            code = pr_epoch_repoint(self.ptr, stage)
        if code == -EINVAL:
            raise ValueError(f"stage {stage} is not the next one")
        if code < 0:
            self.fault(code, "repoint")

    def write(self):
        cdef int64_t code
        with nogil:
            code = pr_epoch_write(self.ptr)
        if code == -EINVAL and not pr_epoch_failed(self.ptr):
            raise ValueError("a stage was not re-pointed: the data must not go home before")
        if code < 0:
            self.fault(code, "write")
        return code

    def clear(self):
        with nogil:
            pr_epoch_clear(self.ptr)
