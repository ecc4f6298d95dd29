/* Lists by threads, where io_uring is not to be had.
 *
 * Decides: how many threads there are (made as needed, kept) and how they share a list. Must not know devices, only
 * descriptors.
 */
#define _GNU_SOURCE
#include "device_file.h"
#include <pthread.h>
#include <signal.h>

#define THREADS 16u                     /* of the process, callers not counted */
#define STACK (256u << 10)              /* bytes; plain system calls and one array of iovecs */

struct job {                            /* lies on the caller's stack until all is done */
    struct job *next;
    int fd;
    bool block;
    pr_io *ios;
    uint32_t count, taken, helpers, most;       /* helpers: pool threads inside, never more than `most` */
    pthread_cond_t left;
};

static struct {
    pthread_mutex_t lock;
    pthread_cond_t work;
    struct job *jobs;                   /* those of which something is not taken yet */
    uint32_t threads, idle;
    bool watched;
} pool = { .lock = PTHREAD_MUTEX_INITIALIZER, .work = PTHREAD_COND_INITIALIZER };

static void forget(void)                /* in a child there are no threads but its own */
{
    pthread_mutex_init(&pool.lock, NULL);
    pthread_cond_init(&pool.work, NULL);
    pool.jobs = NULL;
    pool.threads = pool.idle = 0;
}

static void unlink_job(struct job *job)
{
    for (struct job **at = &pool.jobs; *at; at = &(*at)->next)
        if (*at == job) {
            *at = job->next;
            return;
        }
}

/* Works on the job until nothing of it is left to take. The lock is held on entry and on return. */
static void work_on(struct job *job)
{
    while (job->taken < job->count) {
        pr_io *io = &job->ios[job->taken++];
        if (job->taken == job->count)
            unlink_job(job);
        pthread_mutex_unlock(&pool.lock);
        pr_file_one(job->fd, job->block, io, 0);
        pthread_mutex_lock(&pool.lock);
    }
}

static struct job *next_job(void)
{
    for (struct job *job = pool.jobs; job; job = job->next)
        if (job->helpers < job->most)
            return job;
    return NULL;
}

static void *help(void *nothing)
{
    (void)nothing;
    pthread_mutex_lock(&pool.lock);
    for (;;) {
        struct job *job = next_job();
        if (!job) {
            pool.idle++;
            pthread_cond_wait(&pool.work, &pool.lock);
            pool.idle--;
            continue;
        }
        job->helpers++;
        work_on(job);
        if (!--job->helpers)
            pthread_cond_signal(&job->left);
    }
    return NULL;
}

/* One more thread, with all signals blocked: they are the main thread's. That none can be made is no error, only
 * slow. */
static void add_thread(void)
{
    pthread_attr_t attr;
    pthread_t thread;
    sigset_t all, before;
    if (!pool.watched) {
        pthread_atfork(NULL, NULL, forget);
        pool.watched = true;
    }
    pthread_attr_init(&attr);
    pthread_attr_setdetachstate(&attr, PTHREAD_CREATE_DETACHED);
    pthread_attr_setstacksize(&attr, STACK);
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    if (!pthread_create(&thread, &attr, help, NULL))
        pool.threads++;
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    pthread_attr_destroy(&attr);
}

void pr_threads_perform(int fd, bool block, pr_io *ios, uint32_t count, uint32_t depth)
{
    struct job job = { .fd = fd, .block = block, .ios = ios, .count = count, .left = PTHREAD_COND_INITIALIZER };
    job.most = (depth < count ? depth : count) - 1;     /* the caller is the first */
    pthread_mutex_lock(&pool.lock);
    struct job **end = &pool.jobs;
    while (*end)
        end = &(*end)->next;
    *end = &job;
    uint32_t want = job.most > pool.idle ? job.most - pool.idle : 0;
    for (; want && pool.threads < THREADS; want--)
        add_thread();
    if (job.most)
        pthread_cond_broadcast(&pool.work);
    work_on(&job);
    while (job.helpers)
        pthread_cond_wait(&job.left, &pool.lock);
    pthread_mutex_unlock(&pool.lock);
    pthread_cond_destroy(&job.left);
}
