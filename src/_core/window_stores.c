/* The window's stores: which there are and how long, which of their ranges are held for somebody, and which wait for an operation
 * that is not performed yet. Decides what may be submitted to where; must not know what is in the log.
 */
#include "window_state.h"

#include <errno.h>
#include <stdlib.h>

static uint32_t store_place(const pr_window *w, uint32_t id) {
    uint32_t low = 0, high = w->store_count;
    while (low < high) {
        uint32_t middle = (low + high) / 2;
        if (w->stores[middle].id < id)
            low = middle + 1;
        else
            high = middle;
    }
    return low;
}

struct store_entry *w_store_entry(pr_window *w, uint32_t id) {
    uint32_t i = store_place(w, id);
    return i < w->store_count && w->stores[i].id == id ? &w->stores[i] : NULL;
}

struct store_entry *w_store_find(pr_window *w, uint32_t id) {
    struct store_entry *found = w_store_entry(w, id);
    return found && found->size ? found : NULL;
}

static int store_put(pr_window *w, uint32_t id, uint64_t size, uint64_t coming, bool writable) {
    struct store_entry *found = w_store_entry(w, id);
    if (!found) {
        if (w->store_count == PR_MAX_STORES)
            return PR_TOO_MANY;
        uint32_t i = store_place(w, id);
        memmove(&w->stores[i + 1], &w->stores[i], (w->store_count++ - i) * sizeof *w->stores);
        found = &w->stores[i];
    }
    *found = (struct store_entry){ .size = size, .coming = coming, .id = id, .writable = writable };
    return 0;
}

int w_store_set(pr_window *w, uint32_t id, uint64_t size, bool writable) {
    return store_put(w, id, size, size, writable);
}

int w_store_drop(pr_window *w, uint32_t id) {
    struct store_entry *found = w_store_entry(w, id);
    if (!found)
        return PR_NO_STORE;
    memmove(found, found + 1, (size_t)(&w->stores[--w->store_count] - found) * sizeof *found);
    return 0;
}

int w_store_check(pr_window *w, uint32_t id, uint64_t offset, uint64_t length) {
    const struct store_entry *s = w_store_find(w, id);
    if (!s)
        return PR_NO_STORE;
    if (!s->writable)
        return PR_NOT_WRITABLE;
    if (offset % w->alignment || length % w->alignment || length == 0)
        return PR_UNALIGNED;
    if (offset > s->size || length > s->size - offset)
        return PR_OUTSIDE;
    return 0;
}

int pr_window_set_store(pr_window *w, uint32_t store, uint64_t size, bool writable) {
    pthread_mutex_lock(&w->mutex);
    int code = w_store_set(w, store, size, writable);
    pthread_mutex_unlock(&w->mutex);
    return code;
}

int pr_window_drop_store(pr_window *w, uint32_t store) {
    pthread_mutex_lock(&w->mutex);
    int code = w_store_drop(w, store);
    pthread_mutex_unlock(&w->mutex);
    return code;
}

/* What is received changed it: readers see it so when that is shown. A store without any size is gone. */
int pr_window_announce(pr_window *w, uint32_t store, uint64_t size) {
    pthread_mutex_lock(&w->mutex);
    const struct store_entry *found = w_store_entry(w, store);
    uint64_t now = w->shown == NOT_PARKED ? size : found ? found->size : 0;
    int code = now || size ? store_put(w, store, now, size, false) : found ? w_store_drop(w, store) : 0;
    pthread_mutex_unlock(&w->mutex);
    return code;
}

int pr_window_show_store(pr_window *w, uint32_t store, uint64_t size) {
    pthread_mutex_lock(&w->mutex);
    const struct store_entry *found = w_store_entry(w, store);
    uint64_t coming = found ? found->coming : 0;
    int code = 0;
    if (w->shown != NOT_PARKED)
        code = size || coming ? store_put(w, store, size, coming, false) : found ? w_store_drop(w, store) : 0;
    pthread_mutex_unlock(&w->mutex);
    return code;
}

int pr_window_store_size(pr_window *w, uint32_t store, uint64_t *size) {
    pthread_mutex_lock(&w->mutex);
    const struct store_entry *found = w_store_find(w, store);
    *size = found ? found->size : 0;
    pthread_mutex_unlock(&w->mutex);
    return found ? 0 : PR_NO_STORE;
}

/* ---- ranges that are held ---- */

bool w_is_held(const pr_window *w, uint32_t store, uint64_t offset, uint64_t length) {
    for (uint32_t i = 0; i < w->hold_count; i++) {
        const struct hold *h = &w->holds[i];
        if (h->store == store && offset < h->offset + h->length && h->offset < offset + length)
            return true;
    }
    return false;
}

int pr_window_hold(pr_window *w, uint32_t store, uint64_t offset, uint64_t length, bool nowait, int64_t timeout) {
    patience p = { .timeout = timeout };
    pthread_mutex_lock(&w->mutex);
    int code = !w->opened ? PR_NOT_OPEN : w->failed ? w->failed : w_store_check(w, store, offset, length);
    while (code == 0 && w_is_held(w, store, offset, length)) {
        code = nowait ? PR_NO_ROOM : w_wait_for(w, &w->c_hold, &p);
        if (w->failed)
            code = w->failed;
    }
    if (code == 0 && w->hold_count == w->hold_space) {
        uint32_t space = w->hold_space ? w->hold_space * 2 : 16;
        struct hold *holds = realloc(w->holds, space * sizeof *holds);
        if (holds) {
            w->holds = holds;
            w->hold_space = space;
        } else
            code = -ENOMEM;
    }
    if (code == 0)
        w->holds[w->hold_count++] = (struct hold){ .offset = offset, .length = length, .store = store };
    pthread_mutex_unlock(&w->mutex);
    return code;
}

int pr_window_unhold(pr_window *w, uint32_t store, uint64_t offset, uint64_t length) {
    int code = PR_OUTSIDE;
    pthread_mutex_lock(&w->mutex);
    for (uint32_t i = 0; i < w->hold_count && code; i++) {
        const struct hold *h = &w->holds[i];
        if (h->store == store && h->offset == offset && h->length == length) {
            w->holds[i] = w->holds[--w->hold_count];
            code = 0;
        }
    }
    pthread_cond_broadcast(&w->c_hold);
    pthread_mutex_unlock(&w->mutex);
    return code;
}

/* ---- operations that are not performed yet ---- */

int w_barriers_reserve(pr_window *w, uint32_t more) {
    if (w->barrier_count + more <= w->barrier_space)
        return 0;
    uint32_t space = (w->barrier_count + more) * 2;
    struct barrier *barriers = realloc(w->barriers, space * sizeof *barriers);
    if (!barriers)
        return -ENOMEM;
    w->barriers = barriers;
    w->barrier_space = space;
    return 0;
}

void w_barriers_add(pr_window *w, uint64_t position, const uint32_t *stores, uint32_t count) {
    for (uint32_t i = 0; i < count; i++)
        w->barriers[w->barrier_count++] = (struct barrier){ .position = position, .store = stores[i] };
}

int pr_window_settle(pr_window *w, uint32_t store, bool nowait) {
    patience forever = { .timeout = -1 };
    int code = 0;
    pthread_mutex_lock(&w->mutex);
    for (uint32_t i = 0; i < w->barrier_count && code == 0; ) {
        if (w->barriers[i].store != store || is_parked(w, w->barriers[i].position)) {
            i++;
            continue;
        }
        code = nowait ? -EAGAIN : w->failed ? w->failed : w_wait_for(w, &w->c_applied, &forever);
        i = 0;                                                     /* the list may have become another */
    }
    pthread_mutex_unlock(&w->mutex);
    return code;
}
