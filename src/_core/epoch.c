/* Epochs: decides which version of a block goes home, in which I/Os, and carries plans out. What must be saved before
 * is plan.c's; when a stage may follow another (flush, note, durable) is the caller's. Knows no operation, no
 * checkpoint, no peer.
 *
 * One epoch belongs to one thread. Devices are used without any lock, the maps under the lock of the stores.
 */
#include "epoch.h"
#include "buffers.h"
#include <errno.h>
#include <stdlib.h>
#include <string.h>

enum {
    MOST_PARTS = 64,                            /* iovecs of one I/O */
    MOST_BYTES = 1 << 20,                       /* bytes of one I/O */
    MOST_IOS = 1024,                            /* I/Os of one list */
    MOST_VECTORS = 8192,                        /* iovecs of one list */
    COPY_BUFFER = 8 << 20,                      /* regions in flight between devices */
    MOST_REGIONS = 65536,                       /* regions of one epoch: zeros have no payload that bounds them */
    MOST_ENTRIES = (4 << 20) / 24 - PR_MAX_STORES,  /* map entries of a note: one region more still fits PR_MAX_NOTE */
};

typedef struct piece {                          /* of a record, inside one region */
    uint64_t region;
    uint32_t slot, order;                       /* a higher order is newer */
    uint32_t begin, length;                     /* bytes, from the start of the region */
    const uint8_t *data;                        /* NULL: zeros */
} piece;

typedef struct segment {                        /* of a device: what goes home */
    uint64_t offset;
    uint32_t slot, length;
    const uint8_t *data;
} segment;

typedef struct job {                            /* of a copy: adjacent regions, or one that a device's end cuts */
    uint64_t offset;
    uint32_t target, source;
    uint32_t length, from_source;               /* bytes to write; those of them to read, the rest is zeros */
    uint8_t *buffer;
} job;

typedef struct list { size_t count, room; } list;

struct pr_epoch {
    pr_stores *stores;
    pr_window *window;
    pr_entry *entries;
    piece *pieces;
    segment *segments;
    pr_touch *touches;
    pr_stage *stages;
    list entry_list, piece_list, segment_list, touch_list, stage_list;
    uint32_t *painted;                          /* for each block of a region: the piece that counts, from 1 */
    uint8_t *zeros, *buffer;                    /* MOST_BYTES of zeros; COPY_BUFFER, taken when first needed */
    pr_io *ios;
    struct iovec *vectors;
    uint32_t failed;                            /* slot of the device that an error came from */
    uint32_t repointed;                         /* stages whose maps have changed */
    pr_plan plan;
};

static uint64_t least(uint64_t a, uint64_t b) { return a < b ? a : b; }

pr_epoch *pr_epoch_new(pr_stores *stores, pr_window *window)
{
    pr_epoch *epoch = calloc(1, sizeof *epoch);
    if (!epoch)
        return NULL;
    epoch->stores = stores;
    epoch->window = window;
    epoch->painted = malloc(stores->region_size / stores->alignment * sizeof *epoch->painted);
    epoch->zeros = pr_buffer_take(MOST_BYTES);
    epoch->ios = malloc(MOST_IOS * sizeof *epoch->ios);
    epoch->vectors = malloc(MOST_VECTORS * sizeof *epoch->vectors);
    if (!epoch->painted || !epoch->zeros || !epoch->ios || !epoch->vectors) {
        pr_epoch_free(epoch);
        return NULL;
    }
    memset(epoch->zeros, 0, MOST_BYTES);
    return epoch;
}

static void forget_plan(pr_epoch *epoch)
{
    pr_plan_clear(&epoch->plan);
    epoch->stage_list.count = epoch->segment_list.count = epoch->touch_list.count = 0;
    epoch->repointed = 0;
    epoch->failed = 0;
}

void pr_epoch_clear(pr_epoch *epoch)
{
    for (size_t i = 0; i < epoch->entry_list.count; i++)
        pr_entry_release(epoch->window, &epoch->entries[i]);
    epoch->entry_list.count = epoch->piece_list.count = 0;
    forget_plan(epoch);
}

void pr_epoch_free(pr_epoch *epoch)
{
    if (!epoch)
        return;
    pr_epoch_clear(epoch);
    pr_plan_free(&epoch->plan);
    pr_buffer_give(epoch->zeros, MOST_BYTES);
    pr_buffer_give(epoch->buffer, COPY_BUFFER);
    free(epoch->painted);
    free(epoch->ios);
    free(epoch->vectors);
    free(epoch->entries);
    free(epoch->pieces);
    free(epoch->segments);
    free(epoch->touches);
    free(epoch->stages);
    free(epoch);
}

uint32_t pr_epoch_failed(const pr_epoch *epoch) { return epoch->failed; }

/* Room for one more; the array, or NULL: no memory (the old one stays). */
static void *room(void *array, list *l, size_t size)
{
    if (l->count < l->room)
        return array;
    size_t more = l->room ? l->room * 2 : 256;
    void *larger = realloc(array, more * size);
    if (larger)
        l->room = more;
    return larger;
}

#define ROOM(epoch, array, l) \
    do { \
        void *larger_ = room((epoch)->array, &(epoch)->l, sizeof *(epoch)->array); \
        if (!larger_) \
            return -ENOMEM; \
        (epoch)->array = larger_; \
    } while (0)

/* ---- gather ---- */

int pr_epoch_gather(pr_epoch *epoch, uint64_t position, uint64_t limit_position, uint64_t limit_bytes,
                    uint64_t *next, uint64_t *lsn, uint64_t *item)
{
    uint64_t bytes = 0, regions = 0;
    pr_epoch_clear(epoch);
    *next = position;
    *lsn = *item = 0;
    while (*next < limit_position && bytes < limit_bytes && regions < MOST_REGIONS) {
        ROOM(epoch, entries, entry_list);
        pr_entry *entry = &epoch->entries[epoch->entry_list.count];
        int code = pr_window_entry(epoch->window, *next, entry);
        if (code == -ENOENT)
            break;
        if (code < 0) {
            pr_epoch_clear(epoch);
            return code;
        }
        if (entry->kind == PR_RECORD_NOTE) {
            *next = entry->position + entry->length;
            pr_entry_release(epoch->window, entry);
            continue;
        }
        if (entry->travel->kind != PR_BATCH_EVENTS && entry->travel->kind != PR_BATCH_COPIED) {
            pr_entry_release(epoch->window, entry);
            break;
        }
        epoch->entry_list.count++;
        *next = entry->position + entry->length;
        bytes += entry->length;
        for (uint32_t i = 0; i < entry->travel->count; i++)
            regions += entry->records[i].length / epoch->stores->region_size + 1;
        if (entry->travel->kind == PR_BATCH_EVENTS)
            *lsn = entry->last_lsn;
        else
            *item = entry->travel->item;
    }
    return 0;
}

/* ---- plan ---- */

static int by_slot(const void *a, const void *b)
{
    const piece *x = a, *y = b;
    if (x->slot != y->slot)
        return x->slot < y->slot ? -1 : 1;
    if (x->region != y->region)
        return x->region < y->region ? -1 : 1;
    return x->order < y->order ? -1 : x->order > y->order;
}

static int by_region(const void *a, const void *b)
{
    const pr_touch *x = a, *y = b;
    if (x->region != y->region)
        return x->region < y->region ? -1 : 1;
    return x->slot < y->slot ? -1 : x->slot > y->slot;
}

/* One record as pieces. What is for a store that is not here is passed over; what is behind its end cannot be. */
static int cut(pr_epoch *epoch, const pr_entry *entry, const struct pr_record *record)
{
    pr_store *store = pr_stores_find(epoch->stores, record->store);
    if ((record->kind != PR_WRITE && record->kind != PR_ZERO && record->kind != PR_DISCARD) || !store
        || record->offset >= store->size)
        return 0;
    uint64_t region_size = epoch->stores->region_size, at = record->offset;
    uint64_t end = at + least(record->length, store->size - at);
    const uint8_t *data = record->kind == PR_WRITE ? entry->payload + record->payload : NULL;
    while (at < end) {
        uint64_t begin = at % region_size, length = least(end - at, region_size - begin);
        ROOM(epoch, pieces, piece_list);
        epoch->pieces[epoch->piece_list.count] = (piece){
            at / region_size, store->slot, (uint32_t)epoch->piece_list.count, (uint32_t)begin, (uint32_t)length, data};
        epoch->piece_list.count++;
        data = data ? data + length : NULL;
        at += length;
    }
    return 0;
}

static int add_segment(pr_epoch *epoch, const piece *p, uint64_t begin, uint64_t length)
{
    ROOM(epoch, segments, segment_list);
    epoch->segments[epoch->segment_list.count++] = (segment){
        p->region * epoch->stores->region_size + begin, p->slot, (uint32_t)length,
        p->data ? p->data + (begin - p->begin) : NULL};
    return 0;
}

/* The pieces of one region of one store, oldest first: what goes home, and how the region is touched. */
static int settle(pr_epoch *epoch, const piece *pieces, size_t count)
{
    const pr_stores *stores = epoch->stores;
    const uint32_t unit = stores->alignment;
    uint64_t base = pieces->region * stores->region_size;
    uint64_t length = least(stores->region_size, stores->slots[pieces->slot]->size - base), covered = 0;
    uint32_t *painted = epoch->painted, blocks = (uint32_t)(length / unit);
    int code = 0, data = 0;
    uint32_t how;
    if (count == 1) {
        covered = pieces->length;
        data = pieces->data != NULL;
    } else {
        memset(painted, 0, blocks * sizeof *painted);
        for (size_t i = 0; i < count; i++)
            for (uint32_t b = pieces[i].begin / unit, end = (pieces[i].begin + pieces[i].length) / unit; b < end; b++)
                painted[b] = (uint32_t)i + 1;
        for (uint32_t b = 0; b < blocks; b++)
            if (painted[b]) {
                covered += unit;
                data |= pieces[painted[b] - 1].data != NULL;
            }
    }
    how = covered < length ? PR_PARTLY : data ? PR_WHOLE : PR_ZEROED;
    ROOM(epoch, touches, touch_list);
    epoch->touches[epoch->touch_list.count++] = (pr_touch){pieces->region, pieces->slot, how};
    if (how == PR_ZEROED)
        return 0;                               /* the map says it; the device is not written */
    if (count == 1)
        return add_segment(epoch, pieces, pieces->begin, pieces->length);
    for (uint32_t b = 0, end; b < blocks && !code; b = end) {
        for (end = b + 1; end < blocks && painted[end] == painted[b]; end++)
            ;
        if (painted[b])
            code = add_segment(epoch, &pieces[painted[b] - 1], (uint64_t)b * unit, (uint64_t)(end - b) * unit);
    }
    return code;
}

static int by_move(const void *a, const void *b)
{
    const struct pr_move *x = a, *y = b;
    if (x->source != y->source)
        return x->source < y->source ? -1 : 1;
    if (x->target != y->target)
        return x->target < y->target ? -1 : 1;
    return x->region < y->region ? -1 : x->region > y->region;
}

static int by_entry(const void *a, const void *b)
{
    const struct pr_map_entry *x = a, *y = b;
    if (x->slot != y->slot)
        return x->slot < y->slot ? -1 : 1;
    return x->first < y->first ? -1 : x->first > y->first;
}

/* Sorts entries and merges neighbours; how many are left. */
static uint32_t merge_entries(struct pr_map_entry *entries, size_t count)
{
    uint32_t last = 0;
    if (!count)
        return 0;
    qsort(entries, count, sizeof *entries, by_entry);
    for (size_t i = 1; i < count; i++) {
        struct pr_map_entry *before = &entries[last], *now = &entries[i];
        if (before->slot == now->slot && before->source == now->source && before->first + before->count == now->first)
            before->count += now->count;
        else
            entries[++last] = *now;
    }
    return last + 1;
}

/* The levels as stages. A level whose entries do not fit one note is cut between regions, which are independent. */
static int finish_plan(pr_epoch *epoch)
{
    for (uint32_t i = 0; i < epoch->plan.level_count; i++) {
        pr_level *level = &epoch->plan.levels[i];
        size_t move = 0, entry = 0;
        while (move < level->move_count || entry < level->entry_count) {
            size_t move_end = level->move_count, entry_end = level->entry_count;
            if (entry_end - entry > MOST_ENTRIES) {
                /* this region and what follows it: the next stage */
                uint64_t region = level->entries[entry + MOST_ENTRIES].first;
                for (entry_end = entry + MOST_ENTRIES; level->entries[entry_end - 1].first == region; entry_end--)
                    ;
                move_end = move;
                while (move_end < level->move_count && level->moves[move_end].region < region)
                    move_end++;
            }
            ROOM(epoch, stages, stage_list);
            if (move_end > move)                /* qsort takes no NULL, not even for nothing */
                qsort(level->moves + move, move_end - move, sizeof *level->moves, by_move);
            epoch->stages[epoch->stage_list.count++] = (pr_stage){
                level->moves + move, (uint32_t)(move_end - move),
                level->entries + entry, merge_entries(level->entries + entry, entry_end - entry)};
            move = move_end;
            entry = entry_end;
        }
    }
    return (int)epoch->stage_list.count;
}

/* Touches sorted by region, then slot. */
static int plan_sorted(pr_epoch *epoch, const pr_touch *touches, size_t count)
{
    int code = 0;
    pthread_rwlock_rdlock(&epoch->stores->lock);
    for (size_t i = 0, end; i < count && !code; i = end) {
        for (end = i + 1; end < count && touches[end].region == touches[i].region; end++)
            ;
        code = pr_plan_region(&epoch->plan, epoch->stores, touches[i].region, touches + i, (uint32_t)(end - i));
    }
    pthread_rwlock_unlock(&epoch->stores->lock);
    return code ? code : finish_plan(epoch);
}

int pr_epoch_plan_touches(pr_epoch *epoch, pr_touch *touches, size_t count)
{
    forget_plan(epoch);
    qsort(touches, count, sizeof *touches, by_region);
    return plan_sorted(epoch, touches, count);
}

int pr_epoch_plan(pr_epoch *epoch)
{
    int code = 0, sorted = 1;
    forget_plan(epoch);
    epoch->piece_list.count = 0;
    for (size_t i = 0; i < epoch->entry_list.count && !code; i++)
        for (uint32_t k = 0; k < epoch->entries[i].travel->count && !code; k++)
            code = cut(epoch, &epoch->entries[i], &epoch->entries[i].records[k]);
    if (code)
        return code;
    for (size_t i = 1; i < epoch->piece_list.count && sorted; i++)
        sorted = by_slot(&epoch->pieces[i - 1], &epoch->pieces[i]) < 0;
    if (!sorted)
        qsort(epoch->pieces, epoch->piece_list.count, sizeof *epoch->pieces, by_slot);
    for (size_t i = 0, end; i < epoch->piece_list.count && !code; i = end) {
        const piece *p = &epoch->pieces[i];
        for (end = i + 1; end < epoch->piece_list.count && epoch->pieces[end].slot == p->slot
                          && epoch->pieces[end].region == p->region; end++)
            ;
        code = settle(epoch, p, end - i);
    }
    if (code)
        return code;
    if (epoch->touch_list.count)
        qsort(epoch->touches, epoch->touch_list.count, sizeof *epoch->touches, by_region);
    return plan_sorted(epoch, epoch->touches, epoch->touch_list.count);
}

static int add_touch(pr_epoch *epoch, uint64_t region, uint32_t slot, uint32_t how)
{
    ROOM(epoch, touches, touch_list);
    epoch->touches[epoch->touch_list.count++] = (pr_touch){region, slot, how};
    return 0;
}

int pr_epoch_plan_move(pr_epoch *epoch, uint32_t slot, uint64_t start, uint64_t most, uint64_t *next)
{
    pr_store *store = slot && slot < PR_MAX_STORES ? epoch->stores->slots[slot] : NULL;
    uint16_t source = 0;
    uint64_t at = start, run;
    pr_epoch_clear(epoch);
    if (!store || !store->map)
        return -ENOENT;
    *next = pr_sources_size(store->map);
    most = least(most, MOST_REGIONS);
    for (; epoch->touch_list.count < most && (run = pr_sources_run(store->map, at, UINT64_MAX, &source)); at += run) {
        if (source == slot || source == PR_SOURCE_ZERO)
            continue;
        run = least(run, most - epoch->touch_list.count);
        for (uint64_t i = 0; i < run; i++) {
            int code = add_touch(epoch, at + i, slot, PR_PARTLY);
            if (code)
                return code;
        }
    }
    *next = least(at, *next);
    if (!epoch->touch_list.count)
        *next = pr_sources_size(store->map);
    return plan_sorted(epoch, epoch->touches, epoch->touch_list.count);
}

/* A store that only this site knows: it does not last, so nothing is moved for its sake. */
static bool is_local(const pr_stores *stores, uint32_t slot)
{
    return stores->slots[slot]->id >= PR_FIRST_LOCAL;
}

int pr_epoch_plan_vacate(pr_epoch *epoch, uint32_t slot, uint64_t start, uint64_t most, bool local, uint64_t *next)
{
    pr_stores *stores = epoch->stores;
    uint64_t at = start, end = 0;
    pr_epoch_clear(epoch);
    if (!slot || slot >= PR_MAX_STORES || !stores->slots[slot])
        return -ENOENT;
    for (uint32_t i = 0; i < stores->live_count; i++) {
        uint64_t size = pr_sources_size(stores->slots[stores->live[i]]->map);
        end = size > end ? size : end;
    }
    most = least(most, MOST_REGIONS);
    while (epoch->touch_list.count < most && at < end) {
        uint64_t first = end, run = 0;          /* the first run that others show from here */
        for (uint32_t i = 0; i < stores->live_count; i++) {
            uint64_t where = 0, n = 0;
            if (stores->live[i] != slot && (local || slot == stores->scratch || !is_local(stores, stores->live[i])))
                n = pr_sources_find(stores->slots[stores->live[i]]->map, at, (uint16_t)slot, 1, most, &where);
            if (n && where < first) {
                first = where;
                run = n;
            } else if (n && where == first && n > run) {
                run = n;
            }
        }
        run = least(run, most - epoch->touch_list.count);
        for (uint64_t i = 0; i < run; i++) {
            int code = add_touch(epoch, first + i, slot, PR_VACATE);
            if (code)
                return code;
        }
        at = first + run;
    }
    *next = epoch->touch_list.count ? at : end;
    return plan_sorted(epoch, epoch->touches, epoch->touch_list.count);
}

const pr_stage *pr_epoch_stage(pr_epoch *epoch, uint32_t stage)
{
    return stage < epoch->stage_list.count ? &epoch->stages[stage] : NULL;
}

int pr_epoch_repoint(pr_epoch *epoch, uint32_t stage)
{
    if (stage >= epoch->stage_list.count || stage != epoch->repointed)
        return -EINVAL;
    int code = pr_stores_repoint(epoch->stores, epoch->stages[stage].entries, epoch->stages[stage].entry_count);
    if (!code)
        epoch->repointed++;
    return code;
}

/* ---- I/O ---- */

/* A list of one device; errors name it. */
static int perform(pr_epoch *epoch, uint32_t slot, uint32_t count)
{
    int code = count ? pr_device_perform(epoch->stores->slots[slot]->device, epoch->ios, count) : 0;
    if (code < 0)
        epoch->failed = slot;
    return code;
}

/* As many regions of moves[0..] as one I/O takes: adjacent, of the same devices, uncut. Returns how many. */
static uint32_t make_job(const pr_stores *stores, const struct pr_move *moves, uint32_t count, job *j)
{
    uint64_t size = stores->region_size, reach = pr_stores_reach(stores, moves->target, moves->region);
    uint64_t source_reach = moves->source ? pr_stores_reach(stores, moves->source, moves->region) : 0;
    uint32_t taken = 1;
    *j = (job){moves->region * size, moves->target, moves->source,
               (uint32_t)reach, (uint32_t)least(reach, source_reach), NULL};
    if (reach < size || (moves->source && source_reach < size))
        return 1;
    while (taken < count && (taken + 1) * size <= MOST_BYTES && moves[taken].source == moves->source
           && moves[taken].target == moves->target && moves[taken].region == moves->region + taken
           && pr_stores_reach(stores, moves->target, moves[taken].region) == size
           && (!moves->source || pr_stores_reach(stores, moves->source, moves[taken].region) == size))
        taken++;
    j->length = (uint32_t)(taken * size);
    j->from_source = moves->source ? j->length : 0;
    return taken;
}

static int by_target(const void *a, const void *b)
{
    const job *x = a, *y = b;
    if (x->target != y->target)
        return x->target < y->target ? -1 : 1;
    return x->offset < y->offset ? -1 : x->offset > y->offset;
}

/* Reads the jobs, sorted by source. */
static int read_jobs(pr_epoch *epoch, job *jobs, uint32_t count)
{
    for (uint32_t i = 0, end; i < count; i = end) {
        uint32_t n = 0;
        for (end = i; end < count && jobs[end].source == jobs[i].source; end++) {
            job *j = &jobs[end];
            if (j->from_source)
                epoch->ios[n++] = (pr_io){
                    .op = PR_READ, .offset = j->offset, .length = j->from_source, .buffer = j->buffer};
            if (j->source && j->from_source < j->length)
                memset(j->buffer + j->from_source, 0, j->length - j->from_source);
        }
        int code = perform(epoch, jobs[i].source, n);
        if (code < 0)
            return code;
    }
    return 0;
}

static int64_t write_jobs(pr_epoch *epoch, job *jobs, uint32_t count)
{
    int64_t written = 0;
    qsort(jobs, count, sizeof *jobs, by_target);
    for (uint32_t i = 0, end; i < count; i = end) {
        uint32_t n = 0;
        for (end = i; end < count && jobs[end].target == jobs[i].target; end++) {
            job *j = &jobs[end];
            if (!j->length)
                continue;
            epoch->ios[n++] = (pr_io){
                .op = PR_WRITE_OUT, .offset = j->offset, .length = j->length, .buffer = j->buffer};
            written += j->length;
        }
        int code = perform(epoch, jobs[i].target, n);
        if (code < 0)
            return code;
    }
    return written;
}

int64_t pr_epoch_copy(pr_epoch *epoch, uint32_t stage)
{
    const pr_stage *s = pr_epoch_stage(epoch, stage);
    int64_t total = 0, written = 0;
    epoch->failed = 0;
    if (!s || stage != epoch->repointed)
        return -EINVAL;
    if (!s->move_count)
        return 0;
    if (!epoch->buffer && !(epoch->buffer = pr_buffer_take(COPY_BUFFER)))
        return -ENOMEM;
    job *jobs = malloc(MOST_IOS * sizeof *jobs);
    if (!jobs)
        return -ENOMEM;
    for (uint32_t i = 0; i < s->move_count;) {
        uint32_t count = 0;
        uint64_t used = 0;
        for (; i < s->move_count && count < MOST_IOS && used + MOST_BYTES <= COPY_BUFFER; count++) {
            i += make_job(epoch->stores, s->moves + i, s->move_count - i, &jobs[count]);
            jobs[count].buffer = jobs[count].source ? epoch->buffer + used : epoch->zeros;
            if (jobs[count].source)
                used += (jobs[count].length + (uint64_t)PR_BLOCK - 1) / PR_BLOCK * PR_BLOCK;
        }
        int code = read_jobs(epoch, jobs, count);
        written = code < 0 ? code : write_jobs(epoch, jobs, count);
        if (written < 0)
            break;
        total += written;
    }
    free(jobs);
    return written < 0 ? written : total;
}

int64_t pr_epoch_write(pr_epoch *epoch)
{
    const segment *segments = epoch->segments;
    size_t count = epoch->segment_list.count;
    int64_t total = 0;
    epoch->failed = 0;
    if (epoch->repointed != epoch->stage_list.count)
        return -EINVAL;
    for (size_t i = 0; i < count;) {
        uint32_t slot = segments[i].slot, ios = 0, vectors = 0;
        while (i < count && segments[i].slot == slot && ios < MOST_IOS && vectors + MOST_PARTS <= MOST_VECTORS) {
            pr_io *io = &epoch->ios[ios++];
            *io = (pr_io){.op = PR_WRITE_OUT, .offset = segments[i].offset, .vector = &epoch->vectors[vectors]};
            for (; i < count && segments[i].slot == slot && segments[i].offset == io->offset + io->length
                   && io->length + segments[i].length <= MOST_BYTES; i++) {
                const uint8_t *data = segments[i].data ? segments[i].data : epoch->zeros;
                struct iovec *last = io->parts ? &io->vector[io->parts - 1] : NULL;
                if (last && segments[i].data && (uint8_t *)last->iov_base + last->iov_len == data) {
                    last->iov_len += segments[i].length;        /* one record that was cut at a region's edge */
                } else {
                    if (io->parts == MOST_PARTS)
                        break;
                    io->vector[io->parts++] = (struct iovec){(void *)data, segments[i].length};
                }
                io->length += segments[i].length;
            }
            vectors += io->parts;
            total += (int64_t)io->length;
        }
        int code = perform(epoch, slot, ios);
        if (code < 0)
            return code;
    }
    return total;
}
