"""CRC32C for Python. Decides nothing: crc32c.c chooses the kernel."""
from libc.stddef cimport size_t
from libc.stdint cimport uint32_t


cdef extern from "crc32c.h" nogil:
    const int PR_CRC32C_KERNELS
    ctypedef uint32_t (*pr_crc32c_kernel)(uint32_t crc, const void *data, size_t length)
    uint32_t pr_crc32c(uint32_t crc, const void *data, size_t length)
    pr_crc32c_kernel pr_crc32c_by_number(int number)
    const char *pr_crc32c_name(int number)
    int pr_crc32c_chosen()


def crc32c(const unsigned char[::1] data not None, uint32_t value=0, *, kernel=None):
    cdef pr_crc32c_kernel run = pr_crc32c
    cdef size_t length = data.shape[0]
    cdef const void *start = &data[0] if length else NULL
    cdef uint32_t crc
    if kernel is not None:
        names = {pr_crc32c_name(n).decode(): n for n in range(PR_CRC32C_KERNELS) if pr_crc32c_by_number(n) != NULL}
        if kernel not in names:
            raise ValueError(f"the CRC32C kernel {kernel!r} cannot run here: there are {', '.join(names)}")
        run = pr_crc32c_by_number(names[kernel])
    with nogil:
        crc = run(value, start, length)
    return crc


def kernels():
    return [pr_crc32c_name(n).decode() for n in range(PR_CRC32C_KERNELS) if pr_crc32c_by_number(n) != NULL]


def chosen():
    return pr_crc32c_name(pr_crc32c_chosen()).decode()
