/* CRC32C kernels. Kernel 0 is the reference; the fastest that this CPU can run is chosen once. */
#include "crc32c.h"
#include <string.h>

static uint32_t scalar(uint32_t crc, const void *data, size_t length)
{
    const uint8_t *p = data;
    crc = ~crc;
    for (; length; length--) {
        crc ^= *p++;
        for (int k = 0; k < 8; k++)
            crc = crc >> 1 ^ (0x82f63b78u & -(crc & 1));
    }
    return ~crc;
}

#if defined(__x86_64__)
__attribute__((target("sse4.2"))) static uint32_t sse42(uint32_t crc, const void *data, size_t length)
{
    const uint8_t *p = data;
    uint64_t c = (uint32_t)~crc, v;
    for (; length >= 8; length -= 8, p += 8) {
        memcpy(&v, p, 8);
        c = __builtin_ia32_crc32di(c, v);
    }
    for (; length; length--)
        c = __builtin_ia32_crc32qi((uint32_t)c, *p++);
    return ~(uint32_t)c;
}
#endif

pr_crc32c_kernel pr_crc32c_by_number(int number)
{
#if defined(__x86_64__)
    if (number == 1)
        return __builtin_cpu_supports("sse4.2") ? sse42 : NULL;
#endif
    return number == 0 ? scalar : NULL;
}

const char *pr_crc32c_name(int number) { return number == 1 ? "sse4.2" : "scalar"; }
int pr_crc32c_chosen(void) { return pr_crc32c_by_number(1) ? 1 : 0; }
uint32_t pr_crc32c(uint32_t crc, const void *data, size_t length) { return pr_crc32c_by_number(pr_crc32c_chosen())(crc, data, length); }
uint32_t pr_crc32c_copy(uint32_t crc, void *target, const void *source, size_t length)
{
    memcpy(target, source, length);
    return pr_crc32c(crc, target, length);
}
