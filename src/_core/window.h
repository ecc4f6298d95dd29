/* The window: the end of the journal, in memory. Writers put events in; it forms batches, writes them to the log by
 * group commit, makes the log durable, shows readers what the stores do not hold yet, and hands batches to the applier
 * and to senders.
 *
 *   1  Order: an event's LSN and its record's place are given under one mutex. That order is the truth.
 *   2  A record is *written* when it and all before it have been written to the log (a crash of the process cannot lose
 *      it), and *durable* when a flush that began after that has ended. Both are journal positions and only grow.
 *   3  Group commit sizes itself: who finds no write in progress leads; records that arrive meanwhile form the next
 *      batch. One write of the log (a list of them, where batches wait) is in flight at a time.
 *   4  A batch's memory is kept until its position is applied and nobody has it pinned. Readers find the newest version
 *      of every block that is not applied in an index of blocks (key: store id, block).
 *   5  When ring or log are full, submit waits (or says PR_NO_ROOM): what makes room is applied() and set_tail(). Notes
 *      may use the part of the log that submit leaves free (`reserve`, and what applying the events that are not applied
 *      may need: set_notes), and memory of their own, so the applier never waits for itself. Who waits for room of the log
 *      is counted (wants): the applier may hold back, or have rested, what would make it.
 *   6  A failed write or flush of the log is final: the window is failed, every waiter gets the error, nothing is
 *      acknowledged.
 *   7  What is parked is in the log only: it takes no memory, readers do not see it, and stores are for them as they were
 *      before it. pr_window_show takes it in again, up to a place, before it is applied.
 *   8  Lock order: window mutex is a leaf; no I/O and no copying of payload under it.
 */
#ifndef PYREPL_WINDOW_H
#define PYREPL_WINDOW_H

#include "batch.h"
#include "device.h"
#include "latency.h"
#include <stdbool.h>

typedef struct pr_window pr_window;

/* Misuse has codes of its own, outside errno, so that a device's error is never taken for one of them. */
enum {
    PR_NO_STORE = -5001,                /* no such store */
    PR_NOT_WRITABLE = -5002,
    PR_OUTSIDE = -5003,                 /* not wholly inside the store, or the log */
    PR_UNALIGNED = -5004,
    PR_MALFORMED = -5005,               /* a batch, record or length that cannot be */
    PR_NO_ROOM = -5006,                 /* and the caller does not wait */
    PR_TIME_OVER = -5007,
    PR_NOT_OPEN = -5008,
    PR_TWICE = -5009,                   /* open, applied ... at a wrong time */
    PR_LOG_FULL = -5010,                /* a note finds no room even in the reserve; a batch never will */
    PR_TOO_MANY = -5011,                /* stores */
};

typedef struct pr_window_state {        /* a consistent look, in one go */
    uint64_t end_position, written_position, durable_position, applied_position, tail_position;
    uint64_t end_lsn, written_lsn, durable_lsn, applied_lsn, peer_lsn;
    uint64_t chain;                     /* at written_position: the two together are where a scan may begin */
    uint64_t shown_position;            /* what is parked begins here; UINT64_MAX: nothing is */
    uint64_t log_size, ring_size, ring_used, notes;
    uint64_t batches, records, payload_bytes, commits, flushes;
    uint64_t wants;                     /* so often somebody has begun to wait for room of the log */
    bool wanting;                       /* ... and has found none since some was made */
    int failed;                         /* -errno */
} pr_window_state;

/* A record of the log as a consumer sees it: pinned in the window's memory, or read back from the log into its own. */
typedef struct pr_entry {
    uint64_t position, length;          /* in the log; the next record is at position + length */
    uint8_t kind, note;                 /* PR_RECORD_BATCH, PR_RECORD_NOTE */
    uint64_t first_lsn, last_lsn;       /* of events or an operation; of an item: the LSN reached, twice; of a note 0 */
    const uint8_t *memory;              /* local part first; length bytes */
    const struct pr_travel *travel;     /* of a batch, else NULL */
    const struct pr_record *records;
    const uint8_t *payload;
    void *pin;                          /* the window's */
    bool own;                           /* memory was read back and belongs to the entry */
} pr_entry;

/* The record at `position`. 0; -ENOENT: nothing there yet; -EBADMSG: what was read back is not valid; -errno;
 * PR_OUTSIDE: before the tail or beyond the end. */
int pr_window_entry(pr_window *window, uint64_t position, pr_entry *entry);
void pr_entry_release(pr_window *window, pr_entry *entry);      /* unpins, or frees */

/* Batches of events of one generation that follow one another in the log, for a link: all pinned, or all in `memory`. */
#define PR_LOT 128u
typedef struct pr_lot {
    uint32_t count;
    pr_entry entries[PR_LOT];
    uint8_t *memory;
    uint64_t taken;                     /* bytes of it */
} pr_lot;

/* Those from `position` on that end before `until`; from the window about `most` bytes of them. 0, also if none is there: see
 * pr_window_entry for what is. PR_OUTSIDE: before the tail or beyond the end; -errno. */
int pr_window_lot(pr_window *window, uint64_t position, uint64_t until, uint64_t most, pr_lot *lot);
void pr_lot_release(pr_window *window, pr_lot *lot);            /* harmless the second time */

/* For readers. Waits until no operation on this store is unapplied (0; -EAGAIN if `nowait` and it would wait). */
int pr_window_settle(pr_window *window, uint32_t store, bool nowait);
/* What the events that are not applied yet make of the regions of [offset, offset + length), a multiple of the region size:
 * said[k] becomes PR_SAYS_DATA or PR_SAYS_ZEROS; it stays as it is where they say nothing of the region as a whole. */
enum { PR_SAYS_NOTHING, PR_SAYS_DATA, PR_SAYS_ZEROS };
void pr_window_says(pr_window *window, uint32_t store, uint64_t offset, uint64_t length, uint64_t region_size,
                    uint8_t *said);
/* Copies what the window holds of [offset, offset + length) into target; have[i] = 1 for each block (alignment) that it
 * holds, else 0. Returns the number of blocks that it does not hold. */
uint64_t pr_window_overlay(pr_window *window, uint32_t store, uint64_t offset, uint64_t length, uint8_t *target,
                           uint8_t *have);


/* -- life. Timeouts are in ns, below 0 for ever; PR_TIME_OVER says that the call may be repeated as it is. -- */
#define PR_WINDOW_FOR_EVER ((int64_t)-1)
#define PR_MAX_LOG_RECORD (PR_MAX_PAYLOAD + PR_BLOCK)           /* bytes of the longest record, a batch or a note */

typedef struct pr_window_log {
    pr_device *device;
    uint64_t offset, size;              /* of the log on the device */
    uint64_t position, tail, chain, lsn;
    uint64_t applied_position, applied_lsn, seed, previous;
    uint8_t group[16], generation[16];
} pr_window_log;

pr_window *pr_window_new(uint64_t ring, uint32_t alignment, uint64_t reserve);  /* NULL: no memory */
void pr_window_free(pr_window *window);                         /* nobody may be inside, nothing pinned */
int pr_window_load(pr_window *window, const uint8_t *record, uint64_t length, const uint32_t *blocks,
                   uint32_t block_count);
/* The same for a record that is to stay parked; of it only local and travel part and descriptors are looked at. Parked or not, all
 * are: the two do not mix. */
int pr_window_load_parked(pr_window *window, const uint8_t *record, uint64_t length, const uint32_t *blocks,
                          uint32_t block_count);
int pr_window_open(pr_window *window, const pr_window_log *log);
int pr_window_set_generation(pr_window *window, const uint8_t *generation, const uint8_t *group);
void pr_window_fail(pr_window *window, int code);               /* -errno */
void pr_window_close(pr_window *window);
void pr_window_look(pr_window *window, pr_window_state *state);
enum { PR_LATENCY_WRITE, PR_LATENCY_FLUSH, PR_LATENCY_OPERATION, PR_LATENCIES };
/* Writes and flushes are added by those who wait for them; operations, from their place to their performance, here. */
pr_latency *pr_window_latency(pr_window *window, int which);

int pr_window_set_store(pr_window *window, uint32_t store, uint64_t size, bool writable);
int pr_window_drop_store(pr_window *window, uint32_t store);
/* What was received makes, resizes or (size 0) deletes a store: readers see that at once, or if it is parked, when it is performed:
 * pr_window_show_store, which does nothing if nothing is parked. */
int pr_window_announce(pr_window *window, uint32_t store, uint64_t size);
int pr_window_show_store(pr_window *window, uint32_t store, uint64_t size);
/* From here on: bytes of notes that applying an event may need for each region of that size that it touches; 0: none. */
int pr_window_set_notes(pr_window *window, uint64_t region_size, uint64_t cost);
/* For simulations: batches that are closed from here on carry this time, ns since 1970; 0: the clock's. */
void pr_window_set_time(pr_window *window, uint64_t ns);
uint64_t pr_window_time(pr_window *window);     /* what the clock says now, or that */
int pr_window_store_size(pr_window *window, uint32_t store, uint64_t *size);

/* -- writers -- */
enum { PR_SUBMIT_FUA = 1, PR_SUBMIT_HELD = 2, PR_SUBMIT_NOWAIT = 4, PR_SUBMIT_ALONE = 8 };
/* ALONE: nobody waits yet, so the committer is woken. */

typedef struct pr_submission {          /* one write, zero or discard; done, lsn and target begin as 0 */
    uint32_t store;
    uint8_t kind, flags;                /* PR_WRITE ...; PR_SUBMIT_... */
    uint64_t offset, length;            /* longer than PR_MAX_EVENT: split */
    const uint8_t *data;                /* of a write */
    uint64_t done;                      /* bytes that have their place */
    uint64_t lsn;                       /* of the last event */
    uint64_t target;                    /* written when the log is written up to here */
} pr_submission;

typedef struct pr_store_change { uint32_t store; uint64_t size; bool writable, dropped; } pr_store_change;

int pr_window_submit(pr_window *window, pr_submission *submission, int64_t timeout);
/* Until the log is written up to target; with fua or in sync mode durable; in sync mode at the peer. */
int pr_window_wait(pr_window *window, uint64_t target, uint64_t lsn, bool fua, int64_t timeout);
bool pr_window_done(pr_window *window, uint64_t target, uint64_t lsn, bool fua);
/* What pr_window_done would say yes to now: submissions whose target and lsn are not beyond these. 0 or -errno. */
int pr_window_reached(pr_window *window, bool fua, uint64_t *target, uint64_t *lsn);
int pr_window_operation(pr_window *window, const uint8_t *body, uint32_t length, const uint32_t *blocks,
                        uint32_t block_count, const pr_store_change *changes, uint32_t change_count, bool nowait,
                        int64_t timeout, uint64_t *lsn);
int pr_window_hold(pr_window *window, uint32_t store, uint64_t offset, uint64_t length, bool nowait, int64_t timeout);
int pr_window_unhold(pr_window *window, uint32_t store, uint64_t offset, uint64_t length);
int pr_window_commit(pr_window *window, uint64_t lsn, int64_t timeout);
void pr_window_submitted(pr_window *window, uint64_t *position, uint64_t *lsn);    /* what a flush has to reach */
int pr_window_commit_pending(pr_window *window);               /* 1: something was written, 0: there was nothing */
int pr_window_committer(pr_window *window, int64_t timeout);   /* 0: closed */

/* -- the engine -- */
int pr_window_note(pr_window *window, uint8_t type, const uint8_t *body, uint32_t length, uint64_t *end);
int pr_window_received(pr_window *window, const uint8_t *head, uint64_t head_length, const uint8_t *payload,
                       uint64_t payload_length, const uint32_t *blocks, uint32_t block_count, bool nowait,
                       int64_t timeout, uint64_t *position, uint64_t *end);
/* The same for events of a link, judged before and aligned to 8 bytes: appended if they lie inside stores that are there, else
 * PR_NO_STORE, PR_OUTSIDE. `quiet`: the caller makes them durable at once, so nobody else is woken to write them. */
int pr_window_take(pr_window *window, const struct pr_travel *travel, const uint8_t *payload, bool quiet, int64_t timeout,
                   uint64_t *end);
int pr_window_write_out(pr_window *window, uint64_t position, int64_t timeout);
int pr_window_make_durable(pr_window *window, uint64_t position, int64_t timeout);
/* Until the written or durable position is beyond `beyond`; 0 too when the window was closed, or somebody has begun to wait for
 * room of the log more often than `wants` says (NULL: that is not asked). */
int pr_window_wait_beyond(pr_window *window, bool durable, uint64_t beyond, const uint64_t *wants, int64_t timeout,
                          uint64_t *position);
int pr_window_wait_applied(pr_window *window, uint64_t lsn, int64_t timeout);
int pr_window_applied(pr_window *window, uint64_t position, uint64_t lsn);
int pr_window_set_tail(pr_window *window, uint64_t position);
/* Parking: what is appended from here on is parked. Not parking: so it goes on until pr_window_unpark finds all of it in
 * memory, which what arrives then waits for. */
void pr_window_park(pr_window *window, bool parking);
/* Parked records are parked no more, in their order: those before `until`, a record's place that is written, until one was closed
 * after `cutoff` (`next`: when, else 0), or about `most` bytes are. `shown`: up to which place. One caller at a time, who
 * applies. -EBADMSG: what was read back is not valid. */
int pr_window_show(pr_window *window, uint64_t until, uint64_t cutoff, uint64_t most, uint64_t *shown, uint64_t *next);
int pr_window_unpark(pr_window *window);        /* 1: nothing is parked any more; 0: something is, or parking goes on */
void pr_window_set_sync(pr_window *window, bool sync);
/* A write that has no place yet waits for one, as for room, while the log ends at this position or beyond; operations and
 * what is received do not. UINT64_MAX: no bound. */
void pr_window_set_bound(pr_window *window, uint64_t position);
void pr_window_set_peer(pr_window *window, uint64_t lsn);
int pr_window_set_lsn(pr_window *window, uint64_t lsn);
static inline uint64_t pr_digest(const struct pr_travel *travel) {
    return (uint64_t)travel->crc << 32 | (uint32_t)travel->first_lsn;
}

/* -- the scan of a log, for recovery and for checking. Needs no window. -- */
typedef struct pr_scan {
    pr_device *device;
    uint64_t log_offset, log_size;
    uint32_t alignment;
    const uint8_t *group;               /* NULL: any */
    uint64_t position, chain;           /* of the next record */
    uint64_t durable;                   /* the highest durable position that was named */
    int reason;                         /* why the log ends at `position` (PR_BAD_...), 0: not known yet */
    uint8_t *buffer;                    /* holds [held_from, held_from + held) of the log */
    uint64_t held_from, held;
} pr_scan;

int pr_scan_next(pr_scan *scan, const uint8_t **record, uint64_t *length);     /* 1: a record; 0: the end; -errno */
int pr_scan_beyond(pr_scan *scan);      /* at the end: what do records behind it say was durable? 0 or -errno */
void pr_scan_close(pr_scan *scan);

#endif
