/* The transmission phase with its threads and nothing else in the process, for ThreadSanitizer: Python cannot run under it.
 * Several connections write, zero and read the same blocks of a store in memory while another thread applies, as tests do.
 * Decides: who sends what. A reply that is wrong, or does not come, is an error; what the sanitizer says is read by the test. */
#include "nbdio.h"
#include "buffers.h"
#include <endian.h>
#include <errno.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#define CONNECTIONS 4
#define ALIGNMENT 512u
#define SIZE (1u << 20)
#define LOG (64u << 20)

typedef struct memory { pr_device device; uint8_t *bytes; pthread_mutex_t mutex; } memory;

static int perform(pr_device *device, pr_io *ios, uint32_t count)
{
    memory *m = device->self;
    pthread_mutex_lock(&m->mutex);
    for (uint32_t i = 0; i < count; i++) {
        pr_io *io = &ios[i];
        struct iovec one = { io->buffer, io->length }, *parts = io->parts ? io->vector : &one;
        uint64_t at = io->offset;
        for (uint32_t k = 0; k < (io->parts ? io->parts : 1u) && (io->op == PR_READ || io->op == PR_WRITE_OUT); k++) {
            if (io->op == PR_READ)
                memcpy(parts[k].iov_base, m->bytes + at, parts[k].iov_len);
            else
                memcpy(m->bytes + at, parts[k].iov_base, parts[k].iov_len);
            at += parts[k].iov_len;
        }
        if (io->op == PR_ZERO_OUT || io->op == PR_DISCARD_OUT)
            memset(m->bytes + at, 0, io->length);
        io->result = 0;
    }
    pthread_mutex_unlock(&m->mutex);
    return 0;
}

static int flush(pr_device *device) { (void)device; return 0; }

static void memory_make(memory *m, uint64_t size)
{
    m->device = (pr_device){ .perform = perform, .flush = flush, .self = m, .size = size, .sector = ALIGNMENT };
    m->bytes = calloc(1, size);
    pthread_mutex_init(&m->mutex, NULL);
}

static void check(int good, const char *what)
{
    if (!good) {
        printf("wrong: %s\n", what);
        exit(1);
    }
}

static pr_window *window;
static pr_stores *stores;
static memory disk, journal;
static atomic_bool over;
static pr_nbd_counts counts;
static uint64_t rounds;

/* What has its place and is durable goes to the disk. */
static void *apply(void *unused)
{
    pr_window_state state;
    (void)unused;
    while (!atomic_load(&over)) {
        pr_window_look(window, &state);
        if (state.durable_position < state.end_position)
            check(!pr_window_commit(window, state.end_lsn, PR_WINDOW_FOR_EVER), "commit");
        uint64_t position = state.applied_position, lsn = state.applied_lsn;
        while (position < state.end_position) {
            pr_entry entry;
            check(!pr_window_entry(window, position, &entry), "entry");
            for (uint32_t i = 0; i < entry.travel->count; i++) {
                const struct pr_record *r = &entry.records[i];
                pthread_mutex_lock(&disk.mutex);
                if (r->kind == PR_WRITE)
                    memcpy(disk.bytes + r->offset, entry.payload + r->payload, r->length);
                else
                    memset(disk.bytes + r->offset, 0, r->length);
                pthread_mutex_unlock(&disk.mutex);
            }
            position += entry.length;
            lsn = entry.last_lsn;
            pr_entry_release(window, &entry);
        }
        check(!pr_window_applied(window, position, lsn) && !pr_window_set_tail(window, position), "applied");
        pr_stores_turn(stores);
        usleep(500);
    }
    return NULL;
}

static uint32_t rare(void *context, const pr_nbd_request *request, uint8_t **answer, uint32_t *length)
{
    (void)context;
    (void)request;
    (void)answer;
    (void)length;
    return 0;
}

static void *serve(void *connection)
{
    check(pr_nbd_serve(connection) == NBD_LEFT, "the end of a connection");
    return NULL;
}

static void exactly(int fd, void *memory, size_t length)
{
    check(recv(fd, memory, length, MSG_WAITALL) == (ssize_t)length, "a reply that did not come");
}

/* Requests in batches, cookies with the length of what is to be read. */
static void *client(void *argument)
{
    const int fd = *(int *)argument;
    unsigned seed = (unsigned)fd;
    uint8_t data[16384], out[32 * 20000];
    for (uint64_t round = 0; round < rounds; round++) {
        uint32_t flying = 1 + (uint32_t)rand_r(&seed) % 32;
        size_t fill = 0;
        for (uint32_t i = 0; i < flying; i++) {
            static const uint16_t commands[] = { NBD_READ, NBD_READ, NBD_WRITE, NBD_WRITE, NBD_WRITE_ZEROES, NBD_FLUSH, NBD_TRIM };
            uint16_t command = commands[(uint32_t)rand_r(&seed) % 7], flags = rand_r(&seed) % 16 ? 0 : NBD_FLAG_FUA;
            uint32_t length = command == NBD_FLUSH ? 0 : 1 + (uint32_t)rand_r(&seed) % 16384;
            uint64_t offset = command == NBD_FLUSH ? 0 : (uint32_t)rand_r(&seed) % 65536;
            if (rand_r(&seed) % 4) {
                length = (uint32_t)pr_align(length, ALIGNMENT);
                offset = offset / ALIGNMENT * ALIGNMENT;
            }
            struct nbd_request_wire wire = { htobe32(NBD_REQUEST_MAGIC), htobe16(flags), htobe16(command),
                                             command == NBD_READ ? length : 0, htobe64(offset), htobe32(length) };
            memcpy(out + fill, &wire, sizeof wire);
            fill += sizeof wire;
            if (command == NBD_WRITE) {
                memset(out + fill, (int)round, length);
                fill += length;
            }
        }
        for (size_t sent = 0; sent < fill;) {
            ssize_t n = send(fd, out + sent, fill - sent, 0);
            check(n > 0, "send");
            sent += (size_t)n;
        }
        for (uint32_t i = 0; i < flying; i++) {
            struct nbd_simple_wire reply;
            exactly(fd, &reply, sizeof reply);
            check(be32toh(reply.magic) == NBD_SIMPLE_MAGIC && !reply.error, "reply");
            if (reply.cookie)
                exactly(fd, data, reply.cookie);
        }
    }
    struct nbd_request_wire bye = { .magic = htobe32(NBD_REQUEST_MAGIC), .command = htobe16(NBD_DISC) };
    check(send(fd, &bye, sizeof bye, 0) == sizeof bye, "disconnect");
    return NULL;
}

int main(int count, char **arguments)
{
    pthread_t applier, servers[CONNECTIONS], clients[CONNECTIONS];
    pr_nbd *connections[CONNECTIONS];
    int pairs[CONNECTIONS][2];
    rounds = count > 1 ? strtoull(arguments[1], NULL, 10) : 100;
    memory_make(&disk, SIZE);
    memory_make(&journal, LOG);
    window = pr_window_new(5 * (PR_MAX_PAYLOAD + PR_BLOCK), ALIGNMENT, 1 << 16);
    stores = pr_stores_new(8192, ALIGNMENT);
    check(window && stores && !pr_stores_add(stores, 1, 1, &disk.device, SIZE, 1), "making the site");
    pr_window_log log = { .device = &journal.device, .size = LOG, .chain = 1, .seed = 7, .group = "g", .generation = "n" };
    check(!pr_window_open(window, &log) && !pr_window_set_store(window, 1, SIZE, true), "opening");
    check(!pthread_create(&applier, NULL, apply, NULL), "thread");
    for (int i = 0; i < CONNECTIONS; i++) {
        pr_nbd_target target = { .window = window, .stores = stores, .size = SIZE, .store = 1, .rare = rare };
        check(!socketpair(AF_UNIX, SOCK_STREAM, 0, pairs[i]), "socketpair");
        connections[i] = pr_nbd_new(&target, pairs[i][0], &counts);
        check(connections[i] && !pthread_create(&servers[i], NULL, serve, connections[i]), "serve");
        check(!pthread_create(&clients[i], NULL, client, &pairs[i][1]), "client");
    }
    for (int i = 0; i < CONNECTIONS; i++) {
        pthread_join(clients[i], NULL);
        pthread_join(servers[i], NULL);
        pr_nbd_stop(connections[i]);                    /* harmless now */
        pr_nbd_free(connections[i]);
    }
    atomic_store(&over, true);
    pthread_join(applier, NULL);
    uint64_t all = 0;
    for (int i = 0; i < NBD_COMMANDS; i++)
        all += counts.requests[i];
    pr_window_close(window);
    pr_window_free(window);
    pr_stores_free(stores);
    free(disk.bytes);
    free(journal.bytes);
    printf("%llu requests\n", (unsigned long long)all);
    return 0;
}
