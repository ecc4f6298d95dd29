from libc.stdint cimport int32_t, uint8_t, uint16_t, uint32_t, uint64_t


cdef extern from "device.h" nogil:
    ctypedef struct pr_device:
        uint64_t size
        uint32_t sector

    int pr_device_flush(pr_device *device)
    int pr_device_read(pr_device *device, uint64_t offset, void *buffer, uint64_t length)
    int pr_device_write(pr_device *device, uint64_t offset, const void *buffer, uint64_t length, int flags)


cdef class Device:
    cdef pr_device *ptr  # never NULL between __init__ and close()
    cdef readonly str name
    cdef object __weakref__


cdef int raise_device(Device device, int code) except -1  # -errno -> OSError that names the device
