/* The table of stores of one group at one site: devices by slot, source maps, sizes.
 *
 * A *slot* is the local number of a device, from 1; a live store owns one slot and has a source map; a deleted store's slot stays
 * (without a map) as long as another store shows its device. One thread, the applier's, changes the table and the maps;
 * any thread may resolve (readers). `lock` is held for the in-memory step only, never over I/O.
 * Change counters let a reader find out that what it resolved was re-pointed while it read the device (model.md section 6).
 */
#ifndef PYREPL_STORES_H
#define PYREPL_STORES_H

#include "device.h"
#include "layout.h"
#include "sources.h"
#include <pthread.h>

#define PR_COUNTERS 4096u

typedef struct pr_store {
    uint32_t id;                        /* travels; 0: no live store here (a zombie device, or the scratch) */
    uint32_t slot;
    uint64_t size;                      /* bytes */
    pr_device *device;
    pr_sources *map;                    /* NULL: not live */
    uint64_t mover_cursor;              /* where the mover goes on; a hint */
    _Atomic uint64_t version;           /* counts operations on the whole map */
} pr_store;

typedef struct pr_stores {
    pthread_rwlock_t lock;
    uint32_t region_size, alignment;
    uint32_t limit;                     /* slots[0..limit) */
    pr_store *slots[PR_MAX_STORES];     /* by slot; NULL: free. slots[0] is never used (PR_SOURCE_ZERO) */
    uint32_t live[PR_MAX_STORES];       /* the slots that have a map, in ascending order of their store's id */
    uint32_t live_count;
    uint32_t scratch;                   /* slot of the hidden scratch device, 0: none */
    _Atomic uint32_t counters[PR_COUNTERS];  /* by hash of (slot, region): re-pointed that often */
    _Atomic uint32_t phase, readers[2]; /* see pr_stores_enter */
} pr_stores;

typedef struct pr_extent { uint32_t slot; uint64_t offset, length; } pr_extent;  /* slot 0: zeros */

pr_stores *pr_stores_new(uint32_t region_size, uint32_t alignment);
void pr_stores_free(pr_stores *stores);
/* A device enters the table. id 0: without a map. `source`: what all regions show (its own slot, or PR_SOURCE_ZERO). */
int pr_stores_add(pr_stores *stores, uint32_t slot, uint32_t id, pr_device *device, uint64_t size, uint16_t source);
int pr_stores_drop_map(pr_stores *stores, uint32_t slot);      /* the store is deleted; its device stays in the table */
int pr_stores_remove(pr_stores *stores, uint32_t slot);        /* -EBUSY: still shown */
pr_store *pr_stores_find(pr_stores *stores, uint32_t id);      /* NULL: no such live store */
/* How many regions of this slot's device other stores show (0: free). Stops counting at `most`. */
uint64_t pr_stores_shown(pr_stores *stores, uint32_t slot, uint64_t most);
/* In how many regions of a range two stores' maps differ (source slot 0: where the target does not show zeros), which
 * is what a copy over it would change. */
uint64_t pr_stores_memory(pr_stores *stores);                  /* bytes of all maps; from any thread */
int pr_stores_differing(pr_stores *stores, uint32_t target_slot, uint32_t source_slot, uint64_t first, uint64_t n,
                        uint64_t *count);
/* map(target)[first, +n) = map(source)[first, +n) (source 0: zeros). *changed: regions whose content may have become another. */
int pr_stores_copy(pr_stores *stores, uint32_t target_slot, uint32_t source_slot, uint64_t first, uint64_t n, uint64_t *changed);
int pr_stores_resize(pr_stores *stores, uint32_t slot, uint64_t size);         /* what is added shows zeros */
int pr_stores_repoint(pr_stores *stores, const struct pr_map_entry *entries, size_t count);   /* -EINVAL: a bad entry, nothing done */
/* Where a live store's bytes are: at most `most` extents, merged; *version takes the sum of counters to compare afterwards.
 * Returns the number of extents, or -ENOENT, -ERANGE. */
int pr_stores_resolve(pr_stores *stores, uint32_t id, uint64_t offset, uint64_t length, pr_extent *extents, uint32_t most,
                      uint64_t *covered, uint64_t *version);
uint64_t pr_stores_version(pr_stores *stores, uint32_t id, uint64_t offset, uint64_t length);
/* Makes a slot without a map the hidden scratch device of plan.c. 0: none. -ENOENT, -EBUSY: it has a map. */
int pr_stores_set_scratch(pr_stores *stores, uint32_t slot);
/* A map from a checkpoint in place of a store's own; taken over if 0. -EINVAL: its size, or a source that is no slot. */
int pr_stores_set_map(pr_stores *stores, uint32_t slot, pr_sources *map);
/* Flushes every device that was written since its last flush. The slot that failed in *failed. */
int pr_stores_flush(pr_stores *stores, uint32_t *failed);

/* A device that has left the table is freed when nobody can still hold its pointer: who reads without the interpreter's lock
 * enters first. Readers count in the phase that they entered in; the owner of the table changes the phase when nobody is left
 * in the other, and then frees what left the table before the last change. */
static inline uint32_t pr_stores_enter(pr_stores *stores)
{
    for (;;) {
        uint32_t phase = atomic_load(&stores->phase);
        atomic_fetch_add(&stores->readers[phase], 1);
        if (atomic_load(&stores->phase) == phase)
            return phase;
        atomic_fetch_sub(&stores->readers[phase], 1);
    }
}
static inline void pr_stores_leave(pr_stores *stores, uint32_t phase) { atomic_fetch_sub(&stores->readers[phase], 1); }
/* 1: the phase was changed, and what left the table in the phase that begins now may be freed first. 0: not yet. */
static inline int pr_stores_turn(pr_stores *stores)
{
    uint32_t phase = atomic_load(&stores->phase);
    if (atomic_load(&stores->readers[1 - phase]))
        return 0;
    atomic_store(&stores->phase, 1 - phase);
    return 1;
}

static inline uint64_t pr_stores_regions(const pr_stores *stores, uint64_t size)
{
    return size / stores->region_size + (size % stores->region_size != 0);
}
/* Bytes of a region that lie on this device: its last region may be cut. */
static inline uint64_t pr_stores_reach(const pr_stores *stores, uint32_t slot, uint64_t region)
{
    uint64_t begin = region * stores->region_size, end = stores->slots[slot]->device->size;
    return end <= begin ? 0 : end - begin < stores->region_size ? end - begin : stores->region_size;
}

#endif
