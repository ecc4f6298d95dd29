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

#endif
