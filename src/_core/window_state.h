/* What the rooms of the window share: its state, and the small steps on it. Only window*.c use this; the rules are window.h's.
 *
 *   window.c          life; where the log stands: what is applied, the tail, the peer
 *   window_stores.c   which stores there are, ranges that are held, operations that are not performed yet
 *   window_append.c   what is submitted, made or received gets its place in the order, and its memory
 *   window_commit.c   places become records of the log: who leads, when it is flushed, who is told
 *   window_index.c    which block of a store is newest in memory, and what a reader finds there
 *   window_read.c     records of the log, from memory or read back; the scan of a log that is opened
 *   window_parked.c   what is in the log only, until it is old enough to be applied
 *
 * Three counters walk over the slots (batches and notes in memory, in order of their positions):
 *     first ... unapplied ... next ... last
 *   [first, unapplied)  in the stores, or parked in the log; kept because somebody has one of them pinned
 *   [unapplied, next)   in the log
 *   [next, last)        laid out; the last one may be open, that is, still take records
 * A slot is closed before it is written, and written only when every record in it is filled: places are given under the
 * mutex, the copying is done outside. Whoever set `writing` (the leader) owns chain and previous, seals and writes;
 * nobody else touches a closed slot's head. What begins with w_ is called with the mutex.
 */
#ifndef PYREPL_WINDOW_STATE_H
#define PYREPL_WINDOW_STATE_H

#include "window.h"

#include <pthread.h>
#include <string.h>

typedef struct slot {
    uint64_t position, length;          /* in the log; the length of an open one grows */
    uint8_t *memory;                    /* local part first; zeros from the descriptors' end to the payload */
    uint64_t ring_end;                  /* where the ring goes on behind it, as a running count */
    uint64_t first_lsn, reached;        /* reached: the LSN after it */
    uint64_t notes;                     /* bytes of notes that applying it may need at most */
    uint32_t count, payload_length;
    uint32_t pins;
    bool applied;                       /* a guest: it goes when nobody has it pinned */
    uint32_t body_length, body_crc;     /* of a note */
    uint64_t begun;                     /* of an operation: when it got its place, ns; else 0 */
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
struct store_entry { uint64_t size, coming; uint32_t id; bool writable; };  /* for readers, for what is received; 0: not there */
struct parcel { uint64_t begin, until, regions, bodies; };         /* a stretch of what is parked: what it touches */
struct waiter { uint64_t beyond; bool wants; pthread_cond_t passed; struct waiter *next; };    /* on the stack of who waits */
enum { WRITTEN, DURABLE };

struct pr_window {
    pthread_mutex_t mutex;
    pthread_cond_t c_written, c_durable, c_room, c_applied, c_filled, c_work, c_peer, c_hold;
    pthread_condattr_t monotonic;
    struct waiter *waiters[2];                                     /* for WRITTEN, DURABLE to pass a position: one wakes, not all */

    pr_device *device;
    uint64_t log_offset, log_size, reserve, seed;
    uint32_t alignment;
    uint64_t event_most;                                           /* PR_MAX_EVENT, less where the log is tiny */
    uint64_t region_size, note_cost;                               /* of one region that an event touches, bytes of notes */
    uint64_t notes;                                                /* that what is not applied may need: kept free of the log */
    uint8_t group[16], generation[16];
    bool opened, closed, writing, flushing, applying, sync;
    bool wanting;                                                  /* somebody found no room in the log since some was made */
    uint32_t wanters;                                              /* who wait for that */
    uint64_t wants;                                                /* so often somebody has begun to */
    int failed;

    uint64_t end, written, durable, applied, tail;                 /* positions; end: the open slot included */
    uint64_t end_lsn, written_lsn, durable_lsn, applied_lsn, peer_lsn;
    uint64_t bound;                     /* no write gets its place while the log's end is here or beyond */
    uint64_t chain, previous;                                      /* at `written` */
    uint64_t time;                                                 /* of the last batch that was sealed here, ns */
    _Atomic uint64_t fixed_time;                                   /* 0: the clock's */
    uint64_t batches, records, payload_bytes, commits, flushes;
    pr_latency latencies[PR_LATENCIES];

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

    bool parking, loaded;               /* loaded: pr_window_load_parked was called */
    uint64_t shown;                     /* what is parked begins here; NOT_PARKED: nothing is */
    struct parcel *parcels;             /* a ring, by position: nothing is given back before all of a parcel is applied */
    uint64_t parcel_mask, parcel_first, parcel_last, parked_regions, parked_bodies;
    slot **guests;                      /* by position: shown again, not in the row */
    uint32_t guest_count, guest_space;
};

#define NOT_PARKED UINT64_MAX
static inline bool is_parked(const pr_window *w, uint64_t position) { return position >= w->shown; }

/* ---- waiting (window.c) ---- */

typedef struct patience { int64_t timeout; bool started; struct timespec until; } patience;

int w_wait_for(pr_window *w, pthread_cond_t *condition, patience *p);
void w_wake_passed(pr_window *w, int which, uint64_t position);                 /* WRITTEN or DURABLE */
void w_room_made(pr_window *w);
void w_fail(pr_window *w, int code);

/* ---- slots (window.c) ---- */

static inline slot *at(const pr_window *w, uint64_t i) { return w->slots[i & w->slot_mask]; }
static inline struct pr_travel *travel_of(const slot *s) {
    return (struct pr_travel *)(s->memory + sizeof(struct pr_local));
}
static inline struct pr_record *records_of(const slot *s) { return (struct pr_record *)(travel_of(s) + 1); }
static inline uint8_t *payload_of(const slot *s) { return s->memory + PR_BLOCK; }
static inline bool has_lsn(const slot *s) {
    return s->batch_kind == PR_BATCH_EVENTS || s->batch_kind == PR_BATCH_OPERATION;
}
static inline bool is_indexed(const slot *s) {
    return s->batch_kind == PR_BATCH_EVENTS || s->batch_kind == PR_BATCH_COPIED;
}

/* A fresh slot stands for a record of the log, a batch that was judged: it takes over the memory. */
static inline void slot_of_record(slot *s, uint8_t *memory) {
    const struct pr_local *local = (const struct pr_local *)memory;
    s->memory = memory;
    const struct pr_travel *t = travel_of(s);
    s->own = s->sealed = s->written = true;
    s->position = local->position;
    s->length = local->length;
    s->kind = local->kind;
    s->batch_kind = t->kind;
    s->count = t->count;
    s->payload_length = t->payload_length;
    s->first_lsn = t->first_lsn;
    s->reached = has_lsn(s) ? t->first_lsn + t->count - 1 : t->first_lsn;
    atomic_store(&s->filled, t->count);
    memset((void *)s->ready, 1, t->count);
}

/* Records are appended to it no more; it will be written as it is. */
static inline void close_batch(pr_window *w) { w->open = NULL; }

slot *w_slot_new(pr_window *w);          /* not yet in the row; room for it there is seen to */
void w_slot_drop(pr_window *w, slot *s);
void w_push(pr_window *w, slot *s);
void w_free_front(pr_window *w);            /* what is applied and not pinned goes, oldest first */

/* ---- what is parked (window_parked.c) ---- */

int w_parcels_reserve(pr_window *w);     /* for one more, so that w_parcel_add cannot fail */
void w_parcel_add(pr_window *w, const struct pr_travel *t, const struct pr_record *r, uint64_t position, uint64_t length);
void w_parcels_applied(pr_window *w, uint64_t position);
void w_let_go(pr_window *w);             /* of the memory of what is parked and written */
void w_guests_applied(pr_window *w, uint64_t position);
void w_free_guests(pr_window *w);

/* Bytes of notes that all that is not applied may need. */
static inline uint64_t notes_all(const pr_window *w) {
    return w->notes + w->parked_regions * w->note_cost + (w->note_cost ? w->parked_bodies : 0);
}

/* ---- room (window_append.c) ---- */

/* Does a record of the log of `length` bytes at `position` fit without the part that is kept for notes? */
static inline bool log_fits(const pr_window *w, uint64_t position, uint64_t length) {
    return position + length + w->reserve + notes_all(w) <= w->tail + w->log_size;
}

/* Bytes of notes that an event may need: it may re-point every store that shows a region that it touches. */
static inline uint64_t notes_of(const pr_window *w, uint64_t offset, uint64_t length) {
    return w->note_cost ? ((offset % w->region_size + length - 1) / w->region_size + 1) * w->note_cost : 0;
}

/* Of an operation or item: its body, and where what it creates is placed. */
static inline uint64_t notes_of_body(const pr_window *w, uint64_t length) {
    return w->note_cost ? pr_align(4 * length, PR_BLOCK) + PR_BLOCK : 0;
}

static inline void notes_keep(pr_window *w, slot *s, uint64_t notes) {
    s->notes += notes;
    w->notes += notes;
}

uint64_t w_notes_of_batch(const pr_window *w, const struct pr_travel *t, const struct pr_record *r);
/* What came from elsewhere: is every descriptor inside its payload? Counts the blocks to index. */
int w_records_check(const pr_window *w, const struct pr_travel *t, const struct pr_record *r, uint64_t *blocks);

/* ---- the index of blocks (window_index.c) ---- */

static inline uint64_t blocks_of(const pr_window *w, uint64_t length) {
    return (length + w->alignment - 1) / w->alignment;
}

int w_cells_reserve(pr_window *w, uint64_t more);
void w_index_record(pr_window *w, slot *s, uint32_t record);
void w_unindex_record(pr_window *w, slot *s, uint32_t record);

/* ---- stores (window_stores.c) ---- */

struct store_entry *w_store_entry(pr_window *w, uint32_t id);   /* readers may not see it yet, or it may be on its way out */
struct store_entry *w_store_find(pr_window *w, uint32_t id);    /* as readers see it */
int w_store_set(pr_window *w, uint32_t id, uint64_t size, bool writable);
int w_store_drop(pr_window *w, uint32_t id);
int w_store_check(pr_window *w, uint32_t id, uint64_t offset, uint64_t length);
bool w_is_held(const pr_window *w, uint32_t store, uint64_t offset, uint64_t length);
int w_barriers_reserve(pr_window *w, uint32_t more);
void w_barriers_add(pr_window *w, uint64_t position, const uint32_t *stores, uint32_t count);

/* ---- records (window_read.c) ---- */

#define LOT_READ (1u << 20)             /* of a stretch of the log that is read back at once; a longer record is read alone */

int w_log_read(pr_device *device, uint64_t log_offset, uint64_t log_size, uint64_t position, uint8_t *target, uint64_t length);
int w_read_back(pr_window *w, uint64_t position, uint64_t written, pr_entry *e);     /* without the mutex */

/* ---- group commit (window_commit.c) ---- */

void w_lead(pr_window *w);

#endif
