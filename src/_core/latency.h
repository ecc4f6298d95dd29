/* Latencies, counted where they arise: a histogram of powers of two that any thread may add to without a lock.
 *
 * Bucket i counts what took less than 2^(i + PR_LATENCY_FIRST) ns and not less than half of it; the last one all the rest.
 */
#ifndef PYREPL_LATENCY_H
#define PYREPL_LATENCY_H

#include <stdatomic.h>
#include <stdint.h>
#include <time.h>

#define PR_LATENCY_FIRST 12             /* log2 of the first bucket's upper bound in ns: 4 us */
#define PR_LATENCY_BUCKETS 24u          /* the last bound is 2^35 ns, 34 s */

typedef struct pr_latency {
    _Atomic uint64_t buckets[PR_LATENCY_BUCKETS];
    _Atomic uint64_t total_ns;
} pr_latency;

static inline uint64_t pr_now(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);       /* no system call */
    return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

static inline void pr_latency_add(pr_latency *latency, uint64_t ns)
{
    int bits = ns ? 64 - __builtin_clzll(ns) : 0;
    uint32_t i = bits <= PR_LATENCY_FIRST ? 0 : (uint32_t)(bits - PR_LATENCY_FIRST);
    atomic_fetch_add_explicit(&latency->buckets[i < PR_LATENCY_BUCKETS ? i : PR_LATENCY_BUCKETS - 1], 1,
                              memory_order_relaxed);
    atomic_fetch_add_explicit(&latency->total_ns, ns, memory_order_relaxed);
}

#endif
