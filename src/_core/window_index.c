/* Which block of a store is newest in the window's memory. Decides how that is found, and what a reader gets from it; must not
 * know what stands in the stores themselves.
 */
#include "window_state.h"

#include <errno.h>
#include <stdlib.h>

#define GATHER 64                       /* pieces copied by an overlay between two looks at the index */
#define LOOKUPS 512                     /* blocks looked up in one hold of the mutex */

/* ---- open addressing, linear probing, no tombstones ---- */

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
int w_cells_reserve(pr_window *w, uint64_t more) {
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

/* The newest one wins: records are entered in the order of their places. */
void w_index_record(pr_window *w, slot *s, uint32_t record) {
    const struct pr_record *r = &records_of(s)[record];
    uint64_t block = r->offset / w->alignment;
    for (uint64_t n = blocks_of(w, r->length); n; n--, block++) {
        struct cell *cell = cell_find(w, r->store, block);
        if (!cell->slot)
            w->cells_used++;
        *cell = (struct cell){ .block = block, .slot = s, .store = r->store, .record = (uint16_t)record };
    }
}

void w_unindex_record(pr_window *w, slot *s, uint32_t record) {
    const struct pr_record *r = &records_of(s)[record];
    uint64_t block = r->offset / w->alignment;
    for (uint64_t n = blocks_of(w, r->length); n; n--, block++) {
        struct cell *cell = cell_find(w, r->store, block);
        if (cell->slot == s && cell->record == record)
            cell_delete(w, cell);
    }
}

/* ---- what a reader finds ---- */

void pr_window_says(pr_window *w, uint32_t store, uint64_t offset, uint64_t length, uint64_t region_size, uint8_t *said) {
    const uint64_t limit = offset + length;
    pthread_mutex_lock(&w->mutex);
    const uint64_t row = w->last - w->unapplied;
    for (uint64_t i = 0; i != w->guest_count + row; i++) {         /* guests stand before what is in the row */
        const slot *s = i < w->guest_count ? w->guests[i] : at(w, w->unapplied + i - w->guest_count);
        if (s->applied || is_parked(w, s->position))
            continue;
        for (uint32_t k = 0; is_indexed(s) && k < s->count; k++) {
            const struct pr_record *r = &records_of(s)[k];
            const uint64_t begin = r->offset > offset ? r->offset : offset;
            const uint64_t end = r->offset + r->length < limit ? r->offset + r->length : limit;
            if (r->store != store || begin >= end)
                continue;
            for (uint64_t n = (begin - offset) / region_size; n <= (end - 1 - offset) / region_size; n++) {
                const uint64_t first = offset + n * region_size;
                if (r->kind == PR_WRITE)
                    said[n] = PR_SAYS_DATA;
                else if (begin <= first && first + region_size <= end)
                    said[n] = PR_SAYS_ZEROS;
            }
        }
    }
    pthread_mutex_unlock(&w->mutex);
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
            w_free_front(w);
            pthread_mutex_unlock(&w->mutex);
        }
    }
    return missing;
}
