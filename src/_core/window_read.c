/* Records of the log for those who read it: a link, the engine, whoever opens a log. Decides what comes from memory and what is
 * read back, and how much at once; must not know what a record means.
 */
#include "window_state.h"

#include "buffers.h"

#include <errno.h>

#define READ_AHEAD (64u << 10)          /* first read of a record that is read back */

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
int w_log_read(pr_device *device, uint64_t log_offset, uint64_t log_size, uint64_t position, uint8_t *target,
                    uint64_t length) {
    uint64_t offset = position % log_size, part = length < log_size - offset ? length : log_size - offset;
    pr_io ios[2] = {
        { .op = PR_READ, .offset = log_offset + offset, .length = part, .buffer = target },
        { .op = PR_READ, .offset = log_offset, .length = length - part, .buffer = target + part },
    };
    return pr_device_perform(device, ios, part < length ? 2 : 1);
}

int w_read_back(pr_window *w, uint64_t position, uint64_t written, pr_entry *e) {
    uint64_t length = written - position < READ_AHEAD ? written - position : READ_AHEAD, whole = 0;
    uint8_t *memory = pr_buffer_take(length), *more;
    if (!memory)
        return -ENOMEM;
    int code = w_log_read(w->device, w->log_offset, w->log_size, position, memory, length);
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
            code = w_log_read(w->device, w->log_offset, w->log_size, position + length, memory + length, whole - length);
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
    for (uint32_t i = 0; code == 0 && i < w->guest_count; i++)
        if (w->guests[i]->position == position) {
            w->guests[i]->pins++;
            entry_fill(e, w->guests[i]->memory, position);
            e->pin = w->guests[i];
            pthread_mutex_unlock(&w->mutex);
            return 0;
        }
    pthread_mutex_unlock(&w->mutex);
    return code ? code : w_read_back(w, position, written, e);
}

void pr_entry_release(pr_window *w, pr_entry *e) {
    if (e->own)
        pr_buffer_give((void *)e->memory, (uintptr_t)e->pin);
    else if (e->pin) {
        pthread_mutex_lock(&w->mutex);
        ((slot *)e->pin)->pins--;
        w_free_front(w);
        pthread_mutex_unlock(&w->mutex);
    }
    memset(e, 0, sizeof *e);
}

/* ---- lots ---- */

/* May it travel behind what the lot holds already? */
static bool joins(const pr_lot *lot, const struct pr_travel *t) {
    return t->kind == PR_BATCH_EVENTS &&
           (!lot->count || !memcmp(t->generation, lot->entries[0].travel->generation, sizeof t->generation));
}

/* Reads a stretch of the log at once and takes its records apart. */
static int lot_read_back(pr_window *w, uint64_t position, uint64_t until, pr_lot *lot) {
    uint64_t length = until - position < LOT_READ ? until - position : LOT_READ, at = 0;
    uint8_t *memory = pr_buffer_take(length);
    if (!memory)
        return -ENOMEM;
    int code = w_log_read(w->device, w->log_offset, w->log_size, position, memory, length);
    while (code == 0 && at < length && lot->count < PR_LOT) {
        const uint8_t *record = memory + at;
        const struct pr_local *local = (const struct pr_local *)record;
        if (pr_local_judge(local, position + at) || local->kind != PR_RECORD_BATCH || local->length > length - at ||
            pr_record_judge(record, local->length, position + at, w->alignment, NULL) ||
            !joins(lot, (const struct pr_travel *)(local + 1)))
            break;                                                 /* long, a note, bad ...: pr_window_entry says what */
        entry_fill(&lot->entries[lot->count++], record, position + at);
        at += local->length;
    }
    if (lot->count == 0) {
        pr_buffer_give(memory, length);
        return code;
    }
    lot->memory = memory;
    lot->taken = length;
    return 0;
}

int pr_window_lot(pr_window *w, uint64_t position, uint64_t until, uint64_t most, pr_lot *lot) {
    uint64_t bytes = 0;
    lot->count = 0;
    lot->memory = NULL;
    pthread_mutex_lock(&w->mutex);
    int code = !w->opened ? PR_NOT_OPEN : position < w->tail || position > w->end ? PR_OUTSIDE : 0;
    if (until > w->written)
        until = w->written;
    uint64_t i = w->first, high = w->next;
    while (code == 0 && i < high) {
        uint64_t middle = i + (high - i) / 2;
        if (at(w, middle)->position < position)
            i = middle + 1;
        else
            high = middle;
    }
    const bool here = code == 0 && i != w->next && at(w, i)->position == position;
    for (; here && i != w->next && lot->count < PR_LOT; i++) {
        slot *s = at(w, i);
        bytes += s->length;
        if (s->position + s->length > until || s->kind != PR_RECORD_BATCH || (lot->count && bytes > most) ||
            !joins(lot, travel_of(s)))
            break;
        s->pins++;
        pr_entry *e = &lot->entries[lot->count++];
        entry_fill(e, s->memory, s->position);
        e->pin = s;
    }
    pthread_mutex_unlock(&w->mutex);
    return code || here || position >= until ? code : lot_read_back(w, position, until, lot);
}

void pr_lot_release(pr_window *w, pr_lot *lot) {
    if (lot->memory)
        pr_buffer_give(lot->memory, lot->taken);
    else if (lot->count) {
        pthread_mutex_lock(&w->mutex);
        for (uint32_t i = 0; i < lot->count; i++)
            ((slot *)lot->entries[i].pin)->pins--;
        w_free_front(w);
        pthread_mutex_unlock(&w->mutex);
    }
    lot->memory = NULL;
    lot->count = 0;
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
        int code = w_log_read(s->device, s->log_offset, s->log_size, position + s->held, s->buffer + s->held, more);
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
