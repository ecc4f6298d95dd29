/* The stream of a link by the run: as many batches of events as are at hand go out, or come in, by one call. What is no batch
 * of events is left to the caller, and so is every reason why a frame is wrong: it looks at the frame again and says it.
 *
 *   1  Only frames that pass every check of the slow way (session, replica) are taken here; tests hold the two together.
 *   2  What was taken is judged before it is appended, and appended unchanged.
 *   3  Nothing here waits for the disk. One thread receives, one sends; neither holds a lock of the caller's.
 */
#ifndef PYREPL_STREAM_H
#define PYREPL_STREAM_H

#include "window.h"

void pr_frame_seal(struct pr_frame *frame, uint16_t type, uint32_t length, uint32_t body_crc, uint64_t sequence,
                   uint32_t session);
/* 0, or which field is wrong; the caller words it. The checksum last: it holds, then. */
enum { PR_FRAME_GOOD, PR_FRAME_MAGIC_WRONG, PR_FRAME_VERSION_WRONG, PR_FRAME_CRC_WRONG };
int pr_frame_judge(const struct pr_frame *frame);

/* -- in -- */
typedef struct pr_reach {               /* where the stream stands: what the next batch of events must be */
    uint64_t sequence;                  /* of the next frame */
    uint64_t lsn;                       /* of the last event */
    uint64_t previous;                  /* digest of the batch of events before it, if it is `known` */
    uint32_t session, alignment;
    bool known;
    uint8_t group[16], generation[16];
    uint64_t position;                  /* of the journal behind what was taken, if anything was */
    uint64_t batches, bytes;            /* that were taken since they were set to 0 */
} pr_reach;

enum { PR_STREAM_MORE, PR_STREAM_OTHER };   /* the next frame is not whole; it is whole, or wrong, and not for us */

/* Takes the batches of events that stand at the beginning of data into the window; the bytes of their frames. Ends when `most`
 * bytes were taken since reach->bytes was 0, too. Those of the first `quiet` bytes are appended quietly (window.h). `code`:
 * PR_STREAM_..., PR_TIME_OVER: no room so far, or what the window said. */
size_t pr_stream_take(pr_window *window, pr_reach *reach, const uint8_t *data, size_t length, uint64_t most, uint64_t quiet,
                      int64_t timeout, int *code);

typedef struct pr_inlet {               /* what was received and not taken yet: [at, end) of memory */
    uint8_t *memory;
    size_t size, at, end;
    uint64_t received;
    int fd;
} pr_inlet;

enum { PR_INLET_ENDED = 1 };            /* the peer sends no more */
/* Receives until `length` bytes are at hand, at an address that is a multiple of 8. 0, PR_INLET_ENDED, -EAGAIN (the socket's
 * own limit), -errno. */
int pr_inlet_fill(pr_inlet *inlet, size_t length);
bool pr_inlet_whole(const pr_inlet *inlet);                     /* Is a whole frame at hand? */
/* Receives and takes until something was taken and no more is at hand, or `most` bytes were: 0. PR_STREAM_OTHER: nothing was
 * taken, what comes next is the caller's. Else what the window said, or, where `peer` is set, what pr_inlet_fill would. */
int pr_inlet_take(pr_inlet *inlet, pr_window *window, pr_reach *reach, uint64_t most, uint64_t quiet, int64_t timeout,
                  int *peer);

/* -- out -- */
typedef struct pr_outlet {              /* a lot with its frames, ready to go */
    pr_lot lot;
    struct pr_frame frames[PR_LOT];
    uint8_t *copy;                      /* what could not be sent in time, when the window's memory was given back */
    uint64_t length, sent;              /* of the frames and batches together */
    uint64_t copy_from;
} pr_outlet;

uint64_t pr_outlet_length(const pr_entry *entry);              /* bytes of its batch on the wire, without the frame's header */
void pr_outlet_seal(pr_outlet *outlet, uint64_t sequence, uint32_t session);
/* Sends the rest. After `patience` ms without room for it the pinned memory is given back, after `dead` ms it gives up:
 * -ETIMEDOUT; -errno. */
int pr_outlet_send(pr_outlet *outlet, pr_window *window, int fd, int patience, int dead);
void pr_outlet_release(pr_outlet *outlet, pr_window *window);
/* The bytes that a send would send, for those who move them otherwise. */
void pr_outlet_copy(const pr_outlet *outlet, uint8_t *target);

#endif
