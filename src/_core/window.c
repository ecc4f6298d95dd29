/* The window (window.h says the rules). This file decides: places, batches, who leads a group commit, when the log is
 * flushed, what memory is kept, what readers find. It must not know: what an operation, a note or an item means, links,
 * source maps, Python.
 *
 * Three counters walk over the slots (batches and notes in memory, in order of their positions):
 *     first ... unapplied ... next ... last
 *   [first, unapplied)  in the stores, kept because somebody has one of them pinned
 *   [unapplied, next)   in the log
 *   [next, last)        laid out; the last one may be open, that is, still take records
 * A slot is closed before it is written, and written only when every record in it is filled: places are given under the
 * mutex, the copying is done outside. Whoever set `writing` (the leader) owns chain and previous, seals and writes;
 * nobody else touches a closed slot's head.
 */
#include "window.h"

#include "buffers.h"
#include "crc32c.h"

#include <errno.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>

#define TAKE 32                         /* slots of one write of the log */
#define GATHER 64                       /* pieces copied by an overlay between two looks at the index */
#define LOOKUPS 512                     /* blocks looked up in one hold of the mutex */
#define FUA_MOST (256u << 10)           /* a longer write is made durable by a flush */
#define READ_AHEAD (64u << 10)          /* first read of a record that is read back */

typedef struct slot {
    uint64_t position, length;          /* in the log; the length of an open one grows */
    uint8_t *memory;                    /* local part first; zeros from the descriptors' end to the payload */
    uint64_t ring_end;                  /* where the ring goes on behind it, as a running count */
    uint64_t first_lsn, reached;        /* reached: the LSN after it */
    uint64_t notes;                     /* bytes of notes that applying it may need at most */
    uint32_t count, payload_length;
    uint32_t pins;
    uint32_t body_length, body_crc;     /* of a note */
    uint8_t kind, batch_kind, note;
    bool own;                           /* memory of its own, not of the ring */
    bool sealed;                        /* its travel part came sealed from the peer */
    bool fua;                           /* somebody waits for it to be durable */
    bool written;
    _Atomic uint32_t filled;            /* records whose payload is in place */
    _Atomic uint8_t ready[PR_MAX_RECORDS];
    struct slot *next_free;
} slot;

struct cell { uint64_t block; slot *slot; uint32_t store; uint16_t record; };      /* slot NULL: free */
struct hold { uint64_t offset, length; uint32_t store; };
struct barrier { uint64_t position; uint32_t store; };             /* an operation that is not applied */
struct store_entry { uint64_t size; uint32_t id; bool writable; };

struct pr_window {
    pthread_mutex_t mutex;
    pthread_cond_t c_written, c_durable, c_room, c_applied, c_filled, c_work, c_peer, c_hold;

    pr_device *device;
    uint64_t log_offset, log_size, reserve, seed;
    uint32_t alignment;
    uint64_t event_most;                                           /* PR_MAX_EVENT, less where the log is tiny */
    uint64_t region_size, note_cost;                               /* of one region that an event touches, bytes of notes */
    uint64_t notes;                                                /* that what is not applied may need: kept free of the log */
    uint8_t group[16], generation[16];
    bool opened, closed, writing, flushing, applying, sync;
    int failed;

    uint64_t end, written, durable, applied, tail;                 /* positions; end: the open slot included */
    uint64_t end_lsn, written_lsn, durable_lsn, applied_lsn, peer_lsn;
    uint64_t chain, previous;                                      /* at `written` */
    uint64_t batches, records, payload_bytes, commits, flushes;

    uint8_t *ring;
    uint64_t ring_size, ring_head, ring_tail;                      /* running counts: the place is count % size */

    slot **slots;
    uint64_t slot_mask, first, unapplied, next, last;
    slot *open, *free_slots;
    _Atomic uint32_t fill_waiters;

    struct cell *cells;
    uint64_t cell_mask, cells_used, cells_limit;

    struct store_entry stores[PR_MAX_STORES];
    uint32_t store_count;
    struct hold *holds;
    uint32_t hold_count, hold_space;
    struct barrier *barriers;
    uint32_t barrier_count, barrier_space;
};

/* ---- waiting ---- */

typedef struct patience { int64_t timeout; bool started; struct timespec until; } patience;

/* The clock is read only by those who really wait: a write at queue depth 1 never does. */
static int wait_for(pr_window *w, pthread_cond_t *condition, patience *p) {
    if (p->timeout < 0) {
        pthread_cond_wait(condition, &w->mutex);
        return 0;
    }
    if (!p->started) {
        clock_gettime(CLOCK_MONOTONIC, &p->until);
        p->until.tv_sec += p->timeout / 1000000000;
        p->until.tv_nsec += p->timeout % 1000000000;
        if (p->until.tv_nsec >= 1000000000) { p->until.tv_nsec -= 1000000000; p->until.tv_sec++; }
        p->started = true;
    }
    return pthread_cond_timedwait(condition, &w->mutex, &p->until) == ETIMEDOUT ? PR_TIME_OVER : 0;
}

#define CONDITIONS 8

static pthread_cond_t *condition_of(pr_window *w, int i) {
    pthread_cond_t *all[CONDITIONS] = { &w->c_written, &w->c_durable, &w->c_room, &w->c_applied,
                                        &w->c_filled, &w->c_work, &w->c_peer, &w->c_hold };
    return all[i];
}

static void wake_all(pr_window *w) {
    for (int i = 0; i < CONDITIONS; i++)
        pthread_cond_broadcast(condition_of(w, i));
}

static void fail(pr_window *w, int code) {
    if (!w->failed)
        w->failed = code;
    wake_all(w);
}

/* ---- slots ---- */

static inline slot *at(const pr_window *w, uint64_t i) { return w->slots[i & w->slot_mask]; }
static inline struct pr_travel *travel_of(const slot *s) {
    return (struct pr_travel *)(s->memory + sizeof(struct pr_local));
}
static inline struct pr_record *records_of(const slot *s) { return (struct pr_record *)(travel_of(s) + 1); }
static inline uint8_t *payload_of(const slot *s) { return s->memory + PR_BLOCK; }
static inline bool has_lsn(const slot *s) {
    return s->batch_kind == PR_BATCH_EVENTS || s->batch_kind == PR_BATCH_OPERATION;
}

/* A fresh slot, not yet in the row; room for it in the row is seen to, so that push() cannot fail. */
static slot *slot_new(pr_window *w) {
    if (w->last - w->first > w->slot_mask) {
        uint64_t space = (w->slot_mask + 1) * 2;
        slot **slots = malloc(space * sizeof *slots);
        if (!slots)
            return NULL;
        for (uint64_t i = w->first; i != w->last; i++)
            slots[i & (space - 1)] = at(w, i);
        free(w->slots);
        w->slots = slots;
        w->slot_mask = space - 1;
    }
    slot *s = w->free_slots;
    if (s)
        w->free_slots = s->next_free;
    else if (!(s = malloc(sizeof *s)))
        return NULL;
    memset(s, 0, sizeof *s);
    return s;
}

static void slot_drop(pr_window *w, slot *s) {
    s->next_free = w->free_slots;
    w->free_slots = s;
}

static void push(pr_window *w, slot *s) { w->slots[w->last++ & w->slot_mask] = s; }

/* Gives back the memory of what is applied and not pinned, oldest first: the ring is freed in order. */
static void free_front(pr_window *w) {
    uint64_t before = w->first;
    while (w->first != w->unapplied && at(w, w->first)->pins == 0) {
        slot *s = at(w, w->first++);
        if (s->own)
            pr_buffer_give(s->memory, s->length);
        else
            w->ring_tail = s->ring_end;
        slot_drop(w, s);
    }
    if (w->first != before)
        pthread_cond_broadcast(&w->c_room);
}

/* Where `length` bytes lie together in the ring, as a running count, past a gap at its end if need be. */
static int ring_place(const pr_window *w, uint64_t length, uint64_t *start) {
    uint64_t head = w->ring_head, place = head % w->ring_size;
    if (place + length > w->ring_size)
        head += w->ring_size - place;
    *start = head;
    return head + length - w->ring_tail > w->ring_size ? PR_NO_ROOM : 0;
}

/* Does a record of the log of `length` bytes at `position` fit without the part that is kept for notes? */
static inline bool log_fits(const pr_window *w, uint64_t position, uint64_t length) {
    return position + length + w->reserve + w->notes <= w->tail + w->log_size;
}

/* Bytes of notes that an event may need: it may re-point every store that shows a region that it touches. */
static inline uint64_t notes_of(const pr_window *w, uint64_t offset, uint64_t length) {
    return w->note_cost ? ((offset % w->region_size + length - 1) / w->region_size + 1) * w->note_cost : 0;
}

/* Is there room for the notes too? Without anything to apply there always is: the reserve, and what applying frees. */
static inline bool notes_fit(const pr_window *w, uint64_t notes, uint64_t length) {
    return !w->notes || log_fits(w, w->end, length + notes);
}

/* Of an operation or item: its body, and where what it creates is placed. */
static inline uint64_t notes_of_body(const pr_window *w, uint64_t length) {
    return w->note_cost ? pr_align(4 * length, PR_BLOCK) + PR_BLOCK : 0;
}

static inline void notes_keep(pr_window *w, slot *s, uint64_t notes) {
    s->notes += notes;
    w->notes += notes;
}

/* The waiter counts itself and then looks, we count and then look for waiters (sequentially consistent): one of the two
 * sees the other. */
static void filled(pr_window *w, slot *s, uint32_t records) {
    atomic_fetch_add(&s->filled, records);
    if (atomic_load(&w->fill_waiters)) {
        pthread_mutex_lock(&w->mutex);
        pthread_cond_broadcast(&w->c_filled);
        pthread_mutex_unlock(&w->mutex);
    }
}

/* ---- the index of blocks: open addressing, linear probing, no tombstones ---- */

static inline uint64_t cell_home(const pr_window *w, uint32_t store, uint64_t block) {
    /* 16 neighbouring blocks share a run of cells: a large write touches few cache lines */
    uint64_t x = (block >> 4) * 0x9e3779b97f4a7c15u + (uint64_t)store * 0xc2b2ae3d27d4eb4fu;
    x ^= x >> 32;
    x *= 0xd6e8feb86659fd93u;
    x ^= x >> 32;
    return (x << 4 | (block & 15)) & w->cell_mask;
}

static struct cell *cell_find(const pr_window *w, uint32_t store, uint64_t block) {
    uint64_t i = cell_home(w, store, block);
    while (w->cells[i].slot && (w->cells[i].block != block || w->cells[i].store != store))
        i = (i + 1) & w->cell_mask;
    return &w->cells[i];
}

static void cell_delete(pr_window *w, struct cell *cell) {
    uint64_t hole = (uint64_t)(cell - w->cells), i = hole;
    for (;;) {
        i = (i + 1) & w->cell_mask;
        if (!w->cells[i].slot)
            break;
        uint64_t home = cell_home(w, w->cells[i].store, w->cells[i].block);
        if (((i - home) & w->cell_mask) >= ((i - hole) & w->cell_mask)) {   /* it may move up to the hole */
            w->cells[hole] = w->cells[i];
            hole = i;
        }
    }
    w->cells[hole].slot = NULL;
    w->cells_used--;
}

/* Sees to room for `more` cells at a load of at most one half. */
static int cells_reserve(pr_window *w, uint64_t more) {
    if ((w->cells_used + more) * 2 <= w->cell_mask + 1)
        return 0;
    uint64_t space = w->cell_mask + 1, old_space = space;
    while ((w->cells_used + more) * 2 > space)
        space *= 2;
    struct cell *cells = calloc(space, sizeof *cells), *old = w->cells;
    if (!cells)
        return -ENOMEM;
    w->cells = cells;
    w->cell_mask = space - 1;
    for (uint64_t i = 0; i < old_space; i++)
        if (old[i].slot)
            *cell_find(w, old[i].store, old[i].block) = old[i];
    free(old);
    return 0;
}

static inline uint64_t blocks_of(const pr_window *w, uint64_t length) {
    return (length + w->alignment - 1) / w->alignment;
}

/* The newest one wins: records are entered in the order of their places. */
static void index_record(pr_window *w, slot *s, uint32_t record) {
    const struct pr_record *r = &records_of(s)[record];
    uint64_t block = r->offset / w->alignment;
    for (uint64_t n = blocks_of(w, r->length); n; n--, block++) {
        struct cell *cell = cell_find(w, r->store, block);
        if (!cell->slot)
            w->cells_used++;
        *cell = (struct cell){ .block = block, .slot = s, .store = r->store, .record = (uint16_t)record };
    }
}

static void unindex_record(pr_window *w, slot *s, uint32_t record) {
    const struct pr_record *r = &records_of(s)[record];
    uint64_t block = r->offset / w->alignment;
    for (uint64_t n = blocks_of(w, r->length); n; n--, block++) {
        struct cell *cell = cell_find(w, r->store, block);
        if (cell->slot == s && cell->record == record)
            cell_delete(w, cell);
    }
}

static inline bool is_indexed(const slot *s) {
    return s->batch_kind == PR_BATCH_EVENTS || s->batch_kind == PR_BATCH_COPIED;
}

/* What came from elsewhere (a peer, the log): is every descriptor inside its payload? Counts the blocks to index. */
static int records_check(const pr_window *w, const struct pr_travel *t, const struct pr_record *r, uint64_t *blocks) {
    *blocks = 0;
    for (uint32_t i = 0; i < t->count; i++) {
        if (t->kind == PR_BATCH_OPERATION || t->kind == PR_BATCH_ITEM) {
            if (r[i].payload > t->payload_length || r[i].length > t->payload_length - r[i].payload)
                return PR_MALFORMED;
            continue;
        }
        if (r[i].length == 0 || r[i].length > PR_MAX_EVENT || r[i].offset % w->alignment || r[i].offset > INT64_MAX)
            return PR_MALFORMED;
        uint64_t padded = pr_align(r[i].length, w->alignment);
        if (r[i].kind == PR_WRITE && (r[i].payload > t->payload_length || padded > t->payload_length - r[i].payload))
            return PR_MALFORMED;
        if (r[i].kind != PR_WRITE && r[i].kind != PR_ZERO && r[i].kind != PR_DISCARD)
            return PR_MALFORMED;
        *blocks += padded / w->alignment;
    }
    return 0;
}

static uint64_t notes_of_batch(const pr_window *w, const struct pr_travel *t, const struct pr_record *r) {
    uint64_t notes = 0;
    if (t->kind == PR_BATCH_OPERATION || t->kind == PR_BATCH_ITEM)
        return notes_of_body(w, t->payload_length);
    for (uint32_t i = 0; i < t->count; i++)
        notes += notes_of(w, r[i].offset, r[i].length);
    return notes;
}

/* ---- stores ---- */

static uint32_t store_place(const pr_window *w, uint32_t id) {
    uint32_t low = 0, high = w->store_count;
    while (low < high) {
        uint32_t middle = (low + high) / 2;
        if (w->stores[middle].id < id)
            low = middle + 1;
        else
            high = middle;
    }
    return low;
}

static struct store_entry *store_find(pr_window *w, uint32_t id) {
    uint32_t i = store_place(w, id);
    return i < w->store_count && w->stores[i].id == id ? &w->stores[i] : NULL;
}

static int store_set(pr_window *w, uint32_t id, uint64_t size, bool writable) {
    struct store_entry *found = store_find(w, id);
    if (!found) {
        if (w->store_count == PR_MAX_STORES)
            return PR_TOO_MANY;
        uint32_t i = store_place(w, id);
        memmove(&w->stores[i + 1], &w->stores[i], (w->store_count++ - i) * sizeof *w->stores);
        found = &w->stores[i];
    }
    *found = (struct store_entry){ .size = size, .id = id, .writable = writable };
    return 0;
}

static int store_drop(pr_window *w, uint32_t id) {
    struct store_entry *found = store_find(w, id);
    if (!found)
        return PR_NO_STORE;
    memmove(found, found + 1, (size_t)(&w->stores[--w->store_count] - found) * sizeof *found);
    return 0;
}

static int store_check(pr_window *w, uint32_t id, uint64_t offset, uint64_t length) {
    const struct store_entry *s = store_find(w, id);
    if (!s)
        return PR_NO_STORE;
    if (!s->writable)
        return PR_NOT_WRITABLE;
    if (offset % w->alignment || length % w->alignment || length == 0)
        return PR_UNALIGNED;
    if (offset > s->size || length > s->size - offset)
        return PR_OUTSIDE;
    return 0;
}

static bool is_held(const pr_window *w, uint32_t store, uint64_t offset, uint64_t length) {
    for (uint32_t i = 0; i < w->hold_count; i++) {
        const struct hold *h = &w->holds[i];
        if (h->store == store && offset < h->offset + h->length && h->offset < offset + length)
            return true;
    }
    return false;
}

static int barriers_reserve(pr_window *w, uint32_t more) {
    if (w->barrier_count + more <= w->barrier_space)
        return 0;
    uint32_t space = (w->barrier_count + more) * 2;
    struct barrier *barriers = realloc(w->barriers, space * sizeof *barriers);
    if (!barriers)
        return -ENOMEM;
    w->barriers = barriers;
    w->barrier_space = space;
    return 0;
}

static void barriers_add(pr_window *w, uint64_t position, const uint32_t *stores, uint32_t count) {
    for (uint32_t i = 0; i < count; i++)
        w->barriers[w->barrier_count++] = (struct barrier){ .position = position, .store = stores[i] };
}

/* ---- life ---- */

pr_window *pr_window_new(uint64_t ring, uint32_t alignment, uint64_t reserve) {
    pr_window *w = calloc(1, sizeof *w);
    if (!w)
        return NULL;
    uint64_t cells = 1024;
    while (cells < ring / alignment * 2)
        cells *= 2;
    w->alignment = alignment;
    w->reserve = reserve;
    w->ring_size = ring;
    w->slot_mask = 255;
    w->cell_mask = cells - 1;
    w->cells_limit = ring / alignment * 4;                         /* zeros cost no ring: this bounds them */
    w->slots = malloc((w->slot_mask + 1) * sizeof *w->slots);
    w->cells = calloc(cells, sizeof *w->cells);
    w->ring = mmap(NULL, ring, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (w->ring == MAP_FAILED || !w->slots || !w->cells) {
        if (w->ring != MAP_FAILED)
            munmap(w->ring, ring);
        free(w->slots);
        free(w->cells);
        free(w);
        return NULL;
    }
    pthread_condattr_t monotonic;
    pthread_condattr_init(&monotonic);
    pthread_condattr_setclock(&monotonic, CLOCK_MONOTONIC);
    pthread_mutex_init(&w->mutex, NULL);
    for (int i = 0; i < CONDITIONS; i++)
        pthread_cond_init(condition_of(w, i), &monotonic);
    pthread_condattr_destroy(&monotonic);
    return w;
}

void pr_window_free(pr_window *w) {
    if (!w)
        return;
    for (; w->first != w->last; w->first++) {
        if (at(w, w->first)->own)
            pr_buffer_give(at(w, w->first)->memory, at(w, w->first)->length);
        free(at(w, w->first));
    }
    while (w->free_slots) {
        slot *s = w->free_slots;
        w->free_slots = s->next_free;
        free(s);
    }
    for (int i = 0; i < CONDITIONS; i++)
        pthread_cond_destroy(condition_of(w, i));
    pthread_mutex_destroy(&w->mutex);
    munmap(w->ring, w->ring_size);
    free(w->slots);
    free(w->cells);
    free(w->holds);
    free(w->barriers);
    free(w);
}

/* The scan judged the record; here only what this file relies on is looked at again: that nothing points outside. */
int pr_window_load(pr_window *w, const uint8_t *record, uint64_t length, const uint32_t *blocks, uint32_t block_count) {
    uint64_t cells = 0;
    if (length < PR_BLOCK || length > PR_MAX_LOG_RECORD || length % PR_BLOCK)
        return PR_MALFORMED;
    uint8_t *memory = pr_buffer_take(length);
    if (!memory)
        return -ENOMEM;
    memcpy(memory, record, length);
    const struct pr_local *local = (const struct pr_local *)memory;
    const struct pr_travel *t = (const struct pr_travel *)(local + 1);
    if (pr_local_judge(local, local->position) || local->length != length || local->kind != PR_RECORD_BATCH ||
        t->count > PR_MAX_RECORDS || pr_batch_length(t->payload_length) != length ||
        records_check(w, t, (const struct pr_record *)(t + 1), &cells)) {
        pr_buffer_give(memory, length);
        return PR_MALFORMED;
    }
    pthread_mutex_lock(&w->mutex);
    int code = 0;
    slot *s = NULL;
    if (w->opened || (w->first != w->last && local->position < w->written))
        code = PR_TWICE;
    else if ((code = cells_reserve(w, cells)) == 0 && (code = barriers_reserve(w, block_count)) == 0)
        code = (s = slot_new(w)) ? 0 : -ENOMEM;
    if (code == 0) {
        s->memory = memory;
        s->own = s->sealed = s->written = true;
        s->position = local->position;
        s->length = length;
        s->kind = PR_RECORD_BATCH;
        s->batch_kind = t->kind;
        s->count = t->count;
        s->payload_length = t->payload_length;
        s->first_lsn = t->first_lsn;
        s->reached = has_lsn(s) ? t->first_lsn + t->count - 1 : t->first_lsn;
        atomic_store(&s->filled, t->count);
        memset((void *)s->ready, 1, t->count);
        push(w, s);
        w->next = w->last;
        w->written = s->position + length;
        for (uint32_t i = 0; is_indexed(s) && i < s->count; i++)
            index_record(w, s, i);
        barriers_add(w, s->position, blocks, block_count);
        notes_keep(w, s, notes_of_batch(w, t, records_of(s)));
    }
    pthread_mutex_unlock(&w->mutex);
    if (code)
        pr_buffer_give(memory, length);
    return code;
}

int pr_window_open(pr_window *w, const pr_window_log *log) {
    if (log->size % PR_BLOCK || log->offset % PR_BLOCK || log->position % PR_BLOCK ||
        log->size < w->reserve + 16 * PR_BLOCK || log->offset > log->device->size ||
        log->size > log->device->size - log->offset)
        return PR_MALFORMED;
    if (log->tail > log->applied_position || log->applied_position > log->position ||
        log->position - log->tail > log->size)
        return PR_OUTSIDE;
    pthread_mutex_lock(&w->mutex);
    int code = 0;
    if (w->opened || w->failed)
        code = PR_TWICE;
    else if (w->first != w->last && (at(w, w->first)->position < log->applied_position || w->written > log->position))
        code = PR_OUTSIDE;
    pthread_mutex_unlock(&w->mutex);
    if (code)
        return code;
    /* The process before may have left writes in the device's cache that this device object never saw: they count as a
     * write, so that the flush is not skipped. Only then is `position` durable, and may be named so. */
    atomic_fetch_add(&log->device->writes, 1);
    if ((code = pr_device_flush(log->device)) != 0)
        return code;
    pthread_mutex_lock(&w->mutex);
    w->device = log->device;
    w->log_offset = log->offset;
    w->log_size = log->size;
    w->seed = log->seed;
    w->event_most = (log->size - w->reserve) / 2 - PR_BLOCK;
    w->event_most = w->event_most < PR_MAX_EVENT ? w->event_most / w->alignment * w->alignment : PR_MAX_EVENT;
    w->chain = log->chain;
    w->previous = log->previous;
    memcpy(w->group, log->group, sizeof w->group);
    memcpy(w->generation, log->generation, sizeof w->generation);
    w->end = w->written = w->durable = log->position;
    w->end_lsn = w->written_lsn = w->durable_lsn = log->lsn;
    w->applied = log->applied_position;
    w->applied_lsn = log->applied_lsn;
    w->tail = log->tail;
    w->opened = true;
    pthread_mutex_unlock(&w->mutex);
    return 0;
}

/* Records are appended to it no more; it will be written as it is. */
static void close_batch(pr_window *w) { w->open = NULL; }

int pr_window_set_generation(pr_window *w, const uint8_t *generation, const uint8_t *group) {
    pthread_mutex_lock(&w->mutex);
    close_batch(w);
    memcpy(w->generation, generation, sizeof w->generation);
    memcpy(w->group, group, sizeof w->group);
    pthread_mutex_unlock(&w->mutex);
    return 0;
}

void pr_window_fail(pr_window *w, int code) {
    pthread_mutex_lock(&w->mutex);
    fail(w, code);
    pthread_mutex_unlock(&w->mutex);
}

void pr_window_close(pr_window *w) {
    pthread_mutex_lock(&w->mutex);
    w->closed = true;
    fail(w, -ESHUTDOWN);
    while (w->writing || w->flushing)                              /* the device may be closed after us */
        pthread_cond_wait(w->writing ? &w->c_written : &w->c_durable, &w->mutex);
    pthread_mutex_unlock(&w->mutex);
}

void pr_window_look(pr_window *w, pr_window_state *state) {
    pthread_mutex_lock(&w->mutex);
    *state = (pr_window_state){
        .end_position = w->end, .written_position = w->written, .durable_position = w->durable,
        .applied_position = w->applied, .tail_position = w->tail, .end_lsn = w->end_lsn,
        .written_lsn = w->written_lsn, .durable_lsn = w->durable_lsn,
        .applied_lsn = w->applied_lsn, .peer_lsn = w->peer_lsn, .chain = w->chain, .log_size = w->log_size,
        .notes = w->notes, .ring_size = w->ring_size, .ring_used = w->ring_head - w->ring_tail, .batches = w->batches,
        .records = w->records, .payload_bytes = w->payload_bytes, .commits = w->commits,
        .flushes = w->flushes, .failed = w->failed,
    };
    pthread_mutex_unlock(&w->mutex);
}

int pr_window_set_store(pr_window *w, uint32_t store, uint64_t size, bool writable) {
    pthread_mutex_lock(&w->mutex);
    int code = store_set(w, store, size, writable);
    pthread_mutex_unlock(&w->mutex);
    return code;
}

int pr_window_drop_store(pr_window *w, uint32_t store) {
    pthread_mutex_lock(&w->mutex);
    int code = store_drop(w, store);
    pthread_mutex_unlock(&w->mutex);
    return code;
}

int pr_window_set_notes(pr_window *w, uint64_t region_size, uint64_t cost) {
    if (!region_size || region_size > PR_MAX_REGION || cost > PR_MAX_NOTE)
        return PR_MALFORMED;
    pthread_mutex_lock(&w->mutex);
    w->region_size = region_size;
    w->note_cost = cost;
    pthread_mutex_unlock(&w->mutex);
    return 0;
}

int pr_window_store_size(pr_window *w, uint32_t store, uint64_t *size) {
    pthread_mutex_lock(&w->mutex);
    const struct store_entry *found = store_find(w, store);
    *size = found ? found->size : 0;
    pthread_mutex_unlock(&w->mutex);
    return found ? 0 : PR_NO_STORE;
}

/* ---- group commit and flush ---- */

/* One flush, or the wait for the one in flight. With the mutex, lets go of it meanwhile. */
static int flush_round(pr_window *w, patience *p) {
    if (w->flushing)
        return wait_for(w, &w->c_durable, p);
    uint64_t written = w->written, lsn = w->written_lsn;
    w->flushing = true;
    pthread_mutex_unlock(&w->mutex);
    int code = pr_device_flush(w->device);
    pthread_mutex_lock(&w->mutex);
    w->flushing = false;
    w->flushes++;
    if (code < 0)
        fail(w, code);
    else if (!w->failed && written > w->durable) {
        w->durable = written;
        w->durable_lsn = written == w->written ? w->written_lsn : lsn;
    }
    pthread_cond_broadcast(&w->c_durable);
    return 0;
}

/* Seals these slots, in order: each names the chain value of the one before, events the digest of the events before. */
static void seal(pr_window *w, slot **taken, uint32_t count, uint64_t durable, uint64_t *chain, uint64_t *previous) {
    for (uint32_t i = 0; i < count; i++) {
        slot *s = taken[i];
        struct pr_local *local = (struct pr_local *)s->memory;
        struct pr_travel *t = travel_of(s);
        if (s->kind == PR_RECORD_BATCH) {
            if (!s->sealed) {
                memset(payload_of(s) + s->payload_length, 0, s->length - PR_BLOCK - s->payload_length);
                t->previous = *previous;
                pr_batch_seal(t, records_of(s), s->count, s->payload_length);
            }
            if (has_lsn(s))
                *previous = pr_digest(t);
            pr_local_seal(local, PR_RECORD_BATCH, 0, s->position, *chain, durable, w->seed, (uint32_t)s->length, 0,
                          t->crc);
        } else
            pr_local_seal(local, PR_RECORD_NOTE, s->note, s->position, *chain, durable, w->seed, (uint32_t)s->length,
                          s->body_length, s->body_crc);
        *chain = pr_chain(local);
    }
}

/* Lists the writes for these slots: a record may wrap in the log, neighbours in memory and log are one write. */
static uint32_t list_writes(const pr_window *w, slot **taken, uint32_t count, pr_io *ios) {
    uint32_t n = 0;
    for (uint32_t i = 0; i < count; i++) {
        uint64_t place = taken[i]->position % w->log_size, length = taken[i]->length, done = 0;
        while (done < length) {
            uint64_t offset = (place + done) % w->log_size, part = length - done;
            if (part > w->log_size - offset)
                part = w->log_size - offset;
            pr_io *before = n ? &ios[n - 1] : NULL;
            uint8_t *memory = taken[i]->memory + done;
            if (before && before->offset + before->length == w->log_offset + offset &&
                (uint8_t *)before->buffer + before->length == memory)
                before->length += part;
            else
                ios[n++] = (pr_io){ .op = PR_WRITE_OUT, .offset = w->log_offset + offset, .length = part,
                                    .buffer = memory };
            done += part;
        }
    }
    return n;
}

/* Leads one group commit: there is something to write, and nobody writes. Lets go of the mutex for waits and I/O. */
static void lead(pr_window *w) {
    slot *taken[TAKE];
    pr_io ios[2 * TAKE];
    uint32_t count = 0, n;
    bool fua = false;
    patience forever = { .timeout = -1 };
    w->writing = true;
    /* No record may name a durable mark further back than PR_MAX_UNFLUSHED: the scan's search relies on it. */
    slot *s = at(w, w->next);
    while (!w->failed && w->written > w->durable && s->position + s->length - w->durable > PR_MAX_UNFLUSHED)
        flush_round(w, &forever);
    for (uint64_t i = w->next; i != w->last && count < TAKE; i++) {
        s = at(w, i);
        if (count && s->position + s->length - w->durable > PR_MAX_UNFLUSHED)
            break;
        if (s == w->open)
            close_batch(w);
        fua |= s->fua;
        taken[count++] = s;
    }
    for (uint32_t i = 0; i < count; i++) {
        atomic_fetch_add(&w->fill_waiters, 1);
        while (!w->failed && atomic_load(&taken[i]->filled) < taken[i]->count)
            pthread_cond_wait(&w->c_filled, &w->mutex);
        atomic_fetch_sub(&w->fill_waiters, 1);
    }
    int code = w->failed;
    if (!code) {
        uint64_t chain = w->chain, previous = w->previous, durable = w->durable;
        fua = fua && durable == w->written;                        /* FUA says nothing of the writes before */
        pthread_mutex_unlock(&w->mutex);
        seal(w, taken, count, durable, &chain, &previous);
        n = list_writes(w, taken, count, ios);
        fua = fua && n == 1 && ios[0].length <= FUA_MOST;
        if (fua)
            ios[0].flags = PR_FUA;
        code = pr_device_perform(w->device, ios, n);
        pthread_mutex_lock(&w->mutex);
        if (code < 0)
            fail(w, code);
        else if (!w->failed) {
            for (uint32_t i = 0; i < count; i++) {
                s = taken[i];
                s->written = true;
                if (s->kind == PR_RECORD_BATCH) {
                    w->batches++;
                    w->records += s->count;
                    w->payload_bytes += s->payload_length;
                }
            }
            w->next += count;
            w->written = s->position + s->length;
            w->written_lsn = s->reached;
            w->chain = chain;
            w->previous = previous;
            w->commits++;
            if (fua && w->durable < w->written) {
                w->durable = w->written;
                w->durable_lsn = w->written_lsn;
                pthread_cond_broadcast(&w->c_durable);
            }
        }
    }
    w->writing = false;
    pthread_cond_broadcast(&w->c_written);
    if (w->next != w->last) {              /* the next leader may be a writer without room, or the committer */
        pthread_cond_broadcast(&w->c_room);
        pthread_cond_signal(&w->c_work);
    }
}

static int commit_to(pr_window *w, uint64_t target, patience *p) {
    while (w->written < target) {
        if (w->failed)
            return w->failed;
        if (!w->writing && w->next != w->last)
            lead(w);
        else {
            int code = wait_for(w, &w->c_written, p);
            if (code)
                return code;
        }
    }
    return 0;
}

static int durable_to(pr_window *w, uint64_t target, patience *p) {
    int code = commit_to(w, target, p);
    while (code == 0 && w->durable < target)
        code = w->failed ? w->failed : flush_round(w, p);
    return code;
}

static int wait_locked(pr_window *w, uint64_t target, uint64_t lsn, bool fua, patience *p) {
    /* what is not durable here is not sent: in sync mode nobody else would see to it */
    int code = fua || w->sync ? durable_to(w, target, p) : commit_to(w, target, p);
    while (code == 0 && w->sync && w->peer_lsn < lsn)
        code = w->failed ? w->failed : wait_for(w, &w->c_peer, p);
    return code;
}

int pr_window_wait(pr_window *w, uint64_t target, uint64_t lsn, bool fua, int64_t timeout) {
    patience p = { .timeout = timeout };
    pthread_mutex_lock(&w->mutex);
    int code = wait_locked(w, target, lsn, fua, &p);
    pthread_mutex_unlock(&w->mutex);
    return code;
}

bool pr_window_done(pr_window *w, uint64_t target, uint64_t lsn, bool fua) {
    pthread_mutex_lock(&w->mutex);
    bool done = w->written >= target && (w->durable >= target || !(fua || w->sync)) && !(w->sync && w->peer_lsn < lsn);
    pthread_mutex_unlock(&w->mutex);
    return done;
}

int pr_window_commit(pr_window *w, uint64_t lsn, int64_t timeout) {
    patience p = { .timeout = timeout };
    pthread_mutex_lock(&w->mutex);
    uint64_t target = 0;
    for (uint64_t i = w->last; i != w->next && !target; ) {        /* LSNs may jump: the newest slot that holds it */
        const slot *s = at(w, --i);
        if (s->kind == PR_RECORD_BATCH && has_lsn(s) && s->first_lsn <= lsn && lsn <= s->reached)
            target = s->position + 1;
    }
    int code = !w->opened ? PR_NOT_OPEN : lsn > w->end_lsn ? PR_OUTSIDE : w->failed && target ? w->failed : 0;
    if (code == 0)
        code = wait_locked(w, target, lsn, false, &p);
    pthread_mutex_unlock(&w->mutex);
    return code;
}

void pr_window_submitted(pr_window *w, uint64_t *position, uint64_t *lsn) {
    pthread_mutex_lock(&w->mutex);
    *position = w->end;
    *lsn = w->end_lsn;
    pthread_mutex_unlock(&w->mutex);
}

static int position_wait(pr_window *w, uint64_t position, bool durable, int64_t timeout) {
    patience p = { .timeout = timeout };
    pthread_mutex_lock(&w->mutex);
    int code = !w->opened ? PR_NOT_OPEN : position > w->end ? PR_OUTSIDE : 0;
    if (code == 0)
        code = durable ? durable_to(w, position, &p) : commit_to(w, position, &p);
    pthread_mutex_unlock(&w->mutex);
    return code;
}

int pr_window_write_out(pr_window *w, uint64_t position, int64_t timeout) {
    return position_wait(w, position, false, timeout);
}

int pr_window_make_durable(pr_window *w, uint64_t position, int64_t timeout) {
    return position_wait(w, position, true, timeout);
}

int pr_window_commit_pending(pr_window *w) {
    patience forever = { .timeout = -1 };
    pthread_mutex_lock(&w->mutex);
    int code = w->next != w->last;
    if (code) {
        int failed = commit_to(w, w->end, &forever);
        code = failed ? failed : code;
    }
    pthread_mutex_unlock(&w->mutex);
    return code;
}

int pr_window_committer(pr_window *w, int64_t timeout) {
    patience p = { .timeout = timeout };
    int code = 0;
    pthread_mutex_lock(&w->mutex);
    while (!w->closed && code == 0) {
        if (w->failed)
            code = w->failed;
        else if (w->next != w->last && !w->writing)
            lead(w);
        else
            code = wait_for(w, &w->c_work, &p);
    }
    pthread_mutex_unlock(&w->mutex);
    return code;
}

/* ---- appending ---- */

/* Waits for room. It is made by applied() and set_tail(), which need what is laid out to be written: sees to that. */
static int wait_room(pr_window *w, bool nowait, patience *p) {
    if (nowait)
        return PR_NO_ROOM;
    if (w->next != w->last && !w->writing) {
        lead(w);
        return w->failed;
    }
    return wait_for(w, &w->c_room, p);
}

/* A slot of the ring at the end of the log, closed or to be opened by the caller; its head is zeroed.
 * PR_NO_ROOM; PR_LOG_FULL; -ENOMEM. */
static int append_slot(pr_window *w, uint64_t payload, slot **made) {
    uint64_t start, length = PR_BLOCK + pr_align(payload, PR_BLOCK);
    if (length + w->reserve > w->log_size)
        return PR_LOG_FULL;                                        /* it never will */
    if (!log_fits(w, w->end, length) || ring_place(w, length, &start))
        return PR_NO_ROOM;
    slot *s = slot_new(w);
    if (!s)
        return -ENOMEM;
    s->memory = w->ring + start % w->ring_size;
    s->position = w->end;
    s->length = length;
    s->ring_end = w->ring_head = start + length;
    s->kind = PR_RECORD_BATCH;
    memset(s->memory, 0, PR_BLOCK);
    push(w, s);
    w->end += length;
    *made = s;
    return 0;
}

static void begin_travel(pr_window *w, slot *s, uint8_t kind) {
    struct pr_travel *t = travel_of(s);
    s->batch_kind = t->kind = kind;
    s->first_lsn = t->first_lsn = w->end_lsn + 1;
    memcpy(t->group, w->group, sizeof t->group);
    memcpy(t->generation, w->generation, sizeof t->generation);
}

/* Sees to an open batch that takes one more record with this much payload, a multiple of the alignment. */
static int open_batch(pr_window *w, uint64_t payload) {
    slot *s = w->open;
    if (s) {
        uint64_t length = pr_batch_length((uint32_t)(s->payload_length + payload));
        uint64_t start = s->ring_end - s->length, grown = length - s->length;
        if (s->count < PR_MAX_RECORDS && s->payload_length + payload <= PR_MAX_PAYLOAD &&
            length + w->reserve <= w->log_size && start % w->ring_size + length <= w->ring_size) {
            if (!log_fits(w, s->position, length) || start + length - w->ring_tail > w->ring_size)
                return PR_NO_ROOM;
            s->length = length;
            s->ring_end = w->ring_head = start + length;
            w->end += grown;
            return 0;
        }
        close_batch(w);
    }
    int code = append_slot(w, payload, &s);
    if (code)
        return code;
    begin_travel(w, s, PR_BATCH_EVENTS);
    w->open = s;
    return 0;
}

/* Gives one event (at most event_most) its LSN and its place. */
static int place_event(pr_window *w, const pr_submission *m, uint64_t length, slot **into, uint32_t *record) {
    uint64_t payload = m->kind == PR_WRITE ? length : 0, blocks = length / w->alignment;
    if (m->kind != PR_WRITE && w->cells_used && w->cells_used + blocks > w->cells_limit)
        return PR_NO_ROOM;
    uint64_t notes = notes_of(w, m->offset + m->done, length);
    if (!notes_fit(w, notes, payload + PR_BLOCK))
        return PR_NO_ROOM;
    int code = cells_reserve(w, blocks);
    if (code == 0)
        code = open_batch(w, payload);
    if (code)
        return code;
    slot *s = w->open;
    notes_keep(w, s, notes);
    uint32_t i = s->count++;
    records_of(s)[i] = (struct pr_record){ .kind = m->kind, .store = m->store, .offset = m->offset + m->done,
                                           .length = (uint32_t)length, .payload = payload ? s->payload_length : 0 };
    s->payload_length += (uint32_t)payload;
    s->reached = ++w->end_lsn;
    s->fua |= (m->flags & PR_SUBMIT_FUA) || w->sync;
    index_record(w, s, i);
    if (!payload) {
        atomic_store(&s->ready[i], 1);
        atomic_fetch_add(&s->filled, 1);
    }
    *into = s;
    *record = i;
    return 0;
}

static void fill_event(pr_window *w, slot *s, uint32_t i, const uint8_t *data) {
    struct pr_record *r = &records_of(s)[i];
    r->crc = pr_crc32c_copy(0, payload_of(s) + r->payload, data, r->length);
    atomic_store(&s->ready[i], 1);
    filled(w, s, 1);
}

/* For those who do not wait: all or nothing. Batches of this many bytes fit, whatever the gaps. */
static bool fits_at_once(const pr_window *w, const pr_submission *m) {
    uint64_t events = (m->length - 1) / w->event_most + 1, payload = m->kind == PR_WRITE ? m->length : 0;
    if (events == 1)
        return true;                                               /* its own place says so */
    uint64_t log = payload + (events + 1) * 2 * PR_BLOCK, gap = payload ? w->event_most + PR_BLOCK : PR_BLOCK;
    uint64_t notes = notes_of(w, m->offset, m->length) + events * w->note_cost;
    return log_fits(w, w->end, log + notes) && w->ring_head + log + gap - w->ring_tail <= w->ring_size &&
           (payload || !w->cells_used || w->cells_used + m->length / w->alignment <= w->cells_limit);
}

int pr_window_submit(pr_window *w, pr_submission *m, int64_t timeout) {
    patience p = { .timeout = timeout };
    bool nowait = m->flags & PR_SUBMIT_NOWAIT;
    int code = 0;
    while (code == 0 && (m->done < m->length || m->length == 0)) {
        uint64_t length = 0;
        slot *s = NULL;
        uint32_t record = 0;
        pthread_mutex_lock(&w->mutex);
        for (;;) {
            if ((code = !w->opened ? PR_NOT_OPEN : w->failed))
                break;
            if ((code = store_check(w, m->store, m->offset + m->done, m->length - m->done)))
                break;
            length = m->length - m->done < w->event_most ? m->length - m->done : w->event_most;
            if (w->hold_count && !(m->flags & PR_SUBMIT_HELD) && is_held(w, m->store, m->offset, m->length)) {
                if ((code = nowait ? PR_NO_ROOM : wait_for(w, &w->c_hold, &p)))
                    break;
                continue;
            }
            code = nowait && m->done == 0 && !fits_at_once(w, m) ? PR_NO_ROOM : place_event(w, m, length, &s, &record);
            if (code != PR_NO_ROOM || (code = wait_room(w, nowait, &p)))
                break;
        }
        if (code == 0) {
            m->lsn = w->end_lsn;
            m->target = s->position + 1;
            if ((m->flags & PR_SUBMIT_ALONE) && !w->writing)
                pthread_cond_signal(&w->c_work);
        }
        pthread_mutex_unlock(&w->mutex);
        if (code == 0) {
            if (m->kind == PR_WRITE)
                fill_event(w, s, record, m->data + m->done);
            m->done += length;
        }
    }
    return code;
}

int pr_window_operation(pr_window *w, const uint8_t *body, uint32_t length, const uint32_t *blocks,
                        uint32_t block_count, const pr_store_change *changes, uint32_t change_count, bool nowait,
                        int64_t timeout, uint64_t *lsn) {
    patience p = { .timeout = timeout };
    uint32_t added = 0;
    int code;
    if (length == 0 || length > PR_MAX_PAYLOAD)
        return PR_MALFORMED;
    pthread_mutex_lock(&w->mutex);
    slot *s = NULL;
    do {
        added = 0;
        for (uint32_t i = 0; i < change_count; i++)
            added += !changes[i].dropped && !store_find(w, changes[i].store);
        if ((code = !w->opened ? PR_NOT_OPEN : w->failed) == 0 && (code = barriers_reserve(w, block_count)) == 0 &&
            (code = w->store_count + added > PR_MAX_STORES ? PR_TOO_MANY : 0) == 0) {
            close_batch(w);
            code = notes_fit(w, notes_of_body(w, length), PR_BLOCK + pr_align(length, PR_BLOCK))
                       ? append_slot(w, length, &s) : PR_NO_ROOM;
        }
    } while (code == PR_NO_ROOM && (code = wait_room(w, nowait, &p)) == 0);
    if (code == 0) {
        begin_travel(w, s, PR_BATCH_OPERATION);
        s->count = 1;
        s->payload_length = length;
        records_of(s)[0] = (struct pr_record){ .kind = PR_OPERATION, .length = length };
        *lsn = s->reached = ++w->end_lsn;
        for (uint32_t i = 0; i < change_count; i++) {
            if (changes[i].dropped)
                store_drop(w, changes[i].store);
            else
                store_set(w, changes[i].store, changes[i].size, changes[i].writable);
        }
        barriers_add(w, s->position, blocks, block_count);
        notes_keep(w, s, notes_of_body(w, length));
        pthread_cond_signal(&w->c_work);
    }
    pthread_mutex_unlock(&w->mutex);
    if (code == 0)
        fill_event(w, s, 0, body);
    return code;
}

int pr_window_note(pr_window *w, uint8_t type, const uint8_t *body, uint32_t length, uint64_t *end) {
    if (length > PR_MAX_NOTE)
        return PR_MALFORMED;
    uint64_t whole = pr_align(sizeof(struct pr_local) + length, PR_BLOCK);
    uint8_t *memory = pr_buffer_take(whole);
    if (!memory)
        return -ENOMEM;
    memset(memory, 0, sizeof(struct pr_local));
    uint32_t crc = pr_crc32c_copy(0, memory + sizeof(struct pr_local), body, length);
    memset(memory + sizeof(struct pr_local) + length, 0, whole - sizeof(struct pr_local) - length);
    slot *s = NULL;
    pthread_mutex_lock(&w->mutex);
    int code = !w->opened ? PR_NOT_OPEN : w->failed;
    if (code == 0 && w->end + whole > w->tail + w->log_size)
        code = PR_LOG_FULL;
    if (code == 0 && !(s = slot_new(w)))
        code = -ENOMEM;
    if (code == 0) {
        close_batch(w);
        s->memory = memory;
        s->own = true;
        s->position = w->end;
        s->length = whole;
        s->kind = PR_RECORD_NOTE;
        s->note = type;
        s->body_length = length;
        s->body_crc = crc;
        s->first_lsn = s->reached = w->end_lsn;
        push(w, s);
        *end = w->end += whole;
        pthread_cond_signal(&w->c_work);
    }
    pthread_mutex_unlock(&w->mutex);
    if (code)
        pr_buffer_give(memory, whole);
    return code;
}

int pr_window_received(pr_window *w, const uint8_t *head, uint64_t head_length, const uint8_t *payload,
                       uint64_t payload_length, const uint32_t *blocks, uint32_t block_count, bool nowait,
                       int64_t timeout, uint64_t *position, uint64_t *end) {
    patience p = { .timeout = timeout };
    uint64_t copy[PR_BLOCK / 8];                                   /* aligned, whatever the caller's buffer is */
    const struct pr_travel *t = (const struct pr_travel *)copy;
    uint64_t cells = 0, notes = 0;
    if (head_length < sizeof *t || head_length > sizeof copy)
        return PR_MALFORMED;
    memcpy(copy, head, head_length);
    if (t->count == 0 || t->count > PR_MAX_RECORDS || t->payload_length > PR_MAX_PAYLOAD ||
        head_length != sizeof *t + t->count * sizeof(struct pr_record) || t->payload_length != payload_length ||
        records_check(w, t, (const struct pr_record *)(t + 1), &cells))
        return PR_MALFORMED;
    slot *s = NULL;
    int code;
    pthread_mutex_lock(&w->mutex);
    do {
        if ((code = !w->opened ? PR_NOT_OPEN : w->failed) == 0 && (code = barriers_reserve(w, block_count)) == 0) {
            close_batch(w);
            notes = notes_of_batch(w, t, (const struct pr_record *)(t + 1));
            if ((w->cells_used && w->cells_used + cells > w->cells_limit) ||
                !notes_fit(w, notes, pr_batch_length(t->payload_length)))
                code = PR_NO_ROOM;
            else if ((code = cells_reserve(w, cells)) == 0)
                code = append_slot(w, payload_length, &s);
        }
    } while (code == PR_NO_ROOM && (code = wait_room(w, nowait, &p)) == 0);
    if (code == 0) {
        memcpy(travel_of(s), t, head_length);
        s->sealed = true;
        s->batch_kind = t->kind;
        s->count = t->count;
        s->payload_length = t->payload_length;
        s->first_lsn = t->first_lsn;
        s->reached = has_lsn(s) ? (w->end_lsn = t->first_lsn + t->count - 1) : w->end_lsn;
        for (uint32_t i = 0; is_indexed(s) && i < s->count; i++)
            index_record(w, s, i);
        barriers_add(w, s->position, blocks, block_count);
        notes_keep(w, s, notes);
        *position = s->position;
        *end = w->end;
        pthread_cond_signal(&w->c_work);
    }
    pthread_mutex_unlock(&w->mutex);
    if (code == 0) {
        if (payload_length)
            memcpy(payload_of(s), payload, payload_length);
        memset(payload_of(s) + payload_length, 0, s->length - PR_BLOCK - payload_length);
        for (uint32_t i = 0; i < s->count; i++)
            atomic_store(&s->ready[i], 1);
        filled(w, s, s->count);
    }
    return code;
}

int pr_window_hold(pr_window *w, uint32_t store, uint64_t offset, uint64_t length, bool nowait, int64_t timeout) {
    patience p = { .timeout = timeout };
    pthread_mutex_lock(&w->mutex);
    int code = !w->opened ? PR_NOT_OPEN : w->failed ? w->failed : store_check(w, store, offset, length);
    while (code == 0 && is_held(w, store, offset, length)) {
        code = nowait ? PR_NO_ROOM : wait_for(w, &w->c_hold, &p);
        if (w->failed)
            code = w->failed;
    }
    if (code == 0 && w->hold_count == w->hold_space) {
        uint32_t space = w->hold_space ? w->hold_space * 2 : 16;
        struct hold *holds = realloc(w->holds, space * sizeof *holds);
        if (holds) {
            w->holds = holds;
            w->hold_space = space;
        } else
            code = -ENOMEM;
    }
    if (code == 0)
        w->holds[w->hold_count++] = (struct hold){ .offset = offset, .length = length, .store = store };
    pthread_mutex_unlock(&w->mutex);
    return code;
}

int pr_window_unhold(pr_window *w, uint32_t store, uint64_t offset, uint64_t length) {
    int code = PR_OUTSIDE;
    pthread_mutex_lock(&w->mutex);
    for (uint32_t i = 0; i < w->hold_count && code; i++) {
        const struct hold *h = &w->holds[i];
        if (h->store == store && h->offset == offset && h->length == length) {
            w->holds[i] = w->holds[--w->hold_count];
            code = 0;
        }
    }
    pthread_cond_broadcast(&w->c_hold);
    pthread_mutex_unlock(&w->mutex);
    return code;
}

/* ---- the engine ---- */

int pr_window_wait_beyond(pr_window *w, bool durable, uint64_t beyond, int64_t timeout, uint64_t *position) {
    patience p = { .timeout = timeout };
    int code = 0;
    pthread_mutex_lock(&w->mutex);
    while (code == 0 && (durable ? w->durable : w->written) <= beyond && !w->closed)
        code = w->failed ? w->failed : wait_for(w, durable ? &w->c_durable : &w->c_written, &p);
    *position = durable ? w->durable : w->written;
    pthread_mutex_unlock(&w->mutex);
    return code;
}

int pr_window_wait_applied(pr_window *w, uint64_t lsn, int64_t timeout) {
    patience p = { .timeout = timeout };
    int code = 0;
    pthread_mutex_lock(&w->mutex);
    while (code == 0 && w->applied_lsn < lsn)
        code = w->failed ? w->failed : wait_for(w, &w->c_applied, &p);
    pthread_mutex_unlock(&w->mutex);
    return code;
}

/* The data are in the stores already, so cells may go one by one while readers look: what they do not find here they
 * find there. The mutex is let go of between slots; `applying` keeps a second applier out. */
int pr_window_applied(pr_window *w, uint64_t position, uint64_t lsn) {
    pthread_mutex_lock(&w->mutex);
    int code = w->applying ? PR_TWICE : position < w->applied || position > w->written ? PR_OUTSIDE : 0;
    for (uint64_t i = w->unapplied; code == 0 && i != w->next && at(w, i)->position < position; i++)
        if (at(w, i)->position + at(w, i)->length > position)
            code = PR_OUTSIDE;                                     /* the middle of a record */
    if (code == 0) {
        w->applying = true;
        while (w->unapplied != w->next && at(w, w->unapplied)->position < position) {
            slot *s = at(w, w->unapplied);
            for (uint32_t i = 0; is_indexed(s) && i < s->count; i++)
                unindex_record(w, s, i);
            w->notes -= s->notes;
            s->notes = 0;
            w->unapplied++;
            pthread_mutex_unlock(&w->mutex);
            pthread_mutex_lock(&w->mutex);
        }
        w->applying = false;
        w->applied = position;
        w->applied_lsn = lsn;
        uint32_t kept = 0;
        for (uint32_t i = 0; i < w->barrier_count; i++)
            if (w->barriers[i].position >= position)
                w->barriers[kept++] = w->barriers[i];
        w->barrier_count = kept;
        free_front(w);
        pthread_cond_broadcast(&w->c_applied);
        pthread_cond_broadcast(&w->c_room);
    }
    pthread_mutex_unlock(&w->mutex);
    return code;
}

int pr_window_set_tail(pr_window *w, uint64_t position) {
    pthread_mutex_lock(&w->mutex);
    int code = position < w->tail || position > w->applied ? PR_OUTSIDE : 0;
    if (code == 0) {
        w->tail = position;
        pthread_cond_broadcast(&w->c_room);
    }
    pthread_mutex_unlock(&w->mutex);
    return code;
}

void pr_window_set_sync(pr_window *w, bool sync) {
    pthread_mutex_lock(&w->mutex);
    w->sync = sync;
    pthread_cond_broadcast(&w->c_peer);
    pthread_mutex_unlock(&w->mutex);
}

void pr_window_set_peer(pr_window *w, uint64_t lsn) {
    pthread_mutex_lock(&w->mutex);
    w->peer_lsn = lsn;
    pthread_cond_broadcast(&w->c_peer);
    pthread_mutex_unlock(&w->mutex);
}

int pr_window_set_lsn(pr_window *w, uint64_t lsn) {
    pthread_mutex_lock(&w->mutex);
    int code = w->opened ? 0 : PR_NOT_OPEN;
    if (code == 0) {
        close_batch(w);                                            /* the LSNs of a batch follow one another */
        w->end_lsn = lsn;
        if (w->next != w->last)
            at(w, w->last - 1)->reached = lsn;
        else {
            w->written_lsn = lsn;
            if (w->durable == w->written)
                w->durable_lsn = lsn;
        }
    }
    pthread_mutex_unlock(&w->mutex);
    return code;
}

/* ---- readers ---- */

static void entry_fill(pr_entry *e, const uint8_t *memory, uint64_t position) {
    const struct pr_local *local = (const struct pr_local *)memory;
    *e = (pr_entry){ .position = position, .length = local->length, .kind = local->kind, .note = local->note,
                     .memory = memory };
    if (local->kind == PR_RECORD_BATCH) {
        e->travel = (const struct pr_travel *)(local + 1);
        e->records = (const struct pr_record *)(e->travel + 1);
        e->payload = memory + PR_BLOCK;
        e->first_lsn = e->last_lsn = e->travel->first_lsn;
        if (e->travel->kind == PR_BATCH_EVENTS || e->travel->kind == PR_BATCH_OPERATION)
            e->last_lsn += e->travel->count - 1;
    }
}

/* Reads [position, position + length) of the log, which may wrap: at most two I/Os. */
static int log_read(pr_device *device, uint64_t log_offset, uint64_t log_size, uint64_t position, uint8_t *target,
                    uint64_t length) {
    uint64_t offset = position % log_size, part = length < log_size - offset ? length : log_size - offset;
    pr_io ios[2] = {
        { .op = PR_READ, .offset = log_offset + offset, .length = part, .buffer = target },
        { .op = PR_READ, .offset = log_offset, .length = length - part, .buffer = target + part },
    };
    return pr_device_perform(device, ios, part < length ? 2 : 1);
}

static int read_back(pr_window *w, uint64_t position, uint64_t written, pr_entry *e) {
    uint64_t length = written - position < READ_AHEAD ? written - position : READ_AHEAD, whole = 0;
    uint8_t *memory = pr_buffer_take(length), *more;
    if (!memory)
        return -ENOMEM;
    int code = log_read(w->device, w->log_offset, w->log_size, position, memory, length);
    if (code == 0) {
        const struct pr_local *local = (const struct pr_local *)memory;
        whole = local->length;
        if (pr_local_judge(local, position) || whole > written - position)
            code = -EBADMSG;
    }
    if (code == 0 && whole > length) {
        if (!(more = pr_buffer_take(whole)))
            code = -ENOMEM;
        else {
            memcpy(more, memory, length);
            pr_buffer_give(memory, length);
            memory = more;
            code = log_read(w->device, w->log_offset, w->log_size, position + length, memory + length, whole - length);
            length = whole;
        }
    }
    if (code == 0 && pr_record_judge(memory, whole, position, w->alignment, NULL))
        code = -EBADMSG;
    if (code) {
        pr_buffer_give(memory, length);
        return code;
    }
    entry_fill(e, memory, position);
    e->own = true;
    e->pin = (void *)(uintptr_t)length;                            /* what was taken, to be given back */
    return 0;
}

int pr_window_entry(pr_window *w, uint64_t position, pr_entry *e) {
    memset(e, 0, sizeof *e);
    pthread_mutex_lock(&w->mutex);
    int code = !w->opened ? PR_NOT_OPEN : position < w->tail || position > w->end ? PR_OUTSIDE : 0;
    if (code == 0 && position >= w->written)
        code = -ENOENT;
    uint64_t low = w->first, high = w->next, written = w->written;
    while (code == 0 && low < high) {
        uint64_t middle = low + (high - low) / 2;
        if (at(w, middle)->position < position)
            low = middle + 1;
        else
            high = middle;
    }
    if (code == 0 && low != w->next && at(w, low)->position == position) {
        slot *s = at(w, low);
        s->pins++;
        entry_fill(e, s->memory, position);
        e->pin = s;
        pthread_mutex_unlock(&w->mutex);
        return 0;
    }
    pthread_mutex_unlock(&w->mutex);
    return code ? code : read_back(w, position, written, e);
}

void pr_entry_release(pr_window *w, pr_entry *e) {
    if (e->own)
        pr_buffer_give((void *)e->memory, (uintptr_t)e->pin);
    else if (e->pin) {
        pthread_mutex_lock(&w->mutex);
        ((slot *)e->pin)->pins--;
        free_front(w);
        pthread_mutex_unlock(&w->mutex);
    }
    memset(e, 0, sizeof *e);
}

int pr_window_settle(pr_window *w, uint32_t store, bool nowait) {
    patience forever = { .timeout = -1 };
    int code = 0;
    pthread_mutex_lock(&w->mutex);
    for (uint32_t i = 0; i < w->barrier_count && code == 0; ) {
        if (w->barriers[i].store != store) {
            i++;
            continue;
        }
        code = nowait ? -EAGAIN : w->failed ? w->failed : wait_for(w, &w->c_applied, &forever);
        i = 0;                                                     /* the list may have become another */
    }
    pthread_mutex_unlock(&w->mutex);
    return code;
}

struct piece { const uint8_t *source; uint64_t at, length; };      /* source NULL: zeros */

uint64_t pr_window_overlay(pr_window *w, uint32_t store, uint64_t offset, uint64_t length, uint8_t *target,
                           uint8_t *have) {
    uint64_t unit = w->alignment, first = offset / unit, blocks = length / unit, missing = 0, i = 0;
    while (i < blocks) {
        struct piece pieces[GATHER];
        slot *pinned[GATHER];
        uint32_t n = 0, pins = 0;
        pthread_mutex_lock(&w->mutex);
        for (uint64_t looked = 0; i < blocks && n < GATHER && looked < LOOKUPS; looked++) {
            const struct cell *cell = w->cells_used ? cell_find(w, store, first + i) : NULL;
            if (!cell || !cell->slot) {
                have[i++] = 0;
                missing++;
                continue;
            }
            slot *s = cell->slot;
            if (!atomic_load(&s->ready[cell->record])) {   /* being copied: what it replaced is not at hand any more */
                if (n)
                    break;
                atomic_fetch_add(&w->fill_waiters, 1);
                while (!atomic_load(&s->ready[cell->record])) {
                    pthread_cond_wait(&w->c_filled, &w->mutex);
                    cell = cell_find(w, store, first + i);         /* the index may have moved */
                    if (cell->slot != s)
                        break;
                }
                atomic_fetch_sub(&w->fill_waiters, 1);
                continue;
            }
            const struct pr_record *r = &records_of(s)[cell->record];
            uint64_t within = (first + i) * unit - r->offset;
            const uint8_t *source = r->kind == PR_WRITE ? payload_of(s) + r->payload + within : NULL;
            struct piece *before = n ? &pieces[n - 1] : NULL;
            if (before && before->at + before->length == i * unit &&
                (source ? before->source && before->source + before->length == source : !before->source))
                before->length += unit;                            /* the same record: its slot is pinned already */
            else
                pieces[n++] = (struct piece){ .source = source, .at = i * unit, .length = unit };
            if (source && (pins == 0 || pinned[pins - 1] != s)) {
                pinned[pins++] = s;
                s->pins++;
            }
            have[i++] = 1;
        }
        pthread_mutex_unlock(&w->mutex);
        for (uint32_t k = 0; k < n; k++) {
            if (pieces[k].source)
                memcpy(target + pieces[k].at, pieces[k].source, pieces[k].length);
            else
                memset(target + pieces[k].at, 0, pieces[k].length);
        }
        if (pins) {
            pthread_mutex_lock(&w->mutex);
            while (pins)
                pinned[--pins]->pins--;
            free_front(w);
            pthread_mutex_unlock(&w->mutex);
        }
    }
    return missing;
}

/* ---- the scan of a log ---- */

#define SCAN_READ (4u << 20)
#define SCAN_BUFFER (SCAN_READ + PR_MAX_LOG_RECORD)

/* Sees to [position, position + length) in the buffer; length at most PR_MAX_LOG_RECORD. Reads ahead. */
static int scan_hold(pr_scan *s, uint64_t position, uint64_t length, const uint8_t **data) {
    if (!s->buffer && !(s->buffer = pr_buffer_take(SCAN_BUFFER)))
        return -ENOMEM;
    if (position < s->held_from || position > s->held_from + s->held) {
        s->held_from = position;
        s->held = 0;
    }
    uint64_t from = position - s->held_from;
    while (s->held - from < length) {
        memmove(s->buffer, s->buffer + from, s->held - from);
        s->held -= from;
        s->held_from = position;
        uint64_t more = SCAN_BUFFER - s->held < SCAN_READ ? SCAN_BUFFER - s->held : SCAN_READ;
        if (more > s->log_size)
            more = s->log_size;
        int code = log_read(s->device, s->log_offset, s->log_size, position + s->held, s->buffer + s->held, more);
        if (code)
            return code;
        s->held += more;
        from = 0;
    }
    *data = s->buffer + from;
    return 0;
}

int pr_scan_next(pr_scan *s, const uint8_t **record, uint64_t *length) {
    const uint8_t *data;
    int code = scan_hold(s, s->position, PR_BLOCK, &data);
    if (code)
        return code;
    const struct pr_local *local = (const struct pr_local *)data;
    s->reason = pr_local_judge(local, s->position);
    if (s->reason == 0 && (local->length > s->log_size || local->length > PR_MAX_LOG_RECORD))
        s->reason = PR_BAD_LENGTH;
    if (s->reason == 0 && local->chain != s->chain)
        s->reason = PR_BAD_CHAIN;
    if (s->reason)
        return 0;
    uint64_t whole = local->length;
    if ((code = scan_hold(s, s->position, whole, &data)))
        return code;
    local = (const struct pr_local *)data;
    if ((s->reason = pr_record_judge(data, whole, s->position, s->alignment, s->group)))
        return 0;
    if (local->durable > s->durable)
        s->durable = local->durable;
    s->chain = pr_chain(local);
    s->position += whole;
    *record = data;
    *length = whole;
    return 1;
}

/* Every block behind the end may begin a record, as long as nothing says how long the bad one is. A valid one is passed
 * over whole, so that its payload is not taken for records. Records of an earlier lap name other positions. */
int pr_scan_beyond(pr_scan *s) {
    uint64_t from = s->position + PR_BLOCK, limit = PR_MAX_UNFLUSHED + PR_MAX_LOG_RECORD;
    uint64_t until = s->position + (s->log_size < limit ? s->log_size : limit);
    while (from < until) {
        const uint8_t *data;
        int code = scan_hold(s, from, PR_BLOCK, &data);
        if (code)
            return code;
        const struct pr_local *local = (const struct pr_local *)data;
        uint64_t whole = local->length;
        bool good = pr_local_judge(local, from) == 0 && whole <= PR_MAX_LOG_RECORD && whole <= s->log_size;
        if (good) {
            if ((code = scan_hold(s, from, whole, &data)))
                return code;
            local = (const struct pr_local *)data;
            good = pr_record_judge(data, whole, from, s->alignment, s->group) == 0;
            if (good && local->durable > s->durable)
                s->durable = local->durable;
        }
        from += good ? whole : PR_BLOCK;
    }
    return 0;
}

void pr_scan_close(pr_scan *s) {
    pr_buffer_give(s->buffer, SCAN_BUFFER);
    s->buffer = NULL;
}
