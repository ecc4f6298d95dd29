/* The plan of one region: decides what is copied where, in how many stages, before a device is overwritten or given up.
 * Knows maps and lengths only: it does no I/O, and what stages are for (flush, note) is its caller's business.
 *
 *   1  The old content of an overwritten device moves once, however many stores show it: to one of them whose own
 *      device nobody shows, and all are pointed there.
 *   2  A target is shown by nobody in the durable map. What would need such a device waits for a stage of its own.
 *   3  If nobody who shows it has a free device, the chain of users is followed to a free one, or round the ring: then
 *      the hidden scratch device takes the place of one.
 *   4  Zeros are nobody's device. A device that ends before what must be kept of the region is no target.
 */
#include "epoch.h"
#include <errno.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

void pr_plan_clear(pr_plan *plan)
{
    for (uint32_t i = 0; i < plan->level_count; i++)
        plan->levels[i].move_count = plan->levels[i].entry_count = 0;
    plan->level_count = 0;
}

void pr_plan_free(pr_plan *plan)
{
    for (uint32_t i = 0; i < plan->level_room; i++) {
        free(plan->levels[i].moves);
        free(plan->levels[i].entries);
    }
    free(plan->levels);
    plan->levels = NULL;
    plan->level_count = plan->level_room = 0;
}

static pr_level *level_at(pr_plan *plan, uint32_t index)
{
    if (index >= plan->level_room) {
        pr_level *levels = realloc(plan->levels, (index + 4) * sizeof *levels);
        if (!levels)
            return NULL;
        memset(levels + plan->level_room, 0, (index + 4 - plan->level_room) * sizeof *levels);
        plan->levels = levels;
        plan->level_room = index + 4;
    }
    if (index >= plan->level_count)
        plan->level_count = index + 1;
    return &plan->levels[index];
}

/* Room for one more; 0 or -ENOMEM. */
static int grow(void **array, size_t count, size_t *room, size_t size)
{
    if (count < *room)
        return 0;
    size_t more = *room ? *room * 2 : 64;
    void *larger = realloc(*array, more * size);
    if (!larger)
        return -ENOMEM;
    *array = larger;
    *room = more;
    return 0;
}

static int add_move(pr_level *level, uint64_t region, uint32_t target, uint32_t source)
{
    int code = grow((void **)&level->moves, level->move_count, &level->move_room, sizeof *level->moves);
    if (!code)
        level->moves[level->move_count++] = (struct pr_move){region, target, source};
    return code;
}

static int add_entry(pr_level *level, uint64_t region, uint32_t slot, uint32_t source)
{
    int code = grow((void **)&level->entries, level->entry_count, &level->entry_room, sizeof *level->entries);
    if (!code)
        level->entries[level->entry_count++] = (struct pr_map_entry){region, 1, slot, source};
    return code;
}

static uint16_t source_of(const pr_stores *stores, uint32_t slot, uint64_t region)
{
    const pr_sources *map = stores->slots[slot]->map;
    return region < pr_sources_size(map) ? pr_sources_get(map, region) : PR_SOURCE_ZERO;
}

/* Bytes of a region that belong to a live store. */
static uint64_t wanted(const pr_stores *stores, uint32_t slot, uint64_t region)
{
    uint64_t begin = region * stores->region_size, size = stores->slots[slot]->size;
    return size <= begin ? 0 : size - begin < stores->region_size ? size - begin : stores->region_size;
}

/* The most common case: every store touched shows its own device, and nobody else does. */
static bool is_plain(pr_plan *plan, const pr_stores *stores, uint64_t region, const pr_touch *touches, uint32_t count)
{
    bool plain = true;
    for (uint32_t i = 0; i < count && plain; i++)
        if (touches[i].how != PR_VACATE)
            plain = source_of(stores, touches[i].slot, region) == (touches[i].how == PR_ZEROED ? 0 : touches[i].slot);
    if (!plain || (stores->live_count <= 1 && touches[0].how != PR_VACATE))
        return plain;
    for (uint32_t i = 0; i < count; i++)
        plan->how[touches[i].slot] = touches[i].how != PR_ZEROED;
    for (uint32_t i = 0; i < stores->live_count && plain; i++) {
        uint32_t source = source_of(stores, stores->live[i], region);
        plain = !source || source == stores->live[i] || !plan->how[source];
    }
    for (uint32_t i = 0; i < count; i++)
        plan->how[touches[i].slot] = 0;
    return plain;
}

/* How many stores show each device. */
static void count_shown(const pr_stores *stores, const uint16_t *map, uint16_t *shown)
{
    memset(shown, 0, stores->limit * sizeof *shown);
    for (uint32_t i = 0; i < stores->live_count; i++)
        shown[map[stores->live[i]]]++;
}

/* How much of a region stores other than `slot` show from its device; *any: whether one does at all. */
static uint64_t kept(const pr_plan *plan, const pr_stores *stores, uint32_t slot, uint64_t region, bool *any)
{
    uint64_t most = 0, reach = pr_stores_reach(stores, slot, region);
    *any = false;
    for (uint32_t i = 0; i < stores->live_count; i++) {
        uint32_t user = stores->live[i];
        if (user == slot || plan->map[user] != slot)
            continue;
        uint64_t length = wanted(stores, user, region);
        *any = true;
        most = length > most ? length : most;
    }
    return most < reach ? most : reach;
}

/* All who show `from` (but itself) show `to` after this stage. */
static void redirect(pr_plan *plan, const pr_stores *stores, uint32_t from, uint32_t to)
{
    for (uint32_t i = 0; i < stores->live_count; i++) {
        uint32_t user = stores->live[i];
        if (user != from && plan->map[user] == from) {
            plan->map[user] = (uint16_t)to;
            plan->changed[user] = 1;
        }
    }
}

/* Moves what others show from `slot` to one of them whose device is free. 1: done or nobody shows it; 0: no such
 * device. */
static int move_away(pr_plan *plan, const pr_stores *stores, pr_level *level, uint64_t region, uint32_t slot)
{
    bool any;
    uint64_t need = kept(plan, stores, slot, region, &any);
    uint32_t target = 0;
    if (!any)
        return 1;
    for (uint32_t i = 0; i < stores->live_count; i++) {
        uint32_t user = stores->live[i];
        if (user == slot || plan->map[user] != slot || plan->shown[user] || plan->taken[user]
            || pr_stores_reach(stores, user, region) < need)
            continue;
        if (!target || (plan->how[user] == PR_PARTLY && plan->how[target] != PR_PARTLY))
            target = user;                      /* one that must be filled with this content anyway is the best */
    }
    if (!target)
        return 0;
    plan->taken[target] = 1;
    plan->origin[target] = plan->origin[slot];  /* copies of one stage do not build on each other */
    redirect(plan, stores, slot, target);
    int code = add_move(level, region, target, plan->origin[slot]);
    return code < 0 ? code : 1;
}

/* Follows the users from `start` to a free device: *last, shown by its predecessor *before. True: the ring closed
 * instead. */
static bool follow(const pr_plan *plan, const pr_stores *stores, const uint16_t *shown, uint32_t start,
                   uint32_t *before, uint32_t *last)
{
    *before = *last = start;
    for (;;) {
        uint32_t next = 0;
        bool any = false;
        for (uint32_t i = 0; i < stores->live_count; i++) {
            uint32_t user = stores->live[i];
            if (user == *last || plan->map[user] != *last)
                continue;
            any = true;
            if (user != start && (!next || (!shown[user] && shown[next])))
                next = user;
        }
        if (!next)
            return any;
        *before = *last;
        *last = next;
        if (!shown[next])
            return false;
    }
}

/* Nobody who shows `slot` has a free device: one move that makes a free one. */
static int unring(pr_plan *plan, const pr_stores *stores, pr_level *level, uint64_t region, uint32_t slot)
{
    uint16_t *shown = plan->shown;              /* of the durable map: not needed any more in this round */
    uint32_t from, to;
    bool any;
    count_shown(stores, plan->map, shown);
    if (follow(plan, stores, shown, slot, &from, &to)) {
        if (!stores->scratch)
            return -ENODEV;
        from = slot;
        to = stores->scratch;
        if (shown[to] && follow(plan, stores, shown, to, &from, &to))
            return -EDEADLK;                    /* nobody owns the scratch: a path from it cannot come back */
        plan->rings++;
    }
    uint64_t need = kept(plan, stores, from, region, &any);
    if (pr_stores_reach(stores, to, region) < need) {
        if (!stores->scratch || shown[stores->scratch] || pr_stores_reach(stores, stores->scratch, region) < need)
            return -ENOSPC;
        to = stores->scratch;
    }
    if (from == to || !any)
        return -EDEADLK;
    redirect(plan, stores, from, to);
    return add_move(level, region, to, from);
}

/* One stage of one region. 1: another may follow; 0: ready, and the stage is empty. */
static int add_stage(pr_plan *plan, const pr_stores *stores, pr_level *level, uint64_t region, const pr_touch *touches,
                     uint32_t count, bool first)
{
    size_t moves = level->move_count, entries = level->entry_count;
    bool waiting = false;
    uint32_t stuck = 0;
    int code = 0;
    for (uint32_t i = 0; i < stores->limit; i++) {
        plan->origin[i] = (uint16_t)i;
        plan->taken[i] = plan->changed[i] = 0;
    }
    memcpy(plan->noted, plan->map, stores->limit * sizeof *plan->map);
    count_shown(stores, plan->noted, plan->shown);
    for (uint32_t i = 0; first && i < count; i++) {     /* old content that nobody needs: only the map changes */
        uint32_t slot = touches[i].slot, source = touches[i].how == PR_ZEROED ? PR_SOURCE_ZERO : slot;
        if ((touches[i].how != PR_WHOLE && touches[i].how != PR_ZEROED) || plan->map[slot] == source)
            continue;
        plan->map[slot] = (uint16_t)source;
        if ((code = add_entry(level, region, slot, source)))
            return code;
    }
    for (uint32_t i = 0; i < count; i++) {
        if (touches[i].how == PR_ZEROED)
            continue;
        if ((code = move_away(plan, stores, level, region, touches[i].slot)) < 0)
            return code;
        if (!code && !stuck)
            stuck = touches[i].slot;
    }
    for (uint32_t i = 0; i < count; i++) {              /* the rest of a region that will be overwritten in part */
        uint32_t slot = touches[i].slot;
        if (touches[i].how != PR_PARTLY || plan->map[slot] == slot)
            continue;
        if (plan->changed[slot] || plan->shown[slot] || plan->taken[slot]) {
            waiting = true;
            continue;
        }
        plan->taken[slot] = plan->changed[slot] = 1;
        plan->map[slot] = (uint16_t)slot;
        if ((code = add_move(level, region, slot, plan->noted[slot])))
            return code;
    }
    if (level->move_count == moves && level->entry_count == entries) {
        if (!stuck)
            return waiting ? -EDEADLK : 0;
        if ((code = unring(plan, stores, level, region, stuck)))
            return code;
    }
    for (uint32_t i = 0; i < stores->live_count; i++) {
        uint32_t slot = stores->live[i];
        if (plan->changed[slot] && (code = add_entry(level, region, slot, plan->map[slot])))
            return code;
    }
    return 1;
}

int pr_plan_region(pr_plan *plan, const pr_stores *stores, uint64_t region, const pr_touch *touches, uint32_t count)
{
    if (!count || is_plain(plan, stores, region, touches, count))
        return 0;
    uint32_t levels = plan->level_count, most = 4 * stores->live_count + 4;
    int code = 1;
    memset(plan->how, 0, sizeof plan->how);
    memset(plan->map, 0, sizeof plan->map);
    for (uint32_t i = 0; i < stores->live_count; i++)
        plan->map[stores->live[i]] = source_of(stores, stores->live[i], region);
    for (uint32_t i = 0; i < count; i++)
        plan->how[touches[i].slot] = (uint8_t)touches[i].how;
    for (uint32_t round = 0; code == 1; round++) {
        pr_level *level = level_at(plan, round);
        if (!level)
            code = -ENOMEM;
        else if (round > most)
            code = -EDEADLK;
        else
            code = add_stage(plan, stores, level, region, touches, count, round == 0);
        if (code == 0 && round + 1 > levels)    /* the last one stayed empty, and no region before had one there */
            plan->level_count = levels > round ? levels : round;
    }
    for (uint32_t i = 0; i < count; i++)
        plan->how[touches[i].slot] = 0;
    return code;
}
