/* A batch: encode, judge, walk. The judge trusts nothing: it is given bytes and says what is wrong with them. */
#ifndef PYREPL_BATCH_H
#define PYREPL_BATCH_H

#include "layout.h"
#include <stddef.h>

/* Reason codes; 0 is good. Their names and texts stand in the face (batch.pyi: Reason). */
enum {
    PR_GOOD = 0,
    PR_BAD_SHORT = 1,           /* fewer bytes than the header says */
    PR_BAD_MAGIC = 2,
    PR_BAD_VERSION = 3,
    PR_BAD_POSITION = 4,        /* a record that belongs elsewhere */
    PR_BAD_CHAIN = 5,           /* not the one after the record before */
    PR_BAD_LENGTH = 6,          /* a length that cannot be */
    PR_BAD_HEAD_CRC = 7,        /* CRC of the local part, or of travel part and descriptors */
    PR_BAD_BODY_CRC = 8,        /* CRC of a note's body, or of a record's payload */
    PR_BAD_KIND = 9,
    PR_BAD_RESERVED = 10,       /* reserved bytes or flags that are not zero */
    PR_BAD_COUNT = 11,
    PR_BAD_RECORD = 12,         /* a descriptor: zero or too long, unaligned, payload outside */
    PR_BAD_GROUP = 13,          /* another group's */
};

/* Seals a batch: fills the travel part's magic, version, count, payload_length and crc over it and the descriptors. The
 * other fields and the descriptors, with their crc, are there already. */
void pr_batch_seal(struct pr_travel *travel, const struct pr_record *records, uint32_t count, uint32_t payload_length);
/* Lays out the payload and seals: data[i] is what record i carries (its length is there already), NULL if it carries
 * nothing. Fills each descriptor's payload and crc, pads with zeros to multiples of `unit`; payload_length is their
 * sum. */
void pr_batch_fill(struct pr_travel *travel, struct pr_record *records, uint32_t count, const uint8_t *const *data,
                   uint32_t unit, uint8_t *payload, uint32_t payload_length);
/* Judges what travels. `group` NULL: any. With `payload` NULL only the head is judged. The lengths are what is at hand;
 * more than the header says is not wrong here. Both parts are aligned to 8 bytes. */
int pr_batch_judge(const struct pr_travel *travel, const struct pr_record *records, size_t head_length,
                   const uint8_t *payload, size_t payload_length, uint32_t alignment, const uint8_t *group);
/* Fills and seals a local part. */
void pr_local_seal(struct pr_local *local, uint8_t kind, uint8_t note, uint64_t position, uint64_t chain,
                   uint64_t durable, uint64_t seed, uint32_t length, uint32_t body_length, uint32_t body_crc);
/* Judges a local part on its own: magic, version, kind, lengths, reserved, crc; and that it is the one of this
 * position. */
int pr_local_judge(const struct pr_local *local, uint64_t position);
/* Judges the whole record that lies in `record` (length bytes at hand): its local part, then its batch or note.
 * Not the chain. */
int pr_record_judge(const uint8_t *record, size_t length, uint64_t position, uint32_t alignment, const uint8_t *group);
/* The chain value after a record. */
uint64_t pr_chain(const struct pr_local *local);

static inline uint64_t pr_align(uint64_t n, uint64_t unit) { return (n + unit - 1) / unit * unit; }
/* Bytes of a batch's record in the log. */
static inline uint64_t pr_batch_length(uint32_t payload_length)
{
    return PR_BLOCK + pr_align(payload_length, PR_BLOCK);
}

#endif
