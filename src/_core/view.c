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
 */
#include "view.h"
#include "batch.h"
#include <errno.h>
#include <string.h>

#define BLOCKS (PR_MAX_PAYLOAD / 512)   /* of one call, at the smallest alignment */
#define IOS 256u                        /* I/Os that are issued together */
#define EXTENTS 64u                     /* asked of the map at a time */

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
