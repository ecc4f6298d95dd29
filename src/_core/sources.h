/* SourceMap: which device (a slot number, PR_SOURCE_ZERO for none) holds what a store shows in each region.
 * Pages of regions with one value take no memory, pages are shared between copies until one changes: copying a map is
 * O(pages). One thread changes a map; readers are kept off by the lock of the stores (stores.h). */
#ifndef PYREPL_SOURCES_H
#define PYREPL_SOURCES_H

#include <stddef.h>
#include <stdint.h>

#define PR_SOURCES_PAGE 512u                                /* regions of a page */

typedef struct pr_sources pr_sources;

pr_sources *pr_sources_new(uint64_t count, uint16_t source);            /* all regions show `source` */
void pr_sources_free(pr_sources *map);
uint64_t pr_sources_size(const pr_sources *map);
int pr_sources_resize(pr_sources *map, uint64_t count, uint16_t source); /* what is added shows `source` */
uint16_t pr_sources_get(const pr_sources *map, uint64_t region);
int pr_sources_set(pr_sources *map, uint64_t first, uint64_t n, uint16_t source);      /* 0, -ENOMEM */
/* In how many regions of [first, first + n) two maps differ. */
uint64_t pr_sources_differing(const pr_sources *a, const pr_sources *b, uint64_t first, uint64_t n);
/* target[first, first + n) = source[first, first + n); *changed counts the regions whose value became another
 * (NULL: not counted, which is quicker where whole pages differ). */
int pr_sources_copy(pr_sources *target, const pr_sources *source, uint64_t first, uint64_t n, uint64_t *changed);
/* The run of equal values that begins at `from`: its length (at most `most`), its value in *source. */
uint64_t pr_sources_run(const pr_sources *map, uint64_t from, uint64_t most, uint16_t *source);
/* The next run at or after `from` whose value is (want != 0) or is not (want == 0) `source`; 0: none. */
uint64_t pr_sources_find(const pr_sources *map, uint64_t from, uint16_t source, int want, uint64_t most, uint64_t *first);
/* How many regions show `source`; counts up to about `most` and stops. */
uint64_t pr_sources_count(const pr_sources *map, uint16_t source, uint64_t most);
int pr_sources_equal(const pr_sources *a, const pr_sources *b);
uint64_t pr_sources_memory(const pr_sources *map);          /* bytes of its own, shared pages counted by share */
/* For checkpoints: the map as bytes (a uniform page is 3 bytes, a mixed one runs or raw values, whichever is shorter). */
size_t pr_sources_encoded_bound(const pr_sources *map);
size_t pr_sources_encode(const pr_sources *map, uint8_t *into);         /* bytes written */
pr_sources *pr_sources_decode(const uint8_t *from, size_t length);      /* NULL: malformed (or no memory) */

#endif
