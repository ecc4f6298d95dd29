/* Parking: what is received stands in the log only, until it is shown, and then applied.
 *
 * Decides: whose memory goes as soon as it is written, what performing it may need of the log, when it is taken in again.
 * Must not know: why it waits (the caller has a cutoff), sockets, Python.
 *
 * What lies at `shown` or beyond is parked. Readers do not find it, and its operations make none wait. What applying it may
 * need of the log is counted in parcels, at what a note costs now: stores and views may come while it waits. Before it is
 * applied pr_window_show enters it into the index, so that a reader beside the applier finds what it finds without parking;
 * what has no slot in the row any more gets one beside it (a guest).
 */
#include "window_state.h"

#include "buffers.h"

#include <errno.h>
#include <stdlib.h>

#define PARCEL (1u << 20)               /* bytes of the log that one parcel is for */

/* ---- memory, and room in the log ---- */

/* Where parking is to end, not of what is near: the ring then fills, and pr_window_show finds all that is left in memory. */
void w_let_go(pr_window *w) {
    while (w->unapplied != w->next) {
        const slot *s = at(w, w->unapplied);
        if (!is_parked(w, s->position) || (!w->parking && s->position - w->shown <= w->ring_size / 2))
            break;
        w->unapplied++;
    }
    w_free_front(w);
}

void w_free_guests(pr_window *w) {
    uint32_t kept = 0;
    for (uint32_t i = 0; i < w->guest_count; i++) {
        slot *s = w->guests[i];
        if (s->applied && s->pins == 0) {
            pr_buffer_give(s->memory, s->length);
            w_slot_drop(w, s);
        } else
            w->guests[kept++] = s;
    }
    w->guest_count = kept;
}

void w_guests_applied(pr_window *w, uint64_t position) {
    for (uint32_t k = 0; k < w->guest_count; k++) {
        slot *s = w->guests[k];
        if (s->applied || s->position >= position)
            continue;
        for (uint32_t i = 0; is_indexed(s) && i < s->count; i++)
            w_unindex_record(w, s, i);
        s->applied = true;
    }
}

static inline struct parcel *parcel_at(const pr_window *w, uint64_t i) { return &w->parcels[i & w->parcel_mask]; }

int w_parcels_reserve(pr_window *w) {
    if (w->parcels && w->parcel_last - w->parcel_first <= w->parcel_mask)
        return 0;
    uint64_t space = w->parcels ? (w->parcel_mask + 1) * 2 : 64;
    struct parcel *parcels = malloc(space * sizeof *parcels);
    if (!parcels)
        return -ENOMEM;
    for (uint64_t i = w->parcel_first; i != w->parcel_last; i++)
        parcels[i & (space - 1)] = *parcel_at(w, i);
    free(w->parcels);
    w->parcels = parcels;
    w->parcel_mask = space - 1;
    return 0;
}

/* What it touches, whatever a note costs: regions, and bytes of bodies. */
void w_parcel_add(pr_window *w, const struct pr_travel *t, const struct pr_record *r, uint64_t position, uint64_t length) {
    uint64_t regions = 0, bodies = 0;
    if (t->kind == PR_BATCH_OPERATION || t->kind == PR_BATCH_ITEM)
        bodies = pr_align(4 * (uint64_t)t->payload_length, PR_BLOCK) + PR_BLOCK;
    else
        for (uint32_t i = 0; i < t->count && w->region_size; i++)
            regions += (r[i].offset % w->region_size + r[i].length - 1) / w->region_size + 1;
    struct parcel *last = w->parcel_first != w->parcel_last ? parcel_at(w, w->parcel_last - 1) : NULL;
    if (!last || position + length - last->begin > PARCEL) {
        last = parcel_at(w, w->parcel_last++);
        *last = (struct parcel){ .begin = position };
    }
    last->until = position + length;
    last->regions += regions;
    last->bodies += bodies;
    w->parked_regions += regions;
    w->parked_bodies += bodies;
}

void w_parcels_applied(pr_window *w, uint64_t position) {
    while (w->parcel_first != w->parcel_last && parcel_at(w, w->parcel_first)->until <= position) {
        const struct parcel *p = parcel_at(w, w->parcel_first++);
        w->parked_regions -= p->regions;
        w->parked_bodies -= p->bodies;
    }
}

/* ---- parking and showing ---- */

int pr_window_load_parked(pr_window *w, const uint8_t *record, uint64_t length, const uint32_t *blocks,
                          uint32_t block_count) {
    uint64_t cells = 0, copy[PR_BLOCK / 8];
    const struct pr_local *local = (const struct pr_local *)copy;
    const struct pr_travel *t = (const struct pr_travel *)(local + 1);
    memset(copy, 0, sizeof copy);
    memcpy(copy, record, length < sizeof copy ? length : sizeof copy);
    if (length < sizeof *local + sizeof *t || pr_local_judge(local, local->position) || local->kind != PR_RECORD_BATCH ||
        t->count > PR_MAX_RECORDS || length < sizeof *local + sizeof *t + t->count * sizeof(struct pr_record) ||
        pr_batch_length(t->payload_length) != local->length ||
        w_records_check(w, t, (const struct pr_record *)(t + 1), &cells))
        return PR_MALFORMED;
    pthread_mutex_lock(&w->mutex);
    int code = w->opened || (w->loaded ? local->position < w->written : w->first != w->last) ? PR_TWICE : 0;
    if (code == 0 && (code = w_parcels_reserve(w)) == 0 && (code = w_barriers_reserve(w, block_count)) == 0) {
        w_parcel_add(w, t, (const struct pr_record *)(t + 1), local->position, local->length);
        w_barriers_add(w, local->position, blocks, block_count);
        w->written = local->position + local->length;
        w->loaded = true;
    }
    pthread_mutex_unlock(&w->mutex);
    return code;
}

void pr_window_park(pr_window *w, bool parking) {
    pthread_mutex_lock(&w->mutex);
    w->parking = parking;
    if (parking && w->shown == NOT_PARKED) {
        close_batch(w);
        w->shown = w->end;
    }
    pthread_mutex_unlock(&w->mutex);
}

static int enter(pr_window *w, slot *s) {
    uint64_t cells = 0;
    for (uint32_t i = 0; is_indexed(s) && i < s->count; i++)
        cells += blocks_of(w, records_of(s)[i].length);
    int code = w_cells_reserve(w, cells);
    for (uint32_t i = 0; code == 0 && is_indexed(s) && i < s->count; i++)
        w_index_record(w, s, i);
    return code;
}

/* A record that was read back becomes a guest. With the mutex. */
static int invite(pr_window *w, const uint8_t *record, uint64_t position) {
    const struct pr_local *local = (const struct pr_local *)record;
    int code = 0;
    if (local->kind != PR_RECORD_BATCH) {
        w->shown = position + local->length;                       /* a note: nobody reads it any more */
        return 0;
    }
    if (w->guest_count == w->guest_space) {
        uint32_t space = w->guest_space ? w->guest_space * 2 : 64;
        slot **guests = realloc(w->guests, space * sizeof *guests);
        if (!guests)
            return -ENOMEM;
        w->guests = guests;
        w->guest_space = space;
    }
    uint8_t *memory = pr_buffer_take(local->length);
    slot *s = memory ? w_slot_new(w) : NULL;
    if (!s) {
        pr_buffer_give(memory, local->length);
        return -ENOMEM;
    }
    memcpy(memory, record, local->length);
    slot_of_record(s, memory);
    if ((code = enter(w, s)) != 0) {
        pr_buffer_give(memory, s->length);
        w_slot_drop(w, s);
        return code;
    }
    w->guests[w->guest_count++] = s;
    w->shown = position + local->length;
    return 0;
}

/* The slot of the row that stands there and has not been let go of. */
static slot *in_row(const pr_window *w, uint64_t position) {
    uint64_t low = w->unapplied, high = w->last;
    while (low < high) {
        uint64_t middle = low + (high - low) / 2;
        if (at(w, middle)->position < position)
            low = middle + 1;
        else
            high = middle;
    }
    return low != w->last && at(w, low)->position == position ? at(w, low) : NULL;
}

/* Is it old enough to be shown? What has no time goes with what stands before it. */
static bool is_due(const struct pr_local *local, uint64_t cutoff) {
    const struct pr_travel *t = (const struct pr_travel *)(local + 1);
    return local->kind != PR_RECORD_BATCH || t->time_ns <= cutoff;
}

int pr_window_show(pr_window *w, uint64_t until, uint64_t cutoff, uint64_t most, uint64_t *shown, uint64_t *next) {
    uint8_t *stretch = NULL;
    bool due = true;
    *next = 0;
    pthread_mutex_lock(&w->mutex);
    int code = !w->opened ? PR_NOT_OPEN : until > w->written ? PR_OUTSIDE : w->failed;
    const uint64_t begin = w->shown;
    while (code == 0 && due && w->shown < until && w->shown - begin < most) {
        const uint64_t position = w->shown, written = w->written;
        slot *s = in_row(w, position);
        if (s) {
            due = is_due((const struct pr_local *)s->memory, cutoff);
            if (!due)
                *next = travel_of(s)->time_ns;
            else if ((code = enter(w, s)) == 0)
                w->shown = position + s->length;
            continue;
        }
        pthread_mutex_unlock(&w->mutex);
        uint64_t length = written - position < LOT_READ ? written - position : LOT_READ, at = 0;
        pr_entry alone = { 0 };
        if (!stretch && !(stretch = pr_buffer_take(LOT_READ)))
            code = -ENOMEM;
        if (code == 0)
            code = w_log_read(w->device, w->log_offset, w->log_size, position, stretch, length);
        if (code == 0 && (pr_local_judge((const struct pr_local *)stretch, position) ||
                          ((const struct pr_local *)stretch)->length > length))
            code = w_read_back(w, position, written, &alone);        /* long; or says what is wrong */
        pthread_mutex_lock(&w->mutex);
        while (code == 0 && due && at < length && w->shown < until && w->shown - begin < most) {
            const uint8_t *record = alone.memory ? alone.memory : stretch + at;
            const struct pr_local *local = (const struct pr_local *)record;
            if (at && (in_row(w, position + at) || pr_local_judge(local, position + at) || local->length > length - at))
                break;
            due = is_due(local, cutoff);
            if (!due)
                *next = ((const struct pr_travel *)(local + 1))->time_ns;
            else
                code = !alone.memory && pr_record_judge(record, local->length, position + at, w->alignment, NULL)
                     ? -EBADMSG : invite(w, record, position + at);
            at += alone.memory ? length : local->length;
        }
        if (alone.memory)
            pr_buffer_give((void *)alone.memory, (uintptr_t)alone.pin);
    }
    *shown = w->shown;
    pthread_mutex_unlock(&w->mutex);
    if (stretch)
        pr_buffer_give(stretch, LOT_READ);
    return code;
}

int pr_window_unpark(pr_window *w) {
    int code = 0;
    pthread_mutex_lock(&w->mutex);
    if (w->shown != NOT_PARKED && !w->parking) {
        uint64_t i = w->unapplied;
        while (i != w->last && at(w, i)->position < w->shown)
            i++;
        if (w->shown == w->end || (i != w->last && at(w, i)->position == w->shown)) {
            for (; code == 0 && i != w->last; i++)
                if ((code = enter(w, at(w, i))) == 0)
                    w->shown = at(w, i)->position + at(w, i)->length;
            for (uint32_t k = w->store_count; k-- && code == 0; ) {
                w->stores[k].size = w->stores[k].coming;
                if (!w->stores[k].size)
                    w_store_drop(w, w->stores[k].id);
            }
            if (code == 0)
                w->shown = NOT_PARKED;
        }
    }
    if (code == 0)
        code = w->shown == NOT_PARKED;
    pthread_mutex_unlock(&w->mutex);
    return code;
}
