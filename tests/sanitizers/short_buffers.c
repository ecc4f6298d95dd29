/* pr_regions_encode into buffers of every length, each allocated to the byte, so that AddressSanitizer sees a byte too
 * many. Decides: which maps. What the bytes must be is decided in tests/core/test_regions.py. */
#include "regions.h"
#include <stdio.h>
#include <stdlib.h>

static int check(const pr_regions *map, const char *name)
{
    const uint64_t needed = pr_regions_encode(map, NULL, 0);
    for (uint64_t length = 0; length < needed + 3; length++) {
        uint8_t *into = malloc(length);
        pr_regions *again = NULL;
        int good = into && pr_regions_encode(map, into, length) == needed;
        if (good && length >= needed)
            good = !pr_regions_decode(into, needed, &again) && pr_regions_equal(map, again);
        pr_regions_free(again);
        free(into);
        if (!good) {
            printf("%s: wrong at %llu of %llu bytes\n", name, (unsigned long long)length, (unsigned long long)needed);
            return 1;
        }
    }
    return 0;
}

int main(void)
{
    pr_regions *nothing = pr_regions_new(0), *empty = pr_regions_new(10000), *full = pr_regions_new(10000);
    pr_regions *sparse = pr_regions_new(1ull << 30), *dense = pr_regions_new(10001);
    if (!nothing || !empty || !full || !sparse || !dense)
        return 2;
    pr_regions_mark(full, 0, 10000);
    for (uint64_t i = 0; i < 30; i++)                   /* numbers of one byte up to five */
        pr_regions_mark(sparse, 1ull << i, i % 3 ? 1 : (1ull << i) / 2 + 1);
    for (uint64_t i = 0; i < 10001; i += 2)
        pr_regions_mark(dense, i, 1);
    int wrong = check(nothing, "nothing") + check(empty, "empty") + check(full, "full")
              + check(sparse, "sparse") + check(dense, "dense");
    pr_regions_free(nothing), pr_regions_free(empty), pr_regions_free(full);
    pr_regions_free(sparse), pr_regions_free(dense);
    return wrong;
}
