"""Builds pyrepl._core._blk: the ioctls of block and loop devices (cffi, API mode).

Decides: nothing but which ioctls there are. Each function returns the value, or -errno. Policy is in
pyrepl/_core/blockdev.py.
"""

from cffi import FFI

ffibuilder = FFI()
ffibuilder.cdef("""
int64_t blk_size(int fd);                       /* bytes of a block device */
int64_t blk_sector(int fd);                     /* bytes of its logical sector */
int64_t blk_physical(int fd);                   /* bytes of its physical sector */
int64_t blk_read_only(int fd);                  /* 1: it is */
int64_t blk_discard(int fd, uint64_t offset, uint64_t length);
int64_t blk_zero_out(int fd, uint64_t offset, uint64_t length);
int64_t loop_free_number(int control);          /* of a loop device that is free; made if there is none */
int64_t loop_configure(int loop, int file, uint32_t sector, int direct, int read_only, const char *name);
int64_t loop_is_direct(int loop);               /* 1: its file is used with direct I/O */
int64_t loop_clear(int loop);                   /* lets go of its file */
int64_t loop_update_size(int loop);             /* takes the size of its file again */
""")
ffibuilder.set_source(
    "pyrepl._core._blk",
    r"""
#include <errno.h>
#include <linux/fs.h>
#include <stdint.h>
#include <string.h>
#include <sys/ioctl.h>

#ifndef LOOP_CONFIGURE                  /* 5.8; <linux/loop.h> of old build images lacks it */
#define LOOP_CLR_FD 0x4C01
#define LOOP_GET_STATUS64 0x4C05
#define LOOP_SET_CAPACITY 0x4C07
#define LOOP_CONFIGURE 0x4C0A
#define LOOP_CTL_GET_FREE 0x4C82
#define LO_FLAGS_READ_ONLY 1
#define LO_FLAGS_DIRECT_IO 16
#endif

struct blk_loop_info {                  /* struct loop_info64 of the kernel's ABI */
    uint64_t device, inode, rdevice, offset, sizelimit;
    uint32_t number, encrypt_type, encrypt_key_size, flags;
    uint8_t file_name[64], crypt_name[64], encrypt_key[32];
    uint64_t init[2];
};
struct blk_loop_config { uint32_t fd, block_size; struct blk_loop_info info; uint64_t reserved[8]; };
_Static_assert(sizeof(struct blk_loop_info) == 232 && sizeof(struct blk_loop_config) == 304, "ABI");

static int64_t answer(int code, int64_t value) { return code < 0 ? -errno : value; }

static int64_t blk_size(int fd) { uint64_t n = 0; int code = ioctl(fd, BLKGETSIZE64, &n); return answer(code,
(int64_t)n); }
static int64_t blk_sector(int fd) { int n = 0; int code = ioctl(fd, BLKSSZGET, &n); return answer(code, n); }
static int64_t blk_physical(int fd) { unsigned n = 0; int code = ioctl(fd, BLKPBSZGET, &n); return answer(code, n); }
static int64_t blk_read_only(int fd) { int n = 0; int code = ioctl(fd, BLKROGET, &n); return answer(code, n != 0); }

static int64_t blk_discard(int fd, uint64_t offset, uint64_t length)
{
    uint64_t range[2] = { offset, length };
    return answer(ioctl(fd, BLKDISCARD, range), 0);
}

static int64_t blk_zero_out(int fd, uint64_t offset, uint64_t length)
{
    uint64_t range[2] = { offset, length };
    return answer(ioctl(fd, BLKZEROOUT, range), 0);
}

static int64_t loop_free_number(int control) { int n = ioctl(control, LOOP_CTL_GET_FREE); return answer(n, n); }

static int64_t loop_configure(int loop, int file, uint32_t sector, int direct, int read_only, const char *name)
{
    struct blk_loop_config config;
    memset(&config, 0, sizeof config);
    config.fd = (uint32_t)file;
    config.block_size = sector;
    config.info.flags = (direct ? LO_FLAGS_DIRECT_IO : 0) | (read_only ? LO_FLAGS_READ_ONLY : 0);
    strncpy((char *)config.info.file_name, name, sizeof config.info.file_name - 1);
    return answer(ioctl(loop, LOOP_CONFIGURE, &config), 0);
}

static int64_t loop_is_direct(int loop)
{
    struct blk_loop_info info;
    memset(&info, 0, sizeof info);
    int code = ioctl(loop, LOOP_GET_STATUS64, &info);
    return answer(code, (info.flags & LO_FLAGS_DIRECT_IO) != 0);
}

static int64_t loop_clear(int loop) { return answer(ioctl(loop, LOOP_CLR_FD), 0); }
static int64_t loop_update_size(int loop) { return answer(ioctl(loop, LOOP_SET_CAPACITY), 0); }
""",
)

if __name__ == "__main__":
    ffibuilder.compile(verbose=True)
