/* Preloaded into a server under test: while the file $FULL_DISK_FLAG exists, the disk under the database has no room
   for one more byte. What is there can be read and the shared memory of the log goes on working, as on a real one. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static int is_full(int fd) {
    const char *flag = getenv("FULL_DISK_FLAG");
    char link[64], path[4096];
    ssize_t length;
    if (flag == NULL || access(flag, F_OK) != 0) return 0;
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    length = readlink(link, path, sizeof path - 1);
    if (length < 0) return 0;
    path[length] = 0;
    if (strstr(path, "accounts.db") == NULL) return 0;
    errno = ENOSPC;
    return 1;
}

typedef ssize_t (*Pwrite)(int, const void *, size_t, off64_t);

ssize_t pwrite64(int fd, const void *data, size_t size, off64_t at) {
    return is_full(fd) ? -1 : ((Pwrite)dlsym(RTLD_NEXT, "pwrite64"))(fd, data, size, at);
}

ssize_t pwrite(int fd, const void *data, size_t size, off_t at) {
    return is_full(fd) ? -1 : ((Pwrite)dlsym(RTLD_NEXT, "pwrite64"))(fd, data, size, at);
}
