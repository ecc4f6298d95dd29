/* The table of stores: decides who may change what under which lock, and where a store's bytes are. Knows no
 * operation: that a copy of maps is a snapshot or a restore is Python's business.
 *
 *   1  One thread changes the table (or several, if they agree among themselves); it reads without the lock, and holds
 *      it for writing while it changes. Readers hold it for reading. Writers are preferred: busy readers must not
 *      starve the applier.
 *   2  Whatever a store shows where may only change together with its counters, under the lock.
 *   3  A device may be shorter than the regions that are shown from it; behind its end it reads as zeros.
 */
#include "stores.h"
#include <errno.h>
#include <stdlib.h>
#include <string.h>

pr_stores *pr_stores_new(uint32_t region_size, uint32_t alignment)
{
    pr_stores *stores = calloc(1, sizeof *stores);
    pthread_rwlockattr_t attributes;
    if (!stores)
        return NULL;
    pthread_rwlockattr_init(&attributes);
    pthread_rwlockattr_setkind_np(&attributes, PTHREAD_RWLOCK_PREFER_WRITER_NONRECURSIVE_NP);
    int code = pthread_rwlock_init(&stores->lock, &attributes);
    pthread_rwlockattr_destroy(&attributes);
    if (code) {
        free(stores);
        return NULL;
    }
    stores->region_size = region_size;
    stores->alignment = alignment;
    stores->limit = 1;
    return stores;
}

void pr_stores_free(pr_stores *stores)
{
    if (!stores)
        return;
    for (uint32_t slot = 1; slot < stores->limit; slot++)
        if (stores->slots[slot]) {
            pr_sources_free(stores->slots[slot]->map);
            free(stores->slots[slot]);
        }
    pthread_rwlock_destroy(&stores->lock);
    free(stores);
}

/* ---- looks without the lock: the caller holds it, or is the one who changes ---- */

static pr_store *at_slot(const pr_stores *stores, uint64_t slot)
{
    return slot && slot < PR_MAX_STORES ? stores->slots[slot] : NULL;
}

static pr_store *live_at(const pr_stores *stores, uint64_t slot)
{
    pr_store *store = at_slot(stores, slot);
    return store && store->map ? store : NULL;
}

/* The place of `id` in live[], or where it would stand. */
static uint32_t place_of(const pr_stores *stores, uint32_t id)
{
    uint32_t low = 0, high = stores->live_count;
    while (low < high) {
        uint32_t middle = (low + high) / 2;
        if (stores->slots[stores->live[middle]]->id < id)
            low = middle + 1;
        else
            high = middle;
    }
    return low;
}

pr_store *pr_stores_find(pr_stores *stores, uint32_t id)
{
    uint32_t place = place_of(stores, id);
    if (!id || place == stores->live_count || stores->slots[stores->live[place]]->id != id)
        return NULL;
    return stores->slots[stores->live[place]];
}

uint64_t pr_stores_shown(pr_stores *stores, uint32_t slot, uint64_t most)
{
    uint64_t count = 0;
    for (uint32_t i = 0; i < stores->live_count && count < most; i++)
        if (stores->live[i] != slot)
            count += pr_sources_count(stores->slots[stores->live[i]]->map, (uint16_t)slot, most - count);
    return count < most ? count : most;
}

/* ---- the table ---- */

int pr_stores_add(pr_stores *stores, uint32_t slot, uint32_t id, pr_device *device, uint64_t size, uint16_t source)
{
    if (!slot || slot >= PR_MAX_STORES || (id && source && source != slot) || (id && size % stores->alignment))
        return -EINVAL;
    if (stores->slots[slot] || pr_stores_find(stores, id))
        return -EEXIST;
    if (id && stores->live_count == PR_MAX_STORES)
        return -ENOSPC;
    pr_store *store = calloc(1, sizeof *store);
    if (!store)
        return -ENOMEM;
    if (id && !(store->map = pr_sources_new(pr_stores_regions(stores, size), source))) {
        free(store);
        return -ENOMEM;
    }
    store->id = id;
    store->slot = slot;
    store->size = size;
    store->device = device;
    pthread_rwlock_wrlock(&stores->lock);
    stores->slots[slot] = store;
    if (slot >= stores->limit)
        stores->limit = slot + 1;
    if (id) {
        uint32_t place = place_of(stores, id);
        memmove(stores->live + place + 1, stores->live + place, (stores->live_count - place) * sizeof *stores->live);
        stores->live[place] = slot;
        stores->live_count++;
    }
    pthread_rwlock_unlock(&stores->lock);
    return 0;
}

/* Under the lock. */
static pr_sources *forget_map(pr_stores *stores, pr_store *store)
{
    pr_sources *map = store->map;
    uint32_t place = place_of(stores, store->id);
    stores->live_count--;
    memmove(stores->live + place, stores->live + place + 1, (stores->live_count - place) * sizeof *stores->live);
    store->map = NULL;
    store->id = 0;
    return map;
}

int pr_stores_drop_map(pr_stores *stores, uint32_t slot)
{
    pr_store *store = live_at(stores, slot);
    if (!store)
        return -ENOENT;
    pthread_rwlock_wrlock(&stores->lock);
    pr_sources *map = forget_map(stores, store);
    pthread_rwlock_unlock(&stores->lock);
    pr_sources_free(map);
    return 0;
}

int pr_stores_remove(pr_stores *stores, uint32_t slot)
{
    pr_store *store = at_slot(stores, slot);
    pr_sources *map = NULL;
    if (!store)
        return -ENOENT;
    if (pr_stores_shown(stores, slot, 1))
        return -EBUSY;
    pthread_rwlock_wrlock(&stores->lock);
    if (store->map)
        map = forget_map(stores, store);
    stores->slots[slot] = NULL;
    while (stores->limit > 1 && !stores->slots[stores->limit - 1])
        stores->limit--;
    if (stores->scratch == slot)
        stores->scratch = 0;
    pthread_rwlock_unlock(&stores->lock);
    pr_sources_free(map);
    free(store);
    return 0;
}

int pr_stores_set_scratch(pr_stores *stores, uint32_t slot)
{
    if (slot && !at_slot(stores, slot))
        return -ENOENT;
    if (slot && live_at(stores, slot))
        return -EBUSY;
    pthread_rwlock_wrlock(&stores->lock);
    stores->scratch = slot;
    pthread_rwlock_unlock(&stores->lock);
    return 0;
}

/* ---- the maps ---- */

/* These regions were re-pointed. Under the lock. */
static void bump(pr_stores *stores, pr_store *store, uint64_t first, uint64_t n)
{
    if (n >= PR_COUNTERS) {
        atomic_fetch_add_explicit(&store->version, 1, memory_order_release);
        return;
    }
    for (uint64_t i = 0; i < n; i++)
        atomic_fetch_add_explicit(&stores->counters[(store->slot * 2654435761u + first + i) % PR_COUNTERS], 1,
                                  memory_order_release);
}

/* Both stores are there (source slot 0: zeros) and have these regions. */
static int check_range(const pr_store *target, const pr_store *source, uint32_t source_slot, uint64_t first, uint64_t n)
{
    if (!target || (source_slot && !source))
        return -ENOENT;
    uint64_t size = pr_sources_size(target->map);
    if (source && pr_sources_size(source->map) < size)
        size = pr_sources_size(source->map);
    return n > size || first > size - n ? -ERANGE : 0;
}

static uint64_t count_not_zero(const pr_sources *map, uint64_t first, uint64_t n)
{
    uint64_t at = first, found, where, count = 0;
    while (at < first + n && (found = pr_sources_find(map, at, 0, 0, first + n - at, &where)) && where < first + n) {
        count += found < first + n - where ? found : first + n - where;
        at = where + found;
    }
    return count;
}

uint64_t pr_stores_memory(pr_stores *stores)
{
    uint64_t total = 0;
    pthread_rwlock_rdlock(&stores->lock);   /* whoever asks is not the applier, which drops maps meanwhile */
    for (uint32_t slot = 1; slot < PR_MAX_STORES; slot++)
        if (stores->slots[slot] && stores->slots[slot]->map)
            total += pr_sources_memory(stores->slots[slot]->map);
    pthread_rwlock_unlock(&stores->lock);
    return total;
}

int pr_stores_differing(pr_stores *stores, uint32_t target_slot, uint32_t source_slot, uint64_t first, uint64_t n,
                        uint64_t *count)
{
    *count = 0;
    pthread_rwlock_rdlock(&stores->lock);
    const pr_store *target = live_at(stores, target_slot), *source = live_at(stores, source_slot);
    int code = check_range(target, source, source_slot, first, n);
    if (!code)
        *count = source ? pr_sources_differing(target->map, source->map, first, n)
                        : count_not_zero(target->map, first, n);
    pthread_rwlock_unlock(&stores->lock);
    return code;
}

int pr_stores_copy(pr_stores *stores, uint32_t target_slot, uint32_t source_slot, uint64_t first, uint64_t n,
                   uint64_t *changed)
{
    pr_store *target = live_at(stores, target_slot), *source = live_at(stores, source_slot);
    *changed = 0;
    int code = check_range(target, source, source_slot, first, n);
    if (code)
        return code;
    pthread_rwlock_wrlock(&stores->lock);
    if (source) {
        code = pr_sources_copy(target->map, source->map, first, n, changed);
    } else {
        *changed = count_not_zero(target->map, first, n);
        code = pr_sources_set(target->map, first, n, PR_SOURCE_ZERO);
    }
    bump(stores, target, first, n);
    pthread_rwlock_unlock(&stores->lock);
    return code;
}

int pr_stores_resize(pr_stores *stores, uint32_t slot, uint64_t size)
{
    pr_store *store = live_at(stores, slot);
    if (!store)
        return -ENOENT;
    if (size % stores->alignment)
        return -EINVAL;
    pthread_rwlock_wrlock(&stores->lock);
    int code = pr_sources_resize(store->map, pr_stores_regions(stores, size), PR_SOURCE_ZERO);
    if (!code)
        store->size = size;
    atomic_fetch_add_explicit(&store->version, 1, memory_order_release);
    pthread_rwlock_unlock(&stores->lock);
    return code;
}

int pr_stores_repoint(pr_stores *stores, const struct pr_map_entry *entries, size_t count)
{
    int code = 0;
    for (size_t i = 0; i < count; i++) {
        pr_store *store = live_at(stores, entries[i].slot);
        if (!store || (entries[i].source && !at_slot(stores, entries[i].source)) || !entries[i].count)
            return -EINVAL;
        uint64_t size = pr_sources_size(store->map);
        if (entries[i].count > size || entries[i].first > size - entries[i].count)
            return -EINVAL;
    }
    pthread_rwlock_wrlock(&stores->lock);
    for (size_t i = 0; i < count; i++) {
        pr_store *store = stores->slots[entries[i].slot];
        int one = pr_sources_set(store->map, entries[i].first, entries[i].count, (uint16_t)entries[i].source);
        bump(stores, store, entries[i].first, entries[i].count);
        code = code ? code : one;               /* -ENOMEM: the site stops, and the note says it all after a restart */
    }
    pthread_rwlock_unlock(&stores->lock);
    return code;
}

int pr_stores_set_map(pr_stores *stores, uint32_t slot, pr_sources *map)
{
    pr_store *store = live_at(stores, slot);
    uint16_t source = 0;
    if (!store)
        return -ENOENT;
    if (pr_sources_size(map) != pr_sources_size(store->map))
        return -EINVAL;
    for (uint64_t at = 0, n; (n = pr_sources_run(map, at, UINT64_MAX, &source)); at += n)
        if (source && !at_slot(stores, source))
            return -EINVAL;
    pthread_rwlock_wrlock(&stores->lock);
    pr_sources *before = store->map;
    store->map = map;
    atomic_fetch_add_explicit(&store->version, 1, memory_order_release);
    pthread_rwlock_unlock(&stores->lock);
    pr_sources_free(before);
    return 0;
}

/* ---- readers ---- */

/* Under the lock, for reading at least. */
static uint64_t version_of(pr_stores *stores, pr_store *store, uint64_t offset, uint64_t length)
{
    uint64_t sum = atomic_load_explicit(&store->version, memory_order_acquire);
    if (!length)
        return sum;
    uint64_t first = offset / stores->region_size, last = (offset + length - 1) / stores->region_size;
    if (last - first >= PR_COUNTERS)
        last = first + PR_COUNTERS - 1;          /* that is every counter */
    for (uint64_t region = first; region <= last; region++)
        sum += atomic_load_explicit(&stores->counters[(store->slot * 2654435761u + region) % PR_COUNTERS],
                                    memory_order_acquire);
    return sum;
}

int pr_stores_resolve(pr_stores *stores, uint32_t id, uint64_t offset, uint64_t length, pr_extent *extents,
                      uint32_t most, uint64_t *covered, uint64_t *version)
{
    uint32_t count = 0;
    uint64_t at = offset;
    *covered = 0;
    pthread_rwlock_rdlock(&stores->lock);
    pr_store *store = pr_stores_find(stores, id);
    if (!store || length > store->size || offset > store->size - length) {
        pthread_rwlock_unlock(&stores->lock);
        return store ? -ERANGE : -ENOENT;
    }
    *version = version_of(stores, store, offset, length);
    while (at < offset + length) {
        uint64_t region = at / stores->region_size, end = offset + length;
        uint16_t source = 0;
        uint64_t run = pr_sources_run(store->map, region, pr_stores_regions(stores, end) - region, &source);
        if ((region + run) * stores->region_size < end)
            end = (region + run) * stores->region_size;
        uint32_t slot = source;
        if (slot) {                              /* behind the device's end: zeros */
            uint64_t size = stores->slots[slot]->device->size;
            if (at >= size)
                slot = 0;
            else if (end > size)
                end = size;
        }
        if (count && extents[count - 1].slot == slot) {
            extents[count - 1].length += end - at;
        } else {
            if (count == most)
                break;
            extents[count++] = (pr_extent){slot, at, end - at};
        }
        at = end;
    }
    *covered = at - offset;
    pthread_rwlock_unlock(&stores->lock);
    return (int)count;
}

uint64_t pr_stores_version(pr_stores *stores, uint32_t id, uint64_t offset, uint64_t length)
{
    pthread_rwlock_rdlock(&stores->lock);
    pr_store *store = pr_stores_find(stores, id);
    uint64_t version = store ? version_of(stores, store, offset, length) : UINT64_MAX;
    pthread_rwlock_unlock(&stores->lock);
    return version;
}

int pr_stores_flush(pr_stores *stores, uint32_t *failed)
{
    for (uint32_t slot = 1; slot < stores->limit; slot++) {
        int code = stores->slots[slot] ? pr_device_flush(stores->slots[slot]->device) : 0;
        if (code < 0) {
            *failed = slot;
            return code;
        }
    }
    return 0;
}
