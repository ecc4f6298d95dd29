/* RegionMap: a bit for each region (words), and above it a bit for each word that is not zero (summary), so that walking a sparse
 * map skips 4096 clear regions at a look. Memory comes zeroed from the kernel: what is never marked costs none. */
#include "regions.h"
#include <errno.h>
#include <stdlib.h>
#include <string.h>

struct pr_regions {
    uint64_t size;
    uint64_t words, summary_words;
    uint64_t *bits, *summary;
};

static uint64_t words_for(uint64_t bits) { return bits / 64 + (bits % 64 != 0); }
static uint64_t least(uint64_t a, uint64_t b) { return a < b ? a : b; }
static uint64_t low_bits(uint64_t n) { return n >= 64 ? ~0ull : (1ull << n) - 1; }

pr_regions *pr_regions_new(uint64_t count)
{
    pr_regions *map = calloc(1, sizeof *map);
    if (!map)
        return NULL;
    map->size = count;
    map->words = words_for(count);
    map->summary_words = words_for(map->words);
    map->bits = calloc(map->words + 1, sizeof *map->bits);
    map->summary = calloc(map->summary_words + 1, sizeof *map->summary);
    if (!map->bits || !map->summary) {
        pr_regions_free(map);
        return NULL;
    }
    return map;
}

void pr_regions_free(pr_regions *map)
{
    if (!map)
        return;
    free(map->bits);
    free(map->summary);
    free(map);
}

uint64_t pr_regions_size(const pr_regions *map) { return map->size; }
const uint64_t *pr_regions_words(const pr_regions *map) { return map->bits; }

static void set_summary(pr_regions *map, uint64_t first, uint64_t last)
{
    for (uint64_t w = first / 64; w <= last / 64; w++) {
        uint64_t from = w == first / 64 ? first % 64 : 0, to = w == last / 64 ? last % 64 : 63;
        map->summary[w] |= low_bits(to - from + 1) << from;
    }
}

static void put(pr_regions *map, uint64_t word, uint64_t value)
{
    map->bits[word] = value;
    if (value)
        map->summary[word / 64] |= 1ull << word % 64;
    else
        map->summary[word / 64] &= ~(1ull << word % 64);
}

void pr_regions_mark(pr_regions *map, uint64_t first, uint64_t n)
{
    if (!n)
        return;
    uint64_t last = first + n - 1, a = first / 64, b = last / 64;
    uint64_t head = ~0ull << first % 64, tail = low_bits(last % 64 + 1);
    if (a == b) {
        map->bits[a] |= head & tail;
        map->summary[a / 64] |= 1ull << a % 64;
        return;
    }
    map->bits[a] |= head;
    if (b - a > 1)
        memset(&map->bits[a + 1], 0xff, (b - a - 1) * sizeof *map->bits);
    map->bits[b] |= tail;
    set_summary(map, a, b);
}

void pr_regions_clear(pr_regions *map, uint64_t first, uint64_t n)
{
    if (!n)
        return;
    uint64_t last = first + n - 1, a = first / 64, b = last / 64;
    for (uint64_t w = a; w <= b; w++) {
        if (!(map->summary[w / 64] >> w % 64)) {        /* nothing is marked up to the end of these 64 words */
            w |= 63;
            continue;
        }
        uint64_t mask = (w == a ? ~0ull << first % 64 : ~0ull) & (w == b ? low_bits(last % 64 + 1) : ~0ull);
        put(map, w, map->bits[w] & ~mask);
    }
}

int pr_regions_test(const pr_regions *map, uint64_t region) { return map->bits[region / 64] >> region % 64 & 1; }

uint64_t pr_regions_count(const pr_regions *map)
{
    uint64_t count = 0;
    for (uint64_t s = 0; s < map->summary_words; s++)
        for (uint64_t left = map->summary[s]; left; left &= left - 1)
            count += (uint64_t)__builtin_popcountll(map->bits[s * 64 + (uint64_t)__builtin_ctzll(left)]);
    return count;
}

int pr_regions_any(const pr_regions *map)
{
    for (uint64_t s = 0; s < map->summary_words; s++)
        if (map->summary[s])
            return 1;
    return 0;
}

/* The first word at or after `word` that is not zero; map->words: none. */
static uint64_t next_word(const pr_regions *map, uint64_t word)
{
    uint64_t s = word / 64;
    if (s >= map->summary_words)
        return map->words;
    uint64_t left = map->summary[s] & ~0ull << word % 64;
    while (!left) {
        if (++s >= map->summary_words)
            return map->words;
        left = map->summary[s];
    }
    return s * 64 + (uint64_t)__builtin_ctzll(left);
}

uint64_t pr_regions_next(const pr_regions *map, uint64_t from, uint64_t most, uint64_t *first)
{
    if (from >= map->size || !most)
        return 0;
    uint64_t w = from / 64, bits = map->bits[w] & ~0ull << from % 64;
    if (!bits) {
        w = next_word(map, w + 1);
        if (w >= map->words)
            return 0;
        bits = map->bits[w];
    }
    uint64_t start = w * 64 + (uint64_t)__builtin_ctzll(bits), end;
    uint64_t clear = ~map->bits[w] & ~0ull << start % 64;
    while (!clear) {
        if (++w >= map->words || w * 64 - start >= most)
            break;
        clear = ~map->bits[w];
    }
    end = clear ? w * 64 + (uint64_t)__builtin_ctzll(clear) : w * 64;
    *first = start;
    return least(least(end, map->size) - start, most);
}

void pr_regions_union(pr_regions *into, const pr_regions *other)
{
    uint64_t words = least(into->words, other->words);
    for (uint64_t w = next_word(other, 0); w < words; w = next_word(other, w + 1)) {
        uint64_t value = other->bits[w];
        if (w * 64 + 64 > into->size)
            value &= low_bits(into->size - w * 64);
        if (value)
            put(into, w, into->bits[w] | value);
    }
}

void pr_regions_subtract(pr_regions *from, const pr_regions *other)
{
    uint64_t words = least(from->words, other->words);
    for (uint64_t w = next_word(from, 0); w < words; w = next_word(from, w + 1))
        put(from, w, from->bits[w] & ~other->bits[w]);
}

void pr_regions_copy_range(pr_regions *into, const pr_regions *other, uint64_t first, uint64_t n)
{
    uint64_t end = first + n, at = first, start, run;
    pr_regions_clear(into, first, n);
    while (at < end && (run = pr_regions_next(other, at, end - at, &start)) && start < end) {
        run = least(run, end - start);
        pr_regions_mark(into, start, run);
        at = start + run;
    }
}

int pr_regions_resize(pr_regions *map, uint64_t count)
{
    pr_regions *other = pr_regions_new(count);
    if (!other)
        return -ENOMEM;
    pr_regions_union(other, map);
    pr_regions old = *map;
    *map = *other;
    *other = old;
    pr_regions_free(other);
    return 0;
}
