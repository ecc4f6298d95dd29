/* RegionMap: a bit for each region (bits), and above it a bit for each word that is not zero (summary). Decides how a
 * set of regions is kept, walked and written down; must not know what a mark means.
 *
 *   1  A group is 64 words, one word of the summary: 4096 regions. Bits are allocated in whole groups.
 *   2  A bit of the summary is 1 exactly if its word is not zero. Regions at or beyond `size` are never marked.
 *   3  Memory comes zeroed: what was never marked is read and written by nobody, and costs nothing.
 *
 * As bytes (version 1):
 *
 *   u8 form, u64 size, then
 *   form 1  runs in ascending order, each two numbers: the clear regions before it (one less, but for the first run,
 *           for runs never touch) and its length less 1. Numbers are LEB128 in their shortest form.
 *   form 2  the words that `size` needs, 8 bytes each
 *
 * Form 1 is written where it is shorter. A form that is not known belongs to a later version.
 */
#include "regions.h"
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

#define GROUP 64u                       /* words */
#define FEW 12                          /* words in use, up to which a group is walked bit by bit */
#define HEAD 9u                         /* bytes before runs or words */
enum { BY_RUNS = 1, BY_WORDS = 2 };

struct pr_regions {
    uint64_t size, groups;
    uint64_t *bits, *summary;
    void *memory;                       /* in which the bits lie, aligned to a cache line */
};

static uint64_t least(uint64_t a, uint64_t b) { return a < b ? a : b; }
static uint64_t words_for(uint64_t regions) { return regions / 64 + (regions % 64 != 0); }
static uint64_t from_bit(uint64_t bit) { return ~0ull << bit; }                 /* bit: 0 to 63 */
static uint64_t to_bit(uint64_t bit) { return ~0ull >> (63 - bit); }            /* that bit included */
static uint64_t lowest(uint64_t word) { return (uint64_t)__builtin_ctzll(word); }
static int is_few(uint64_t summary)
{
    for (int n = 0; n < FEW && summary; n++)
        summary &= summary - 1;
    return !summary;
}

pr_regions *pr_regions_new(uint64_t count)
{
    pr_regions *map = calloc(1, sizeof *map);
    if (!map)
        return NULL;
    map->size = count;
    map->groups = words_for(words_for(count));
    map->memory = calloc(map->groups + 1, GROUP * sizeof *map->bits);
    map->bits = (uint64_t *)(((uintptr_t)map->memory + 63) & ~(uintptr_t)63);
    map->summary = calloc(map->groups + 1, sizeof *map->summary);
    if (!map->memory || !map->summary) {
        pr_regions_free(map);
        return NULL;
    }
    return map;
}

void pr_regions_free(pr_regions *map)
{
    if (!map)
        return;
    free(map->memory);
    free(map->summary);
    free(map);
}

uint64_t pr_regions_size(const pr_regions *map) { return map->size; }
const uint64_t *pr_regions_words(const pr_regions *map) { return map->bits; }
int pr_regions_test(const pr_regions *map, uint64_t region) { return map->bits[region / 64] >> region % 64 & 1; }

static void put(pr_regions *map, uint64_t word, uint64_t value)
{
    uint64_t *summary = &map->summary[word / GROUP], bit = 1ull << word % GROUP;
    map->bits[word] = value;
    *summary = value ? *summary | bit : *summary & ~bit;
}

void pr_regions_mark(pr_regions *map, uint64_t first, uint64_t n)
{
    if (!n)
        return;
    uint64_t last = first + n - 1, a = first / 64, b = last / 64, s = a / GROUP, t = b / GROUP;
    uint64_t head = from_bit(first % 64), tail = to_bit(last % 64);
    if (a == b) {
        map->bits[a] |= head & tail;
        map->summary[s] |= 1ull << a % GROUP;
        return;
    }
    map->bits[a] |= head;
    memset(&map->bits[a + 1], 0xff, (b - a - 1) * sizeof *map->bits);
    map->bits[b] |= tail;
    head = from_bit(a % GROUP);
    tail = to_bit(b % GROUP);
    if (s == t) {
        map->summary[s] |= head & tail;
        return;
    }
    map->summary[s] |= head;
    memset(&map->summary[s + 1], 0xff, (t - s - 1) * sizeof *map->summary);
    map->summary[t] |= tail;
}

uint64_t pr_regions_mark_pairs(pr_regions *map, const uint8_t *pairs, uint64_t n)
{
    uint64_t pair[2];
    for (uint64_t i = 0; i < n; i++) {
        memcpy(pair, pairs + i * sizeof pair, sizeof pair);
        if (pair[0] > map->size || pair[1] > map->size - pair[0])
            return i;
    }
    for (uint64_t i = 0; i < n; i++) {
        memcpy(pair, pairs + i * sizeof pair, sizeof pair);
        pr_regions_mark(map, pair[0], pair[1]);
    }
    return n;
}

/* A word of a map that may have ended before. */
static uint64_t word_of(const pr_regions *map, uint64_t word)
{
    return word < map->groups * GROUP ? map->bits[word] : 0;
}

/* into = other on the regions of [first, first + n); other NULL: clear. Untouched groups stay untouched. */
static void become(pr_regions *into, const pr_regions *other, uint64_t first, uint64_t n)
{
    uint64_t last = first + n - 1, a = first / 64, b = last / 64;
    for (uint64_t w = a; w <= b; w++) {
        uint64_t s = w / GROUP, theirs = other && s < other->groups ? other->summary[s] : 0;
        if (!(into->summary[s] | theirs)) {
            w |= GROUP - 1;
            continue;
        }
        if (w % GROUP == 0 && w > a && w + GROUP - 1 < b) {             /* a whole group, and no edge in it */
            if (theirs)
                memcpy(&into->bits[w], &other->bits[w], GROUP * sizeof *into->bits);
            else
                memset(&into->bits[w], 0, GROUP * sizeof *into->bits);
            into->summary[s] = theirs;
            w += GROUP - 1;
            continue;
        }
        uint64_t mask = (w == a ? from_bit(first % 64) : ~0ull) & (w == b ? to_bit(last % 64) : ~0ull);
        uint64_t wanted = theirs ? word_of(other, w) : 0;
        put(into, w, (into->bits[w] & ~mask) | (wanted & mask));
    }
}

void pr_regions_clear(pr_regions *map, uint64_t first, uint64_t n)
{
    if (n)
        become(map, NULL, first, n);
}

void pr_regions_copy_range(pr_regions *into, const pr_regions *other, uint64_t first, uint64_t n)
{
    if (n && into != other)
        become(into, other, first, n);
}

/* ---- whole groups: plain C is the reference, a faster set is chosen when the library is loaded ---- */

static uint64_t count_group(const uint64_t *words)
{
    uint64_t count = 0;
    for (uint32_t i = 0; i < GROUP; i++)
        count += (uint64_t)__builtin_popcountll(words[i]);
    return count;
}

static void unite_group(uint64_t *restrict into, const uint64_t *restrict other)
{
    for (uint32_t i = 0; i < GROUP; i++)
        into[i] |= other[i];
}

/* Returns the summary of what is left. */
static uint64_t subtract_group(uint64_t *restrict from, const uint64_t *restrict other)
{
    uint64_t summary = 0;
    for (uint32_t i = 0; i < GROUP; i++)
        summary |= (uint64_t)((from[i] &= ~other[i]) != 0) << i;
    return summary;
}

static struct {
    uint64_t (*count)(const uint64_t *words);
    void (*unite)(uint64_t *restrict into, const uint64_t *restrict other);
    uint64_t (*subtract)(uint64_t *restrict from, const uint64_t *restrict other);
} group = {count_group, unite_group, subtract_group};

#if defined(__x86_64__)
__attribute__((target("popcnt"))) static uint64_t count_group_popcnt(const uint64_t *words)
{
    uint64_t count = 0;
    for (uint32_t i = 0; i < GROUP; i++)
        count += (uint64_t)__builtin_popcountll(words[i]);
    return count;
}

__attribute__((target("avx512f,avx512vpopcntdq"))) static uint64_t count_group_avx512(const uint64_t *words)
{
    __m512i sum = _mm512_setzero_si512();
    for (uint32_t i = 0; i < GROUP; i += 8)
        sum = _mm512_add_epi64(sum, _mm512_popcnt_epi64(_mm512_loadu_si512(words + i)));
    return (uint64_t)_mm512_reduce_add_epi64(sum);
}

__attribute__((target("avx512f")))
static void unite_group_avx512(uint64_t *restrict into, const uint64_t *restrict other)
{
    for (uint32_t i = 0; i < GROUP; i += 8)
        _mm512_storeu_si512(into + i, _mm512_or_si512(_mm512_loadu_si512(into + i), _mm512_loadu_si512(other + i)));
}

__attribute__((target("avx512f")))
static uint64_t subtract_group_avx512(uint64_t *restrict from, const uint64_t *restrict other)
{
    uint64_t summary = 0;
    for (uint32_t i = 0; i < GROUP; i += 8) {
        __m512i left = _mm512_andnot_si512(_mm512_loadu_si512(other + i), _mm512_loadu_si512(from + i));
        _mm512_storeu_si512(from + i, left);
        summary |= (uint64_t)_mm512_test_epi64_mask(left, left) << i;
    }
    return summary;
}

__attribute__((constructor)) static void choose(void)
{
    __builtin_cpu_init();
    if (__builtin_cpu_supports("popcnt"))
        group.count = count_group_popcnt;
    if (__builtin_cpu_supports("avx512vpopcntdq"))
        group.count = count_group_avx512;
    if (__builtin_cpu_supports("avx512f")) {
        group.unite = unite_group_avx512;
        group.subtract = subtract_group_avx512;
    }
}
#endif

/* ---- counting ---- */

uint64_t pr_regions_count(const pr_regions *map)
{
    uint64_t count = 0;
    for (uint64_t s = 0; s < map->groups; s++) {
        uint64_t left = map->summary[s];
        if (!is_few(left)) {
            count += group.count(&map->bits[s * GROUP]);
            continue;
        }
        for (; left; left &= left - 1)
            count += (uint64_t)__builtin_popcountll(map->bits[s * GROUP + lowest(left)]);
    }
    return count;
}

int pr_regions_any(const pr_regions *map)
{
    for (uint64_t s = 0; s < map->groups; s++)
        if (map->summary[s])
            return 1;
    return 0;
}

int pr_regions_equal(const pr_regions *a, const pr_regions *b)
{
    if (a->size != b->size || memcmp(a->summary, b->summary, a->groups * sizeof *a->summary))
        return 0;
    for (uint64_t s = 0; s < a->groups; s++)
        if (a->summary[s] && memcmp(&a->bits[s * GROUP], &b->bits[s * GROUP], GROUP * sizeof *a->bits))
            return 0;
    return 1;
}

/* ---- walking ---- */

/* The first word at or after `word` that is not zero; groups * GROUP: none. */
static uint64_t next_word(const pr_regions *map, uint64_t word)
{
    uint64_t s = word / GROUP;
    if (s >= map->groups)
        return map->groups * GROUP;
    uint64_t left = map->summary[s] & from_bit(word % GROUP);
    while (!left) {
        if (++s >= map->groups)
            return map->groups * GROUP;
        left = map->summary[s];
    }
    return s * GROUP + lowest(left);
}

uint64_t pr_regions_next(const pr_regions *map, uint64_t from, uint64_t most, uint64_t *first)
{
    if (from >= map->size || !most)
        return 0;
    const uint64_t words = words_for(map->size);
    uint64_t w = from / 64, marked = map->bits[w] & from_bit(from % 64);
    if (!marked) {
        if ((w = next_word(map, w + 1)) >= words)
            return 0;
        marked = map->bits[w];
    }
    uint64_t start = w * 64 + lowest(marked), clear = ~map->bits[w] & from_bit(start % 64);
    while (!clear) {
        if (++w >= words || w * 64 - start >= most)
            break;
        clear = ~map->bits[w];
    }
    uint64_t end = clear ? w * 64 + lowest(clear) : w * 64;
    *first = start;
    return least(least(end, map->size) - start, most);
}

/* ---- two maps ---- */

/* Clears what lies beyond the size in the last group. */
static void trim(pr_regions *map)
{
    const uint64_t words = words_for(map->size), end = map->groups * GROUP;
    if (map->size % 64)
        put(map, words - 1, map->bits[words - 1] & to_bit(map->size % 64 - 1));
    for (uint64_t w = words; w < end; w++)
        put(map, w, 0);
}

void pr_regions_union(pr_regions *into, const pr_regions *other)
{
    if (into == other)
        return;
    const uint64_t groups = least(into->groups, other->groups);
    for (uint64_t s = 0; s < groups; s++) {
        const uint64_t theirs = other->summary[s];
        if (!theirs)
            continue;
        uint64_t *ours = &into->bits[s * GROUP];
        const uint64_t *words = &other->bits[s * GROUP];
        if (is_few(theirs))
            for (uint64_t left = theirs; left; left &= left - 1)
                ours[lowest(left)] |= words[lowest(left)];
        else
            group.unite(ours, words);
        into->summary[s] |= theirs;
    }
    if (other->size > into->size)
        trim(into);
}

void pr_regions_subtract(pr_regions *from, const pr_regions *other)
{
    if (from == other) {
        pr_regions_clear(from, 0, from->size);
        return;
    }
    const uint64_t groups = least(from->groups, other->groups);
    for (uint64_t s = 0; s < groups; s++) {
        uint64_t both = from->summary[s] & other->summary[s];
        if (!both)
            continue;
        if (is_few(both)) {
            for (uint64_t w; both; both &= both - 1) {
                w = s * GROUP + lowest(both);
                put(from, w, from->bits[w] & ~other->bits[w]);
            }
            continue;
        }
        from->summary[s] = group.subtract(&from->bits[s * GROUP], &other->bits[s * GROUP]);
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

/* ---- as bytes ---- */

#define NUMBER 10u                      /* bytes of the longest */

/* LEB128 */
static uint64_t put_number(uint8_t *into, uint64_t number)
{
    uint64_t n = 1;
    for (; number >= 128; number >>= 7, n++)
        *into++ = (uint8_t)(number | 128);
    *into = (uint8_t)number;
    return n;
}

/* Its bytes; 0: it ends in the middle, has more than 63 bits, or has a shorter form. */
static uint64_t take_number(const uint8_t *from, uint64_t length, uint64_t *number)
{
    *number = 0;
    for (uint64_t n = 0; n < length && n < 9; n++) {
        *number |= (uint64_t)(from[n] & 127) << 7 * n;
        if (from[n] < 128)
            return n && !from[n] ? 0 : n + 1;
    }
    return 0;
}

/* The runs, from HEAD on; gives up at `most` bytes, and counts without writing where `length` ends. */
static uint64_t encode_runs(const pr_regions *map, uint8_t *into, uint64_t length, uint64_t most)
{
    uint8_t pair[2 * NUMBER];
    uint64_t at = HEAD, end = 0, first, run, n;
    /* looks behind the clear region that ended a run: if another thread marks it now, runs still do not touch */
    while (at < most && (run = pr_regions_next(map, end + (end != 0), UINT64_MAX, &first))) {
        n = put_number(pair, first - end - (end != 0));
        n += put_number(pair + n, run - 1);
        if (at + n <= length)
            memcpy(into + at, pair, n);
        at += n;
        end = first + run;
    }
    return at;
}

/* Tells a map of very many runs, each of which takes two bytes at least, without walking them. */
static uint64_t count_runs(const pr_regions *map)
{
    const uint64_t words = words_for(map->size);
    uint64_t runs = 0;
    for (uint64_t w = next_word(map, 0); w < words; w = next_word(map, w + 1)) {
        uint64_t bits = map->bits[w], before = w ? map->bits[w - 1] >> 63 : 0;
        runs += (uint64_t)__builtin_popcountll(bits & ~(bits << 1 | before));
    }
    return runs;
}

uint64_t pr_regions_encode(const pr_regions *map, uint8_t *into, uint64_t length)
{
    const uint64_t words = words_for(map->size), by_words = HEAD + words * 8;
    uint64_t taken = by_words;
    if (HEAD + 2 * count_runs(map) < by_words)
        taken = encode_runs(map, into, length, by_words);
    const int runs = taken < by_words || !words;
    if (!runs)
        taken = by_words;
    if (taken <= length) {
        into[0] = runs ? BY_RUNS : BY_WORDS;
        memcpy(into + 1, &map->size, 8);
        if (!runs)
            memcpy(into + HEAD, map->bits, words * 8);
    }
    return taken;
}

static int decode_runs(pr_regions *map, const uint8_t *from, uint64_t length)
{
    uint64_t end = 0, gap, run, n;
    for (uint64_t at = 0; at < length; at += n) {
        if (!(n = take_number(from + at, length - at, &gap)))
            return -EINVAL;
        at += n;
        if (!(n = take_number(from + at, length - at, &run)))
            return -EINVAL;
        gap += end != 0;
        if (gap >= map->size - end || run >= map->size - end - gap)
            return -EINVAL;
        pr_regions_mark(map, end + gap, run + 1);
        end += gap + run + 1;
    }
    return 0;
}

static int decode_words(pr_regions *map, const uint8_t *from, uint64_t length)
{
    const uint64_t words = words_for(map->size);
    uint64_t word = 0;
    if (length != words * 8)
        return -EINVAL;
    for (uint64_t w = 0; w < words; w++) {
        memcpy(&word, from + w * 8, 8);
        if (word)
            put(map, w, word);
    }
    return map->size % 64 && word & ~to_bit(map->size % 64 - 1) ? -EINVAL : 0;
}

int pr_regions_decode(const uint8_t *from, uint64_t length, pr_regions **map)
{
    uint64_t size;
    if (length < HEAD || (from[0] != BY_RUNS && from[0] != BY_WORDS))
        return -EINVAL;
    memcpy(&size, from + 1, 8);
    if (size > PR_MAX_REGIONS || (from[0] == BY_WORDS && length - HEAD != words_for(size) * 8))
        return -EINVAL;
    pr_regions *made = pr_regions_new(size);
    if (!made)
        return -ENOMEM;
    int code = (from[0] == BY_RUNS ? decode_runs : decode_words)(made, from + HEAD, length - HEAD);
    if (code) {
        pr_regions_free(made);
        return code;
    }
    *map = made;
    return 0;
}
