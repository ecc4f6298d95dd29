/* Bulk work over regions.
 *
 * Decides: how copied regions are cut into records, what of a batch counts as touched or covered, what the digest of
 * a store is.
 * Must not know links, divergence or who asks.
 */
#include "pump.h"
#include "batch.h"
#include "buffers.h"
#include "crc32c.h"
#include <errno.h>
#include <string.h>

#define CHUNK PR_MAX_PAYLOAD            /* bytes of a store or device that are looked at in one go */
#define PIECE (256u << 10)              /* one I/O of it */

/* ---- copied regions -------------------------------------------------------------------------------------------- */

static bool all_zero(const uint8_t *data, uint64_t length)
{
    return !data[0] && !memcmp(data, data + 1, length - 1);
}

/* Records that `length` bytes need if nothing about them is special. */
static uint32_t records_of(uint64_t length) { return (uint32_t)((length + PR_MAX_EVENT - 1) / PR_MAX_EVENT); }

struct packing {
    pr_copied *copied;
    uint8_t *payload;
    uint32_t store;
};

static void close_record(struct packing *packing, const struct pr_record *open)
{
    pr_copied *copied = packing->copied;
    struct pr_record *record = &copied->records[copied->count++];
    *record = *open;
    if (open->kind == PR_WRITE)
        record->crc = pr_crc32c(0, packing->payload + open->payload, open->length);
}

/* One run of bytes, read to `from`, into records; what is not zero moves up to where the payload ends. `later`:
 * records that the runs after this one need at least. A record of zeros is begun only if there is room for what has
 * to follow it. */
static void pack_run(struct packing *packing, uint64_t offset, uint64_t length, uint64_t region_size,
                     const uint8_t *from,
                     uint32_t later)
{
    pr_copied *copied = packing->copied;
    struct pr_record open = { .kind = 0 };
    for (uint64_t done = 0, n; done < length; done += n) {
        n = region_size - (offset + done) % region_size;
        if (n > length - done)
            n = length - done;
        uint32_t used = copied->count + (open.kind != 0);
        uint8_t kind = all_zero(from + done, n) ? PR_ZERO : PR_WRITE;
        bool joins = open.kind == kind && open.length + n <= PR_MAX_EVENT;
        if (kind == PR_ZERO && !joins && used + 1 + records_of(length - done - n) + later > PR_MAX_RECORDS) {
            kind = PR_WRITE;
            joins = open.kind == kind && open.length + n <= PR_MAX_EVENT;
        }
        if (!joins) {
            if (open.kind)
                close_record(packing, &open);
            open = (struct pr_record){ .kind = kind, .store = packing->store, .offset = offset + done,
                                       .payload = kind == PR_WRITE ? copied->payload_length : 0 };
        }
        open.length += (uint32_t)n;
        if (kind == PR_WRITE) {
            memmove(packing->payload + copied->payload_length, from + done, n);
            copied->payload_length += (uint32_t)n;
        }
    }
    if (open.kind)
        close_record(packing, &open);
}

/* Runs of regions -> runs of bytes. */
static int cut_runs(pr_stores *stores, uint32_t id, const pr_run *runs, uint32_t count, pr_run *bytes)
{
    const uint64_t unit = stores->region_size;
    uint64_t total = 0, records = 0;
    if (count > PR_VIEW_RUNS)
        return -E2BIG;
    pthread_rwlock_rdlock(&stores->lock);
    const pr_store *store = pr_stores_find(stores, id);
    const uint64_t size = store ? store->size : 0;
    pthread_rwlock_unlock(&stores->lock);
    if (!store)
        return -ENOENT;
    for (uint32_t i = 0; i < count; i++) {
        uint64_t regions = (size + unit - 1) / unit, first = runs[i].offset, n = runs[i].length;
        if (!n || n > regions || first > regions - n)
            return -ERANGE;
        bytes[i].offset = first * unit;
        bytes[i].length = ((first + n) * unit < size ? (first + n) * unit : size) - first * unit;
        total += bytes[i].length;
        records += records_of(bytes[i].length);
        if (total > PR_MAX_PAYLOAD || records > PR_MAX_RECORDS)
            return -E2BIG;
    }
    return 0;
}

int pr_pump_copied(pr_window *window, pr_stores *stores, uint32_t id, const pr_run *runs, uint32_t run_count,
                   uint8_t *payload,
                   pr_copied *copied, pr_device **bad)
{
    pr_run bytes[PR_VIEW_RUNS];
    pr_window_state state;
    uint32_t later = 0;
    *bad = NULL;
    int code = cut_runs(stores, id, runs, run_count, bytes);
    if (!code)
        code = pr_view_read_runs(window, stores, id, bytes, run_count, payload, bad);
    if (code)
        return code;
    pr_window_look(window, &state);             /* h2: where the journal's end is now that reading has ended */
    struct packing packing = { copied, payload, id };
    copied->count = copied->payload_length = 0;
    memset(copied->records, 0, sizeof copied->records);
    for (uint32_t i = 0; i < run_count; i++)
        later += records_of(bytes[i].length);
    const uint8_t *from = payload;
    for (uint32_t i = 0; i < run_count; from += bytes[i++].length) {
        later -= records_of(bytes[i].length);
        pack_run(&packing, bytes[i].offset, bytes[i].length, stores->region_size, from, later);
    }
    struct pr_travel *travel = &copied->travel;
    memset(travel, 0, sizeof *travel);
    travel->kind = PR_BATCH_COPIED;
    memcpy(travel->group, copied->group, sizeof travel->group);
    memcpy(travel->generation, copied->generation, sizeof travel->generation);
    travel->first_lsn = copied->lsn;
    travel->item = copied->item;
    travel->read_end = state.end_lsn;
    pr_batch_seal(travel, copied->records, copied->count, copied->payload_length);
    return 0;
}

/* ---- events and region maps ------------------------------------------------------------------------------------ */

static bool is_event(const struct pr_record *record, uint32_t store)
{
    return record->store == store && record->length && record->kind >= PR_WRITE && record->kind <= PR_DISCARD;
}

int pr_pump_enter(const struct pr_travel *travel, const struct pr_record *records, uint32_t store, pr_regions *map,
                  uint64_t region_size)
{
    const uint64_t size = pr_regions_size(map);
    for (int marking = 0; marking < 2; marking++)
        for (uint32_t i = 0; i < travel->count; i++) {
            if (!is_event(&records[i], store))
                continue;
            if (records[i].offset > UINT64_MAX - records[i].length)
                return -ERANGE;
            uint64_t first = records[i].offset / region_size;
            uint64_t last = (records[i].offset + records[i].length - 1) / region_size;
            if (last >= size)
                return -ERANGE;
            if (marking)
                pr_regions_mark(map, first, last - first + 1);
        }
    return 0;
}

/* Clears the regions that lie whole in [begin, end). */
static void clear_covered(pr_regions *map, uint64_t begin, uint64_t end, uint64_t region_size, uint64_t store_size)
{
    uint64_t first = begin / region_size + (begin % region_size != 0), last = end / region_size;
    if (end >= store_size)                      /* the last region may be cut short by the store's end */
        last += end % region_size != 0;
    if (last > pr_regions_size(map))
        last = pr_regions_size(map);
    if (first < last)
        pr_regions_clear(map, first, last - first);
}

void pr_pump_leave(const struct pr_travel *travel, const struct pr_record *records, uint32_t store, pr_regions *map,
                   uint64_t region_size, uint64_t store_size)
{
    uint64_t begin = 0, end = 0;
    for (uint32_t i = 0; i < travel->count; i++) {
        const struct pr_record *record = &records[i];
        if (!is_event(record, store) || record->offset > UINT64_MAX - record->length)
            continue;
        if (record->offset != end) {
            clear_covered(map, begin, end, region_size, store_size);
            begin = record->offset;
        }
        end = record->offset + record->length;
    }
    clear_covered(map, begin, end, region_size, store_size);
}

/* ---- the digest ---------------------------------------------------------------------------------------------------
 * Four lanes of 64 bits take every fourth word. Each lane has two states with different multipliers; every step is a
 * bijection of either state for a given word and of the word for a given state, so a single changed word always
 * changes both, and two changes cancel in both only by a chance of 2^-128. At the end each half takes in all lanes,
 * the length, and is avalanched. It finds what went wrong by itself; it is not made against somebody who wants a
 * collision. Multipliers: those of XXH64. */

#define P1 0x9E3779B185EBCA87ull
#define P2 0xC2B2AE3D27D4EB4Full
#define P3 0x165667B19E3779F9ull
#define P4 0x85EBCA77C2B2AE63ull
#define P5 0x27D4EB2F165667C5ull

static inline uint64_t rotate(uint64_t x, int n) { return x << n | x >> (64 - n); }

void pr_hash_begin(pr_hash *hash)
{
    for (int i = 0; i < 4; i++) {
        hash->lanes[i] = P1 * (uint64_t)(i + 1) + P2;
        hash->mixed[i] = P3 * (uint64_t)(i + 1) ^ P4;
    }
    hash->length = 0;
}

static inline void add_stripe(uint64_t lanes[4], uint64_t mixed[4], const uint8_t *stripe)
{
    uint64_t words[4];
    memcpy(words, stripe, sizeof words);
    for (int i = 0; i < 4; i++) {
        lanes[i] = rotate(lanes[i] + words[i] * P2, 31) * P1;
        mixed[i] = rotate(mixed[i] ^ words[i], 27) * P4 + P5;
    }
}

void pr_hash_add(pr_hash *hash, const uint8_t *data, size_t length)
{
    uint64_t lanes[4], mixed[4];
    size_t at = 0;
    memcpy(lanes, hash->lanes, sizeof lanes);
    memcpy(mixed, hash->mixed, sizeof mixed);
    for (; at + 32 <= length; at += 32)
        add_stripe(lanes, mixed, data + at);
    if (at < length) {                          /* the tail, filled up; the length tells it from real zeros */
        uint8_t stripe[32] = { 0 };
        memcpy(stripe, data + at, length - at);
        add_stripe(lanes, mixed, stripe);
    }
    memcpy(hash->lanes, lanes, sizeof lanes);
    memcpy(hash->mixed, mixed, sizeof mixed);
    hash->length += length;
}

static uint64_t avalanche(uint64_t x)
{
    x = (x ^ x >> 33) * P2;
    x = (x ^ x >> 29) * P3;
    return x ^ x >> 32;
}

void pr_hash_end(const pr_hash *hash, uint8_t digest[16])
{
    uint64_t low = hash->length * P5 + P1, high = hash->length * P3 ^ P2;
    for (int i = 0; i < 4; i++) {
        low = (rotate(low ^ avalanche(hash->lanes[i]), 27) * P1 + P4) ^ rotate(hash->mixed[i], 32);
        high = rotate(high + avalanche(hash->mixed[i] + P2), 31) * P2 + hash->lanes[i] * P3;
    }
    low = avalanche(low);
    high = avalanche(high);
    memcpy(digest, &low, 8);
    memcpy(digest + 8, &high, 8);
}

int pr_pump_hash(pr_window *window, pr_stores *stores, uint32_t id, uint64_t length, uint8_t digest[16],
                 pr_device **bad)
{
    pr_hash hash;
    int code = 0;
    *bad = NULL;
    uint8_t *memory = pr_buffer_take(CHUNK);
    if (!memory)
        return -ENOMEM;
    pr_hash_begin(&hash);
    for (uint64_t done = 0; done < length && !code; done += CHUNK) {
        uint64_t n = length - done < CHUNK ? length - done : CHUNK;
        pr_run run = { done, pr_align(n, stores->alignment) };
        code = pr_view_read_runs(window, stores, id, &run, 1, memory, bad);
        if (!code)
            pr_hash_add(&hash, memory, n);
    }
    pr_buffer_give(memory, CHUNK);
    pr_hash_end(&hash, digest);
    return code;
}

/* ---- two devices ----------------------------------------------------------------------------------------------- */

static int read_chunk(pr_device *device, uint64_t offset, uint8_t *memory, uint64_t length)
{
    pr_io ios[CHUNK / PIECE];
    uint32_t count = 0;
    for (uint64_t done = 0; done < length; done += PIECE)
        ios[count++] = (pr_io){ .op = PR_READ, .offset = offset + done, .buffer = memory + done,
                                .length = length - done < PIECE ? length - done : PIECE };
    return pr_device_perform(device, ios, count);
}

static uint64_t first_difference(const uint8_t *a, const uint8_t *b, uint64_t length)
{
    uint64_t at = 0, step = 4096;
    while (at + step <= length && !memcmp(a + at, b + at, step))
        at += step;
    while (at < length && a[at] == b[at])
        at++;
    return at;
}

int pr_pump_equal(pr_device *a, pr_device *b, uint64_t length, uint64_t *difference, pr_device **bad)
{
    int code = 0;
    uint8_t *left = pr_buffer_take(CHUNK), *right = pr_buffer_take(CHUNK);
    *difference = UINT64_MAX;
    *bad = NULL;
    if (!left || !right)
        code = -ENOMEM;
    for (uint64_t done = 0; done < length && !code && *difference == UINT64_MAX; done += CHUNK) {
        uint64_t n = length - done < CHUNK ? length - done : CHUNK;
        code = read_chunk(*bad = a, done, left, n);
        if (!code)
            code = read_chunk(*bad = b, done, right, n);
        if (!code && first_difference(left, right, n) < n)
            *difference = done + first_difference(left, right, n);
    }
    pr_buffer_give(left, CHUNK);
    pr_buffer_give(right, CHUNK);
    return code;
}
