/* Batches and records of the log: sealing and judging. Decides when bytes are a valid record (layout.h says what each
 * field is); must not know devices, windows or what an operation means. The judge reads only what the lengths at
 * hand allow. */
#include "batch.h"
#include "crc32c.h"
#include <string.h>

static uint32_t crc_but_last(const void *data, size_t length) { return pr_crc32c(0, data, length - sizeof(uint32_t)); }

static int is_zero(const void *data, size_t length)
{
    const uint8_t *p = data;
    uint8_t any = 0;
    for (size_t i = 0; i < length; i++)
        any |= p[i];
    return !any;
}

static uint32_t head_crc(const struct pr_travel *travel, const struct pr_record *records, uint32_t count)
{
    return pr_crc32c(crc_but_last(travel, sizeof *travel), records, count * sizeof *records);
}

static int has_payload(const struct pr_record *r) { return r->kind == PR_WRITE || r->kind == PR_OPERATION; }

void pr_batch_seal(struct pr_travel *travel, const struct pr_record *records, uint32_t count, uint32_t payload_length)
{
    travel->magic = PR_TRAVEL_MAGIC;
    travel->version = PR_WIRE_VERSION;
    travel->flags = 0;
    travel->count = count;
    travel->payload_length = payload_length;
    memset(travel->reserved, 0, sizeof travel->reserved);
    travel->crc = head_crc(travel, records, count);
}

void pr_batch_fill(struct pr_travel *travel, struct pr_record *records, uint32_t count, const uint8_t *const *data,
                   uint32_t unit, uint8_t *payload, uint32_t payload_length)
{
    uint64_t at = 0;
    for (uint32_t i = 0; i < count; i++) {
        struct pr_record *r = &records[i];
        if (!data[i])
            continue;
        r->payload = (uint32_t)at;
        r->crc = pr_crc32c_copy(0, payload + at, data[i], r->length);
        uint64_t end = pr_align(at + r->length, unit);
        memset(payload + at + r->length, 0, end - at - r->length);
        at = end;
    }
    pr_batch_seal(travel, records, count, payload_length);
}

/* A descriptor. Those of operations and items hold an encoding of any length; the others are aligned. `at`: bytes of
 * payload before it; payloads lie one after the other, so that nothing travels without a checksum. */
static int judge_record(const struct pr_travel *travel, const struct pr_record *r, uint32_t alignment, uint32_t at)
{
    if (r->flags || r->reserved0 || r->reserved1)
        return PR_BAD_RESERVED;
    if (travel->kind == PR_BATCH_OPERATION || travel->kind == PR_BATCH_ITEM) {
        if (r->kind != PR_OPERATION || r->store || r->offset || r->payload || !r->length
            || r->length != travel->payload_length)
            return PR_BAD_RECORD;
        return PR_GOOD;
    }
    if (!r->store || !r->length || r->length > PR_MAX_EVENT || r->length % alignment || r->offset % alignment
        || r->offset > (uint64_t)INT64_MAX - r->length)
        return PR_BAD_RECORD;
    if (r->kind == PR_WRITE)
        return r->payload != at || r->length > travel->payload_length - at ? PR_BAD_RECORD : PR_GOOD;
    if (r->kind != PR_ZERO && r->kind != PR_DISCARD)
        return PR_BAD_KIND;
    return r->payload || r->crc ? PR_BAD_RECORD : PR_GOOD;
}

/* What the fields of the travelling part may be; the number of records is judged already. */
static int judge_fields(const struct pr_travel *travel, uint32_t alignment)
{
    if (travel->kind < PR_BATCH_EVENTS || travel->kind > PR_BATCH_ITEM)
        return PR_BAD_KIND;
    if (travel->flags || !is_zero(travel->reserved, sizeof travel->reserved))
        return PR_BAD_RESERVED;
    if (travel->payload_length > PR_MAX_PAYLOAD)
        return PR_BAD_LENGTH;
    const int whole = travel->kind == PR_BATCH_OPERATION || travel->kind == PR_BATCH_ITEM;
    if (whole && travel->count != 1)
        return PR_BAD_COUNT;
    if (!whole && travel->payload_length % alignment)
        return PR_BAD_LENGTH;
    if (travel->kind <= PR_BATCH_OPERATION ? travel->item || travel->read_end || !travel->first_lsn
                                           : !travel->item || travel->previous || (whole && travel->read_end))
        return PR_BAD_RECORD;
    if (travel->first_lsn > (uint64_t)INT64_MAX - travel->count || travel->read_end > INT64_MAX
        || travel->time_ns > INT64_MAX || (travel->kind > PR_BATCH_OPERATION && travel->time_ns))
        return PR_BAD_RECORD;
    return PR_GOOD;
}

int pr_batch_judge(const struct pr_travel *travel, const struct pr_record *records, size_t head_length,
                   const uint8_t *payload, size_t payload_length, uint32_t alignment, const uint8_t *group)
{
    if (head_length < sizeof *travel)
        return PR_BAD_SHORT;
    if (travel->magic != PR_TRAVEL_MAGIC)
        return PR_BAD_MAGIC;
    if (travel->version != PR_WIRE_VERSION)
        return PR_BAD_VERSION;
    const uint32_t count = travel->count;
    if (!count || count > PR_MAX_RECORDS)
        return PR_BAD_COUNT;
    if (head_length - sizeof *travel < count * sizeof *records)
        return PR_BAD_SHORT;
    if (travel->crc != head_crc(travel, records, count))
        return PR_BAD_HEAD_CRC;
    int code = judge_fields(travel, alignment);
    if (code)
        return code;
    if (group && memcmp(group, travel->group, sizeof travel->group))
        return PR_BAD_GROUP;
    uint32_t at = 0;
    for (uint32_t i = 0; i < count; i++) {
        if ((code = judge_record(travel, &records[i], alignment, at)))
            return code;
        if (has_payload(&records[i]))
            at += records[i].length;
    }
    if (at != travel->payload_length)
        return PR_BAD_LENGTH;
    if (!payload)
        return PR_GOOD;
    if (payload_length < travel->payload_length)
        return PR_BAD_SHORT;
    for (uint32_t i = 0; i < count; i++)
        if (has_payload(&records[i]) && pr_crc32c(0, payload + records[i].payload, records[i].length) != records[i].crc)
            return PR_BAD_BODY_CRC;
    return PR_GOOD;
}

void pr_local_seal(struct pr_local *local, uint8_t kind, uint8_t note, uint64_t position, uint64_t chain,
                   uint64_t durable, uint64_t seed, uint32_t length, uint32_t body_length, uint32_t body_crc)
{
    *local = (struct pr_local){
        .magic = PR_LOCAL_MAGIC, .version = PR_DISK_VERSION, .kind = kind, .note = note, .position = position,
        .chain = chain, .durable = durable, .seed = seed, .length = length,
        .body_length = body_length, .body_crc = body_crc,
    };
    local->crc = crc_but_last(local, sizeof *local);
}

int pr_local_judge(const struct pr_local *local, uint64_t position)
{
    if (local->magic != PR_LOCAL_MAGIC)
        return PR_BAD_MAGIC;
    if (local->version != PR_DISK_VERSION)
        return PR_BAD_VERSION;
    if (local->length < PR_BLOCK || local->length % PR_BLOCK)
        return PR_BAD_LENGTH;
    if (local->crc != crc_but_last(local, sizeof *local))
        return PR_BAD_HEAD_CRC;
    if (local->position != position)
        return PR_BAD_POSITION;
    if (local->reserved[0] || local->reserved[1])
        return PR_BAD_RESERVED;
    if (local->kind == PR_RECORD_BATCH)
        return local->note ? PR_BAD_RESERVED
             : local->body_length || local->length > pr_batch_length(PR_MAX_PAYLOAD) ? PR_BAD_LENGTH : PR_GOOD;
    if (local->kind != PR_RECORD_NOTE)
        return PR_BAD_KIND;
    if (local->body_length > PR_MAX_NOTE || local->length != pr_align(sizeof *local + local->body_length, PR_BLOCK))
        return PR_BAD_LENGTH;
    return PR_GOOD;
}

int pr_record_judge(const uint8_t *record, size_t length, uint64_t position, uint32_t alignment, const uint8_t *group)
{
    const struct pr_local *local = (const struct pr_local *)record;
    const struct pr_travel *travel = (const struct pr_travel *)(local + 1);
    if (length < PR_BLOCK)
        return PR_BAD_SHORT;
    int code = pr_local_judge(local, position);
    if (code)
        return code;
    if (length < local->length)
        return PR_BAD_SHORT;
    if (local->kind == PR_RECORD_NOTE)
        return pr_crc32c(0, record + sizeof *local, local->body_length) == local->body_crc ? PR_GOOD : PR_BAD_BODY_CRC;
    if (local->body_crc != travel->crc)
        return PR_BAD_HEAD_CRC;
    code = pr_batch_judge(travel, (const struct pr_record *)(travel + 1), PR_BLOCK - sizeof *local, record + PR_BLOCK,
                          local->length - PR_BLOCK, alignment, group);
    if (!code && local->length != pr_batch_length(travel->payload_length))
        return PR_BAD_LENGTH;
    return code;
}

uint64_t pr_chain(const struct pr_local *local) { return (uint64_t)local->crc << 32 | local->body_crc; }
