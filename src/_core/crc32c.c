/* CRC32C kernels. Decides how a checksum is computed on this CPU; must not know what is summed.
 *
 *   scalar      the reference: eight tables, eight bytes at a time
 *   sse4.2,     the CPU's instruction on three streams at once, for one has a latency of three cycles; a stream's sum
 *   armv8       moves over the streams behind it by four tables
 *   vpclmul     folding (Gopal et al., "Fast CRC Computation for Generic Polynomials Using PCLMULQDQ Instruction",
 *               2009) by AVX-512: 64 bytes at a time, eight accumulators, what is left by the CPU's instruction
 *
 * Folding 16 bytes at a time is left out: where AVX-512 is missing the three streams are as fast or faster.
 *
 * Tables are filled and the kernel is chosen when the library is loaded; afterwards nothing is written.
 */
#include "crc32c.h"
#include <stdbool.h>
#include <string.h>

#if defined(__x86_64__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_acle.h>
#include <asm/hwcap.h>
#include <sys/auxv.h>
#endif

#define POLYNOMIAL 0x82f63b78u          /* reflected */
#define PIECE 4096u                     /* copied, then summed while it is in the first cache */

typedef uint32_t (*copy_kernel)(uint32_t crc, void *target, const void *source, size_t length);

static uint32_t bytes_table[8][256];

static uint64_t load64(const uint8_t *p)
{
    uint64_t value;
    memcpy(&value, p, sizeof value);
    return value;
}

static uint32_t scalar(uint32_t crc, const void *data, size_t length)
{
    const uint8_t *p = data;
    crc = ~crc;
    for (; length >= 8; length -= 8, p += 8) {
        uint64_t v = load64(p) ^ crc;
        crc = bytes_table[7][v & 255] ^ bytes_table[6][v >> 8 & 255] ^ bytes_table[5][v >> 16 & 255]
            ^ bytes_table[4][v >> 24 & 255] ^ bytes_table[3][v >> 32 & 255] ^ bytes_table[2][v >> 40 & 255]
            ^ bytes_table[1][v >> 48 & 255] ^ bytes_table[0][v >> 56];
    }
    for (; length; length--)
        crc = crc >> 8 ^ bytes_table[0][(crc ^ *p++) & 255];
    return ~crc;
}

/* ---- the CPU's own instruction ---- */

#if defined(__x86_64__)
#define NATIVE __attribute__((target("sse4.2")))
#define STEP8(crc, value) ((uint32_t)_mm_crc32_u64(crc, value))
#define STEP1(crc, value) _mm_crc32_u8(crc, value)
#elif defined(__aarch64__)
#define NATIVE __attribute__((target("+crc")))
#define STEP8(crc, value) __crc32cd(crc, value)
#define STEP1(crc, value) __crc32cb(crc, value)
#endif

#ifdef NATIVE
#define LONG 1360u                      /* bytes of a stream: three are nearly a block */
#define SHORT 168u

static uint32_t long_table[4][256], short_table[4][256];       /* move a sum over LONG and SHORT bytes of zeros */

static uint32_t moved(uint32_t table[4][256], uint32_t crc)
{
    return table[0][crc & 255] ^ table[1][crc >> 8 & 255] ^ table[2][crc >> 16 & 255] ^ table[3][crc >> 24];
}

NATIVE static inline uint32_t three(uint32_t crc, const uint8_t *p, size_t stream, uint32_t table[4][256])
{
    uint32_t a = crc, b = 0, c = 0;
    for (size_t i = 0; i < stream; i += 8) {
        a = STEP8(a, load64(p + i));
        b = STEP8(b, load64(p + stream + i));
        c = STEP8(c, load64(p + 2 * stream + i));
    }
    return moved(table, moved(table, a) ^ b) ^ c;
}

/* Without the inversions. */
NATIVE static inline uint32_t one(uint32_t crc, const uint8_t *p, size_t length)
{
    for (; length >= 8; length -= 8, p += 8)
        crc = STEP8(crc, load64(p));
    for (; length; length--)
        crc = STEP1(crc, *p++);
    return crc;
}

NATIVE static uint32_t native(uint32_t crc, const void *data, size_t length)
{
    const uint8_t *p = data;
    crc = ~crc;
    for (; length >= 3 * LONG; length -= 3 * LONG, p += 3 * LONG)
        crc = three(crc, p, LONG, long_table);
    for (; length >= 3 * SHORT; length -= 3 * SHORT, p += 3 * SHORT)
        crc = three(crc, p, SHORT, short_table);
    return ~one(crc, p, length);
}
#endif

/* ---- folding ---- */

#if defined(__x86_64__)
/* To move 128 bits over d bits: the low half times x^(d + 31), the high half times x^(d - 33), both mod P and
 * reflected. */
#define OVER_128 0xf20c0dfe, 0x493c7d27
#define OVER_256 0x3da6d0cb, 0xba4fc28e
#define OVER_384 0x1c291d04, 0xddc0152b
#define OVER_512 0x740eef02, 0x9e4addf8
#define OVER_4096 0xbd6f81f8, 0xdd7e3b0c

#define FOLDING __attribute__((target("sse4.2,pclmul,avx512f,avx512vl,vpclmulqdq")))
#define ALWAYS inline __attribute__((always_inline))

FOLDING static ALWAYS __m128i constant(uint32_t low, uint32_t high) { return _mm_set_epi64x(high, low); }

FOLDING static ALWAYS __m128i fold(__m128i x, __m128i over, __m128i data)
{
    return _mm_xor_si128(_mm_xor_si128(_mm_clmulepi64_si128(x, over, 0x00), _mm_clmulepi64_si128(x, over, 0x11)), data);
}

/* What is shorter than a fold. The bytes are read once: the sum is that of the copy, whatever happens to the source. */
FOLDING static ALWAYS uint32_t rest(uint32_t crc, uint8_t *target, const uint8_t *p, size_t length)
{
    if (target && length) {
        memcpy(target, p, length);
        __asm__ volatile("" ::: "memory");         /* the sum is not taken from the source instead */
        p = target;
    }
    return one(crc, p, length);
}

FOLDING static ALWAYS __m512i fold_512(__m512i x, __m512i over, __m512i data)
{
    return _mm512_ternarylogic_epi64(_mm512_clmulepi64_epi128(x, over, 0x00), _mm512_clmulepi64_epi128(x, over, 0x11),
                                     data, 0x96);        /* three-way xor */
}

/* Loads 64 bytes, and copies them if there is a target. */
FOLDING static ALWAYS __m512i take_512(uint8_t *target, const uint8_t *p, size_t at)
{
    __m512i data = _mm512_loadu_si512(p + at);
    if (target)
        _mm512_storeu_si512(target + at, data);
    return data;
}

FOLDING static ALWAYS uint32_t fold64(uint32_t crc, uint8_t *target, const uint8_t *p, size_t length)
{
    crc = ~crc;
    if (length >= 128) {
        const __m512i near = _mm512_broadcast_i32x4(constant(OVER_512));
        size_t at = 64;
        __m512i x = _mm512_xor_si512(take_512(target, p, 0), _mm512_zextsi128_si512(_mm_cvtsi32_si128((int)crc)));
        if (length >= 1024) {
            const __m512i far = _mm512_broadcast_i32x4(constant(OVER_4096));
            __m512i y[8] = {x};
#pragma GCC unroll 8
            for (size_t i = 1; i < 8; i++)
                y[i] = take_512(target, p, 64 * i);
            for (at = 512; length - at >= 512; at += 512)
#pragma GCC unroll 8
                for (size_t i = 0; i < 8; i++)
                    y[i] = fold_512(y[i], far, take_512(target, p, at + 64 * i));
            x = y[0];
#pragma GCC unroll 8
            for (size_t i = 1; i < 8; i++)
                x = fold_512(x, near, y[i]);
        }
        for (; length - at >= 64; at += 64)
            x = fold_512(x, near, take_512(target, p, at));
        __m128i last = fold(_mm512_castsi512_si128(x), constant(OVER_384), _mm512_extracti32x4_epi32(x, 3));
        last = fold(_mm512_extracti32x4_epi32(x, 1), constant(OVER_256), last);
        last = fold(_mm512_extracti32x4_epi32(x, 2), constant(OVER_128), last);
        crc = STEP8(STEP8(0, (uint64_t)_mm_cvtsi128_si64(last)), (uint64_t)_mm_extract_epi64(last, 1));
        p += at;
        length -= at;
        target = target ? target + at : NULL;
    }
    return ~rest(crc, target, p, length);
}

FOLDING static uint32_t vpclmul(uint32_t crc, const void *data, size_t length)
{
    return fold64(crc, NULL, data, length);
}

FOLDING static uint32_t vpclmul_copy(uint32_t crc, void *target, const void *source, size_t length)
{
    return fold64(crc, target, source, length);
}
#endif

/* ---- the choice ---- */

static struct kernel {
    const char *name;
    pr_crc32c_kernel run;
    copy_kernel copy;                   /* NULL: copy a piece, sum the piece */
} kernels[PR_CRC32C_KERNELS] = {
    {"scalar", scalar, NULL}, {"sse4.2", NULL, NULL}, {"vpclmul", NULL, NULL}, {"armv8", NULL, NULL},
};
static int chosen;

static uint32_t over_zeros(uint32_t crc, size_t length)
{
    while (length--)
        crc = crc >> 8 ^ bytes_table[0][crc & 255];
    return crc;
}

/* Before anything of this library can be called, so nobody waits for it or asks whether it is done. */
__attribute__((constructor)) static void choose(void)
{
    for (uint32_t byte = 0; byte < 256; byte++) {
        uint32_t crc = byte;
        for (int bit = 0; bit < 8; bit++)
            crc = crc >> 1 ^ (POLYNOMIAL & -(crc & 1));
        bytes_table[0][byte] = crc;
    }
    for (size_t i = 1; i < 8; i++)
        for (uint32_t byte = 0; byte < 256; byte++)
            bytes_table[i][byte] = over_zeros(bytes_table[i - 1][byte], 1);
#if defined(__x86_64__)
    __builtin_cpu_init();
    bool streams = __builtin_cpu_supports("sse4.2");
    if (streams)
        kernels[chosen = 1].run = native;
    if (streams && __builtin_cpu_supports("pclmul") && __builtin_cpu_supports("avx512f")
        && __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("vpclmulqdq"))
        kernels[chosen = 2] = (struct kernel){"vpclmul", vpclmul, vpclmul_copy};
#elif defined(__aarch64__)
    bool streams = getauxval(AT_HWCAP) & HWCAP_CRC32;
    if (streams)
        kernels[chosen = 3].run = native;
#endif
#ifdef NATIVE
    /* The tables are linear: 32 walks over zeros, and the rest is sums of these. */
    for (uint32_t bit = 0; streams && bit < 32; bit++) {
        uint32_t far = over_zeros(1u << bit, LONG), near = over_zeros(1u << bit, SHORT), at = 1u << bit % 8;
        for (uint32_t below = 0; below < at; below++) {
            long_table[bit / 8][at + below] = long_table[bit / 8][below] ^ far;
            short_table[bit / 8][at + below] = short_table[bit / 8][below] ^ near;
        }
    }
#endif
}

pr_crc32c_kernel pr_crc32c_by_number(int number)
{
    return number >= 0 && number < PR_CRC32C_KERNELS ? kernels[number].run : NULL;
}

const char *pr_crc32c_name(int number) { return number >= 0 && number < PR_CRC32C_KERNELS ? kernels[number].name : ""; }
int pr_crc32c_chosen(void) { return chosen; }
uint32_t pr_crc32c(uint32_t crc, const void *data, size_t length) { return kernels[chosen].run(crc, data, length); }

uint32_t pr_crc32c_copy_by(int number, uint32_t crc, void *target, const void *source, size_t length)
{
    const struct kernel *kernel = &kernels[number];
    if (kernel->copy)
        return kernel->copy(crc, target, source, length);
    uint8_t *into = target;
    const uint8_t *from = source;
    for (size_t at = 0, piece; at < length; at += piece) {
        piece = length - at < PIECE ? length - at : PIECE;
        memcpy(into + at, from + at, piece);
        __asm__ volatile("" ::: "memory");
        crc = kernel->run(crc, into + at, piece);
    }
    return crc;
}

uint32_t pr_crc32c_copy(uint32_t crc, void *target, const void *source, size_t length)
{
    return pr_crc32c_copy_by(chosen, crc, target, source, length);
}
