/* The transmission phase of one NBD connection (nbdio.h says the rules).
 *
 * Decides: who carries out which request, which error the client is told, how replies are framed. Must not know how the
 * connection was negotiated, what an export is called, roles, Python.
 */
#define _GNU_SOURCE
#include "nbdio.h"
#include "buffers.h"
#include <endian.h>
#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>

#define INPUT (64u << 10)               /* bytes of requests that are received at once */
#define STAGING PR_MAX_EVENT            /* bytes of a write's payload that are given to the window at once */
#define TOGETHER 16u                    /* reads of one list */
#define CROWDED 16u                     /* times that requests are handed over after others arrived in the midst of one */
#define SLICE 100000000                 /* ns: a worker that waits for the journal looks for the end this often */
#define STACK (512u << 10)              /* bytes; a read's bookkeeping is 40 KiB of it */

typedef struct job {
    pr_nbd_request request;
    uint64_t target, lsn;               /* of what waits for the journal */
    uint64_t begun;                     /* ns */
} job;

enum { WRITTEN, DURABLE, READS, RARE, QUEUES };

typedef struct queue { uint32_t head, count; job jobs[NBD_FLIGHT]; } queue;

struct pr_nbd {
    pr_nbd_target target;
    pr_nbd_counts *counts;
    int fd;
    pthread_mutex_t mutex, out;         /* out: of the socket's sending side; never taken under mutex */
    pthread_cond_t work, room;
    queue queues[QUEUES];
    bool attended[QUEUES];              /* one worker at a time: all but reads */
    bool closing, over;                 /* over: serve has returned, the descriptor is not ours any more */
    _Atomic bool broken;                /* nothing can be sent any more */
    _Atomic bool stopped;               /* waits that may last for ever are given up */
    _Atomic uint32_t flying;            /* requests that are queued or under way; changed with the mutex */
    uint32_t idle, workers, crowded;
    pthread_t threads[NBD_WORKERS];
    uint8_t *input, *staging;
    uint32_t at, end;                   /* of input: what was received and not taken yet */
    uint64_t now;                       /* when it was received */
};

/* ---- replies ---- */

static void send_all(pr_nbd *c, struct iovec *parts, size_t count)
{
    struct msghdr message = { .msg_iov = parts, .msg_iovlen = count };
    while (message.msg_iovlen && !atomic_load(&c->broken)) {
        ssize_t sent = sendmsg(c->fd, &message, MSG_NOSIGNAL);
        if (sent < 0) {
            if (errno == EINTR)
                continue;
            atomic_store(&c->broken, true);
            shutdown(c->fd, SHUT_RDWR);
            return;
        }
        while (message.msg_iovlen && (size_t)sent >= message.msg_iov->iov_len) {
            sent -= (ssize_t)message.msg_iov->iov_len;
            message.msg_iov++;
            message.msg_iovlen--;
        }
        if (message.msg_iovlen) {
            message.msg_iov->iov_base = (uint8_t *)message.msg_iov->iov_base + sent;
            message.msg_iov->iov_len -= (size_t)sent;
        }
    }
}

static void send_parts(pr_nbd *c, struct iovec *parts, size_t count)
{
    pthread_mutex_lock(&c->out);
    send_all(c, parts, count);
    pthread_mutex_unlock(&c->out);
}

static uint32_t error_of(int code)
{
    switch (code) {
    case 0: return 0;
    case PR_NO_STORE: case -ENOENT: case -ESHUTDOWN: case PR_NOT_OPEN: return NBD_ESHUTDOWN;
    case PR_NOT_WRITABLE: return NBD_ESHUTDOWN;         /* it was: the role has changed */
    case PR_OUTSIDE: case PR_UNALIGNED: case -ERANGE: case -EINVAL: return NBD_EINVAL;
    case -ENOSPC: return NBD_ENOSPC;
    case -ENOMEM: return NBD_ENOMEM;
    default: return NBD_EIO;
    }
}

union head { struct nbd_simple_wire simple; struct { struct nbd_chunk_wire chunk; uint8_t rest[8]; } structured; };

static size_t head_simple(union head *head, uint64_t cookie, uint32_t error)
{
    head->simple = (struct nbd_simple_wire){ htobe32(NBD_SIMPLE_MAGIC), htobe32(error), cookie };
    return sizeof head->simple;
}

static void chunk(union head *head, uint64_t cookie, uint16_t flags, uint16_t type, uint32_t length)
{
    head->structured.chunk = (struct nbd_chunk_wire){ htobe32(NBD_STRUCTURED_MAGIC), htobe16(flags), htobe16(type), cookie,
                                                      htobe32(length) };
}

/* A reply without data. A structured one where the protocol wants it: to a read, and to a BLOCK_STATUS. */
static size_t head_plain(const pr_nbd *c, union head *head, const pr_nbd_request *r, uint32_t error)
{
    if (!c->target.structured || (r->command != NBD_READ && r->command != NBD_BLOCK_STATUS))
        return head_simple(head, r->cookie, error);
    if (!error) {
        chunk(head, r->cookie, NBD_CHUNK_DONE, NBD_CHUNK_NONE, 0);
        return sizeof head->structured.chunk;
    }
    uint32_t code = htobe32(error);
    chunk(head, r->cookie, NBD_CHUNK_DONE, NBD_CHUNK_ERROR, 6);
    memcpy(head->structured.rest, &code, 4);
    memset(head->structured.rest + 4, 0, 2);            /* no text */
    return sizeof head->structured.chunk + 6;
}

/* The head of a reply with data that begin at `offset`. */
static size_t head_data(const pr_nbd *c, union head *head, uint64_t cookie, uint64_t offset, uint32_t length, bool last)
{
    if (!c->target.structured)
        return head_simple(head, cookie, 0);
    uint64_t where = htobe64(offset);
    chunk(head, cookie, last ? NBD_CHUNK_DONE : 0, NBD_CHUNK_DATA, length + 8);
    memcpy(head->structured.rest, &where, 8);
    return sizeof head->structured.chunk + 8;
}

static void reply(pr_nbd *c, const pr_nbd_request *r, uint32_t error)
{
    union head head;
    struct iovec part = { &head, head_plain(c, &head, r, error) };
    if (error)
        atomic_fetch_add(&c->counts->errors, 1);
    send_parts(c, &part, 1);
}

/* ---- what waits for the journal ---- */

static void reply_written(pr_nbd *c, const job *jobs, uint32_t count, uint32_t error)
{
    union head heads[NBD_FLIGHT];
    struct iovec parts[NBD_FLIGHT];
    uint64_t now = pr_now();
    for (uint32_t i = 0; i < count; i++) {
        int which = jobs[i].request.command == NBD_FLUSH ? PR_LATENCY_FLUSH : PR_LATENCY_WRITE;
        parts[i] = (struct iovec){ &heads[i], head_plain(c, &heads[i], &jobs[i].request, error) };
        if (!error)
            pr_latency_add(pr_window_latency(c->target.window, which), now - jobs[i].begun);
    }
    if (error)
        atomic_fetch_add(&c->counts->errors, count);
    send_parts(c, parts, count);
}

static void done(pr_nbd *c, uint32_t count)             /* with the mutex */
{
    c->flying -= count;
    pthread_cond_signal(&c->room);
}

/* Waits for the oldest, then answers all that came along. With the mutex, lets go of it meanwhile. */
static void attend_journal(pr_nbd *c, int which)
{
    queue *q = &c->queues[which];
    const bool fua = which == DURABLE;
    const job first = q->jobs[q->head];
    job reached[NBD_FLIGHT];
    uint64_t target, lsn;
    uint32_t count = 0;
    pthread_mutex_unlock(&c->mutex);
    int code = pr_window_wait(c->target.window, first.target, first.lsn, fua, SLICE);
    if (code == 0)
        code = pr_window_reached(c->target.window, fua, &target, &lsn);
    pthread_mutex_lock(&c->mutex);
    if (code == PR_TIME_OVER && !(c->closing && atomic_load(&c->broken)) && !atomic_load(&c->stopped))
        return;
    while (q->count && (code || (q->jobs[q->head].target <= target && q->jobs[q->head].lsn <= lsn))) {
        reached[count++] = q->jobs[q->head];
        q->head = (q->head + 1) % NBD_FLIGHT;
        q->count--;
    }
    pthread_mutex_unlock(&c->mutex);
    reply_written(c, reached, count, error_of(code));
    pthread_mutex_lock(&c->mutex);
    done(c, count);
}

/* ---- reads ---- */

static pr_run run_of(const pr_nbd *c, const pr_nbd_request *r)
{
    const uint64_t unit = c->target.stores->alignment, first = r->offset / unit * unit;
    return (pr_run){ first, pr_align(r->offset + r->length, unit) - first };
}

static int read_runs(pr_nbd *c, const pr_run *runs, uint32_t count, uint8_t *memory)
{
    pr_device *bad;
    uint32_t phase = pr_stores_enter(c->target.stores);
    int code = pr_view_read_runs(c->target.window, c->target.stores, c->target.store, runs, count, memory, &bad);
    pr_stores_leave(c->target.stores, phase);
    return code;
}

/* A long one, in pieces. Without structured replies its head says that it went well before all is read: an error after that
 * can only end the connection. */
static void read_long(pr_nbd *c, const pr_nbd_request *r)
{
    const uint64_t end = r->offset + r->length;
    const bool structured = c->target.structured;
    uint8_t *memory = pr_buffer_take(NBD_READ_MOST);
    uint64_t at = r->offset;
    int code = memory ? 0 : -ENOMEM;
    if (!structured)
        pthread_mutex_lock(&c->out);                    /* the pieces of a simple reply follow one another */
    while (at < end && !code && !atomic_load(&c->broken)) {
        pr_nbd_request part = *r;
        const uint64_t unit = c->target.stores->alignment, most = NBD_READ_MOST - at % unit;
        part.offset = at;
        part.length = (uint32_t)(end - at < most ? end - at : most);
        const pr_run run = run_of(c, &part);
        code = read_runs(c, &run, 1, memory);
        if (code)
            break;
        union head head;
        struct iovec parts[2] = { { &head, 0 }, { memory + (at - run.offset), part.length } };
        parts[0].iov_len = structured || at == r->offset
                               ? head_data(c, &head, r->cookie, at, part.length, at + part.length == end) : 0;
        at += part.length;
        if (structured)
            send_parts(c, parts, 2);
        else
            send_all(c, parts, 2);
    }
    if (!structured) {
        if (code && at > r->offset) {
            atomic_store(&c->broken, true);
            shutdown(c->fd, SHUT_RDWR);
        }
        pthread_mutex_unlock(&c->out);
    }
    if (code)
        reply(c, r, error_of(code));
    else
        atomic_fetch_add(&c->counts->bytes_read, r->length);
    pr_buffer_give(memory, NBD_READ_MOST);
}

static void read_jobs(pr_nbd *c, const job *jobs, uint32_t count)
{
    pr_run runs[TOGETHER];
    union head heads[TOGETHER];
    struct iovec parts[2 * TOGETHER];
    uint64_t total = 0, place = 0, bytes = 0;
    for (uint32_t i = 0; i < count; i++) {
        runs[i] = run_of(c, &jobs[i].request);
        total += runs[i].length;
    }
    if (total > NBD_READ_MOST) {                        /* it is one, then */
        read_long(c, &jobs[0].request);
        return;
    }
    uint8_t *memory = pr_buffer_take(total);
    int code = memory ? read_runs(c, runs, count, memory) : -ENOMEM;
    for (uint32_t i = 0; i < count; place += runs[i++].length) {
        const pr_nbd_request *r = &jobs[i].request;
        int mine = code && count > 1 && memory ? read_runs(c, &runs[i], 1, memory + place) : code;    /* not all are to blame */
        parts[2 * i] = (struct iovec){ &heads[i], mine ? head_plain(c, &heads[i], r, error_of(mine))
                                                       : head_data(c, &heads[i], r->cookie, r->offset, r->length, true) };
        parts[2 * i + 1] = (struct iovec){ memory + place + (r->offset - runs[i].offset), mine ? 0 : r->length };
        if (mine)
            atomic_fetch_add(&c->counts->errors, 1);
        bytes += mine ? 0 : r->length;
    }
    send_parts(c, parts, 2 * (size_t)count);
    atomic_fetch_add(&c->counts->bytes_read, bytes);
    pr_buffer_give(memory, total);
}

/* With the mutex: as many as make one list. Half of those that wait, so that another worker has its share. */
static uint32_t take_reads(pr_nbd *c, job *jobs)
{
    queue *q = &c->queues[READS];
    uint32_t count = 0, most = q->count > 2 ? (q->count + 1) / 2 : q->count;
    uint64_t total = 0;
    while (q->count && count < most && count < TOGETHER) {
        const uint64_t length = run_of(c, &q->jobs[q->head].request).length;
        if (count && total + length > NBD_READ_MOST)
            break;
        total += length;
        jobs[count++] = q->jobs[q->head];
        q->head = (q->head + 1) % NBD_FLIGHT;
        q->count--;
    }
    return count;
}

static void attend_reads(pr_nbd *c)
{
    job jobs[TOGETHER];
    uint32_t count = take_reads(c, jobs);
    pthread_mutex_unlock(&c->mutex);
    read_jobs(c, jobs, count);
    pthread_mutex_lock(&c->mutex);
    done(c, count);
}

/* ---- what is rare ---- */

static void attend_rare(pr_nbd *c)
{
    queue *q = &c->queues[RARE];
    const pr_nbd_request r = q->jobs[q->head].request;
    uint8_t *answer = NULL;
    uint32_t length = 0;
    q->head = (q->head + 1) % NBD_FLIGHT;
    q->count--;
    pthread_mutex_unlock(&c->mutex);
    uint32_t error = c->target.rare(c->target.context, &r, &answer, &length);
    if (!error && answer) {
        struct iovec part = { answer, length };
        send_parts(c, &part, 1);
    } else
        reply(c, &r, error);
    free(answer);
    pthread_mutex_lock(&c->mutex);
    done(c, 1);
}

/* ---- workers ---- */

static int choose(const pr_nbd *c)
{
    for (int i = 0; i < QUEUES; i++)
        if (c->queues[i].count && !c->attended[i])
            return i;
    return -1;
}

static void wake(pr_nbd *c);

/* With the mutex. */
static void attend(pr_nbd *c, int which)
{
    c->attended[which] = which != READS;
    if (which == READS)
        attend_reads(c);
    else if (which == RARE)
        attend_rare(c);
    else
        attend_journal(c, which);
    c->attended[which] = false;
}

static void *work(void *self)
{
    pr_nbd *c = self;
    pthread_mutex_lock(&c->mutex);
    for (;;) {
        int which = choose(c);
        if (which >= 0) {
            uint32_t others = 0;
            for (int i = 0; i < QUEUES; i++)
                others += (i != which || i == READS) && c->queues[i].count > (i == which) && !c->attended[i];
            if (others)
                wake(c);
            attend(c, which);
        } else if (c->closing && !c->flying)
            break;
        else {
            c->idle++;
            pthread_cond_wait(&c->work, &c->mutex);
            c->idle--;
        }
    }
    pthread_cond_broadcast(&c->work);                   /* the others may go, too */
    pthread_mutex_unlock(&c->mutex);
    return NULL;
}

static int start_worker(pr_nbd *c)
{
    pthread_attr_t attributes;
    sigset_t all, before;
    pthread_attr_init(&attributes);
    pthread_attr_setstacksize(&attributes, STACK);
    sigfillset(&all);                                   /* signals are for the interpreter's threads */
    pthread_sigmask(SIG_SETMASK, &all, &before);
    int code = pthread_create(&c->threads[c->workers], &attributes, work, c);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    pthread_attr_destroy(&attributes);
    c->workers += !code;
    return -code;
}

/* With the mutex: one more worker looks at the queues, if there is one left. */
static void wake(pr_nbd *c)
{
    if (c->idle)
        pthread_cond_signal(&c->work);
    else if (c->workers < NBD_WORKERS)
        start_worker(c);                                /* if it cannot be, the others will do */
}

/* ---- the thread that takes requests in ---- */

/* With the mutex. Where not one worker can be had, this thread does it all. */
static void hand_over(pr_nbd *c)
{
    wake(c);
    for (int which; !c->workers && (which = choose(c)) >= 0;)
        attend(c, which);
}

/* A request has its place among those in flight. Waits for room. */
static void enqueue(pr_nbd *c, int which, const pr_nbd_request *r, uint64_t target, uint64_t lsn)
{
    pthread_mutex_lock(&c->mutex);
    queue *q = &c->queues[which];
    while (c->flying == NBD_FLIGHT) {
        hand_over(c);
        if (c->flying == NBD_FLIGHT)
            pthread_cond_wait(&c->room, &c->mutex);
    }
    q->jobs[(q->head + q->count++) % NBD_FLIGHT] = (job){ *r, target, lsn, c->now };
    c->flying++;
    if (c->flying % 8 == 0)                             /* a long burst: it begins already */
        hand_over(c);
    pthread_mutex_unlock(&c->mutex);
}

/* Nothing more is at hand: what was queued begins. Whether one that was alone has been carried out here. */
static bool dispatch(pr_nbd *c)
{
    bool here = false;
    pthread_mutex_lock(&c->mutex);
    if (c->flying == 1 && !c->crowded) {
        int which = choose(c);
        if ((here = which >= 0))
            attend(c, which);
        if (c->flying)                                  /* it waits on, for a peer: not here, where the client may leave */
            hand_over(c);
    } else if (choose(c) >= 0) {
        c->crowded -= c->crowded > 0;
        hand_over(c);
    }
    pthread_mutex_unlock(&c->mutex);
    return here;
}

/* Receives into memory. Before it waits, what was queued begins. Bytes; 0: the client is gone. */
static size_t receive(pr_nbd *c, uint8_t *memory, size_t length, int flags)
{
    bool here = false;
    int mode = c->flying ? MSG_DONTWAIT : flags;
    for (;;) {
        ssize_t count = recv(c->fd, memory, length, mode);
        if (count >= 0) {
            if (here && mode == MSG_DONTWAIT)           /* it arrived meanwhile: the client has several in flight */
                c->crowded = CROWDED;
            c->now = pr_now();
            return (size_t)count;
        }
        if (errno == EAGAIN && mode == MSG_DONTWAIT) {
            if (here || !(here = dispatch(c)))
                mode = flags;
        } else if (errno != EINTR)
            return 0;
    }
}

static bool fill_head(pr_nbd *c)
{
    if (c->at == c->end)
        c->at = c->end = 0;
    else if (INPUT - c->at < sizeof(struct nbd_request_wire)) {
        memmove(c->input, c->input + c->at, c->end - c->at);
        c->end -= c->at;
        c->at = 0;
    }
    while (c->end - c->at < sizeof(struct nbd_request_wire)) {
        size_t count = receive(c, c->input + c->end, INPUT - c->end, 0);
        if (!count)
            return false;
        c->end += (uint32_t)count;
    }
    return true;
}

/* The next `length` bytes of a payload, where they stand in the input or in the staging memory. NULL: the client is gone. */
static const uint8_t *take_payload(pr_nbd *c, uint32_t length)
{
    const uint32_t here = c->end - c->at;
    const uint8_t *data = c->input + c->at;
    if (here >= length) {
        c->at += length;
        return data;
    }
    memcpy(c->staging, data, here);
    c->at = c->end = 0;
    for (uint32_t have = here; have < length;) {
        size_t count = receive(c, c->staging + have, length - have, MSG_WAITALL);
        if (!count)
            return NULL;
        have += (uint32_t)count;
    }
    return c->staging;
}

/* Where room is short it may last; a connection that is stopped does not wait for it. */
static int submit_whole(pr_nbd *c, pr_submission *m)
{
    int code;
    do
        code = pr_window_submit(c->target.window, m, SLICE);
    while (code == PR_TIME_OVER && !atomic_load(&c->stopped));
    return code;
}

/* A write that is not aligned: see view.h. */
static int submit_merged(pr_nbd *c, pr_submission *m)
{
    pr_edges edges;
    pr_device *bad;
    pr_submission whole = *m;
    pr_view_edges(c->target.stores, m->offset, m->length, &edges);
    uint8_t *merged = pr_buffer_take(edges.end - edges.first);
    if (!merged)
        return -ENOMEM;
    int code;
    do {
        uint32_t phase = pr_stores_enter(c->target.stores);
        code = pr_view_merge(c->target.window, c->target.stores, m->store, m->offset, m->data, m->length, &edges, merged,
                             SLICE, &bad);
        pr_stores_leave(c->target.stores, phase);
    } while (code == PR_TIME_OVER && !atomic_load(&c->stopped));
    if (!code) {
        whole.flags |= PR_SUBMIT_HELD;
        whole.offset = edges.first;
        whole.length = edges.end - edges.first;
        whole.data = merged;
        code = submit_whole(c, &whole);
        pr_view_release(c->target.window, c->target.stores, m->store, &edges);
        m->target = whole.target;
        m->lsn = whole.lsn;
    }
    pr_buffer_give(merged, edges.end - edges.first);
    return code;
}

static int submit(pr_nbd *c, pr_submission *m)
{
    const uint64_t unit = c->target.stores->alignment;
    if (m->kind == PR_WRITE && (m->offset % unit || m->length % unit))
        return submit_merged(c, m);
    return submit_whole(c, m);
}

/* Why a request is not carried out; 0: it is. */
static uint32_t judge(const pr_nbd *c, const pr_nbd_request *r)
{
    const uint64_t size = c->target.size;
    static const uint16_t known[NBD_COMMANDS] = {
        [NBD_READ] = NBD_FLAG_FUA | NBD_FLAG_DF,
        [NBD_WRITE] = NBD_FLAG_FUA,
        [NBD_FLUSH] = NBD_FLAG_FUA,
        [NBD_TRIM] = NBD_FLAG_FUA,
        [NBD_CACHE] = NBD_FLAG_FUA,
        [NBD_WRITE_ZEROES] = NBD_FLAG_FUA | NBD_FLAG_NO_HOLE | NBD_FLAG_FAST_ZERO,
        [NBD_BLOCK_STATUS] = NBD_FLAG_FUA | NBD_FLAG_REQ_ONE,
    };
    if (r->command >= NBD_COMMANDS || (r->flags & ~known[r->command]))
        return NBD_EINVAL;
    if (r->command == NBD_FLUSH)
        return r->offset || r->length ? NBD_EINVAL : 0;
    const bool changes = r->command == NBD_WRITE || r->command == NBD_TRIM || r->command == NBD_WRITE_ZEROES;
    if (changes && c->target.read_only)
        return NBD_EPERM;
    if (r->command == NBD_BLOCK_STATUS && !c->target.statuses)
        return NBD_EINVAL;
    if (!r->length || (r->command == NBD_READ && r->length > NBD_PAYLOAD_MOST))
        return NBD_EINVAL;
    if (r->offset > size || r->length > size - r->offset)
        return r->command == NBD_WRITE || r->command == NBD_WRITE_ZEROES ? NBD_ENOSPC : NBD_EINVAL;
    if (r->flags & NBD_FLAG_NO_HOLE && r->flags & NBD_FLAG_FAST_ZERO)
        return NBD_ENOTSUP;                             /* it is as slow as a write */
    if (r->flags & NBD_FLAG_DF) {
        if (!c->target.structured)
            return NBD_EINVAL;
        if (run_of(c, r).length > NBD_READ_MOST)        /* it would be answered in several chunks */
            return NBD_EOVERFLOW;
    }
    return 0;
}

/* Takes the payload in whatever becomes of it. */
static int take_write(pr_nbd *c, const pr_nbd_request *r)
{
    uint32_t error = judge(c, r);
    pr_submission m = { .store = c->target.store, .kind = PR_WRITE };
    for (uint32_t done = 0, part; done < r->length; done += part) {
        const uint64_t unit = c->target.stores->alignment;
        part = r->length - done;
        if (part > STAGING)                             /* the pieces after the first are aligned, whatever it is */
            part = STAGING - (uint32_t)((r->offset + done) % unit);
        const uint8_t *data = take_payload(c, part);
        if (!data)
            return NBD_LOST;
        if (error)
            continue;
        m.offset = r->offset + done;
        m.length = part;
        m.data = data;
        m.done = 0;
        m.flags = r->flags & NBD_FLAG_FUA && done + part == r->length ? PR_SUBMIT_FUA : 0;
        error = error_of(submit(c, &m));
    }
    if (error) {
        reply(c, r, error);
        return NBD_GOES_ON;
    }
    atomic_fetch_add(&c->counts->bytes_written, r->length);
    enqueue(c, r->flags & NBD_FLAG_FUA ? DURABLE : WRITTEN, r, m.target, m.lsn);
    return NBD_GOES_ON;
}

/* Zeros that must take their space, here and at the secondaries: data like any other. */
static void take_provision(pr_nbd *c, const pr_nbd_request *r)
{
    const uint64_t unit = c->target.stores->alignment;
    pr_submission m = { .store = c->target.store, .kind = PR_WRITE, .data = c->staging };
    int code = 0;
    pthread_mutex_lock(&c->mutex);
    if (c->flying)                                      /* what came before does not wait for all of it */
        hand_over(c);
    pthread_mutex_unlock(&c->mutex);
    memset(c->staging, 0, r->length < STAGING ? r->length : STAGING);
    for (uint32_t done = 0; done < r->length && !code; done += m.length) {
        m.offset = r->offset + done;
        m.length = r->length - done;
        if (m.length > STAGING)
            m.length = STAGING - (uint32_t)(m.offset % unit);
        m.done = 0;
        m.flags = r->flags & NBD_FLAG_FUA && done + m.length == r->length ? PR_SUBMIT_FUA : 0;
        code = atomic_load(&c->stopped) || atomic_load(&c->broken) ? -ESHUTDOWN : submit(c, &m);
    }
    if (code)
        reply(c, r, error_of(code));
    else
        enqueue(c, r->flags & NBD_FLAG_FUA ? DURABLE : WRITTEN, r, m.target, m.lsn);
}

static void take_clear(pr_nbd *c, const pr_nbd_request *r)
{
    const uint64_t unit = c->target.stores->alignment;
    pr_submission m = { .store = c->target.store, .kind = r->command == NBD_TRIM ? PR_DISCARD : PR_ZERO,
                        .flags = r->flags & NBD_FLAG_FUA ? PR_SUBMIT_FUA : 0, .offset = r->offset, .length = r->length };
    if (r->flags & NBD_FLAG_NO_HOLE) {                  /* of WRITE_ZEROES, no other command may have it */
        take_provision(c, r);
        return;
    }
    if (r->length > PR_MAX_EVENT || r->offset % unit || r->length % unit) {
        enqueue(c, RARE, r, 0, 0);
        return;
    }
    int code = submit(c, &m);
    if (code)
        reply(c, r, error_of(code));
    else
        enqueue(c, r->flags & NBD_FLAG_FUA ? DURABLE : WRITTEN, r, m.target, m.lsn);
}

static int take_request(pr_nbd *c)
{
    struct nbd_request_wire wire;
    memcpy(&wire, c->input + c->at, sizeof wire);
    c->at += sizeof wire;
    if (be32toh(wire.magic) != NBD_REQUEST_MAGIC)
        return NBD_GARBLED;
    const pr_nbd_request r = { wire.cookie, be64toh(wire.offset), be32toh(wire.length), be16toh(wire.command),
                               be16toh(wire.flags) };
    if (r.command < NBD_COMMANDS)
        atomic_fetch_add(&c->counts->requests[r.command], 1);
    if (r.command == NBD_DISC)
        return NBD_LEFT;
    if (r.command == NBD_WRITE)
        return r.length > NBD_PAYLOAD_MOST ? NBD_TOO_LONG : take_write(c, &r);
    uint32_t error = judge(c, &r);
    if (error || r.command == NBD_CACHE) {
        reply(c, &r, error);
    } else if (r.command == NBD_READ) {
        enqueue(c, READS, &r, 0, 0);
    } else if (r.command == NBD_BLOCK_STATUS) {
        enqueue(c, RARE, &r, 0, 0);
    } else if (r.command == NBD_FLUSH) {
        uint64_t position, lsn;
        if (c->target.read_only) {
            reply(c, &r, 0);
            return NBD_GOES_ON;
        }
        pr_window_submitted(c->target.window, &position, &lsn);
        enqueue(c, DURABLE, &r, position, lsn);
    } else
        take_clear(c, &r);
    return NBD_GOES_ON;
}

static uint32_t started(pr_nbd *c)
{
    pthread_mutex_lock(&c->mutex);
    uint32_t count = c->workers;
    pthread_mutex_unlock(&c->mutex);
    return count;
}

int pr_nbd_serve(pr_nbd *c)
{
    int end = NBD_GOES_ON;
    while (end == NBD_GOES_ON && !atomic_load(&c->broken))
        end = fill_head(c) ? take_request(c) : NBD_LOST;
    pthread_mutex_lock(&c->mutex);
    c->closing = true;
    if (end != NBD_LEFT)
        atomic_store(&c->broken, true);                 /* nobody is there to read the replies */
    if (c->flying)
        hand_over(c);
    pthread_cond_broadcast(&c->work);
    pthread_mutex_unlock(&c->mutex);
    for (uint32_t i = 0; i < started(c); i++)           /* only one that is not joined yet starts another */
        pthread_join(c->threads[i], NULL);
    pthread_mutex_lock(&c->mutex);
    c->over = true;
    pthread_mutex_unlock(&c->mutex);
    return end == NBD_GOES_ON ? NBD_LOST : end;
}

void pr_nbd_stop(pr_nbd *c)
{
    atomic_store(&c->stopped, true);
    pthread_mutex_lock(&c->mutex);
    if (!c->over)
        shutdown(c->fd, SHUT_RDWR);
    pthread_mutex_unlock(&c->mutex);
}

pr_nbd *pr_nbd_new(const pr_nbd_target *target, int fd, pr_nbd_counts *counts)
{
    pr_nbd *c = calloc(1, sizeof *c);
    if (!c)
        return NULL;
    c->target = *target;
    c->fd = fd;
    c->counts = counts;
    c->input = pr_buffer_take(INPUT);
    c->staging = pr_buffer_take(STAGING);
    pthread_mutex_init(&c->mutex, NULL);
    pthread_mutex_init(&c->out, NULL);
    pthread_cond_init(&c->work, NULL);
    pthread_cond_init(&c->room, NULL);
    if (!c->input || !c->staging) {
        pr_nbd_free(c);
        return NULL;
    }
    return c;
}

void pr_nbd_free(pr_nbd *c)
{
    if (!c)
        return;
    pr_buffer_give(c->input, INPUT);
    pr_buffer_give(c->staging, STAGING);
    pthread_mutex_destroy(&c->mutex);
    pthread_mutex_destroy(&c->out);
    pthread_cond_destroy(&c->work);
    pthread_cond_destroy(&c->room);
    free(c);
}
