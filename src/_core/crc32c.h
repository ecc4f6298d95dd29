/* CRC32C (Castagnoli) as iSCSI and ext4 use it: reflected, initial and final inversion inside.
 * pr_crc32c(pr_crc32c(0, a), b) == pr_crc32c(0, a || b). */
#ifndef PYREPL_CRC32C_H
#define PYREPL_CRC32C_H

#include <stddef.h>
#include <stdint.h>

uint32_t pr_crc32c(uint32_t crc, const void *data, size_t length);
/* Copies and sums in one pass: the checksum is computed where the data enter the node. It is that of the copy, even if
 * the source changes meanwhile. */
uint32_t pr_crc32c_copy(uint32_t crc, void *target, const void *source, size_t length);

/* Kernels by number: 0 scalar (the reference), 1 SSE4.2, 2 VPCLMUL (AVX-512), 3 ARMv8; one that this CPU cannot run is
 * NULL. */
#define PR_CRC32C_KERNELS 4
typedef uint32_t (*pr_crc32c_kernel)(uint32_t crc, const void *data, size_t length);
pr_crc32c_kernel pr_crc32c_by_number(int number);
const char *pr_crc32c_name(int number);
int pr_crc32c_chosen(void);
/* pr_crc32c_copy by a kernel that is not NULL. */
uint32_t pr_crc32c_copy_by(int number, uint32_t crc, void *target, const void *source, size_t length);

#endif
