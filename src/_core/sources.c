/* Source maps: decides how a map is kept in memory and as bytes. Knows neither stores nor devices: a source is a
 * number.
 *
 * A map is a table of words, one for each page of PR_SOURCES_PAGE regions. An odd word is a uniform page (value << 1 |
 * 1), an even one points to a page of values, which several maps may share: it is changed in place only by its sole
 * owner. Values behind the end of the map (in its last page) mean nothing: whoever lengthens the map sets them.
 */
#include "sources.h"
#include <errno.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

#define PAGE ((uint64_t)PR_SOURCES_PAGE)

typedef struct page {
    _Atomic uint32_t owners;                    /* maps are changed by one thread, but copies may be freed by another */
    uint16_t value[PR_SOURCES_PAGE];
} page;

struct pr_sources {
    uint64_t count;                             /* regions */
    uint64_t pages;
    uintptr_t *table;
};

static inline uintptr_t uniform(uint16_t source) { return (uintptr_t)source << 1 | 1; }
static inline int is_uniform(uintptr_t word) { return word & 1; }
static inline uint16_t uniform_value(uintptr_t word) { return (uint16_t)(word >> 1); }
static inline page *page_of(uintptr_t word) { return (page *)word; }
static inline uint64_t least(uint64_t a, uint64_t b) { return a < b ? a : b; }
static inline uint64_t pages_for(uint64_t count) { return count / PAGE + (count % PAGE != 0); }

/* Regions of this page that belong to the map. */
static inline uint64_t page_length(const pr_sources *map, uint64_t index) 
{
    return least(PAGE, map->count - index * PAGE);
}

static void give_up(uintptr_t word)
{
    if (!is_uniform(word) && atomic_fetch_sub_explicit(&page_of(word)->owners, 1, memory_order_acq_rel) == 1)
        free(page_of(word));
}

static uintptr_t share(uintptr_t word)
{
    if (!is_uniform(word))
        atomic_fetch_add_explicit(&page_of(word)->owners, 1, memory_order_relaxed);
    return word;
}

/* A page of values that only this map has. NULL: no memory. */
static page *own_page(pr_sources *map, uint64_t index)
{
    uintptr_t word = map->table[index];
    if (!is_uniform(word) && atomic_load_explicit(&page_of(word)->owners, memory_order_acquire) == 1)
        return page_of(word);
    page *new = malloc(sizeof *new);
    if (!new)
        return NULL;
    atomic_init(&new->owners, 1);
    if (is_uniform(word)) {
        uint16_t value = uniform_value(word);
        for (uint32_t i = 0; i < PAGE; i++)
            new->value[i] = value;
    } else {
        memcpy(new->value, page_of(word)->value, sizeof new->value);
        give_up(word);
    }
    map->table[index] = (uintptr_t)new;
    return new;
}

/* Makes a page uniform again when all its regions show the same. Its ends are looked at first: that decides mostly. */
static void settle(pr_sources *map, uint64_t index)
{
    uintptr_t word = map->table[index];
    if (is_uniform(word))
        return;
    const uint16_t *value = page_of(word)->value;
    uint64_t length = page_length(map, index);
    if (value[0] != value[length - 1] || memcmp(value, value + 1, (length - 1) * sizeof *value))
        return;
    map->table[index] = uniform(value[0]);
    give_up(word);
}

pr_sources *pr_sources_new(uint64_t count, uint16_t source)
{
    pr_sources *map = malloc(sizeof *map);
    uint64_t pages = pages_for(count);
    if (!map || pages > SIZE_MAX / sizeof *map->table - 1 || !(map->table = malloc((pages + 1) * sizeof *map->table))) {
        free(map);
        return NULL;
    }
    map->count = count;
    map->pages = pages;
    for (uint64_t i = 0; i < pages; i++)
        map->table[i] = uniform(source);
    return map;
}

void pr_sources_free(pr_sources *map)
{
    if (!map)
        return;
    for (uint64_t i = 0; i < map->pages; i++)
        give_up(map->table[i]);
    free(map->table);
    free(map);
}

uint64_t pr_sources_size(const pr_sources *map) { return map->count; }

int pr_sources_resize(pr_sources *map, uint64_t count, uint16_t source)
{
    uint64_t pages = pages_for(count), before = map->count;
    if (count > before) {
        if (pages > SIZE_MAX / sizeof *map->table - 1)
            return -ENOMEM;
        uintptr_t *table = realloc(map->table, (pages + 1) * sizeof *table);
        if (!table)
            return -ENOMEM;
        map->table = table;
        uint64_t rest = least(count, map->pages * PAGE) - before;      /* of the page that is begun */
        if (rest) {
            uint64_t index = before / PAGE;
            uintptr_t word = table[index];
            if (!is_uniform(word) || uniform_value(word) != source) {
                page *own = own_page(map, index);
                if (!own)
                    return -ENOMEM;
                for (uint64_t i = before % PAGE; i < before % PAGE + rest; i++)
                    own->value[i] = source;
            }
        }
        for (uint64_t i = map->pages; i < pages; i++)
            table[i] = uniform(source);
    } else {
        for (uint64_t i = pages; i < map->pages; i++)
            give_up(map->table[i]);
    }
    map->count = count;
    map->pages = pages;
    if (pages && count < before)
        settle(map, pages - 1);
    return 0;
}

uint16_t pr_sources_get(const pr_sources *map, uint64_t region)
{
    uintptr_t word = map->table[region / PAGE];
    return is_uniform(word) ? uniform_value(word) : page_of(word)->value[region % PAGE];
}

int pr_sources_set(pr_sources *map, uint64_t first, uint64_t n, uint16_t source)
{
    for (uint64_t part; n; first += part, n -= part) {
        uint64_t index = first / PAGE, at = first % PAGE, length = page_length(map, index);
        part = least(n, length - at);
        uintptr_t word = map->table[index];
        if (is_uniform(word) && uniform_value(word) == source)
            continue;
        if (part == length) {
            give_up(word);
            map->table[index] = uniform(source);
            continue;
        }
        page *own = own_page(map, index);
        if (!own)
            return -ENOMEM;
        for (uint64_t i = at; i < at + part; i++)
            own->value[i] = source;
        settle(map, index);
    }
    return 0;
}

/* These two loops count at most a page, so 16 bits do; -O2 alone would leave them scalar. */
#define VECTORIZED __attribute__((optimize("O3")))

VECTORIZED static uint64_t count_equal(const uint16_t *x, uint16_t value, uint64_t n)
{
    uint16_t count = 0;
    for (uint64_t i = 0; i < n; i++)
        count = (uint16_t)(count + (x[i] == value));
    return count;
}

VECTORIZED static uint64_t count_differing(const uint16_t *x, const uint16_t *y, uint64_t n)
{
    uint16_t count = 0;
    for (uint64_t i = 0; i < n; i++)
        count = (uint16_t)(count + (x[i] != y[i]));
    return count;
}

/* In how many regions of [at, at + n) two pages differ. */
static uint64_t differing(uintptr_t a, uintptr_t b, uint64_t at, uint64_t n)
{
    if (a == b)
        return 0;
    if (is_uniform(a) && is_uniform(b))
        return n;
    if (is_uniform(a))
        return n - count_equal(page_of(b)->value + at, uniform_value(a), n);
    if (is_uniform(b))
        return n - count_equal(page_of(a)->value + at, uniform_value(b), n);
    return count_differing(page_of(a)->value + at, page_of(b)->value + at, n);
}

uint64_t pr_sources_differing(const pr_sources *a, const pr_sources *b, uint64_t first, uint64_t n)
{
    uint64_t total = 0;
    for (uint64_t part; n; first += part, n -= part) {
        part = least(n, PAGE - first % PAGE);
        total += differing(a->table[first / PAGE], b->table[first / PAGE], first % PAGE, part);
    }
    return total;
}

int pr_sources_copy(pr_sources *target, const pr_sources *source, uint64_t first, uint64_t n, uint64_t *changed)
{
    uint64_t different = 0, total = 0;
    int code = 0;
    for (uint64_t part; n; first += part, n -= part) {
        uint64_t index = first / PAGE, at = first % PAGE, length = page_length(target, index);
        uintptr_t to = target->table[index], from = source->table[index];
        part = least(n, length - at);
        different = changed || part < length ? differing(to, from, at, part) : 0;
        if (part == length) {                   /* share even equal pages: the next comparison is then a look */
            target->table[index] = share(from);
            give_up(to);
        } else if (different) {
            page *own = own_page(target, index);
            if (!own) {
                code = -ENOMEM;
                break;
            }
            if (is_uniform(from))
                for (uint64_t i = at; i < at + part; i++)
                    own->value[i] = uniform_value(from);
            else
                memcpy(own->value + at, page_of(from)->value + at, part * sizeof *own->value);
            settle(target, index);
        }
        total += different;
    }
    if (changed)
        *changed = total;
    return code;
}

uint64_t pr_sources_run(const pr_sources *map, uint64_t from, uint64_t most, uint16_t *source)
{
    if (from >= map->count || !most)
        return 0;
    uint64_t end = from + least(most, map->count - from), at = from;
    uint16_t value = pr_sources_get(map, from);
    *source = value;
    while (at < end) {
        uint64_t index = at / PAGE, stop = least(end, (index + 1) * PAGE);
        uintptr_t word = map->table[index];
        if (is_uniform(word)) {
            if (uniform_value(word) != value)
                break;
            at = stop;
            continue;
        }
        const uint16_t *values = page_of(word)->value;
        while (at < stop && values[at % PAGE] == value)
            at++;
        if (at < stop)
            break;
    }
    return at - from;
}

uint64_t pr_sources_find(const pr_sources *map, uint64_t from, uint16_t source, int want, uint64_t most,
                         uint64_t *first)
{
    uint64_t at = from, end;
    uint16_t value = 0;
    want = want != 0;
    for (uint64_t n; (n = pr_sources_run(map, at, UINT64_MAX, &value)) && (value == source) != want; at += n)
        ;
    if (at >= map->count || !most)
        return 0;
    *first = at;
    end = at + least(most, map->count - at);
    for (uint64_t n; at < end && (n = pr_sources_run(map, at, end - at, &value)) && (value == source) == want; at += n)
        ;
    return at - *first;
}

uint64_t pr_sources_count(const pr_sources *map, uint16_t source, uint64_t most)
{
    uint64_t count = 0;
    for (uint64_t i = 0; i < map->pages && count < most; i++) {
        uint64_t length = page_length(map, i);
        uintptr_t word = map->table[i];
        if (is_uniform(word)) {
            count += uniform_value(word) == source ? length : 0;
            continue;
        }
        count += count_equal(page_of(word)->value, source, length);
    }
    return count;
}

int pr_sources_equal(const pr_sources *a, const pr_sources *b)
{
    if (a->count != b->count)
        return 0;
    for (uint64_t i = 0; i < a->pages; i++)
        if (differing(a->table[i], b->table[i], 0, page_length(a, i)))
            return 0;
    return 1;
}

uint64_t pr_sources_memory(const pr_sources *map)
{
    uint64_t bytes = sizeof *map + (map->pages + 1) * sizeof *map->table;
    for (uint64_t i = 0; i < map->pages; i++)
        if (!is_uniform(map->table[i]))
            bytes += sizeof(page) / atomic_load_explicit(&page_of(map->table[i])->owners, memory_order_relaxed);
    return bytes;
}

/* As bytes: version (u16), zeros (u48), regions (u64); then each page: kind (u8) and
 *   UNIFORM  value (u16)
 *   RUNS     number of runs (u16, at least 2), then each: length (u16), value (u16); neighbours differ
 *   VALUES   a u16 for each region of the page
 */
enum { VERSION = 1, HEADER = 16, UNIFORM = 0, RUNS = 1, VALUES = 2 };

static uint8_t *put16(uint8_t *into, uint16_t value)
{
    memcpy(into, &value, 2);
    return into + 2;
}

static uint16_t take16(const uint8_t *from)
{
    uint16_t value;
    memcpy(&value, from, 2);
    return value;
}

size_t pr_sources_encoded_bound(const pr_sources *map)
{
    size_t bound = HEADER;
    for (uint64_t i = 0; i < map->pages; i++)
        bound += is_uniform(map->table[i]) ? 3 : 1 + 2 * PAGE;
    return bound;
}

size_t pr_sources_encode(const pr_sources *map, uint8_t *into)
{
    uint8_t *at = into;
    memset(at, 0, HEADER);
    put16(at, VERSION);
    memcpy(at + 8, &map->count, 8);
    at += HEADER;
    for (uint64_t i = 0; i < map->pages; i++) {
        uintptr_t word = map->table[i];
        if (is_uniform(word)) {
            *at++ = UNIFORM;
            at = put16(at, uniform_value(word));
            continue;
        }
        const uint16_t *value = page_of(word)->value;
        uint64_t length = page_length(map, i), runs = 1;
        for (uint64_t k = 1; k < length; k++)
            runs += value[k] != value[k - 1];
        if (runs == 1) {                        /* may be left by a page that is shared: settled here */
            *at++ = UNIFORM;
            at = put16(at, value[0]);
        } else if (2 + 4 * runs < 2 * length) {
            *at++ = RUNS;
            at = put16(at, (uint16_t)runs);
            for (uint64_t k = 0, from = 0; k < length; from = k) {
                while (k < length && value[k] == value[from])
                    k++;
                at = put16(put16(at, (uint16_t)(k - from)), value[from]);
            }
        } else {
            *at++ = VALUES;
            memcpy(at, value, length * sizeof *value);
            at += length * sizeof *value;
        }
    }
    return (size_t)(at - into);
}

/* One page from its bytes; how many were taken, 0: malformed or no memory. */
static size_t decode_page(pr_sources *map, uint64_t index, const uint8_t *from, size_t left)
{
    uint64_t length = page_length(map, index), filled = 0;
    if (left < 3)
        return 0;
    uint16_t number = take16(from + 1);
    if (from[0] == UNIFORM) {
        map->table[index] = uniform(number);
        return 3;
    }
    size_t taken = from[0] == RUNS ? 3 + 4 * (size_t)number : 1 + 2 * length;
    if ((from[0] != RUNS && from[0] != VALUES) || taken > left || (from[0] == RUNS && number < 2))
        return 0;
    page *own = own_page(map, index);
    if (!own)
        return 0;
    if (from[0] == VALUES) {
        memcpy(own->value, from + 1, 2 * length);
        settle(map, index);
        return taken;
    }
    for (uint32_t k = 0; k < number; k++) {
        uint16_t n = take16(from + 3 + 4 * k), value = take16(from + 5 + 4 * k);
        if (!n || n > length - filled || (filled && own->value[filled - 1] == value))
            return 0;
        for (uint64_t end = filled + n; filled < end; filled++)
            own->value[filled] = value;
    }
    return filled == length ? taken : 0;
}

pr_sources *pr_sources_decode(const uint8_t *from, size_t length)
{
    uint64_t count, at = HEADER;
    static const uint8_t zeros[6];
    if (length < HEADER || take16(from) != VERSION || memcmp(from + 2, zeros, sizeof zeros))
        return NULL;
    memcpy(&count, from + 8, 8);
    if (pages_for(count) > (length - HEADER) / 3)       /* before any memory is taken for it */
        return NULL;
    pr_sources *map = pr_sources_new(count, 0);
    if (!map)
        return NULL;
    for (uint64_t i = 0; i < map->pages; i++) {
        size_t taken = decode_page(map, i, from + at, length - at);
        if (!taken) {
            pr_sources_free(map);
            return NULL;
        }
        at += taken;
    }
    if (at != length) {
        pr_sources_free(map);
        return NULL;
    }
    return map;
}
