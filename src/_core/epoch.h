/* One run of the applier: which regions must be saved first, and the newest version of each block, sorted and merged;
 * and carrying that out at full queue depth. The rules are those of model.md section 6; plan.c holds the planning of
 * one region.
 *
 *   1  gather: records of the log that are durable, in order, ended by an operation, a note does not matter.
 *   2  plan: for each (store, region) touched: covered whole, or partly; old content that others show moves once.
 *   3  per stage: copies (regions, device to device), then the caller flushes what was written, appends the note,
 *      makes it durable, and only then the maps in memory are re-pointed.
 *   4  write: the data go home, newest version of each block only.
 */
#ifndef PYREPL_EPOCH_H
#define PYREPL_EPOCH_H

#include "stores.h"
#include "window.h"

struct pr_move { uint64_t region; uint32_t target, source; };    /* copy a region's content from slot to slot (source 0: zeros) */

/* ---- plan.c: what must happen in one region before stores are written and devices given up. This is plan() of
 * crash_model.py, variant notes, to which it adds zeros (nobody's device) and devices that end inside a region. ---- */

enum {                                  /* pr_touch.how */
    PR_PARTLY = 1,                      /* will be overwritten in part; filled first if its content lies elsewhere */
    PR_WHOLE = 2,                       /* will be overwritten whole; its old content is not needed */
    PR_ZEROED = 3,                      /* shows zeros from now on, by the map: its device is not written */
    PR_VACATE = 4,                      /* a device that others may not show any longer (its slot may have no map) */
};
typedef struct pr_touch { uint64_t region; uint32_t slot; uint32_t how; } pr_touch;

typedef struct pr_stage { struct pr_move *moves; uint32_t move_count; struct pr_map_entry *entries; uint32_t entry_count; } pr_stage;

typedef struct pr_level {               /* what stage i of every region adds, in order of the regions */
    struct pr_move *moves;
    struct pr_map_entry *entries;
    size_t move_count, move_room, entry_count, entry_room;
} pr_level;

typedef struct pr_plan {
    pr_level *levels;
    uint32_t level_count, level_room;   /* in use; made (they keep their memory) */
    uint64_t rings;                     /* opened through the scratch device, since the beginning */
    uint16_t map[PR_MAX_STORES], noted[PR_MAX_STORES];  /* of this region: as it will be, and as the durable map has it */
    uint16_t shown[PR_MAX_STORES];      /* by how many stores, in the durable map */
    uint16_t origin[PR_MAX_STORES];     /* whose content a device holds after this stage's copies */
    uint8_t how[PR_MAX_STORES], taken[PR_MAX_STORES], changed[PR_MAX_STORES];
} pr_plan;

void pr_plan_clear(pr_plan *plan);
void pr_plan_free(pr_plan *plan);       /* what it holds, not itself */
/* Adds what one region needs. Touches: of this region, ascending slots, each once. 0; -ENODEV: a ring, and no scratch
 * device; -ENOSPC: no device is long enough for what must be kept; -ENOMEM; -EDEADLK: ours. */
int pr_plan_region(pr_plan *plan, const pr_stores *stores, uint64_t region, const pr_touch *touches, uint32_t count);

/* ---- epoch.c ---- */

typedef struct pr_epoch pr_epoch;

pr_epoch *pr_epoch_new(pr_stores *stores, pr_window *window);
void pr_epoch_free(pr_epoch *epoch);
void pr_epoch_clear(pr_epoch *epoch);
/* gather: *lsn of the last event taken, *item of the last batch of copied regions; 0: none.
 * All return 0 or more, or -errno; after an error of a device, pr_epoch_failed is its slot. */
int pr_epoch_gather(pr_epoch *epoch, uint64_t position, uint64_t limit_position, uint64_t limit_bytes,
                    uint64_t *next, uint64_t *lsn, uint64_t *item);
int pr_epoch_plan(pr_epoch *epoch);                              /* the number of stages; so the next three */
int pr_epoch_plan_touches(pr_epoch *epoch, pr_touch *touches, size_t count);
int pr_epoch_plan_move(pr_epoch *epoch, uint32_t slot, uint64_t start, uint64_t most, uint64_t *next);
/* Of a deleted store's device: what only stores of this site show from it (PR_FIRST_LOCAL) if local; of the scratch: all. */
int pr_epoch_plan_vacate(pr_epoch *epoch, uint32_t slot, uint64_t start, uint64_t most, bool local, uint64_t *next);
const pr_stage *pr_epoch_stage(pr_epoch *epoch, uint32_t stage); /* NULL: no such stage */
int64_t pr_epoch_copy(pr_epoch *epoch, uint32_t stage);          /* bytes written */
int pr_epoch_repoint(pr_epoch *epoch, uint32_t stage);           /* -EINVAL: not the next one */
int64_t pr_epoch_write(pr_epoch *epoch);                         /* bytes written; -EINVAL: a stage is missing */
uint32_t pr_epoch_failed(const pr_epoch *epoch);

#endif
