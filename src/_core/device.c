/* What all devices have in common: checks, counters, and when a flush is needed.
 *
 * Decides: which lists are refused before they reach a disk; when a device has failed. Must not know files, rings or
 * Python.
 */
#include "device.h"
#include "layout.h"
#include <errno.h>
#include <stddef.h>

/* Memory needs the alignment of the sector, not more: readers fill the blocks that the window lacks in place. */
static int aligned(const void *memory, uint32_t sector) { return ((uintptr_t)memory & (sector - 1)) == 0; }

/* Is this I/O one that the device can be asked for? */
static int check(const pr_device *device, const pr_io *io)
{
    const uint32_t sector = device->sector;
    if (io->op < PR_READ || io->op > PR_DISCARD_OUT || (io->flags & ~PR_FUA))
        return -EINVAL;
    if (!io->length || io->length % sector || io->offset % sector)
        return -EINVAL;
    if (io->length > device->size || io->offset > device->size - io->length)
        return -EINVAL;
    if (io->op == PR_ZERO_OUT || io->op == PR_DISCARD_OUT)
        return 0;
    if (!io->parts)
        return io->buffer && aligned(io->buffer, sector) ? 0 : -EINVAL;
    uint64_t rest = io->length;
    for (uint32_t i = 0; i < io->parts; i++) {
        const struct iovec *part = &io->vector[i];
        if (!part->iov_len || part->iov_len % sector || part->iov_len > rest || !aligned(part->iov_base, sector))
            return -EINVAL;
        rest -= part->iov_len;
    }
    return rest ? -EINVAL : 0;
}

/* Nothing is done: the ios that are to blame get `code`, the others say that they were called off. */
static int refuse(pr_device *device, pr_io *ios, uint32_t count, int code, int (*blame)(const pr_device *,
                                                                                        const pr_io *))
{
    for (uint32_t i = 0; i < count; i++)
        ios[i].result = !blame || blame(device, &ios[i]) ? code : -ECANCELED;
    return code;
}

static void mark_failed(pr_device *device, int code)
{
    int none = 0;
    atomic_compare_exchange_strong(&device->failed, &none, code);
}

int pr_device_perform(pr_device *device, pr_io *ios, uint32_t count)
{
    uint64_t reads = 0, written = 0;
    int writes = 0, fua = 0;
    for (uint32_t i = 0; i < count; i++) {
        if (check(device, &ios[i]))
            return refuse(device, ios, count, -EINVAL, check);
        if (ios[i].op == PR_READ)
            reads += ios[i].length;
        else
            writes = 1;
        if (ios[i].op == PR_WRITE_OUT || ios[i].op == PR_ZERO_OUT)
            written += ios[i].length;
        fua |= ios[i].flags & PR_FUA;
    }
    if (!count)
        return 0;
    if (writes && atomic_load(&device->failed))
        return refuse(device, ios, count, -EIO, NULL);
    if (writes)
        atomic_fetch_add(&device->writes, 1);
    int code = device->perform(device, ios, count);
    /* Counted again now that they are complete: a flush that began in between does not cover them, and must not make
     * pr_device_flush believe so. */
    if (writes)
        atomic_fetch_add(&device->writes, 1);
    atomic_fetch_add(&device->bytes_read, reads);
    atomic_fetch_add(&device->bytes_written, written);
    if (code && fua)                    /* a flush was part of it, and may be what failed */
        for (uint32_t i = 0; i < count; i++)
            if ((ios[i].flags & PR_FUA) && ios[i].result == -EIO)
                mark_failed(device, -EIO);
    return code;
}

int pr_device_flush(pr_device *device)
{
    int failed = atomic_load(&device->failed);
    if (failed)
        return failed;
    uint64_t begun = atomic_load(&device->writes), flushed = atomic_load(&device->flushed);
    if (flushed >= begun)
        return 0;
    int code = device->flush(device);
    atomic_fetch_add(&device->flushes, 1);
    if (code) {
        mark_failed(device, code);
        return code;
    }
    /* another's flush failed meanwhile: ours may have succeeded over lost data */
    failed = atomic_load(&device->failed);
    if (failed)
        return failed;
    while (flushed < begun && !atomic_compare_exchange_weak(&device->flushed, &flushed, begun))
        ;
    return 0;
}

int pr_device_read(pr_device *device, uint64_t offset, void *buffer, uint64_t length)
{
    if (!length)
        return 0;
    pr_io io = { .op = PR_READ, .offset = offset, .length = length, .buffer = buffer };
    return pr_device_perform(device, &io, 1);
}

int pr_device_write(pr_device *device, uint64_t offset, const void *buffer, uint64_t length, int flags)
{
    if (!length)
        return 0;
    pr_io io = { .op = PR_WRITE_OUT, .flags = (uint8_t)flags, .offset = offset, .length = length,
                .buffer = (void *)buffer };
    return pr_device_perform(device, &io, 1);
}
