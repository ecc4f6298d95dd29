/* Every struct, magic, version and limit of pyrepl's disk and wire formats.
 *
 * All numbers are little-endian. Reserved bytes are zero when written and are checked to be zero when read.
 * docs/formats.md describes each field; a test compares it with this file.
 *
 *   1  A journal device: superblock | checkpoint area 0 | checkpoint area 1 | log ... | superblock (the same again).
 *   2  A superblock is written once, when the journal is made. Either copy will do; its CRC says whether it is whole.
 *   3  A checkpoint is valid if its header's CRC and its body's CRC hold. The valid one with the higher sequence counts;
 *      a crash leaves at least the one before, because the other area is written.
 *   4  The log is circular: the record at journal position p lies at log_offset + p % log_size, and may wrap.
 *      Every record begins at a multiple of PR_BLOCK with a local part; its length is a multiple of PR_BLOCK.
 *   5  A record is valid at p if its local part names p, the chain value of the record before it, and its CRCs hold.
 *      The log ends at the first record that is not. If a later record, of the same log, says that position p was
 *      durable, the bad record is not the end but corruption.
 *   6  What travels of a batch (travel part, descriptors, payload) is the same bytes on disk, on the wire and at every site.
 *      Padding between descriptors and payload stays at home.
 */
#ifndef PYREPL_LAYOUT_H
#define PYREPL_LAYOUT_H

#include <stdint.h>

#if __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "pyrepl's formats are little-endian and are used in place"
#endif

#define PR_BLOCK 4096u                  /* unit of the log and of checkpoints; alignment of buffers */
#define PR_DISK_VERSION 1u              /* the version that is written */
#define PR_WIRE_VERSION 1u

#define PR_MAX_EVENT (1u << 20)         /* largest write, zero or copied extent in one record; larger ones are split */
#define PR_MAX_PAYLOAD (4u << 20)       /* largest payload of one batch */
#define PR_MAX_RECORDS 122u             /* (PR_BLOCK - sizeof local - sizeof travel) / sizeof record, rounded down */
#define PR_MAX_NOTE (4u << 20)          /* largest body of one note */
#define PR_MAX_UNFLUSHED (16u << 20)    /* the log is made durable at least this often: bounds the search for corruption */
#define PR_MAX_STORES 1024u             /* stores of a group, hidden ones included */
#define PR_MAX_REGION (1u << 20)        /* largest region size; the smallest is PR_BLOCK */
#define PR_FIRST_LOCAL (1u << 31)       /* stores from this id on are of one site alone: they never travel */

#define PR_SOURCE_ZERO 0u               /* in a source map: this region reads as zeros, no device holds it */

struct pr_superblock {                  /* 4096 bytes, at the first and the last block of a journal device */
    uint8_t magic[8];                   /* "PYREPLSB" */
    uint32_t version;                   /* PR_DISK_VERSION */
    uint32_t block_size;                /* PR_BLOCK */
    uint8_t journal[16];                /* uuid of this journal */
    uint8_t node[16];                   /* uuid of the node that made it */
    uint64_t device_size;               /* bytes of the device that belong to the journal */
    uint64_t area_offset[2];            /* where the two checkpoint areas begin */
    uint64_t area_size;                 /* bytes of each */
    uint64_t log_offset;                /* where the log begins */
    uint64_t log_size;                  /* its bytes, a multiple of PR_BLOCK */
    uint32_t alignment;                 /* of events, 512 or 4096 */
    uint32_t region_size;               /* bytes of a region, a power of two */
    uint32_t max_event;                 /* PR_MAX_EVENT */
    uint32_t max_payload;               /* PR_MAX_PAYLOAD */
    uint64_t created_ns;                /* wall clock, for people only */
    uint64_t first_position;            /* where the log began: a position that no journal here used before */
    uint8_t name[64];                   /* of the group, UTF-8, zero-padded; for people only */
    uint8_t reserved[3900];
    uint32_t crc;                       /* CRC32C of all bytes before */
};

struct pr_checkpoint {                  /* 4096 bytes at the start of a checkpoint area; the body follows */
    uint8_t magic[8];                   /* "PYREPLCK" */
    uint32_t version;                   /* PR_DISK_VERSION */
    uint32_t body_crc;                  /* CRC32C of the body */
    uint8_t journal[16];                /* uuid of the journal */
    uint64_t sequence;                  /* the higher one counts */
    uint64_t body_length;               /* bytes after this header */
    uint64_t scan_position;             /* where the scan of the log begins */
    uint64_t scan_chain;                /* the chain value there */
    uint64_t applied_position;          /* events before it are in the stores */
    uint64_t applied_lsn;               /* the LSN of the last of them */
    uint64_t note_position;             /* notes before it are in the maps of the body */
    uint64_t durable_position;          /* the log was durable up to here when this was written */
    uint8_t reserved[3996];
    uint32_t crc;                       /* CRC32C of all bytes before */
};

enum {                                  /* pr_local.kind */
    PR_RECORD_BATCH = 1,                /* a travelling batch follows */
    PR_RECORD_NOTE = 2,                 /* a note follows: it never leaves the site */
};

struct pr_local {                       /* 64 bytes: the part of a record that belongs to this site */
    uint32_t magic;                     /* PR_LOCAL_MAGIC */
    uint16_t version;                   /* PR_DISK_VERSION */
    uint8_t kind;
    uint8_t note;                       /* of a note: its type (Python gives it meaning), else 0 */
    uint64_t position;                  /* the journal position of this record */
    uint64_t chain;                     /* the chain value of the record before */
    uint64_t durable;                   /* the log was durable up to here when this was written */
    uint64_t seed;                      /* drawn anew at each start of the site */
    uint32_t length;                    /* bytes of the record with padding, a multiple of PR_BLOCK */
    uint32_t body_length;               /* of a note: bytes that follow the local part; of a batch: 0 */
    uint32_t body_crc;                  /* of a note: CRC32C of its body; of a batch: the crc of its travel part */
    uint32_t reserved[2];
    uint32_t crc;                       /* CRC32C of all bytes before */
};
#define PR_LOCAL_MAGIC 0x314a5250u      /* "PRJ1" */

enum {                                  /* pr_travel.kind */
    PR_BATCH_EVENTS = 1,                /* writes, zeros, discards: each takes an LSN */
    PR_BATCH_OPERATION = 2,             /* one operation: its record's payload is the encoded operation */
    PR_BATCH_COPIED = 3,                /* a link's item: regions with their content; takes no LSN */
    PR_BATCH_ITEM = 4,                  /* any other item of a link: its record's payload is the encoded item; no LSN */
};

struct pr_travel {                      /* 128 bytes: the same at every site */
    uint32_t magic;                     /* PR_TRAVEL_MAGIC */
    uint16_t version;                   /* PR_WIRE_VERSION */
    uint8_t kind;
    uint8_t flags;                      /* none defined: 0 */
    uint8_t group[16];
    uint8_t generation[16];             /* in which its events were appended; of an item: the sender's */
    uint64_t first_lsn;                 /* the LSN of the first record; of an item: the LSN that the stream has reached */
    uint32_t count;                     /* records */
    uint32_t payload_length;            /* bytes of payload, padding of its records included */
    uint64_t previous;                  /* digest of the batch of events before in this lineage, 0: none */
    uint64_t item;                      /* of an item: its number in the stream of this link, from 1; of events: 0 */
    uint64_t read_end;                  /* of copied regions: the LSN at which reading them ended, else 0 */
    uint64_t time_ns;                   /* of events: when the primary closed the batch, ns since 1970; 0: not known */
    uint8_t reserved[36];
    uint32_t crc;                       /* CRC32C of all bytes before, then of the descriptors */
};
#define PR_TRAVEL_MAGIC 0x31425250u     /* "PRB1" */

enum {                                  /* pr_record.kind */
    PR_WRITE = 1,                       /* payload: the data */
    PR_ZERO = 2,                        /* no payload; reads as zeros afterwards */
    PR_DISCARD = 3,                     /* the same, and the space may be given back */
    PR_OPERATION = 4,                   /* payload: the encoded operation or item; store, offset are 0 */
};

struct pr_record {                      /* 32 bytes: a descriptor */
    uint8_t kind;
    uint8_t flags;                      /* none defined: 0 */
    uint16_t reserved0;
    uint32_t store;                     /* the store's id, the same at every site */
    uint64_t offset;                    /* bytes, a multiple of the group's alignment */
    uint32_t length;                    /* bytes; of an event a multiple of the alignment, never 0 */
    uint32_t crc;                       /* CRC32C of the payload (length bytes), 0 if there is none */
    uint32_t payload;                   /* where it begins: bytes from the start of the batch's payload */
    uint32_t reserved1;
};

struct pr_frame {                       /* 32 bytes before everything on a connection */
    uint32_t magic;                     /* PR_FRAME_MAGIC */
    uint16_t version;                   /* PR_WIRE_VERSION */
    uint16_t type;                      /* the protocol's frame types; PR_FRAME_BATCH carries a batch */
    uint32_t length;                    /* bytes that follow */
    uint32_t body_crc;                  /* CRC32C of them; 0 for a batch, which has its own */
    uint64_t sequence;                  /* from 0 in each direction of each connection */
    uint32_t session;                   /* agreed in the handshake, 0 before */
    uint32_t crc;                       /* CRC32C of all bytes before */
};
#define PR_FRAME_MAGIC 0x31465250u      /* "PRF1" */
#define PR_FRAME_BATCH 16u

struct pr_map_entry {                   /* 24 bytes: in a note of type "map": these regions show that device now */
    uint64_t first;                     /* region */
    uint64_t count;                     /* regions */
    uint32_t slot;                      /* whose map: the local number of the store's device */
    uint32_t source;                    /* slot of the device that holds the content, or PR_SOURCE_ZERO */
};

_Static_assert(sizeof(struct pr_superblock) == 4096, "superblock");
_Static_assert(sizeof(struct pr_checkpoint) == 4096, "checkpoint");
_Static_assert(sizeof(struct pr_local) == 64, "local part");
_Static_assert(sizeof(struct pr_travel) == 128, "travelling part");
_Static_assert(sizeof(struct pr_record) == 32, "descriptor");
_Static_assert(sizeof(struct pr_frame) == 32, "frame");
_Static_assert(sizeof(struct pr_map_entry) == 24, "map entry");
_Static_assert(sizeof(struct pr_local) + sizeof(struct pr_travel) + PR_MAX_RECORDS * sizeof(struct pr_record) <= PR_BLOCK,
               "the head of a batch is one block");

#endif
