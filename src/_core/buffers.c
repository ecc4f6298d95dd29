/* The pool behind buffers.h.
 *
 * Decides: size classes, how much is kept, which memory is huge. Must not know what a buffer is for.
 * Each extension module that links this file has a pool of its own; memory may be taken from one and given to another,
 * because the length alone says how it was obtained.
 */
#include "buffers.h"
#include "layout.h"
#include <pthread.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/mman.h>

#define LEAST 12                        /* log2 of the smallest class: PR_BLOCK */
#define MOST 23                         /* log2 of the largest class that is kept, 8 MiB */
#define HUGE 21                         /* log2 of a huge page: from here on buffers are mapped, not allocated */
#define KEEP (32u << 20)                /* bytes that one pool keeps at most */

_Static_assert(PR_BLOCK == 1u << LEAST, "the smallest class is a block");

/* log2 of the class of `length`; above MOST: not kept. 0: too long to be an allocation. */
static int class_of(size_t length)
{
    if (length <= PR_BLOCK)
        return LEAST;
    if (length > (size_t)1 << 46)
        return 0;
    return 64 - __builtin_clzll(length - 1);
}

#if defined(__SANITIZE_ADDRESS__)
/* Nothing is kept: a buffer ends where its length ends, and one that was given back is not used again, so that the
 * sanitizer sees what goes too far or comes too late. */
void *pr_buffer_take(size_t length)
{
    void *fresh;
    return !class_of(length) || posix_memalign(&fresh, PR_BLOCK, length) ? NULL : fresh;
}

void pr_buffer_give(void *buffer, size_t length)
{
    (void)length;
    free(buffer);
}
#else
struct kept { struct kept *next; };     /* lies in the first bytes of a buffer that nobody uses */

static struct {
    pthread_mutex_t lock;
    struct kept *classes[MOST + 1];
    size_t bytes;
} pool = { .lock = PTHREAD_MUTEX_INITIALIZER };

/* Maps 2^class bytes, aligned to a huge page, so that the kernel can use them. */
static void *map_aligned(int class)
{
    const size_t length = (size_t)1 << class, huge = (size_t)1 << HUGE;
    uint8_t *base = mmap(NULL, length + huge, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (base == MAP_FAILED)
        return NULL;
    uint8_t *start = (uint8_t *)(((uintptr_t)base + huge - 1) & ~(uintptr_t)(huge - 1));
    size_t before = (size_t)(start - base);
    if (before)
        munmap(base, before);
    if (huge - before)
        munmap(start + length, huge - before);
    madvise(start, length, MADV_HUGEPAGE);      /* a wish: where it is refused, small pages do */
    return start;
}

void *pr_buffer_take(size_t length)
{
    int class = class_of(length);
    if (!class)
        return NULL;
    if (class <= MOST) {
        pthread_mutex_lock(&pool.lock);
        struct kept *kept = pool.classes[class];
        if (kept) {
            pool.classes[class] = kept->next;
            pool.bytes -= (size_t)1 << class;
        }
        pthread_mutex_unlock(&pool.lock);
        if (kept)
            return kept;
    }
    if (class >= HUGE)
        return map_aligned(class);
    void *fresh;
    return posix_memalign(&fresh, PR_BLOCK, (size_t)1 << class) ? NULL : fresh;
}

void pr_buffer_give(void *buffer, size_t length)
{
    if (!buffer)
        return;
    int class = class_of(length);
    if (class <= MOST) {
        pthread_mutex_lock(&pool.lock);
        int room = pool.bytes + ((size_t)1 << class) <= KEEP;
        if (room) {
            struct kept *kept = buffer;
            kept->next = pool.classes[class];
            pool.classes[class] = kept;
            pool.bytes += (size_t)1 << class;
        }
        pthread_mutex_unlock(&pool.lock);
        if (room)
            return;
    }
    if (class >= HUGE)
        munmap(buffer, (size_t)1 << class);
    else
        free(buffer);
}
#endif
