/* A file or block device behind the seam, and the engines that carry out its lists. Only device*.c and device.pyx use
 * this. */
#ifndef PYREPL_DEVICE_FILE_H
#define PYREPL_DEVICE_FILE_H

#include "device.h"
#include <stdbool.h>

enum { PR_ENGINE_AUTO = 0, PR_ENGINE_URING = 1, PR_ENGINE_THREADS = 2 };
enum { PR_FILE_WRITABLE = 1, PR_FILE_EXCLUSIVE = 2, PR_FILE_DIRECT = 4 };
#define PR_MAX_DEPTH 128u               /* entries of a ring: no list has more in flight */

/* Opens `path` and fills `device`. 0, or -errno with *why: a clause for people, or NULL if errno says enough. */
int pr_file_open(pr_device *device, const char *path, int flags, int engine, uint32_t depth, const char **why);
/* Waits until no call is inside, then closes; what is called afterwards says -ESHUTDOWN. A second close is harmless. */
void pr_file_close(pr_device *device);
void pr_file_free(pr_device *device);           /* after close */
int pr_file_resize(pr_device *device, uint64_t size);
int pr_file_engine(const pr_device *device);    /* PR_ENGINE_URING or PR_ENGINE_THREADS */

/* One I/O by plain system calls, from byte `done` on; sets and returns its result. */
int pr_file_one(int fd, bool block, pr_io *io, uint64_t done);

/* Is io_uring to be had? Asked once per process. 0, or -errno with *step: what refused. */
int pr_uring_probe(const char **step);
/* Reads and writes of the list; the rest is skipped. -ENOSYS: no ring can be had now, nothing was begun. */
int pr_uring_perform(int fd, bool block, pr_io *ios, uint32_t count, uint32_t depth);
/* Everything in the list, by up to `depth` threads, the caller's among them. */
void pr_threads_perform(int fd, bool block, pr_io *ios, uint32_t count, uint32_t depth);

#endif
