/* RegionMap: one bit per region, with a summary above so that sparse maps are walked quickly. Positions and lengths are
 * in regions. A map has one owner at a time; it takes no lock. Must not know what a mark means. */
#ifndef PYREPL_REGIONS_H
#define PYREPL_REGIONS_H

#include <stddef.h>
#include <stdint.h>

#define PR_MAX_REGIONS (1ull << 40)     /* of one map */

typedef struct pr_regions pr_regions;

pr_regions *pr_regions_new(uint64_t count);         /* all clear; NULL: no memory. Untouched parts cost no memory. */
void pr_regions_free(pr_regions *map);
uint64_t pr_regions_size(const pr_regions *map);            /* regions that the map covers */
int pr_regions_resize(pr_regions *map, uint64_t count);     /* what is added is clear; -ENOMEM */
/* The caller has checked first + n <= size. */
void pr_regions_mark(pr_regions *map, uint64_t first, uint64_t n);
void pr_regions_clear(pr_regions *map, uint64_t first, uint64_t n);
int pr_regions_test(const pr_regions *map, uint64_t region);
uint64_t pr_regions_count(const pr_regions *map);           /* marked regions */
int pr_regions_any(const pr_regions *map);
/* The next run of marked regions at or after `from`; its length (0: none left), its start in *first. At most `most`. */
uint64_t pr_regions_next(const pr_regions *map, uint64_t from, uint64_t most, uint64_t *first);
int pr_regions_equal(const pr_regions *a, const pr_regions *b);        /* in size too */
/* Marks n ranges: pairs of uint64 (first, count) at any address. Returns the number of the first pair that is outside,
 * and marks nothing then; n: all are marked. */
uint64_t pr_regions_mark_pairs(pr_regions *map, const uint8_t *pairs, uint64_t n);
void pr_regions_union(pr_regions *into, const pr_regions *other);      /* sizes may differ: the common part */
void pr_regions_subtract(pr_regions *from, const pr_regions *other);
/* into[first, first + n) = other[first, first + n), where other ends it counts as clear */
void pr_regions_copy_range(pr_regions *into, const pr_regions *other, uint64_t first, uint64_t n);

/* The map as bytes; the layout stands at the top of regions.c. Returns the bytes that it takes: `into` is good if they
 * are not more than `length`. Behind that nothing is written, even if another thread marks meanwhile. */
uint64_t pr_regions_encode(const pr_regions *map, uint8_t *into, uint64_t length);
/* 0; -EINVAL: malformed; -ENOMEM. */
int pr_regions_decode(const uint8_t *from, uint64_t length, pr_regions **map);

/* The bits: bit i of word i / 64. Valid until the map is resized. */
const uint64_t *pr_regions_words(const pr_regions *map);

#endif
