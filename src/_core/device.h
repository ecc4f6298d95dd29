/* The device seam: the only way to a disk. A real device is an O_DIRECT file or block device (device_file.c, with
 * io_uring or threads behind it); tests put their own behind the same table. Calls block and are made without the GIL.
 *
 *   1  perform() carries out all I/Os of a list at full queue depth, in any order, and returns when all are complete.
 *      Short transfers and EINTR are finished inside. The first error is returned as -errno; every io has its result.
 *   2  A completed write survives the process; it survives power loss after a flush that began when it was complete,
 *      or if PR_FUA was set on it.
 *   3  After a failed flush the device is failed for good: data may be gone although the next flush would succeed.
 *   4  Offsets and lengths are multiples of the sector size, memory is aligned to it (PR_BLOCK always is). Callers
 *      see to it; pr_device_perform checks, and refuses the whole list if one I/O is wrong (the others: -ECANCELED).
 *   5  A device that was just opened counts as written: a process before this one may have left writes that no flush
 *      covers.
 */
#ifndef PYREPL_DEVICE_H
#define PYREPL_DEVICE_H

#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/uio.h>

enum { PR_READ = 1, PR_WRITE_OUT = 2, PR_ZERO_OUT = 3, PR_DISCARD_OUT = 4 };   /* pr_io.op */
enum { PR_FUA = 1 };                                                           /* pr_io.flags */

typedef struct pr_io {
    uint8_t op;
    uint8_t flags;
    uint16_t parts;                     /* 0: `buffer`, length bytes; else that many iovecs at `vector` */
    int32_t result;                     /* 0 or -errno */
    uint64_t offset;
    uint64_t length;                    /* bytes of the whole I/O */
    union { void *buffer; struct iovec *vector; };
} pr_io;

typedef struct pr_device pr_device;
struct pr_device {
    int (*perform)(pr_device *device, pr_io *ios, uint32_t count);
    int (*flush)(pr_device *device);
    /* Optional. Whether [offset, offset + *length) begins with a hole, which reads as zeros and takes no space (1), or
     * with what was written (0); *length becomes how far that goes. */
    int (*hole)(pr_device *device, uint64_t offset, uint64_t *length);
    void *self;                         /* the implementation's */
    uint64_t size;                      /* bytes; a file may grow (stores_resize sets it) */
    uint32_t sector;                    /* 512 or 4096 */
    _Atomic int failed;                 /* -errno of the flush that failed, 0 */
    _Atomic uint64_t writes;            /* grows when a list with writes is issued, and again when it is complete */
    _Atomic uint64_t flushed;           /* `writes` as it was when the last successful flush began */
    _Atomic uint64_t bytes_read, bytes_written, flushes;
};

/* Checks ranges and alignment (-EINVAL), refuses writes of a failed device (-EIO), counts, and calls perform. */
int pr_device_perform(pr_device *device, pr_io *ios, uint32_t count);
/* Flushes if anything was written since the last flush began; marks the device failed if the flush fails. */
int pr_device_flush(pr_device *device);
/* See pr_device.hole; 0 for a device that does not know. */
static inline int pr_device_hole(pr_device *device, uint64_t offset, uint64_t *length)
{
    return device->hole ? device->hole(device, offset, length) : 0;
}
int pr_device_read(pr_device *device, uint64_t offset, void *buffer, uint64_t length);
int pr_device_write(pr_device *device, uint64_t offset, const void *buffer, uint64_t length, int flags);

#endif
