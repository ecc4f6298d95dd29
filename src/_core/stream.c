/* The stream of a link by the run (stream.h says the rules). This file decides: which frames are plain enough to be taken
 * without being looked at by the caller, how much is received at once, how a run of frames is sent. It must not know: what an
 * operation, an item or a message means, who the peer is, Python. */
#define _GNU_SOURCE
#include "stream.h"

#include "buffers.h"
#include "crc32c.h"

#include <errno.h>
#include <poll.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/uio.h>

#define PARTS 3u                        /* of a frame that is sent: header, travel part with descriptors, payload */

void pr_frame_seal(struct pr_frame *f, uint16_t type, uint32_t length, uint32_t body_crc, uint64_t sequence, uint32_t session)
{
    *f = (struct pr_frame){ .magic = PR_FRAME_MAGIC, .version = PR_WIRE_VERSION, .type = type, .length = length,
                            .body_crc = body_crc, .sequence = sequence, .session = session };
    f->crc = pr_crc32c(0, f, sizeof *f - sizeof f->crc);
}

int pr_frame_judge(const struct pr_frame *f)
{
    if (f->magic != PR_FRAME_MAGIC)
        return PR_FRAME_MAGIC_WRONG;
    if (f->version != PR_WIRE_VERSION)
        return PR_FRAME_VERSION_WRONG;
    return pr_crc32c(0, f, sizeof *f - sizeof f->crc) == f->crc ? PR_FRAME_GOOD : PR_FRAME_CRC_WRONG;
}

/* ---- in ---- */

/* Is this batch of events, which is whole, the next one? */
static bool follows(const pr_reach *r, const struct pr_travel *t)
{
    return t->kind == PR_BATCH_EVENTS && !t->item && !t->read_end && t->first_lsn == r->lsn + 1
           && !memcmp(t->generation, r->generation, sizeof t->generation) && (!r->known || t->previous == r->previous);
}

size_t pr_stream_take(pr_window *w, pr_reach *r, const uint8_t *data, size_t length, uint64_t most, uint64_t quiet,
                      int64_t timeout, int *code)
{
    size_t taken = 0;
    *code = PR_STREAM_MORE;
    while (length - taken >= sizeof(struct pr_frame) && r->bytes < most) {
        const struct pr_frame *f = (const struct pr_frame *)(data + taken);
        const struct pr_travel *t = (const struct pr_travel *)(f + 1);
        const struct pr_record *records = (const struct pr_record *)(t + 1);
        *code = PR_STREAM_OTHER;
        if (pr_frame_judge(f) || f->type != PR_FRAME_BATCH || f->sequence != r->sequence || f->session != r->session
            || f->body_crc || f->length < sizeof *t || f->length > PR_BLOCK + PR_MAX_PAYLOAD)
            break;
        if (length - taken - sizeof *f < f->length) {
            *code = PR_STREAM_MORE;
            break;
        }
        const size_t head = sizeof *t + (size_t)t->count * sizeof *records;
        if (t->count > PR_MAX_RECORDS || head > f->length || f->length - head != t->payload_length || !follows(r, t))
            break;
        const uint8_t *payload = (const uint8_t *)t + head;
        if (pr_batch_judge(t, records, head, payload, t->payload_length, r->alignment, r->group))
            break;
        const size_t whole = sizeof *f + f->length;
        const int said = pr_window_take(w, t, payload, r->bytes + whole <= quiet, timeout, &r->position);
        if (said) {
            if (said != PR_NO_STORE && said != PR_OUTSIDE && said != PR_MALFORMED)
                *code = said;
            break;
        }
        *code = PR_STREAM_MORE;
        r->sequence++;
        r->lsn = t->first_lsn + t->count - 1;
        r->previous = pr_digest(t);
        r->known = true;
        r->batches++;
        r->bytes += whole;
        taken += whole;                                            /* a multiple of 32: the next one is aligned, too */
    }
    return taken;
}

/* The bytes at hand go to the beginning of the memory, if a frame of `length` bytes cannot stand where they are. */
static void make_place(pr_inlet *in, size_t length)
{
    if (in->at == in->end)
        in->at = in->end = 0;
    else if (in->at % 8 || in->size - in->at < length) {
        memmove(in->memory, in->memory + in->at, in->end - in->at);
        in->end -= in->at;
        in->at = 0;
    }
}

/* Bytes of the frame that begins at hand, as far as it says so: it is not judged yet. */
static size_t wanted(const pr_inlet *in)
{
    struct pr_frame f;
    const size_t most = PR_BLOCK + PR_MAX_PAYLOAD;
    if (in->end - in->at < sizeof f)
        return sizeof f;
    memcpy(&f, in->memory + in->at, sizeof f);
    return sizeof f + (f.length < most ? f.length : most);
}

bool pr_inlet_whole(const pr_inlet *in) { return in->end - in->at >= sizeof(struct pr_frame) && in->end - in->at >= wanted(in); }

/* 1: something came; 0: the peer sends no more; -errno. `short_of`: whether less came than there was room for. */
static int receive(pr_inlet *in, int flags, bool *short_of)
{
    const size_t room = in->size - in->end;
    ssize_t count;
    do
        count = recv(in->fd, in->memory + in->end, room, flags);
    while (count < 0 && errno == EINTR);
    if (count < 0)
        return errno == EWOULDBLOCK ? -EAGAIN : -errno;
    in->end += (size_t)count;
    in->received += (uint64_t)count;
    *short_of = (size_t)count < room;
    return count > 0;
}

int pr_inlet_fill(pr_inlet *in, size_t length)
{
    make_place(in, length);
    bool short_of;
    while (in->end - in->at < length) {
        const int code = receive(in, 0, &short_of);
        if (code <= 0)
            return code ? code : PR_INLET_ENDED;
    }
    return 0;
}

int pr_inlet_take(pr_inlet *in, pr_window *w, pr_reach *r, uint64_t most, uint64_t quiet, int64_t timeout, int *peer)
{
    bool emptied = false;
    *peer = 0;
    for (;;) {
        int code;
        make_place(in, sizeof(struct pr_frame));
        in->at += pr_stream_take(w, r, in->memory + in->at, in->end - in->at, most, quiet, timeout, &code);
        if (code || r->bytes >= most)
            return code == PR_STREAM_OTHER && r->batches ? 0 : code;
        if (emptied && r->batches && in->at == in->end)            /* nothing came since, very likely: no call to hear that */
            return 0;
        make_place(in, wanted(in));
        if ((code = receive(in, r->batches ? MSG_DONTWAIT : 0, &emptied)) > 0)
            continue;
        if (r->batches)                                            /* what is wrong the next call finds, too */
            return 0;
        *peer = 1;
        return code ? code : PR_INLET_ENDED;
    }
}

/* ---- out ---- */

uint64_t pr_outlet_length(const pr_entry *e)
{
    return sizeof *e->travel + e->travel->count * sizeof *e->records + e->travel->payload_length;
}

void pr_outlet_seal(pr_outlet *out, uint64_t sequence, uint32_t session)
{
    out->length = out->sent = 0;
    for (uint32_t i = 0; i < out->lot.count; i++) {
        const uint64_t length = pr_outlet_length(&out->lot.entries[i]);
        pr_frame_seal(&out->frames[i], PR_FRAME_BATCH, (uint32_t)length, 0, sequence + i, session);
        out->length += sizeof out->frames[i] + length;
    }
}

/* The parts of what is still to be sent, from byte `done` on. */
static size_t list_parts(const pr_outlet *out, uint64_t done, struct iovec *parts)
{
    size_t n = 0;
    for (uint32_t i = 0; i < out->lot.count; i++) {
        const pr_entry *e = &out->lot.entries[i];
        const struct iovec all[PARTS] = {
            { (void *)&out->frames[i], sizeof out->frames[i] },
            { (void *)e->travel, sizeof *e->travel + e->travel->count * sizeof *e->records },
            { (void *)e->payload, e->travel->payload_length },
        };
        for (uint32_t k = 0; k < PARTS; k++) {
            if (done >= all[k].iov_len) {
                done -= all[k].iov_len;
                continue;
            }
            parts[n++] = (struct iovec){ (uint8_t *)all[k].iov_base + done, all[k].iov_len - done };
            done = 0;
        }
    }
    return n;
}

void pr_outlet_copy(const pr_outlet *out, uint8_t *target)
{
    struct iovec parts[PARTS * PR_LOT];
    const size_t count = list_parts(out, out->sent, parts);
    for (size_t i = 0; i < count; i++) {
        memcpy(target, parts[i].iov_base, parts[i].iov_len);
        target += parts[i].iov_len;
    }
}

/* What is left goes into memory of its own, so that the window's is free. */
static int set_aside(pr_outlet *out, pr_window *w)
{
    if (!(out->copy = pr_buffer_take(out->length - out->sent)))
        return -ENOMEM;
    pr_outlet_copy(out, out->copy);
    out->copy_from = out->sent;
    pr_lot_release(w, &out->lot);
    return 0;
}

int pr_outlet_send(pr_outlet *out, pr_window *w, int fd, int patience, int dead)
{
    struct iovec parts[PARTS * PR_LOT];
    struct msghdr message = { .msg_iov = parts };
    while (out->sent < out->length) {
        if (out->copy) {
            parts[0] = (struct iovec){ out->copy + (out->sent - out->copy_from), out->length - out->sent };
            message.msg_iovlen = 1;
        } else
            message.msg_iovlen = list_parts(out, out->sent, parts);
        const ssize_t count = sendmsg(fd, &message, MSG_DONTWAIT | MSG_NOSIGNAL);
        if (count >= 0) {
            out->sent += (uint64_t)count;
            continue;
        }
        if (errno == EINTR)
            continue;
        if (errno != EAGAIN && errno != EWOULDBLOCK)
            return -errno;
        const bool pinned = !out->copy && !out->lot.memory;
        struct pollfd room = { .fd = fd, .events = POLLOUT };
        const int ready = poll(&room, 1, pinned ? patience : dead);
        if (ready < 0 && errno != EINTR)
            return -errno;
        if (ready)
            continue;
        if (!pinned)
            return -ETIMEDOUT;
        const int code = set_aside(out, w);
        if (code)
            return code;
    }
    return 0;
}

void pr_outlet_release(pr_outlet *out, pr_window *w)
{
    pr_lot_release(w, &out->lot);
    if (out->copy)
        pr_buffer_give(out->copy, out->length - out->copy_from);
    out->copy = NULL;
    out->length = out->sent = 0;
}
