"""CRC32C for Python. Decides nothing: crc32c.c chooses the kernel. Must not know what is summed."""
from libc.stddef cimport size_t
from libc.stdint cimport uint8_t, uint32_t


cdef extern from "crc32c.h" nogil:
    const int PR_CRC32C_KERNELS
    ctypedef uint32_t (*pr_crc32c_kernel)(uint32_t crc, const void *data, size_t length)
    pr_crc32c_kernel pr_crc32c_by_number(int number)
    const char *pr_crc32c_name(int number)
    int pr_crc32c_chosen()
    uint32_t pr_crc32c_copy_by(int number, uint32_t crc, void *target, const void *source, size_t length)

cdef size_t SHORT = 1 << 14  # bytes; below it giving the GIL away costs more than the sum


cdef int number_of(object kernel) except -1:
    """The kernel of this name, or the chosen one."""
    if kernel is None:
        return pr_crc32c_chosen()
    cdef int number
    for number in range(PR_CRC32C_KERNELS):
        if pr_crc32c_by_number(number) != NULL and pr_crc32c_name(number).decode() == kernel:
            return number
    raise ValueError(f"the CRC32C kernel {kernel!r} cannot run here: there are {', '.join(kernels())}")


cdef uint32_t number_32(object value) except? 0:
    if not 0 <= value < 1 << 32:
        raise ValueError(f"a CRC32C has 32 bits, which {value} does not fit into")
    return value


def crc32c(const uint8_t[::1] data not None, value=0, *, kernel=None):
    cdef pr_crc32c_kernel run = pr_crc32c_by_number(number_of(kernel))
    cdef uint32_t crc = number_32(value)
    cdef size_t length = data.shape[0]
    cdef const uint8_t *start = &data[0] if length else NULL
    if length < SHORT:
        return run(crc, start, length)
    with nogil:
        crc = run(crc, start, length)
    return crc


def copy(uint8_t[::1] target not None, const uint8_t[::1] source not None, value=0, *, kernel=None):
    cdef int number = number_of(kernel)
    cdef uint32_t crc = number_32(value)
    cdef size_t length = source.shape[0]
    if <size_t>target.shape[0] != length:
        raise ValueError(f"target has {target.shape[0]} bytes and source {length}")
    if length == 0:
        return crc
    with nogil:
        crc = pr_crc32c_copy_by(number, crc, &target[0], &source[0], length)
    return crc


def kernels():
    return [pr_crc32c_name(n).decode() for n in range(PR_CRC32C_KERNELS) if pr_crc32c_by_number(n) != NULL]


def chosen():
    return pr_crc32c_name(pr_crc32c_chosen()).decode()
