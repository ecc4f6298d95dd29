/* Bulk work over regions: packing copied regions, folding and streaming events into region maps, digests, comparing
 * devices. */
#ifndef PYREPL_PUMP_H
#define PYREPL_PUMP_H

#include "regions.h"
#include "view.h"

typedef struct pr_copied {              /* what a batch of copied regions is asked for, and what came of it */
    uint8_t group[16], generation[16];
    uint64_t lsn, item;
    struct pr_travel travel;            /* travel part and records: the head, as they travel */
    struct pr_record records[PR_MAX_RECORDS];
    uint32_t count, payload_length;
} pr_copied;

/* Reads `runs` (in regions: offset is the first, length how many) as the store shows them now and packs them.
 * `payload`: room for all of them, whole. Regions of zeros become records without payload, as far as PR_MAX_RECORDS
 * allows. -E2BIG: more than PR_MAX_PAYLOAD bytes or PR_MAX_RECORDS records; -ERANGE: outside the store; -ENOENT;
 * -errno with *bad. */
int pr_pump_copied(pr_window *window, pr_stores *stores, uint32_t id, const pr_run *runs, uint32_t run_count,
                   uint8_t *payload,
                   pr_copied *copied, pr_device **bad);
/* Marks what a batch of events touches in a store. -ERANGE: something outside the map; then nothing was marked. */
int pr_pump_enter(const struct pr_travel *travel, const struct pr_record *records, uint32_t store, pr_regions *map,
                  uint64_t region_size);
/* Clears what it covers whole; the store's last region ends with the store. Events that follow each other count as
 * one. */
void pr_pump_leave(const struct pr_travel *travel, const struct pr_record *records, uint32_t store, pr_regions *map,
                   uint64_t region_size, uint64_t store_size);
/* The digest of the first `length` bytes of a store, as it shows them. */
int pr_pump_hash(pr_window *window, pr_stores *stores, uint32_t id, uint64_t length, uint8_t digest[16],
                 pr_device **bad);
/* The first difference of two devices in *difference, UINT64_MAX if there is none. -errno with *bad. */
int pr_pump_equal(pr_device *a, pr_device *b, uint64_t length, uint64_t *difference, pr_device **bad);

/* The digest itself, bytes in any pieces that are multiples of 32 (the last need not be). */
typedef struct pr_hash { uint64_t lanes[4], mixed[4], length; } pr_hash;
void pr_hash_begin(pr_hash *hash);
void pr_hash_add(pr_hash *hash, const uint8_t *data, size_t length);
void pr_hash_end(const pr_hash *hash, uint8_t digest[16]);

#endif
