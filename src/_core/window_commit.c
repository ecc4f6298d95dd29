/* Group commit: what has its place in the order becomes records of the log, and durable. Decides who leads, how much one write
 * takes, when the log is flushed, and when those who wait are told; must not know what the records hold.
 */
#include "window_state.h"

#include <time.h>

#define TAKE 32                         /* slots of one write of the log */
#define FUA_MOST (256u << 10)           /* a longer write is made durable by a flush */

/* One flush, or the wait for the one in flight. With the mutex, lets go of it meanwhile. */
static int flush_round(pr_window *w, patience *p) {
    if (w->flushing)
        return w_wait_for(w, &w->c_durable, p);
    uint64_t written = w->written, lsn = w->written_lsn;
    w->flushing = true;
    pthread_mutex_unlock(&w->mutex);
    int code = pr_device_flush(w->device);
    pthread_mutex_lock(&w->mutex);
    w->flushing = false;
    w->flushes++;
    if (code < 0)
        w_fail(w, code);
    else if (!w->failed && written > w->durable) {
        w->durable = written;
        w->durable_lsn = written == w->written ? w->written_lsn : lsn;
    }
    pthread_cond_broadcast(&w->c_durable);
    w_wake_passed(w, DURABLE, w->durable);
    return 0;
}

void pr_window_set_time(pr_window *w, uint64_t ns) { atomic_store(&w->fixed_time, ns); }

uint64_t pr_window_time(pr_window *w) {
    struct timespec now;
    uint64_t fixed = atomic_load(&w->fixed_time);
    if (fixed || clock_gettime(CLOCK_REALTIME, &now) != 0 || now.tv_sec < 0)
        return fixed;
    return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

/* The same, never less than before: what comes later in the order is not younger. Only who leads asks. */
static uint64_t time_of_day(pr_window *w) {
    uint64_t read = pr_window_time(w);
    if (read > w->time)
        w->time = read;
    return w->time;
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
                t->time_ns = time_of_day(w);
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
void w_lead(pr_window *w) {
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
            w_fail(w, code);
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
            if (w->shown != NOT_PARKED)
                w_let_go(w);
            if (fua && w->durable < w->written) {
                w->durable = w->written;
                w->durable_lsn = w->written_lsn;
                pthread_cond_broadcast(&w->c_durable);
                w_wake_passed(w, DURABLE, w->durable);
            }
        }
    }
    w->writing = false;
    pthread_cond_broadcast(&w->c_written);
    w_wake_passed(w, WRITTEN, w->written);
    if (w->next != w->last) {              /* the next leader may be a writer without room, or the committer */
        w_room_made(w);
        pthread_cond_signal(&w->c_work);
    }
}

static int commit_to(pr_window *w, uint64_t target, patience *p) {
    while (w->written < target) {
        if (w->failed)
            return w->failed;
        if (!w->writing && w->next != w->last)
            w_lead(w);
        else {
            int code = w_wait_for(w, &w->c_written, p);
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

/* ---- waiting ---- */

static int wait_locked(pr_window *w, uint64_t target, uint64_t lsn, bool fua, patience *p) {
    /* what is not durable here is not sent: in sync mode nobody else would see to it */
    int code = fua || w->sync ? durable_to(w, target, p) : commit_to(w, target, p);
    while (code == 0 && w->sync && w->peer_lsn < lsn)
        code = w->failed ? w->failed : w_wait_for(w, &w->c_peer, p);
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

int pr_window_reached(pr_window *w, bool fua, uint64_t *target, uint64_t *lsn) {
    pthread_mutex_lock(&w->mutex);
    *target = fua || w->sync ? w->durable : w->written;
    *lsn = w->sync ? w->peer_lsn : UINT64_MAX;
    int code = w->failed;
    pthread_mutex_unlock(&w->mutex);
    return code;
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
            w_lead(w);
        else
            code = w_wait_for(w, &w->c_work, &p);
    }
    pthread_mutex_unlock(&w->mutex);
    return code;
}
