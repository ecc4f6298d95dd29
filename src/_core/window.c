/* The window (window.h says the rules, window_state.h which room does what). This file decides: who wakes up, what memory is
 * kept, what a log must be to be opened. It must not know: what an operation, a note or an item means, links, source maps,
 * Python.
 */
#include "window_state.h"

#include "buffers.h"

#include <errno.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

/* The clock is read only by those who really wait: a write at queue depth 1 never does. */
int w_wait_for(pr_window *w, pthread_cond_t *condition, patience *p) {
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

/* Who waits for a position that was passed wakes up, and nobody else: not each commit on the way to a far one. */
void w_wake_passed(pr_window *w, int which, uint64_t position) {
    for (struct waiter *waiter = w->waiters[which]; waiter; waiter = waiter->next)
        if (position > waiter->beyond)
            pthread_cond_signal(&waiter->passed);
}

/* Whoever has waited for room looks again; what was wanted before may be there now. */
void w_room_made(pr_window *w) {
    w->wanting = false;
    pthread_cond_broadcast(&w->c_room);
}

static void wake_all(pr_window *w) {
    for (int i = 0; i < CONDITIONS; i++)
        pthread_cond_broadcast(condition_of(w, i));
    w_wake_passed(w, WRITTEN, UINT64_MAX);
    w_wake_passed(w, DURABLE, UINT64_MAX);
}

void w_fail(pr_window *w, int code) {
    if (!w->failed)
        w->failed = code;
    wake_all(w);
}

/* ---- slots ---- */

/* A fresh slot, not yet in the row; room for it in the row is seen to, so that w_push() cannot fail. */
slot *w_slot_new(pr_window *w) {
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

void w_slot_drop(pr_window *w, slot *s) {
    s->next_free = w->free_slots;
    w->free_slots = s;
}

void w_push(pr_window *w, slot *s) { w->slots[w->last++ & w->slot_mask] = s; }

/* Gives back the memory of what is applied and not pinned, oldest first: the ring is freed in order. */
void w_free_front(pr_window *w) {
    uint64_t before = w->first;
    while (w->first != w->unapplied && at(w, w->first)->pins == 0) {
        slot *s = at(w, w->first++);
        if (s->own)
            pr_buffer_give(s->memory, s->length);
        else
            w->ring_tail = s->ring_end;
        w_slot_drop(w, s);
    }
    w_free_guests(w);
    if (w->first != before)
        w_room_made(w);
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
    w->bound = UINT64_MAX;
    w->shown = NOT_PARKED;
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
    pthread_condattr_init(&w->monotonic);
    pthread_condattr_setclock(&w->monotonic, CLOCK_MONOTONIC);
    pthread_mutex_init(&w->mutex, NULL);
    for (int i = 0; i < CONDITIONS; i++)
        pthread_cond_init(condition_of(w, i), &w->monotonic);
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
    for (uint32_t i = 0; i < w->guest_count; i++) {
        pr_buffer_give(w->guests[i]->memory, w->guests[i]->length);
        free(w->guests[i]);
    }
    while (w->free_slots) {
        slot *s = w->free_slots;
        w->free_slots = s->next_free;
        free(s);
    }
    for (int i = 0; i < CONDITIONS; i++)
        pthread_cond_destroy(condition_of(w, i));
    pthread_condattr_destroy(&w->monotonic);
    pthread_mutex_destroy(&w->mutex);
    munmap(w->ring, w->ring_size);
    free(w->slots);
    free(w->cells);
    free(w->holds);
    free(w->barriers);
    free(w->parcels);
    free(w->guests);
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
        w_records_check(w, t, (const struct pr_record *)(t + 1), &cells)) {
        pr_buffer_give(memory, length);
        return PR_MALFORMED;
    }
    pthread_mutex_lock(&w->mutex);
    int code = 0;
    slot *s = NULL;
    if (w->opened || (w->first != w->last && local->position < w->written))
        code = PR_TWICE;
    else if ((code = w_cells_reserve(w, cells)) == 0 && (code = w_barriers_reserve(w, block_count)) == 0)
        code = (s = w_slot_new(w)) ? 0 : -ENOMEM;
    if (code == 0) {
        slot_of_record(s, memory);
        w_push(w, s);
        w->next = w->last;
        w->written = s->position + length;
        for (uint32_t i = 0; is_indexed(s) && i < s->count; i++)
            w_index_record(w, s, i);
        w_barriers_add(w, s->position, blocks, block_count);
        notes_keep(w, s, w_notes_of_batch(w, t, records_of(s)));
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
    else if (w->loaded && w->written > log->position)
        code = PR_OUTSIDE;
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
    if (w->loaded)
        w->shown = w->applied;
    w->opened = true;
    pthread_mutex_unlock(&w->mutex);
    return 0;
}

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
    w_fail(w, code);
    pthread_mutex_unlock(&w->mutex);
}

/* Nothing is appended any more: the pages of the ring that no record stands in go back to the system. Whoever still holds
 * the window finds zeros there, and has no reason to look. */
static void give_back(pr_window *w) {
    uint64_t page = (uint64_t)sysconf(_SC_PAGESIZE), size = w->ring_size, free = size - (w->ring_head - w->ring_tail);
    for (uint64_t from = w->ring_head % size; free; ) {
        uint64_t length = free < size - from ? free : size - from;
        uint64_t first = (from + page - 1) / page * page, end = (from + length) / page * page;
        if (first < end)
            madvise(w->ring + first, end - first, MADV_DONTNEED);
        free -= length;
        from = 0;
    }
}

void pr_window_close(pr_window *w) {
    pthread_mutex_lock(&w->mutex);
    w->closed = true;
    w_fail(w, -ESHUTDOWN);
    while (w->writing || w->flushing)                              /* the device may be closed after us */
        pthread_cond_wait(w->writing ? &w->c_written : &w->c_durable, &w->mutex);
    give_back(w);
    pthread_mutex_unlock(&w->mutex);
}

void pr_window_look(pr_window *w, pr_window_state *state) {
    pthread_mutex_lock(&w->mutex);
    *state = (pr_window_state){
        .end_position = w->end, .written_position = w->written, .durable_position = w->durable,
        .applied_position = w->applied, .tail_position = w->tail, .end_lsn = w->end_lsn,
        .written_lsn = w->written_lsn, .durable_lsn = w->durable_lsn,
        .applied_lsn = w->applied_lsn, .peer_lsn = w->peer_lsn, .chain = w->chain, .log_size = w->log_size,
        .shown_position = w->shown, .notes = notes_all(w), .ring_size = w->ring_size, .ring_used = w->ring_head - w->ring_tail, .batches = w->batches,
        .records = w->records, .payload_bytes = w->payload_bytes, .commits = w->commits,
        .flushes = w->flushes, .wants = w->wants, .wanting = w->wanting, .failed = w->failed,
    };
    pthread_mutex_unlock(&w->mutex);
}

pr_latency *pr_window_latency(pr_window *w, int which) { return &w->latencies[which]; }

int pr_window_set_notes(pr_window *w, uint64_t region_size, uint64_t cost) {
    if (!region_size || region_size > PR_MAX_REGION || cost > PR_MAX_NOTE)
        return PR_MALFORMED;
    pthread_mutex_lock(&w->mutex);
    w->region_size = region_size;
    w->note_cost = cost;
    pthread_mutex_unlock(&w->mutex);
    return 0;
}

/* ---- the engine ---- */

int pr_window_wait_beyond(pr_window *w, bool durable, uint64_t beyond, const uint64_t *wants, int64_t timeout,
                          uint64_t *position) {
    patience p = { .timeout = timeout };
    const uint64_t *reached = durable ? &w->durable : &w->written;
    const uint64_t most = wants ? *wants : UINT64_MAX;
    int code = 0;
    pthread_mutex_lock(&w->mutex);
    if (*reached <= beyond && w->wants <= most && !w->closed) {
        struct waiter **list = &w->waiters[durable ? DURABLE : WRITTEN];
        struct waiter waiter = { .beyond = beyond, .wants = wants != NULL, .next = *list };
        pthread_cond_init(&waiter.passed, &w->monotonic);
        *list = &waiter;
        while (code == 0 && *reached <= beyond && w->wants <= most && !w->closed)
            code = w->failed ? w->failed : w_wait_for(w, &waiter.passed, &p);
        while (*list != &waiter)
            list = &(*list)->next;
        *list = waiter.next;
        pthread_cond_destroy(&waiter.passed);
    }
    *position = *reached;
    pthread_mutex_unlock(&w->mutex);
    return code;
}

int pr_window_wait_applied(pr_window *w, uint64_t lsn, int64_t timeout) {
    patience p = { .timeout = timeout };
    int code = 0;
    pthread_mutex_lock(&w->mutex);
    while (code == 0 && w->applied_lsn < lsn)
        code = w->failed ? w->failed : w_wait_for(w, &w->c_applied, &p);
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
                w_unindex_record(w, s, i);
            w->notes -= s->notes;
            s->notes = 0;
            if (s->begun)
                pr_latency_add(&w->latencies[PR_LATENCY_OPERATION], pr_now() - s->begun);
            w->unapplied++;
            pthread_mutex_unlock(&w->mutex);
            pthread_mutex_lock(&w->mutex);
        }
        w_guests_applied(w, position);
        w_parcels_applied(w, position);
        w->applying = false;
        w->applied = position;
        w->applied_lsn = lsn;
        uint32_t kept = 0;
        for (uint32_t i = 0; i < w->barrier_count; i++)
            if (w->barriers[i].position >= position)
                w->barriers[kept++] = w->barriers[i];
        w->barrier_count = kept;
        if (w->shown != NOT_PARKED) {
            if (w->shown < position)
                w->shown = position;
            w_let_go(w);
        }
        w_free_front(w);
        pthread_cond_broadcast(&w->c_applied);
        w_room_made(w);
    }
    pthread_mutex_unlock(&w->mutex);
    return code;
}

int pr_window_set_tail(pr_window *w, uint64_t position) {
    pthread_mutex_lock(&w->mutex);
    int code = position < w->tail || position > w->applied ? PR_OUTSIDE : 0;
    if (code == 0) {
        w->tail = position;
        w_room_made(w);
    }
    pthread_mutex_unlock(&w->mutex);
    return code;
}

void pr_window_set_sync(pr_window *w, bool sync) {
    pthread_mutex_lock(&w->mutex);
    if (w->sync != sync) {
        w->sync = sync;
        pthread_cond_broadcast(&w->c_peer);
    }
    pthread_mutex_unlock(&w->mutex);
}

void pr_window_set_bound(pr_window *w, uint64_t position) {
    pthread_mutex_lock(&w->mutex);
    w->bound = position;
    pthread_cond_broadcast(&w->c_room);
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
