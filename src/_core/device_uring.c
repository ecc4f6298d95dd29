/* Lists by io_uring.
 *
 * Decides: how many rings there are and who has one; how deep a list goes; what becomes of a short transfer. A ring
 * is not bound to a file, so the process has one free list of them: a thousand devices need no thousand rings. Must
 * not know devices, only descriptors.
 */
#define _GNU_SOURCE
#include "device_file.h"
#include "uring.h"
#include <errno.h>
#include <pthread.h>
#include <sched.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>

#define RINGS 16u                       /* of a process; who finds none waits for one */
#define PARTS_MOST 1024u                /* IOV_MAX */
#define LENGTH_MOST (1u << 30)

#ifndef RWF_DSYNC
#define RWF_DSYNC 2
#endif

struct ring {
    struct ring *next;
    int fd;
    uint8_t *memory;
    size_t memory_length, sqes_length;
    struct uring_sqe *sqes;
    struct uring_cqe *cqes;
    _Atomic uint32_t *sq_head, *sq_tail, *cq_head, *cq_tail;
    uint32_t *sq_array, sq_mask, cq_mask;
};

static struct {
    pthread_mutex_t lock;
    pthread_cond_t given;
    struct ring *idle;
    uint32_t made;
} rings = { .lock = PTHREAD_MUTEX_INITIALIZER, .given = PTHREAD_COND_INITIALIZER };

/* ---- making a ring --------------------------------------------------------------------------------------------- */

static void ring_free(struct ring *ring)
{
    if (ring->sqes)
        munmap(ring->sqes, ring->sqes_length);
    if (ring->memory)
        munmap(ring->memory, ring->memory_length);
    if (ring->fd >= 0)
        close(ring->fd);
    free(ring);
}

static int ring_map(struct ring *ring, const struct uring_params *params)
{
    size_t sq = params->sq.array + params->sq_entries * sizeof(uint32_t);
    size_t cq = params->cq.cqes + params->cq_entries * sizeof(struct uring_cqe);
    ring->memory_length = sq > cq ? sq : cq;
    ring->sqes_length = params->sq_entries * sizeof(struct uring_sqe);
    void *memory = mmap(NULL, ring->memory_length, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_POPULATE, ring->fd,
                        URING_OFF_RINGS);
    if (memory == MAP_FAILED)
        return -errno;
    ring->memory = memory;
    void *sqes = mmap(NULL, ring->sqes_length, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_POPULATE, ring->fd,
                      URING_OFF_SQES);
    if (sqes == MAP_FAILED)
        return -errno;
    ring->sqes = sqes;
    madvise(memory, ring->memory_length, MADV_DONTFORK);        /* a child must not touch what its parent uses */
    madvise(sqes, ring->sqes_length, MADV_DONTFORK);
    ring->sq_head = (_Atomic uint32_t *)(ring->memory + params->sq.head);
    ring->sq_tail = (_Atomic uint32_t *)(ring->memory + params->sq.tail);
    ring->sq_mask = *(uint32_t *)(ring->memory + params->sq.ring_mask);
    ring->sq_array = (uint32_t *)(ring->memory + params->sq.array);
    ring->cq_head = (_Atomic uint32_t *)(ring->memory + params->cq.head);
    ring->cq_tail = (_Atomic uint32_t *)(ring->memory + params->cq.tail);
    ring->cq_mask = *(uint32_t *)(ring->memory + params->cq.ring_mask);
    ring->cqes = (struct uring_cqe *)(ring->memory + params->cq.cqes);
    return 0;
}

static struct ring *ring_new(uint32_t entries, int *code, const char **step)
{
    const uint32_t features = URING_FEAT_SINGLE_MMAP | URING_FEAT_NODROP | URING_FEAT_RW_CUR_POS;
    struct uring_params params;
    struct ring *ring = calloc(1, sizeof *ring);
    *step = "memory";
    *code = -ENOMEM;
    if (!ring)
        return NULL;
    memset(&params, 0, sizeof params);
    params.flags = URING_SETUP_COOP_TASKRUN;
    *step = "io_uring_setup";
    ring->fd = (int)uring_setup(entries, &params);
    if (ring->fd < 0 && errno == EINVAL) {      /* older than 5.19 */
        memset(&params, 0, sizeof params);
        ring->fd = (int)uring_setup(entries, &params);
    }
    *code = ring->fd < 0 ? -errno : 0;
    if (!*code && (params.features & features) != features) {
        *step = "a kernel before 5.6";
        *code = -ENOSYS;
    }
    if (!*code) {
        *step = "mmap of the ring";
        *code = ring_map(ring, &params);
    }
    if (*code) {
        ring_free(ring);
        return NULL;
    }
    return ring;
}

/* ---- having one ------------------------------------------------------------------------------------------------ */

static void forget(void)                /* in a child: the rings are the parent's */
{
    pthread_mutex_init(&rings.lock, NULL);
    pthread_cond_init(&rings.given, NULL);
    for (struct ring *ring = rings.idle; ring; ring = ring->next)
        close(ring->fd);
    rings.idle = NULL;
    rings.made = 0;
}

static struct { pthread_once_t once; int code; const char *step; } probed = { .once = PTHREAD_ONCE_INIT };

static void probe(void)
{
    struct ring *ring = ring_new(4, &probed.code, &probed.step);
    if (!ring)
        return;
    long answer = uring_enter(ring->fd, 0, 0, 0);       /* some filters let only the first call pass */
    if (answer < 0) {
        probed.code = -errno;
        probed.step = "io_uring_enter";
    }
    ring_free(ring);
    pthread_atfork(NULL, NULL, forget);
}

int pr_uring_probe(const char **step)
{
    pthread_once(&probed.once, probe);
    *step = probed.step;
    return probed.code;
}

static struct ring *ring_take(void)
{
    struct ring *ring;
    const char *step;
    int code;
    pthread_mutex_lock(&rings.lock);
    for (;;) {
        ring = rings.idle;
        if (ring) {
            rings.idle = ring->next;
            break;
        }
        if (rings.made < RINGS) {
            ring = ring_new(PR_MAX_DEPTH, &code, &step);
            rings.made += ring != NULL;
            if (ring || !rings.made)
                break;
        }
        pthread_cond_wait(&rings.given, &rings.lock);
    }
    pthread_mutex_unlock(&rings.lock);
    return ring;
}

static void ring_give(struct ring *ring)
{
    pthread_mutex_lock(&rings.lock);
    ring->next = rings.idle;
    rings.idle = ring;
    pthread_cond_signal(&rings.given);
    pthread_mutex_unlock(&rings.lock);
}

/* ---- a list ---------------------------------------------------------------------------------------------------- */

static bool is_transfer(const pr_io *io) { return io->op == PR_READ || io->op == PR_WRITE_OUT; }

static void queue(struct ring *ring, uint32_t tail, int fd, const pr_io *io, uint64_t tag)
{
    uint32_t slot = tail & ring->sq_mask;
    struct uring_sqe *sqe = &ring->sqes[slot];
    memset(sqe, 0, sizeof *sqe);
    sqe->fd = fd;
    sqe->off = io->offset;
    sqe->user_data = tag;
    if (io->parts) {
        sqe->opcode = io->op == PR_READ ? URING_READV : URING_WRITEV;
        sqe->addr = (uintptr_t)io->vector;
        sqe->len = io->parts < PARTS_MOST ? io->parts : PARTS_MOST;
    } else {
        sqe->opcode = io->op == PR_READ ? URING_READ : URING_WRITE;
        sqe->addr = (uintptr_t)io->buffer;
        sqe->len = io->length < LENGTH_MOST ? (uint32_t)io->length : LENGTH_MOST;
    }
    if (io->op == PR_WRITE_OUT && (io->flags & PR_FUA))
        sqe->rw_flags = RWF_DSYNC;
    ring->sq_array[slot] = slot;
}

/* Takes completions in; what was cut short or interrupted is finished by plain calls. Returns how many there were. */
static uint32_t reap(struct ring *ring, int fd, bool block, pr_io *ios)
{
    uint32_t head = atomic_load_explicit(ring->cq_head, memory_order_relaxed), begun = head;
    uint32_t tail = atomic_load_explicit(ring->cq_tail, memory_order_acquire);
    while (head != tail) {
        struct uring_cqe cqe = ring->cqes[head++ & ring->cq_mask];
        atomic_store_explicit(ring->cq_head, head, memory_order_release);
        pr_io *io = &ios[cqe.user_data];
        if (cqe.res == -EINTR || cqe.res == -EAGAIN || cqe.res == -ECANCELED)
            pr_file_one(fd, block, io, 0);
        else if (cqe.res < 0)
            io->result = cqe.res;
        else if ((uint64_t)cqe.res < io->length)
            pr_file_one(fd, block, io, (uint64_t)cqe.res);
        else
            io->result = 0;
    }
    return head - begun;
}

/* The kernel took `queued` requests out of the ring only in part and will not take the rest: they are taken back. */
static uint32_t take_back(struct ring *ring, int fd, bool block, pr_io *ios)
{
    uint32_t head = atomic_load_explicit(ring->sq_head, memory_order_acquire);
    uint32_t tail = atomic_load_explicit(ring->sq_tail, memory_order_relaxed), n = tail - head;
    atomic_store_explicit(ring->sq_tail, head, memory_order_release);
    for (uint32_t i = head; i != tail; i++)
        pr_file_one(fd, block, &ios[ring->sqes[i & ring->sq_mask].user_data], 0);
    return n;
}

int pr_uring_perform(int fd, bool block, pr_io *ios, uint32_t count, uint32_t depth)
{
    uint32_t next = 0, flying = 0, queued = 0;  /* flying: queued ones included */
    struct ring *ring = ring_take();
    if (!ring)
        return -ENOSYS;
    for (;;) {
        uint32_t tail = atomic_load_explicit(ring->sq_tail, memory_order_relaxed);
        for (; next < count && flying < depth; next++) {
            if (!is_transfer(&ios[next]))
                continue;
            queue(ring, tail++, fd, &ios[next], next);
            flying++;
            queued++;
        }
        atomic_store_explicit(ring->sq_tail, tail, memory_order_release);
        if (!flying)
            break;
        /* While more is to come the queue is filled up as soon as one is done (waiting for several cost a tenth of
         * the speed on a disk that is bound by latency); at the end all are awaited. */
        uint32_t wait = next < count ? 1 : flying;
        long taken = uring_enter(ring->fd, queued, wait, URING_ENTER_GETEVENTS);
        if (taken >= 0) {
            queued -= (uint32_t)taken < queued ? (uint32_t)taken : queued;
        } else if (errno != EINTR && errno != EAGAIN && errno != EBUSY) {
            uint32_t back = take_back(ring, fd, block, ios);
            flying -= back;
            queued = 0;
            if (flying)                 /* the kernel still writes into these: they must end before we return */
                nanosleep(&(struct timespec){ .tv_nsec = 1000000 }, NULL);
        } else if (queued) {            /* EINTR, EAGAIN: some may have been taken all the same */
            queued = tail - atomic_load_explicit(ring->sq_head, memory_order_acquire);
        }
        flying -= reap(ring, fd, block, ios);
    }
    ring_give(ring);
    return 0;
}
