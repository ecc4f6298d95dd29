"""Devices: the types of device.h for Python, errors that name the device, and devices written in Python for
simulations.

Decides: what misuse is (ValueError) and what a disk's failure is (OSError), and how unaligned Python memory gets to
the disk.
The work is in device.c, device_file.c, device_uring.c and device_threads.c.
"""
import errno as errno_names
import os

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize
from cpython.buffer cimport PyBUF_C_CONTIGUOUS, PyBUF_WRITABLE, PyBuffer_Release, PyObject_GetBuffer
from libc.stdint cimport int32_t, uint8_t, uint16_t, uint32_t, uint64_t, uintptr_t
from libc.stdlib cimport calloc, free
from libc.string cimport memcpy

cdef extern from "<sys/uio.h>" nogil:
    struct iovec:
        void *iov_base
        size_t iov_len

cdef extern from "device.h" nogil:
    enum:
        PR_READ, PR_WRITE_OUT, PR_ZERO_OUT, PR_DISCARD_OUT, PR_FUA
    ctypedef struct pr_io:
        uint8_t op
        uint8_t flags
        uint16_t parts
        int32_t result
        uint64_t offset
        uint64_t length
        void *buffer
        iovec *vector
    int pr_device_perform(pr_device *device, pr_io *ios, uint32_t count)

cdef extern from * nogil:
    """
    #include "device.h"
    #include <errno.h>
    /* The fields that the face does not show, and what a device is before it is opened. */
    static int pr_closed_perform(pr_device *device, pr_io *ios, uint32_t count)
    {
        (void)device;
        for (uint32_t i = 0; i < count; i++)
            ios[i].result = -ESHUTDOWN;
        return -ESHUTDOWN;
    }
    static int pr_closed_flush(pr_device *device) { (void)device; return -ESHUTDOWN; }
    static void pr_device_blank(pr_device *device)
    {
        device->perform = pr_closed_perform;
        device->flush = pr_closed_flush;
        device->sector = 512;
        device->writes = 1;             /* rule 5 */
    }
    typedef int (*pr_perform_call)(pr_device *, pr_io *, uint32_t);
    typedef int (*pr_flush_call)(pr_device *);
    static void pr_device_bind(pr_device *device, void *self, pr_perform_call perform, pr_flush_call flush)
    {
        device->self = self;
        device->perform = perform;
        device->flush = flush;
    }
    static void *pr_device_self(pr_device *device) { return device->self; }
    static int pr_device_failed(pr_device *device) { return -atomic_load(&device->failed); }
    static uint64_t pr_device_count(pr_device *device, int which)
    {
        return which == 0 ? device->bytes_read : which == 1 ? device->bytes_written : device->flushes;
    }
    static void pr_device_touched(pr_device *device) { atomic_fetch_add(&device->writes, 1); }
    """
    ctypedef int (*pr_perform_call)(pr_device *, pr_io *, uint32_t)
    ctypedef int (*pr_flush_call)(pr_device *)
    void pr_device_blank(pr_device *device)
    void pr_device_bind(pr_device *device, void *owner, pr_perform_call perform, pr_flush_call flush)
    void *pr_device_self(pr_device *device)
    int pr_device_failed(pr_device *device)
    uint64_t pr_device_count(pr_device *device, int which)
    void pr_device_touched(pr_device *device)

cdef extern from "device_file.h" nogil:
    enum:
        PR_ENGINE_AUTO, PR_ENGINE_URING, PR_ENGINE_THREADS, PR_FILE_WRITABLE, PR_FILE_EXCLUSIVE, PR_FILE_DIRECT
        PR_MAX_DEPTH
    int pr_file_open(pr_device *device, const char *path, int flags, int engine, uint32_t depth, const char **why)
    void pr_file_close(pr_device *device)
    void pr_file_free(pr_device *device)
    int pr_file_resize(pr_device *device, uint64_t size)
    int pr_file_engine(const pr_device *device)
    int pr_uring_probe(const char **step)

cdef extern from "buffers.h" nogil:
    void *pr_buffer_take(size_t length)
    void pr_buffer_give(void *buffer, size_t length)

cdef extern from "<errno.h>" nogil:
    int errno_ENOMEM "ENOMEM"
    int errno_EIO "EIO"

cdef enum:
    BOUNCE = 4 << 20    # bytes of aligned memory that unaligned Python memory passes through
    PIECE = 256 << 10   # one I/O of a long transfer, so that it has a depth
    PIECES = 16         # BOUNCE / PIECE


cdef int raise_device(Device device, int code) except -1:
    """-errno -> OSError that names the device. What a PythonDevice raised is its cause."""
    if code >= 0:
        return 0
    cause = None
    if isinstance(device, PythonDevice):
        cause = (<PythonDevice>device).take_error()
    raise OSError(-code, os.strerror(-code), device.name) from cause


cdef int perform_range(pr_device *ptr, int op, int flags, uint64_t offset, uint8_t *memory,
                       uint64_t length) noexcept nogil:
    """A range to or from aligned memory as lists of pieces."""
    cdef pr_io ios[PIECES]
    cdef uint64_t done = 0
    cdef uint32_t n
    cdef int code
    while done < length:
        n = 0
        while n < PIECES and done < length:
            ios[n].op = op
            ios[n].flags = flags
            ios[n].parts = 0
            ios[n].offset = offset + done
            ios[n].length = min(<uint64_t>PIECE, length - done)
            ios[n].buffer = memory + done
            done += ios[n].length
            n += 1
        code = pr_device_perform(ptr, ios, n)
        if code:
            return code
    return 0


cdef int transfer(pr_device *ptr, int op, int flags, uint64_t offset, uint8_t *memory, uint64_t length) noexcept nogil:
    """The same for memory of any alignment."""
    cdef uint8_t *bounce
    cdef uint64_t done = 0, n, size = min(length, <uint64_t>BOUNCE)
    cdef int code = 0
    if not <uintptr_t>memory & (ptr.sector - 1):
        return perform_range(ptr, op, flags, offset, memory, length)
    bounce = <uint8_t *>pr_buffer_take(size)
    if bounce == NULL:
        return -errno_ENOMEM
    while done < length and not code:
        n = min(size, length - done)
        if op == PR_WRITE_OUT:
            memcpy(bounce, memory + done, n)
        code = perform_range(ptr, op, flags, offset + done, bounce, n)
        if op == PR_READ and not code:
            memcpy(memory + done, bounce, n)
        done += n
    pr_buffer_give(bounce, size)
    return code


cdef int check(Device device, offset, length) except -1:
    """Misuse: a range that is not whole sectors inside the device."""
    sector, size = device.ptr.sector, device.ptr.size
    if offset < 0 or length < 0 or offset + length > size:
        raise ValueError(f"{device.name}: [{offset}, {offset} + {length}) is outside its {size} bytes")
    if offset % sector or length % sector:
        raise ValueError(f"{device.name}: offset {offset} and length {length} must be multiples of {sector}")
    return 0


cdef int clear(Device device, int op, offset, length) except -1:
    cdef pr_io io
    cdef int code
    check(device, offset, length)
    if not length:
        return 0
    io.op, io.flags, io.parts, io.buffer = op, 0, 0, NULL
    io.offset, io.length = offset, length
    with nogil:
        code = pr_device_perform(device.ptr, &io, 1)
    return raise_device(device, code)


cdef class Device:
    """A disk; see device.pyi."""
    # From device.pxd: ptr, name. The structure lives as long as the object, so who uses `ptr` during close() meets
    # ESHUTDOWN,
    # not freed memory.

    def __cinit__(self, *args, **kwargs):
        self.name = ""
        self.ptr = <pr_device *>calloc(1, sizeof(pr_device))
        if self.ptr == NULL:
            raise MemoryError()
        pr_device_blank(self.ptr)

    def __dealloc__(self):
        free(self.ptr)

    @property
    def size(self):
        return self.ptr.size

    @property
    def sector_size(self):
        return self.ptr.sector

    @property
    def engine(self):
        return ""

    @property
    def failed(self):
        return pr_device_failed(self.ptr)

    @property
    def bytes_read(self):
        return pr_device_count(self.ptr, 0)

    @property
    def bytes_written(self):
        return pr_device_count(self.ptr, 1)

    @property
    def flushes(self):
        return pr_device_count(self.ptr, 2)

    def read(self, offset, length):
        cdef uint64_t at, n
        cdef int code
        cdef uint8_t *memory
        check(self, offset, length)
        at, n = offset, length
        result = PyBytes_FromStringAndSize(NULL, n)
        memory = <uint8_t *>PyBytes_AS_STRING(result)
        with nogil:
            code = transfer(self.ptr, PR_READ, 0, at, memory, n)
        raise_device(self, code)
        return result

    def readinto(self, offset, buffer):
        cdef Py_buffer view
        cdef uint64_t at
        cdef int code
        PyObject_GetBuffer(buffer, &view, PyBUF_C_CONTIGUOUS | PyBUF_WRITABLE)
        try:
            check(self, offset, view.len)
            at = offset
            with nogil:
                code = transfer(self.ptr, PR_READ, 0, at, <uint8_t *>view.buf, view.len)
        finally:
            PyBuffer_Release(&view)
        raise_device(self, code)

    def write(self, offset, data, *, bint fua=False):
        cdef Py_buffer view
        cdef uint64_t at
        cdef int code, flags = PR_FUA if fua else 0
        PyObject_GetBuffer(data, &view, PyBUF_C_CONTIGUOUS)
        try:
            check(self, offset, view.len)
            at = offset
            with nogil:
                code = transfer(self.ptr, PR_WRITE_OUT, flags, at, <uint8_t *>view.buf, view.len)
        finally:
            PyBuffer_Release(&view)
        raise_device(self, code)

    def zero(self, offset, length):
        clear(self, PR_ZERO_OUT, offset, length)

    def discard(self, offset, length):
        clear(self, PR_DISCARD_OUT, offset, length)

    def perform(self, ios):
        """A list at full depth, for tests and benchmarks: see device.pyi."""
        cdef Py_buffer *views
        cdef pr_io *list
        cdef tuple own = tuple(ios)  # its length stays what is allocated, whatever the items do
        cdef uint32_t n = len(own), held = 0, i
        cdef int wish
        views = <Py_buffer *>calloc(n + 1, sizeof(Py_buffer))
        list = <pr_io *>calloc(n + 1, sizeof(pr_io))
        try:
            if views == NULL or list == NULL:
                raise MemoryError()
            for i, (kind, offset, memory, fua) in enumerate(own):
                list[i].op = {"read": PR_READ, "write": PR_WRITE_OUT, "zero": PR_ZERO_OUT,
                              "discard": PR_DISCARD_OUT}[kind]
                list[i].flags = PR_FUA if fua else 0
                list[i].offset = offset
                if list[i].op == PR_ZERO_OUT or list[i].op == PR_DISCARD_OUT:
                    list[i].length = memory
                    continue
                wish = PyBUF_WRITABLE if list[i].op == PR_READ else 0
                PyObject_GetBuffer(memory, &views[held], PyBUF_C_CONTIGUOUS | wish)
                list[i].length = views[held].len
                list[i].buffer = views[held].buf
                held += 1
            with nogil:
                pr_device_perform(self.ptr, list, n)
            return [list[i].result for i in range(n)]
        finally:
            for i in range(held):
                PyBuffer_Release(&views[i])
            free(views)
            free(list)

    def flush(self):
        cdef int code
        with nogil:
            code = pr_device_flush(self.ptr)
        raise_device(self, code)

    def resize(self, size):
        raise NotImplementedError(f"{self.name} cannot be resized")

    def close(self):
        pass

    def __enter__(self):
        return self

    def __exit__(self, *args):
        self.close()

    def __repr__(self):
        return f"<{type(self).__name__} {self.name}: {self.ptr.size} bytes, sectors of {self.ptr.sector}>"


cdef class FileDevice(Device):
    """A file or block device; see device.pyi."""

    def __init__(self, path, *, bint writable=True, engine="auto", bint exclusive=True, depth=64, bint direct=True):
        cdef const char *why = NULL
        cdef const char *file
        cdef int code, flags, number
        cdef uint32_t deep
        engines = {"auto": PR_ENGINE_AUTO, "io_uring": PR_ENGINE_URING, "threads": PR_ENGINE_THREADS}
        if engine not in engines:
            raise ValueError(f"engine must be one of {', '.join(engines)}, not {engine!r}")
        if not 1 <= depth <= PR_MAX_DEPTH:
            raise ValueError(f"depth must be from 1 to {PR_MAX_DEPTH}, not {depth}")
        if pr_device_self(self.ptr) != NULL:
            raise ValueError(f"{self.name}: opened already")
        self.name = os.fsdecode(path)
        encoded = os.fsencode(path)
        if b"\0" in encoded:
            raise ValueError(f"a path cannot hold a null byte: {self.name!r}")
        file = encoded
        flags = (PR_FILE_WRITABLE if writable else 0) | (PR_FILE_EXCLUSIVE if exclusive else 0)
        flags |= PR_FILE_DIRECT if direct else 0
        number, deep = engines[engine], depth
        with nogil:
            code = pr_file_open(self.ptr, file, flags, number, deep, &why)
        if code:
            raise OSError(-code, os.strerror(-code) if why == NULL else why.decode(), self.name)

    @property
    def engine(self):
        if pr_device_self(self.ptr) == NULL:
            return ""
        return "io_uring" if pr_file_engine(self.ptr) == PR_ENGINE_URING else "threads"

    def resize(self, size):
        cdef uint64_t n
        cdef int code
        if not 0 <= size < 1 << 63 or size % self.ptr.sector:
            raise ValueError(f"{self.name}: size {size} must be a multiple of {self.ptr.sector} below 2**63")
        n = size
        with nogil:
            code = pr_file_resize(self.ptr, n) if pr_device_self(self.ptr) != NULL else -errno_EIO
        raise_device(self, code)

    def close(self):
        if pr_device_self(self.ptr) != NULL:
            with nogil:
                pr_file_close(self.ptr)

    def __dealloc__(self):
        if pr_device_self(self.ptr) != NULL:
            pr_file_close(self.ptr)
            pr_file_free(self.ptr)


cdef class PythonDevice(Device):
    """A device whose four methods are Python; see device.pyi."""
    cdef object error

    def __init__(self, name, size, sector_size=512):
        if sector_size not in (512, 4096):
            raise ValueError(f"sector_size must be 512 or 4096, not {sector_size}")
        if not 0 <= size < 1 << 63 or size % sector_size:
            raise ValueError(f"size {size} must be a multiple of {sector_size} below 2**63")
        self.name = name
        self.ptr.size = size
        self.ptr.sector = sector_size
        # Borrowed: whoever performs holds a reference, as for every device.
        pr_device_bind(self.ptr, <void *>self, python_perform, python_flush)

    @property
    def engine(self):
        return "python"

    def do_read(self, offset, length):
        raise NotImplementedError

    def do_write(self, ios):
        raise NotImplementedError

    def do_discard(self, offset, length):
        raise NotImplementedError

    def do_flush(self):
        raise NotImplementedError

    def resize(self, size):
        if not 0 <= size < 1 << 63 or size % self.ptr.sector:
            raise ValueError(f"{self.name}: size {size} must be a multiple of {self.ptr.sector} below 2**63")
        self.ptr.size = size
        pr_device_touched(self.ptr)

    cdef take_error(self):
        error, self.error = self.error, None
        return error

    cdef int failure(self, error) except 0:
        """Keeps what was raised, to be chained; the code that goes through the core."""
        self.error = error
        code = getattr(error, "errno", None)
        return -code if isinstance(code, int) and code in errno_names.errorcode else -errno_EIO

    cdef int read_one(self, pr_io *io) except? 1:
        cdef const uint8_t[::1] data = self.do_read(io.offset, io.length)
        cdef uint64_t at = 0
        if <uint64_t>data.shape[0] != io.length:
            raise ValueError(f"{self.name}: do_read returned {data.shape[0]} bytes instead of {io.length}")
        if not io.parts:
            memcpy(io.buffer, &data[0], io.length)
        for i in range(io.parts):
            memcpy(io.vector[i].iov_base, &data[at], io.vector[i].iov_len)
            at += io.vector[i].iov_len
        return 0

    cdef object bytes_of(self, pr_io *io):
        if io.op == PR_ZERO_OUT:
            return bytes(io.length)
        if not io.parts:
            return PyBytes_FromStringAndSize(<char *>io.buffer, io.length)
        return b"".join([PyBytes_FromStringAndSize(<char *>io.vector[i].iov_base,
                                                   io.vector[i].iov_len) for i in range(io.parts)])

    cdef int write_some(self, pr_io *ios, uint32_t count, uint32_t *done) except -1:
        """The run of writes that begins here, as one call. *done counts them whether or not it raises."""
        while done[0] < count and (ios[done[0]].op == PR_WRITE_OUT or ios[done[0]].op == PR_ZERO_OUT):
            done[0] += 1
        self.do_write([(ios[i].offset, self.bytes_of(&ios[i]), bool(ios[i].flags & PR_FUA)) for i in range(done[0])])
        return 0

    cdef int step(self, pr_io *ios, uint32_t count, uint32_t *done) except? 1:
        """The I/O at the head of the list, or the writes that stand there. 0 or -errno."""
        try:
            if ios[0].op == PR_READ or ios[0].op == PR_DISCARD_OUT:
                done[0] = 1
                if ios[0].op == PR_READ:
                    self.read_one(&ios[0])
                else:
                    self.do_discard(ios[0].offset, ios[0].length)
            else:
                self.write_some(ios, count, done)
        except BaseException as error:
            return self.failure(error)
        return 0


cdef int python_perform(pr_device *device, pr_io *ios, uint32_t count) noexcept with gil:
    cdef PythonDevice self = <PythonDevice>pr_device_self(device)
    cdef uint32_t i = 0, k, done
    cdef int code, first = 0
    while i < count:
        done = 0
        code = self.step(ios + i, count - i, &done)
        for k in range(done):
            ios[i + k].result = code
        if code and not first:
            first = code
        i += done
    return first


cdef int python_flush(pr_device *device) noexcept with gil:
    cdef PythonDevice self = <PythonDevice>pr_device_self(device)
    try:
        self.do_flush()
    except BaseException as error:
        return self.failure(error)
    return 0


def probe():
    cdef const char *step = NULL
    cdef int code
    with nogil:
        code = pr_uring_probe(&step)
    if not code:
        return "io_uring", ""
    return "threads", f"{step.decode()}: {errno_names.errorcode.get(-code, -code)} ({os.strerror(-code)})"
