/* Buffers aligned for O_DIRECT (PR_BLOCK), and a pool that keeps them: first-touched memory is dear. */
#ifndef PYREPL_BUFFERS_H
#define PYREPL_BUFFERS_H

#include <stddef.h>

void *pr_buffer_take(size_t length);                        /* aligned to PR_BLOCK; arbitrary contents; or NULL */
void pr_buffer_give(void *buffer, size_t length);           /* length as it was taken; NULL is harmless */

#endif
