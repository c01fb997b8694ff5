/* A disk that fails on command, for the files whose path has "patgate.db" in it (tests/support/disk.py has the layout).

   Loaded with LD_PRELOAD. What fails, when and how is read from a file that tests map too; without one nothing fails. */

#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/types.h>
#include <unistd.h>

enum { WRITE = 1, SYNC = 2, TRUNCATE = 4, LOCK = 8, MAP = 16, READ = 32 };

struct orders {
    uint32_t armed, kinds, nth, times, error, written; /* written: 0 nothing of a failing write, 1 half, 2 all */
    uint32_t seen, failed, unsynced, history;          /* history: kinds that were seen since it was armed */
};

static struct orders nothing, *orders = &nothing;

__attribute__((constructor)) static void begin(void) {
    const char *path = getenv("FAILING_DISK");
    if (path == NULL) return;
    int fd = open(path, O_RDWR | O_CLOEXEC);
    if (fd < 0) return;
    void *map = mmap(NULL, sizeof(struct orders), PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    close(fd);
    if (map != MAP_FAILED) orders = map;
}

/* 0 for a file that is none of the store's, 2 for its log, 1 for the others. */
static int ours(int fd) {
    char name[64], path[4096];
    int saved = errno;
    snprintf(name, sizeof name, "/proc/self/fd/%d", fd);
    ssize_t length = readlink(name, path, sizeof path - 1);
    errno = saved;
    if (length <= 0) return 0;
    path[length] = 0;
    if (strstr(path, "patgate.db") == NULL) return 0;
    return strstr(path, "patgate.db-wal") != NULL ? 2 : 1;
}

static int fails(int fd, uint32_t kind) {
    if (!orders->armed || !(orders->kinds & kind) || !ours(fd)) return 0;
    orders->history |= kind;
    uint32_t number = __sync_add_and_fetch(&orders->seen, 1);
    if (number < orders->nth || (orders->times && number >= orders->nth + orders->times)) return 0;
    __sync_add_and_fetch(&orders->failed, 1);
    return 1;
}

#define REAL(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))

#define PWRITE(name, offset_t)                                             \
    ssize_t name(int fd, const void *data, size_t size, offset_t offset) { \
        static __typeof__(&name) real;                                     \
        if (real == NULL) real = REAL(name);                               \
        int failing = fails(fd, WRITE);                                    \
        if (ours(fd) == 2) orders->unsynced++;                             \
        if (!failing) return real(fd, data, size, offset);                 \
        if (orders->written) real(fd, data, orders->written == 1 ? size / 2 : size, offset); \
        errno = (int)orders->error;                                        \
        return -1;                                                         \
    }
PWRITE(pwrite, off_t)
PWRITE(pwrite64, off64_t)

#define SYNC_(name)                                  \
    int name(int fd) {                               \
        static __typeof__(&name) real;               \
        if (real == NULL) real = REAL(name);         \
        if (fails(fd, SYNC)) {                       \
            errno = (int)orders->error;              \
            return -1;                               \
        }                                            \
        int done = real(fd);                         \
        if (done == 0 && ours(fd) == 2) orders->unsynced = 0; \
        return done;                                 \
    }
SYNC_(fsync)
SYNC_(fdatasync)

#define TRUNCATE_(name, offset_t)            \
    int name(int fd, offset_t size) {        \
        static __typeof__(&name) real;       \
        if (real == NULL) real = REAL(name); \
        if (fails(fd, TRUNCATE)) {           \
            errno = (int)orders->error;      \
            return -1;                       \
        }                                    \
        return real(fd, size);               \
    }
TRUNCATE_(ftruncate, off_t)
TRUNCATE_(ftruncate64, off64_t)

#define PREAD(name, offset_t)                                        \
    ssize_t name(int fd, void *data, size_t size, offset_t offset) { \
        static __typeof__(&name) real;                               \
        if (real == NULL) real = REAL(name);                         \
        if (fails(fd, READ)) {                                       \
            errno = (int)orders->error;                              \
            return -1;                                               \
        }                                                            \
        return real(fd, data, size, offset);                         \
    }
PREAD(pread, off_t)
PREAD(pread64, off64_t)

#define FCNTL(name)                                                  \
    int name(int fd, int command, ...) {                             \
        static int (*real)(int, int, void *);                        \
        va_list rest;                                                \
        va_start(rest, command);                                     \
        void *argument = va_arg(rest, void *);                       \
        va_end(rest);                                                \
        if (real == NULL) real = (int (*)(int, int, void *))dlsym(RTLD_NEXT, #name); \
        if ((command == F_SETLK || command == F_SETLKW) && fails(fd, LOCK)) { \
            errno = (int)orders->error;                              \
            return -1;                                               \
        }                                                            \
        return real(fd, command, argument);                          \
    }
FCNTL(fcntl)
FCNTL(fcntl64)

#define MMAP(name, offset_t)                                                          \
    void *name(void *at, size_t size, int protection, int flags, int fd, offset_t offset) { \
        static __typeof__(&name) real;                                                \
        if (real == NULL) real = REAL(name);                                          \
        if (fd >= 0 && fails(fd, MAP)) {                                              \
            errno = (int)orders->error;                                               \
            return MAP_FAILED;                                                        \
        }                                                                             \
        return real(at, size, protection, flags, fd, offset);                         \
    }
MMAP(mmap, off_t)
MMAP(mmap64, off64_t)
