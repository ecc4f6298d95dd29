/* The end of the window's log: what is submitted, made here or received from a peer gets its place in the order, and memory.
 * Decides places, and what a batch takes; must not know when it is written (window_commit.c).
 */
#include "window_state.h"

#include "buffers.h"
#include "crc32c.h"

#include <errno.h>

/* Why there is no place now, beside PR_NO_ROOM, which is for want of the log, or of the index that bounds zeros: what applying and
 * the tail alone make. The ring, when what stands in it is written and let go of; a bound, when a peer has got further. */
enum { RING_FULL = -5101, BOUND = -5102 };

static inline bool is_short(int code) { return code == PR_NO_ROOM || code == RING_FULL || code == BOUND; }

/* Where `length` bytes lie together in the ring, as a running count, past a gap at its end if need be. */
static int ring_place(const pr_window *w, uint64_t length, uint64_t *start) {
    uint64_t head = w->ring_head, place = head % w->ring_size;
    if (place + length > w->ring_size)
        head += w->ring_size - place;
    *start = head;
    return head + length - w->ring_tail > w->ring_size ? RING_FULL : 0;
}

/* Is there room for the notes too? Without anything to apply there always is: the reserve, and what applying frees. */
static inline bool notes_fit(const pr_window *w, uint64_t notes, uint64_t length) {
    return !notes_all(w) || log_fits(w, w->end, length + notes);
}

uint64_t w_notes_of_batch(const pr_window *w, const struct pr_travel *t, const struct pr_record *r) {
    uint64_t notes = 0;
    if (t->kind == PR_BATCH_OPERATION || t->kind == PR_BATCH_ITEM)
        return notes_of_body(w, t->payload_length);
    for (uint32_t i = 0; i < t->count; i++)
        notes += notes_of(w, r[i].offset, r[i].length);
    return notes;
}

/* What came from elsewhere (a peer, the log): is every descriptor inside its payload? Counts the blocks to index. */
int w_records_check(const pr_window *w, const struct pr_travel *t, const struct pr_record *r, uint64_t *blocks) {
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

/* Waits for room, of which there is none for that reason. It is made by applied() and set_tail(), which need what is laid out to
 * be written: sees to that; and that the applier hears of it, which may rest, or hold back what it could apply. */
static int wait_room(pr_window *w, int why, bool nowait, patience *p) {
    if (nowait)
        return PR_NO_ROOM;
    if (w->next != w->last && !w->writing) {
        w_lead(w);
        return w->failed;
    }
    if (why != PR_NO_ROOM)
        return w_wait_for(w, &w->c_room, p);
    w->wanting = true;
    w->wants++;
    for (struct waiter *waiter = w->waiters[WRITTEN]; waiter; waiter = waiter->next)
        if (waiter->wants)
            pthread_cond_signal(&waiter->passed);
    w->wanters++;
    int code = w_wait_for(w, &w->c_room, p);
    if (!--w->wanters)
        w->wanting = false;
    return code;
}

/* A slot of the ring at the end of the log, closed or to be opened by the caller; its head is zeroed.
 * PR_NO_ROOM, RING_FULL; PR_LOG_FULL; -ENOMEM. */
static int append_slot(pr_window *w, uint64_t payload, slot **made) {
    uint64_t start, length = PR_BLOCK + pr_align(payload, PR_BLOCK);
    if (length + w->reserve > w->log_size)
        return PR_LOG_FULL;                                        /* it never will */
    if (!log_fits(w, w->end, length))
        return PR_NO_ROOM;
    if (ring_place(w, length, &start))
        return RING_FULL;
    slot *s = w_slot_new(w);
    if (!s)
        return -ENOMEM;
    s->memory = w->ring + start % w->ring_size;
    s->position = w->end;
    s->length = length;
    s->ring_end = w->ring_head = start + length;
    s->kind = PR_RECORD_BATCH;
    memset(s->memory, 0, PR_BLOCK);
    w_push(w, s);
    w->end += length;
    *made = s;
    return 0;
}

/* ---- what is made here ---- */

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
            if (!log_fits(w, s->position, length))
                return PR_NO_ROOM;
            if (start + length - w->ring_tail > w->ring_size)
                return RING_FULL;
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
    int code = w_cells_reserve(w, blocks);
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
    w_index_record(w, s, i);
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
            if ((code = w_store_check(w, m->store, m->offset + m->done, m->length - m->done)))
                break;
            length = m->length - m->done < w->event_most ? m->length - m->done : w->event_most;
            if (w->hold_count && !(m->flags & PR_SUBMIT_HELD) && w_is_held(w, m->store, m->offset, m->length)) {
                if ((code = nowait ? PR_NO_ROOM : w_wait_for(w, &w->c_hold, &p)))
                    break;
                continue;
            }
            if (m->done == 0 && w->end >= w->bound)
                code = BOUND;
            else if (m->done == 0 && nowait && !fits_at_once(w, m))
                code = PR_NO_ROOM;
            else
                code = place_event(w, m, length, &s, &record);
            if (!is_short(code) || (code = wait_room(w, code, nowait, &p)))
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
            added += !changes[i].dropped && !w_store_find(w, changes[i].store);
        if ((code = !w->opened ? PR_NOT_OPEN : w->failed) == 0 && (code = w_barriers_reserve(w, block_count)) == 0 &&
            (code = w->store_count + added > PR_MAX_STORES ? PR_TOO_MANY : 0) == 0) {
            close_batch(w);
            code = notes_fit(w, notes_of_body(w, length), PR_BLOCK + pr_align(length, PR_BLOCK))
                       ? append_slot(w, length, &s) : PR_NO_ROOM;
        }
    } while (is_short(code) && (code = wait_room(w, code, nowait, &p)) == 0);
    if (code == 0) {
        begin_travel(w, s, PR_BATCH_OPERATION);
        s->count = 1;
        s->begun = pr_now();
        s->payload_length = length;
        records_of(s)[0] = (struct pr_record){ .kind = PR_OPERATION, .length = length };
        *lsn = s->reached = ++w->end_lsn;
        for (uint32_t i = 0; i < change_count; i++) {
            if (changes[i].dropped)
                w_store_drop(w, changes[i].store);
            else
                w_store_set(w, changes[i].store, changes[i].size, changes[i].writable);
        }
        w_barriers_add(w, s->position, blocks, block_count);
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
    if (code == 0 && !(s = w_slot_new(w)))
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
        w_push(w, s);
        *end = w->end += whole;
        pthread_cond_signal(&w->c_work);
    }
    pthread_mutex_unlock(&w->mutex);
    if (code)
        pr_buffer_give(memory, whole);
    return code;
}

/* ---- what comes from a peer ---- */

/* What came from the peer gets its place; t is aligned, and looked at: its descriptors point nowhere outside. `inside`: events
 * that lie inside stores that are there, else PR_NO_STORE or PR_OUTSIDE. `quiet`: nobody is woken to write it. */
static int append_received(pr_window *w, const struct pr_travel *t, uint64_t cells, const uint8_t *payload,
                           const uint32_t *blocks, uint32_t block_count, bool inside, bool quiet, bool nowait, patience *p,
                           uint64_t *position, uint64_t *end) {
    const struct pr_record *r = (const struct pr_record *)(t + 1);
    uint64_t notes = 0;
    slot *s = NULL;
    int code;
    pthread_mutex_lock(&w->mutex);
    do {
        code = !w->opened ? PR_NOT_OPEN : w->failed;
        for (uint32_t i = 0; inside && i < t->count && code == 0; i++) {
            const struct store_entry *found = r[i].store < PR_FIRST_LOCAL ? w_store_entry(w, r[i].store) : NULL;
            code = !found || !found->coming ? PR_NO_STORE
                 : r[i].offset > found->coming || r[i].length > found->coming - r[i].offset ? PR_OUTSIDE : 0;
        }
        if (code == 0 && (code = w_barriers_reserve(w, block_count)) == 0 && (code = w_parcels_reserve(w)) == 0) {
            close_batch(w);
            notes = w_notes_of_batch(w, t, r);
            if (is_parked(w, w->end))
                cells = 0;
            if ((w->cells_used && w->cells_used + cells > w->cells_limit) ||
                !notes_fit(w, notes, pr_batch_length(t->payload_length)))
                code = PR_NO_ROOM;
            else if ((code = w_cells_reserve(w, cells)) == 0)
                code = append_slot(w, t->payload_length, &s);
        }
    } while (is_short(code) && (code = wait_room(w, code, nowait, p)) == 0);
    if (code == 0) {
        memcpy(travel_of(s), t, sizeof *t + t->count * sizeof *r);
        s->sealed = true;
        s->fua = quiet;
        s->batch_kind = t->kind;
        s->count = t->count;
        s->payload_length = t->payload_length;
        s->first_lsn = t->first_lsn;
        s->reached = has_lsn(s) ? (w->end_lsn = t->first_lsn + t->count - 1) : w->end_lsn;
        w_barriers_add(w, s->position, blocks, block_count);
        if (is_parked(w, s->position))
            w_parcel_add(w, t, r, s->position, s->length);
        else {
            for (uint32_t i = 0; is_indexed(s) && i < s->count; i++)
                w_index_record(w, s, i);
            notes_keep(w, s, notes);
        }
        *position = s->position;
        *end = w->end;
        if (!quiet)
            pthread_cond_signal(&w->c_work);
    }
    pthread_mutex_unlock(&w->mutex);
    if (code == 0) {
        if (t->payload_length)
            memcpy(payload_of(s), payload, t->payload_length);
        memset(payload_of(s) + t->payload_length, 0, s->length - PR_BLOCK - t->payload_length);
        for (uint32_t i = 0; i < s->count; i++)
            atomic_store(&s->ready[i], 1);
        filled(w, s, s->count);
    }
    return code;
}

int pr_window_received(pr_window *w, const uint8_t *head, uint64_t head_length, const uint8_t *payload,
                       uint64_t payload_length, const uint32_t *blocks, uint32_t block_count, bool nowait,
                       int64_t timeout, uint64_t *position, uint64_t *end) {
    patience p = { .timeout = timeout };
    uint64_t copy[PR_BLOCK / 8];                                   /* aligned, whatever the caller's buffer is */
    const struct pr_travel *t = (const struct pr_travel *)copy;
    uint64_t cells = 0;
    if (head_length < sizeof *t || head_length > sizeof copy)
        return PR_MALFORMED;
    memcpy(copy, head, head_length);
    if (t->count == 0 || t->count > PR_MAX_RECORDS || t->payload_length > PR_MAX_PAYLOAD ||
        head_length != sizeof *t + t->count * sizeof(struct pr_record) || t->payload_length != payload_length ||
        w_records_check(w, t, (const struct pr_record *)(t + 1), &cells))
        return PR_MALFORMED;
    return append_received(w, t, cells, payload, blocks, block_count, false, false, nowait, &p, position, end);
}

int pr_window_take(pr_window *w, const struct pr_travel *t, const uint8_t *payload, bool quiet, int64_t timeout,
                   uint64_t *end) {
    patience p = { .timeout = timeout };
    uint64_t cells = 0, position;
    if (t->kind != PR_BATCH_EVENTS || w_records_check(w, t, (const struct pr_record *)(t + 1), &cells))
        return PR_MALFORMED;
    return append_received(w, t, cells, payload, NULL, 0, true, quiet, false, &p, &position, end);
}
