/* The numbers of the NBD protocol that its transmission phase needs (negotiation is Python's: pyrepl/nbd).
 *
 * Source: the protocol's public description, doc/proto.md of NetworkBlockDevice/nbd. Everything on the wire is big-endian.
 */
#ifndef PYREPL_NBD_H
#define PYREPL_NBD_H

#include <stdint.h>

#define NBD_REQUEST_MAGIC 0x25609513u
#define NBD_SIMPLE_MAGIC 0x67446698u
#define NBD_STRUCTURED_MAGIC 0x668e33efu

enum { NBD_READ, NBD_WRITE, NBD_DISC, NBD_FLUSH, NBD_TRIM, NBD_CACHE, NBD_WRITE_ZEROES, NBD_BLOCK_STATUS, NBD_COMMANDS };
enum { NBD_FLAG_FUA = 1, NBD_FLAG_NO_HOLE = 2, NBD_FLAG_DF = 4, NBD_FLAG_REQ_ONE = 8, NBD_FLAG_FAST_ZERO = 16 };
enum { NBD_CHUNK_DONE = 1 };
enum { NBD_CHUNK_NONE = 0, NBD_CHUNK_DATA = 1, NBD_CHUNK_STATUS = 5, NBD_CHUNK_ERROR = 32769 };
enum { NBD_EPERM = 1, NBD_EIO = 5, NBD_ENOMEM = 12, NBD_EINVAL = 22, NBD_ENOSPC = 28, NBD_EOVERFLOW = 75, NBD_ENOTSUP = 95,
       NBD_ESHUTDOWN = 108 };

struct nbd_request_wire {
    uint32_t magic;
    uint16_t flags, command;
    uint64_t cookie, offset;
    uint32_t length;
} __attribute__((packed));

struct nbd_simple_wire {
    uint32_t magic, error;
    uint64_t cookie;
} __attribute__((packed));

struct nbd_chunk_wire {
    uint32_t magic;
    uint16_t flags, type;
    uint64_t cookie;
    uint32_t length;                    /* of what follows */
} __attribute__((packed));

_Static_assert(sizeof(struct nbd_request_wire) == 28, "request");
_Static_assert(sizeof(struct nbd_simple_wire) == 16, "simple reply");
_Static_assert(sizeof(struct nbd_chunk_wire) == 20, "chunk of a structured reply");

#endif
