/* The transmission phase of one NBD connection: requests in, window and devices, replies out.
 *
 *   1  One thread (whoever calls serve) takes requests in and gives writes to the window; workers, started when there is
 *      something for them, wait for the journal, read, and reply. Replies leave in the order in which requests complete.
 *   2  A write is given to the window when its payload is here, up to a MiB at a time: a client that stops in the middle
 *      of one holds up nobody, and nothing of an announced MiB happens. The window copies it once, with its checksum.
 *   3  A request that is alone is carried out by the thread that took it in: no hand-over at queue depth 1. When others
 *      arrive meanwhile, the next ones are handed over; so is one that waits long (for a peer): the client may leave.
 *   4  Reads that wait are performed together, as one list; a worker takes at most NBD_READ_MOST bytes at a time.
 *   5  WRITE, TRIM and WRITE_ZEROES are answered when the window says written (with FUA: durable; in sync mode: at the
 *      peer too), FLUSH when all that had its place at its arrival is durable. That is the contract of the group.
 *   6  What a client can make grow is bounded: NBD_FLIGHT requests, NBD_WORKERS times NBD_READ_MOST bytes of reads, one
 *      MiB of a write. A wrong magic or a write beyond NBD_PAYLOAD_MOST ends the connection; all else is answered.
 *   7  WRITE_ZEROES that must leave no hole (NO_HOLE) is written as data, a MiB at a time, by the thread that takes
 *      requests in, as a long WRITE is; a stop ends it between two pieces.
 */
#ifndef PYREPL_NBDIO_H
#define PYREPL_NBDIO_H

#include "nbd.h"
#include "view.h"

#define NBD_PAYLOAD_MOST (32u << 20)    /* of a read or write: what clients take for granted */
#define NBD_FLIGHT 512u
#define NBD_WORKERS 4u
#define NBD_READ_MOST (2u << 20)

typedef struct pr_nbd_request {
    uint64_t cookie, offset;
    uint32_t length;
    uint16_t command, flags;
} pr_nbd_request;

typedef struct pr_nbd_target {          /* what a connection shows */
    pr_window *window;
    pr_stores *stores;
    uint64_t size;                      /* as it was negotiated */
    uint32_t store;
    bool read_only, structured, statuses;       /* statuses: a metadata context was chosen, so BLOCK_STATUS may come */
    /* What is rare: BLOCK_STATUS, and zeros and discards that are long or not aligned. One at a time, on a worker. An error of the
     * protocol, or 0; of a BLOCK_STATUS *answer is the whole reply then, to be freed. */
    uint32_t (*rare)(void *context, const pr_nbd_request *request, uint8_t **answer, uint32_t *length);
    void *context;
} pr_nbd_target;

typedef struct pr_nbd_counts {
    _Atomic uint64_t requests[NBD_COMMANDS], errors, bytes_read, bytes_written;
} pr_nbd_counts;

typedef struct pr_nbd pr_nbd;

enum { NBD_GOES_ON, NBD_LEFT, NBD_LOST, NBD_GARBLED, NBD_TOO_LONG };           /* how a connection ended */

pr_nbd *pr_nbd_new(const pr_nbd_target *target, int fd, pr_nbd_counts *counts); /* NULL: no memory */
int pr_nbd_serve(pr_nbd *connection);   /* until the end; what is in flight is completed first */
void pr_nbd_stop(pr_nbd *connection);   /* from any thread: the socket is shut down, serve returns soon */
void pr_nbd_free(pr_nbd *connection);   /* not before serve has returned */

#endif
