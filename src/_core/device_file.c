/* Files and block devices, O_DIRECT.
 *
 * Decides: how a device is opened, locked and measured; what zero, discard and flush are on it; which engine takes a
 * list.
 * Must not know Python, journals or what the bytes mean.
 */
#define _GNU_SOURCE
#include "device_file.h"
#include "buffers.h"
#include "layout.h"
#include <errno.h>
#include <fcntl.h>
#include <linux/falloc.h>
#include <linux/fs.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

#ifndef RWF_DSYNC
#define RWF_DSYNC 2
#endif

#define PARTS 64                        /* iovecs of one plain system call */
#define LONGEST (1u << 30)              /* bytes of one system call; the kernel's own limit is just below 2 GiB */
/* bytes of zeros that are written at a time where the kernel cannot zero by itself */
#define ZEROS (1u << 20)

struct file {
    int fd, engine;
    bool block, strict;                 /* strict: io_uring was asked for by name, nothing else will do */
    uint32_t depth;
    pthread_mutex_t lock;
    pthread_cond_t idle;
    uint32_t users;                     /* calls inside; close waits for them, or its number would be another file's */
    bool closed;
    pthread_mutex_t flushing;           /* the kernel tells an error to one caller only: flushes go one at a time */
    int flush_error;
};

/* ---- opening --------------------------------------------------------------------------------------------------- */

/* struct statx as far as we need it: headers of old build images lack the two fields on direct I/O. */
struct statx_head {
    uint32_t mask, blksize;
    uint8_t between[144];
    uint32_t dio_mem_align, dio_offset_align;
    uint8_t rest[96];
};
_Static_assert(offsetof(struct statx_head, dio_mem_align) == 152 && sizeof(struct statx_head) == 256, "statx");
#define WANT_DIOALIGN 0x2000u

/* What direct I/O on this file must be aligned to: 512, or 4096 where the file system says more; 0: more than we can
 * do. */
static uint32_t file_sector(int fd)
{
    struct statx_head answer;
    memset(&answer, 0, sizeof answer);
    if (syscall(SYS_statx, fd, "", AT_EMPTY_PATH, WANT_DIOALIGN, &answer) || !(answer.mask & WANT_DIOALIGN))
        return 512;
    uint32_t need = answer.dio_mem_align > answer.dio_offset_align ? answer.dio_mem_align : answer.dio_offset_align;
    return need <= 512 ? 512 : need <= PR_BLOCK ? PR_BLOCK : 0;
}

/* Size and sector of what is open. */
static int measure(pr_device *device, struct file *file, bool direct, const char **why)
{
    struct stat st;
    if (fstat(file->fd, &st))
        return -errno;
    file->block = S_ISBLK(st.st_mode);
    if (file->block) {
        int sector = 0;
        uint64_t size = 0;
        if (ioctl(file->fd, BLKSSZGET, &sector) || ioctl(file->fd, BLKGETSIZE64, &size))
            return -errno;
        if (sector != 512 && sector != (int)PR_BLOCK) {
            *why = "its sectors are neither 512 nor 4096 bytes";
            return -EINVAL;
        }
        device->sector = (uint32_t)sector;
        device->size = size;
        return 0;
    }
    if (!S_ISREG(st.st_mode)) {
        *why = "neither a regular file nor a block device";
        return -EINVAL;
    }
    device->sector = direct ? file_sector(file->fd) : 512;
    if (!device->sector) {
        *why = "its file system wants direct I/O aligned to more than 4096 bytes";
        return -EINVAL;
    }
    device->size = (uint64_t)st.st_size / device->sector * device->sector;
    return 0;
}

static int open_locked(struct file *file, const char *path, int flags, const char **why)
{
    struct stat st;
    int mode = O_CLOEXEC | O_NOCTTY | (flags & PR_FILE_WRITABLE ? O_RDWR : O_RDONLY);
    if (flags & PR_FILE_DIRECT)
        mode |= O_DIRECT;
    if (stat(path, &st))
        return -errno;
    /* before it is opened: opening a device node may do things */
    if (!S_ISREG(st.st_mode) && !S_ISBLK(st.st_mode)) {
        *why = "neither a regular file nor a block device";
        return -EINVAL;
    }
    if (S_ISBLK(st.st_mode) && (flags & PR_FILE_EXCLUSIVE))
        mode |= O_EXCL;
    file->fd = open(path, mode);
    if (file->fd < 0) {
        int code = -errno;
        if (code == -EBUSY)
            *why = "in use: mounted, or held by another process or by the kernel";
        if (code == -EINVAL && (flags & PR_FILE_DIRECT))
            *why = "its file system has no direct I/O (direct=False does without)";
        return code;
    }
    if ((flags & PR_FILE_EXCLUSIVE) && flock(file->fd, LOCK_EX | LOCK_NB)) {
        int code = -errno;
        if (code != -EWOULDBLOCK)
            return code;
        *why = "in use by another process (or opened twice by this one)";
        return -EBUSY;
    }
    return 0;
}

static int perform(pr_device *device, pr_io *ios, uint32_t count);
static int flush(pr_device *device);
static int hole(pr_device *device, uint64_t offset, uint64_t *length);

int pr_file_open(pr_device *device, const char *path, int flags, int engine, uint32_t depth, const char **why)
{
    const char *step;
    *why = NULL;
    int code = engine == PR_ENGINE_THREADS ? -ENOSYS : pr_uring_probe(&step);
    if (code && engine == PR_ENGINE_URING) {
        *why = "engine=\"io_uring\" was asked for, but the kernel refuses it (probe() says why)";
        return code;
    }
    struct file *file = calloc(1, sizeof *file);
    if (!file)
        return -ENOMEM;
    file->engine = code ? PR_ENGINE_THREADS : PR_ENGINE_URING;
    file->strict = engine == PR_ENGINE_URING;
    file->depth = depth;
    file->fd = -1;
    code = open_locked(file, path, flags, why);
    if (!code)
        code = measure(device, file, flags & PR_FILE_DIRECT, why);
    if (code) {
        if (file->fd >= 0)
            close(file->fd);
        free(file);
        return code;
    }
    pthread_mutex_init(&file->lock, NULL);
    pthread_mutex_init(&file->flushing, NULL);
    pthread_cond_init(&file->idle, NULL);
    device->self = file;
    device->perform = perform;
    device->flush = flush;
    device->hole = file->block ? NULL : hole;
    return 0;
}

/* ---- coming and going ------------------------------------------------------------------------------------------ */

static bool enter(struct file *file)
{
    pthread_mutex_lock(&file->lock);
    bool open = !file->closed;
    file->users += open;
    pthread_mutex_unlock(&file->lock);
    return open;
}

static void leave(struct file *file)
{
    pthread_mutex_lock(&file->lock);
    if (!--file->users && file->closed)
        pthread_cond_broadcast(&file->idle);
    pthread_mutex_unlock(&file->lock);
}

void pr_file_close(pr_device *device)
{
    struct file *file = device->self;
    pthread_mutex_lock(&file->lock);
    file->closed = true;
    while (file->users)
        pthread_cond_wait(&file->idle, &file->lock);
    if (file->fd >= 0)
        close(file->fd);
    file->fd = -1;
    pthread_mutex_unlock(&file->lock);
}

void pr_file_free(pr_device *device)
{
    struct file *file = device->self;
    pthread_mutex_destroy(&file->lock);
    pthread_mutex_destroy(&file->flushing);
    pthread_cond_destroy(&file->idle);
    free(file);
    device->self = NULL;
}

int pr_file_engine(const pr_device *device) { return ((const struct file *)device->self)->engine; }

/* The file system knows where a sparse file has holes; one that does not know says that all is data. */
static int hole(pr_device *device, uint64_t offset, uint64_t *length)
{
    struct file *file = device->self;
    if (!enter(file))
        return 0;
    const off_t from = (off_t)offset;
    off_t data = lseek(file->fd, from, SEEK_DATA), end = -1;
    const bool none = data < 0 && errno == ENXIO;               /* from here on there is nothing but a hole */
    if (data == from)
        end = lseek(file->fd, from, SEEK_HOLE);
    leave(file);
    if (data > from)
        end = data;
    if (end > from && (uint64_t)(end - from) < *length)
        *length = (uint64_t)(end - from);
    return none || data > from;
}

/* ---- one I/O --------------------------------------------------------------------------------------------------- */

/* The iovecs of `io` from byte `done` on, at most PARTS; the caller's vector stays as it is. */
static int parts_from(const pr_io *io, uint64_t done, struct iovec *parts)
{
    if (!io->parts) {
        uint64_t rest = io->length - done;
        parts[0].iov_base = (uint8_t *)io->buffer + done;
        parts[0].iov_len = rest < LONGEST ? rest : LONGEST;
        return 1;
    }
    int n = 0;
    for (uint32_t i = 0; i < io->parts && n < PARTS; i++) {
        const struct iovec *part = &io->vector[i];
        if (done >= part->iov_len) {
            done -= part->iov_len;
            continue;
        }
        parts[n].iov_base = (uint8_t *)part->iov_base + done;
        parts[n++].iov_len = part->iov_len - done;
        done = 0;
    }
    return n;
}

static int transfer(int fd, const pr_io *io, uint64_t done)
{
    struct iovec parts[PARTS];
    while (done < io->length) {
        int n = parts_from(io, done, parts);
        ssize_t moved = io->op == PR_READ ? preadv(fd, parts, n, (off_t)(io->offset + done))
                                          : pwritev2(fd, parts, n, (off_t)(io->offset + done),
                                                     io->flags & PR_FUA ? RWF_DSYNC : 0);
        if (moved < 0 && errno == EINTR)
            continue;
        if (moved < 0)
            return -errno;
        if (!moved)                     /* the file is shorter than it was when it was measured */
            return -EIO;
        done += (uint64_t)moved;
    }
    return 0;
}

static int write_zeros(int fd, const pr_io *io)
{
    uint8_t *zeros = pr_buffer_take(ZEROS);
    if (!zeros)
        return -ENOMEM;
    memset(zeros, 0, io->length < ZEROS ? io->length : ZEROS);
    int code = 0;
    for (uint64_t done = 0; done < io->length && !code; done += ZEROS) {
        uint64_t rest = io->length - done;
        pr_io piece = { .op = PR_WRITE_OUT, .offset = io->offset + done, .length = rest < ZEROS ? rest : ZEROS,
                       .buffer = zeros };
        code = transfer(fd, &piece, 0);
    }
    pr_buffer_give(zeros, ZEROS);
    return code;
}

static bool unsupported(int code) { return code == -EOPNOTSUPP || code == -ENOSYS || code == -ENOTTY; }

static int clear(int fd, bool block, const pr_io *io)
{
    uint64_t range[2] = { io->offset, io->length };
    const bool zero = io->op == PR_ZERO_OUT;
    int code;
    do {
        if (block)
            code = ioctl(fd, zero ? BLKZEROOUT : BLKDISCARD, range);
        else
            code = fallocate(fd, FALLOC_FL_KEEP_SIZE | (zero ? FALLOC_FL_ZERO_RANGE : FALLOC_FL_PUNCH_HOLE),
                             (off_t)io->offset, (off_t)io->length);
        code = code ? -errno : 0;
    } while (code == -EINTR);
    if (!zero)                          /* a wish: a device that cannot discard keeps its blocks */
        return unsupported(code) ? 0 : code;
    if (unsupported(code))
        code = write_zeros(fd, io);
    if (!code && (io->flags & PR_FUA) && fdatasync(fd))
        code = -errno;
    return code;
}

int pr_file_one(int fd, bool block, pr_io *io, uint64_t done)
{
    io->result = io->op == PR_READ || io->op == PR_WRITE_OUT ? transfer(fd, io, done) : clear(fd, block, io);
    return io->result;
}

/* ---- the seam -------------------------------------------------------------------------------------------------- */

static void perform_list(struct file *file, pr_io *ios, uint32_t count)
{
    if (count == 1 || file->depth == 1) {       /* a ring or a thread would only add to it */
        for (uint32_t i = 0; i < count; i++)
            pr_file_one(file->fd, file->block, &ios[i], 0);
        return;
    }
    if (file->engine == PR_ENGINE_URING) {
        int code = pr_uring_perform(file->fd, file->block, ios, count, file->depth);
        if (!code) {
            for (uint32_t i = 0; i < count; i++)
                if (ios[i].op == PR_ZERO_OUT || ios[i].op == PR_DISCARD_OUT)
                    pr_file_one(file->fd, file->block, &ios[i], 0);
            return;
        }
        if (file->strict) {
            for (uint32_t i = 0; i < count; i++)
                ios[i].result = code;
            return;
        }
    }
    pr_threads_perform(file->fd, file->block, ios, count, file->depth);
}

static int perform(pr_device *device, pr_io *ios, uint32_t count)
{
    struct file *file = device->self;
    int code = 0;
    if (!enter(file)) {
        for (uint32_t i = 0; i < count; i++)
            ios[i].result = -ESHUTDOWN;
        return -ESHUTDOWN;
    }
    perform_list(file, ios, count);
    leave(file);
    for (uint32_t i = 0; i < count && !code; i++)
        code = ios[i].result;
    return code;
}

static int flush(pr_device *device)
{
    struct file *file = device->self;
    if (!enter(file))
        return -ESHUTDOWN;
    pthread_mutex_lock(&file->flushing);
    if (!file->flush_error) {
        int code;
        do
            code = fdatasync(file->fd) ? -errno : 0;
        while (code == -EINTR);
        file->flush_error = code;
    }
    int code = file->flush_error;
    pthread_mutex_unlock(&file->flushing);
    leave(file);
    return code;
}

int pr_file_resize(pr_device *device, uint64_t size)
{
    struct file *file = device->self;
    int code = 0;
    if (!enter(file))
        return -ESHUTDOWN;
    if (file->block) {                  /* it has the size that it has: look again, it may have grown */
        uint64_t now = 0;
        if (ioctl(file->fd, BLKGETSIZE64, &now))
            code = -errno;
        else if (now < size)
            code = -ENOSPC;
    } else if (ftruncate(file->fd, (off_t)size)) {
        code = -errno;
    }
    if (!code) {
        device->size = size;
        atomic_fetch_add(&device->writes, 1);   /* the new size is metadata that a flush makes durable */
    }
    leave(file);
    return code;
}
