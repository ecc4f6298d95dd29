/* io_uring without liburing and without the kernel's header: the three system calls and the few structures that we use.
 * Old build images have old headers; these numbers are the kernel's ABI and do not change. */
#ifndef PYREPL_URING_H
#define PYREPL_URING_H

#include <stdint.h>
#include <sys/syscall.h>
#include <unistd.h>

#define URING_SYS_SETUP 425
#define URING_SYS_ENTER 426

enum { URING_READV = 1, URING_WRITEV = 2, URING_READ = 22, URING_WRITE = 23 };         /* sqe.opcode */
#define URING_SETUP_COOP_TASKRUN (1u << 8)      /* 5.19: no interrupts of the submitter, it will come and wait */
#define URING_FEAT_SINGLE_MMAP (1u << 0)        /* 5.4 */
#define URING_FEAT_NODROP (1u << 1)             /* 5.5 */
#define URING_FEAT_RW_CUR_POS (1u << 3)         /* 5.6: as old as URING_READ and URING_WRITE */
#define URING_ENTER_GETEVENTS (1u << 0)
#define URING_OFF_RINGS 0
#define URING_OFF_SQES 0x10000000ll

struct uring_sqe {                      /* a request */
    uint8_t opcode, flags;
    uint16_t ioprio;
    int32_t fd;
    uint64_t off;
    uint64_t addr;
    uint32_t len;
    uint32_t rw_flags;
    uint64_t user_data;
    uint64_t rest[3];
};

struct uring_cqe {                      /* its completion */
    uint64_t user_data;
    int32_t res;                        /* bytes, or -errno */
    uint32_t flags;
};

struct uring_sq_offsets { uint32_t head, tail, ring_mask, ring_entries, flags, dropped, array,
                         reserved; uint64_t user_addr; };
struct uring_cq_offsets { uint32_t head, tail, ring_mask, ring_entries, overflow, cqes, flags,
                         reserved; uint64_t user_addr; };

struct uring_params {
    uint32_t sq_entries, cq_entries, flags, sq_thread_cpu, sq_thread_idle, features, wq_fd, reserved[3];
    struct uring_sq_offsets sq;
    struct uring_cq_offsets cq;
};

_Static_assert(sizeof(struct uring_sqe) == 64 && sizeof(struct uring_cqe) == 16, "ABI");
_Static_assert(sizeof(struct uring_params) == 120, "ABI");

static inline long uring_setup(uint32_t entries, struct uring_params *params)
{
    return syscall(URING_SYS_SETUP, entries, params);
}

static inline long uring_enter(int fd, uint32_t submit, uint32_t wait, uint32_t flags)
{
    return syscall(URING_SYS_ENTER, fd, submit, wait, flags, (void *)0, (size_t)0);
}

#endif
