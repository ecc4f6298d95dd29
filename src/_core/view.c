/* Reading a store: window, then map, then device, then the change counter (model.md section 6, "Reads").
 *
 * Decides: the order of those looks, and when a read is begun again. Must not know who writes, applies or moves.
 *
 *   read_overlay   the window is looked into before the device is read: an event that is applied in between was in
 *                  the window.
 *   read_recheck,  what the map said counts only if the counters of these regions are the same after the device was
 *   read_version   read; the source alone is not enough, it may have gone away and come back.
 *
 * An error of a device counts only then, too: the region may have been moved away from it.
 *
 * What reads as zeros is told in the same order: window first, for what is applied after that look is in the map.
 */
#include "view.h"
#include "batch.h"
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#define BLOCKS (PR_MAX_PAYLOAD / 512)   /* of one call, at the smallest alignment */
#define IOS 256u                        /* I/Os that are issued together */
#define EXTENTS 64u                     /* asked of the map at a time */
#define LOOKS 8                         /* at a map that changes, before what it shows is called data */

struct reading {
    pr_window *window;
    pr_stores *stores;
    uint32_t id, ios_count;
    int error;
    pr_device *bad;
    pr_io ios[IOS], some[IOS];
    uint32_t slots[IOS];
    pr_device *devices[IOS];
    uint8_t have[BLOCKS];
};

static void note_error(struct reading *reading, int code, pr_device *device)
{
    if (!reading->error) {
        reading->error = code;
        reading->bad = device;
    }
}

/* Issues what was gathered, device by device. */
static void issue(struct reading *reading)
{
    const uint32_t count = reading->ios_count;
    reading->ios_count = 0;
    pthread_rwlock_rdlock(&reading->stores->lock);
    for (uint32_t i = 0; i < count; i++) {
        pr_store *store = reading->stores->slots[reading->slots[i]];
        reading->devices[i] = store ? store->device : NULL;     /* NULL: it left the table; the counters have moved */
    }
    pthread_rwlock_unlock(&reading->stores->lock);
    for (uint32_t i = 0; i < count; i++) {
        pr_device *device = reading->devices[i];
        uint32_t n = 0;
        if (reading->slots[i] == PR_SOURCE_ZERO)        /* issued with one before it */
            continue;
        for (uint32_t k = i; k < count; k++)
            if (reading->slots[k] != PR_SOURCE_ZERO && reading->devices[k] == device) {
                reading->some[n++] = reading->ios[k];
                reading->slots[k] = PR_SOURCE_ZERO;
            }
        int code = device ? pr_device_perform(device, reading->some, n) : -EIO;
        if (code)
            note_error(reading, code, device);
    }
}

/* Gathers the reads of the blocks in one extent that the window did not hold. `block`: of the first, in have. */
static void gather(struct reading *reading, const pr_extent *extent, uint32_t block, uint8_t *target)
{
    const uint32_t unit = reading->stores->alignment, count = (uint32_t)(extent->length / unit);
    const uint8_t *have = reading->have + block;
    for (uint32_t at = 0, end; at < count; at = end) {
        end = at + 1;
        if (have[at])
            continue;
        while (end < count && !have[end])
            end++;
        uint64_t length = (uint64_t)(end - at) * unit;
        uint8_t *into = target + (uint64_t)at * unit;
        if (extent->slot == PR_SOURCE_ZERO) {
            memset(into, 0, length);
            continue;
        }
        if (reading->ios_count == IOS)
            issue(reading);
        reading->slots[reading->ios_count] = extent->slot;
        reading->ios[reading->ios_count++] =
            (pr_io){ .op = PR_READ, .offset = extent->offset + (uint64_t)at * unit, .length = length, .buffer = into };
    }
}

/* One run up to its reads. `block`: the first of its entries in have. */
static int look(struct reading *reading, const pr_run *run, uint32_t block, uint8_t *target, uint64_t *version)
{
    const uint32_t unit = reading->stores->alignment;
    int code = pr_window_settle(reading->window, reading->id, false);
    if (code)
        return code;
    memset(reading->have + block, 0, run->length / unit);
    pr_window_overlay(reading->window, reading->id, run->offset, run->length, target, reading->have + block);
    *version = pr_stores_version(reading->stores, reading->id, run->offset, run->length);
    for (uint64_t done = 0, covered; done < run->length; done += covered) {
        pr_extent extents[EXTENTS];
        uint64_t ignored, at = done;
        int count = pr_stores_resolve(reading->stores, reading->id, run->offset + done, run->length - done, extents,
                                      EXTENTS,
                                      &covered, &ignored);
        if (count < 0)
            return count;
        for (int i = 0; i < count; i++) {
            gather(reading, &extents[i], block + (uint32_t)(at / unit), target + at);
            at += extents[i].length;
        }
    }
    return 0;
}

int pr_view_read_runs(pr_window *window, pr_stores *stores, uint32_t id, const pr_run *runs, uint32_t count,
                      uint8_t *target,
                      pr_device **bad)
{
    const uint32_t unit = stores->alignment;
    uint64_t versions[PR_VIEW_RUNS], total = 0;
    uint8_t open[PR_VIEW_RUNS];         /* runs that have to be read (again) */
    struct reading reading;
    *bad = NULL;
    if (count > PR_VIEW_RUNS)
        return -EINVAL;
    for (uint32_t i = 0; i < count; i++) {
        if (runs[i].offset % unit || runs[i].length % unit || runs[i].length > PR_MAX_PAYLOAD - total)
            return -EINVAL;
        total += runs[i].length;
    }
    reading.window = window;
    reading.stores = stores;
    reading.id = id;
    memset(open, 1, sizeof open);
    for (int again = 1; again;) {
        uint64_t at = 0;
        reading.ios_count = 0;
        reading.error = 0;
        reading.bad = NULL;
        for (uint32_t i = 0; i < count; at += runs[i++].length) {
            int code = open[i] ? look(&reading, &runs[i], (uint32_t)(at / unit), target + at, &versions[i]) : 0;
            if (code)
                return code;
        }
        issue(&reading);
        again = 0;
        for (uint32_t i = 0; i < count; i++) {
            open[i] = open[i] && pr_stores_version(stores, id, runs[i].offset, runs[i].length) != versions[i];
            again |= open[i];
        }
        if (reading.error && !again) {
            *bad = reading.bad;
            return reading.error;
        }
        if (reading.error)              /* which of them failed is not kept: all are read again */
            memset(open, 1, sizeof open);
    }
    return 0;
}

int pr_view_read(pr_window *window, pr_stores *stores, uint32_t id, uint64_t offset, uint64_t length, uint8_t *target)
{
    if (length > UINT64_MAX - offset)
        return -ERANGE;
    for (uint64_t done = 0; done < length;) {
        pr_device *bad;
        pr_run run = { offset + done, length - done < PR_MAX_PAYLOAD ? length - done : PR_MAX_PAYLOAD };
        int code = pr_view_read_runs(window, stores, id, &run, 1, target + done, &bad);
        if (code)
            return code;
        done += run.length;
    }
    return 0;
}

/* ---- writes that are not aligned ---- */

void pr_view_edges(const pr_stores *stores, uint64_t offset, uint64_t length, pr_edges *edges)
{
    const uint64_t unit = stores->alignment;
    edges->first = offset / unit * unit;
    edges->end = pr_align(offset + length, unit);
    edges->count = 0;
}

void pr_view_release(pr_window *window, const pr_stores *stores, uint32_t id, pr_edges *edges)
{
    while (edges->count)
        pr_window_unhold(window, id, edges->held[--edges->count], stores->alignment);
}

int pr_view_merge(pr_window *window, pr_stores *stores, uint32_t id, uint64_t offset, const uint8_t *data, uint64_t length,
                  pr_edges *edges, uint8_t *merged, int64_t timeout, pr_device **bad)
{
    const uint64_t unit = stores->alignment, last = edges->end - unit;
    const bool head = offset != edges->first, tail = offset + length != edges->end;
    const uint64_t wanted[2] = { head ? edges->first : last, last };
    const uint32_t count = (uint32_t)head + (tail && !(head && last == edges->first));
    int code = 0;
    *bad = NULL;
    for (uint32_t i = 0; i < count && !code; i++) {     /* ascending, everywhere: two writers cannot wait for each other */
        code = pr_window_hold(window, id, wanted[i], unit, false, timeout);
        if (!code)
            edges->held[edges->count++] = wanted[i];
    }
    for (uint32_t i = 0; i < count && !code; i++) {
        pr_run run = { wanted[i], unit };
        code = pr_view_read_runs(window, stores, id, &run, 1, merged + (wanted[i] - edges->first), bad);
    }
    if (code) {
        pr_view_release(window, stores, id, edges);
        return code;
    }
    memcpy(merged + (offset - edges->first), data, length);
    return 0;
}

/* ---- what reads as zeros ---- */

/* One more run, part of the one before if they are alike; false: there is no room for it. */
static bool run_add(pr_allocation *runs, uint32_t *count, uint32_t most, uint64_t length, bool zero)
{
    if (*count && runs[*count - 1].zero == zero) {
        runs[*count - 1].length += length;
        return true;
    }
    if (*count == most)
        return false;
    runs[(*count)++] = (pr_allocation){ length, zero };
    return true;
}

/* Whether what begins at `at` takes no space; *end comes nearer, to where that changes or may change. 1, 0 or -errno. */
static int is_hole(pr_stores *stores, uint32_t id, uint64_t at, uint64_t *end)
{
    const uint64_t region = stores->region_size, next = (at / region + 1) * region;
    for (int look = 0;; look++) {
        const uint64_t version = pr_stores_version(stores, id, at, 1);  /* before the map is looked at, as for a read */
        uint64_t length, ignored;
        pr_extent extent;
        int code = pr_stores_resolve(stores, id, at, *end - at, &extent, 1, &length, &ignored);
        if (code < 0)
            return code;
        pthread_rwlock_rdlock(&stores->lock);
        pr_store *store = extent.slot == PR_SOURCE_ZERO ? NULL : stores->slots[extent.slot];
        pr_device *device = store ? store->device : NULL;       /* on which a region lies at its own offset */
        pthread_rwlock_unlock(&stores->lock);
        bool hole = device ? pr_device_hole(device, at, &length) == 1 : extent.slot == PR_SOURCE_ZERO;
        if (hole && at + length > next) /* the counters are compared for each region */
            length = next - at;
        if (!hole || pr_stores_version(stores, id, at, 1) == version || look == LOOKS) {
            *end = at + length;
            return hole && look < LOOKS;
        }
    }
}

int pr_view_allocation(pr_window *window, pr_stores *stores, uint32_t id, uint64_t offset, uint64_t length,
                       pr_allocation *runs, uint32_t most)
{
    const uint64_t region = stores->region_size, first = offset / region * region;
    const uint64_t span = pr_align(offset + length, region) - first;
    uint32_t count = 0, phase = pr_stores_enter(stores);
    int code = pr_window_settle(window, id, false);
    uint8_t *said = calloc(span / region, 1);
    if (!said)
        code = -ENOMEM;
    if (!code)
        pr_window_says(window, id, first, span, region, said);
    for (uint64_t at = offset, end; code >= 0 && at < offset + length; at = end) {
        uint64_t n = (at - first) / region;
        const uint8_t word = said[n];
        for (end = at; end < offset + length && said[n] == word; n++)
            end = first + (n + 1) * region;
        end = end < offset + length ? end : offset + length;
        code = word == PR_SAYS_NOTHING ? is_hole(stores, id, at, &end) : word == PR_SAYS_ZEROS;
        if (code >= 0 && !run_add(runs, &count, most, end - at, code))
            break;
    }
    pr_stores_leave(stores, phase);
    free(said);
    return code < 0 ? code : (int)count;
}
