/* What a store shows now: the window over the source map over the devices. */
#ifndef PYREPL_VIEW_H
#define PYREPL_VIEW_H

#include "stores.h"
#include "window.h"

/* Reads [offset, offset + length) of a live store, multiples of the group's alignment, into `target` (aligned to the
 * group's alignment).
 * Every returned write is seen; waits for a pending operation on the store. 0, -ENOENT, -ERANGE, -EIO ... */
int pr_view_read(pr_window *window, pr_stores *stores, uint32_t id, uint64_t offset, uint64_t length, uint8_t *target);

typedef struct pr_run { uint64_t offset, length; } pr_run;
#define PR_VIEW_RUNS 128u               /* runs of one call */

/* Several runs at once, in flight together: at most PR_VIEW_RUNS, PR_MAX_PAYLOAD bytes in all, laid out in `target`
 * one after the other. *bad: the device that failed, or NULL. */
int pr_view_read_runs(pr_window *window, pr_stores *stores, uint32_t id, const pr_run *runs, uint32_t count,
                      uint8_t *target,
                      pr_device **bad);

/* A write of any offset and length is made of whole blocks: while nobody else can write the two at its edges, they are read and
 * merged with the data. */
typedef struct pr_edges {
    uint64_t first, end;                /* the whole blocks: PR_MAX_PAYLOAD at the most */
    uint64_t held[2];
    uint32_t count;
} pr_edges;

void pr_view_edges(const pr_stores *stores, uint64_t offset, uint64_t length, pr_edges *edges);
/* Holds the edges and fills `merged` (end - first bytes, aligned to PR_BLOCK). 0: the caller submits it with
 * PR_SUBMIT_HELD, then releases. Else nothing is held: PR_TIME_OVER (it may be repeated), another of window.h's codes,
 * or -errno of a read (*bad: the device that failed, or NULL). */
int pr_view_merge(pr_window *window, pr_stores *stores, uint32_t id, uint64_t offset, const uint8_t *data, uint64_t length,
                  pr_edges *edges, uint8_t *merged, int64_t timeout, pr_device **bad);
void pr_view_release(pr_window *window, const pr_stores *stores, uint32_t id, pr_edges *edges);

typedef struct pr_allocation { uint64_t length; bool zero; } pr_allocation;

/* How a range of whole blocks of a live store is kept: in whole runs from `offset` on, those that certainly read as zeros and
 * take no space, and the others. Every returned write is seen. Returns the number of runs, at most `most`, or -errno. */
int pr_view_allocation(pr_window *window, pr_stores *stores, uint32_t id, uint64_t offset, uint64_t length,
                       pr_allocation *runs, uint32_t most);

#endif
