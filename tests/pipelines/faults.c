/* A disk that fails now and then: reads of shards and their indexes end with EIO, below everything that Python knows.
   FAULTS_SHARE: one in how many; FAULTS_LOG: a byte is appended to this file for every fault. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/types.h>
#include <unistd.h>

static atomic_uint_fast64_t calls;

static int of_a_pack(int fd) {
    char link[64], path[4096];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t size = readlink(link, path, sizeof path - 1);
    if (size < 4) return 0;
    path[size] = 0;
    return strstr(path, "shard-") && (!strcmp(path + size - 4, ".tar") || !strcmp(path + size - 4, ".idx"));
}

static int fails(int fd) {
    const char *share = getenv("FAULTS_SHARE"), *log = getenv("FAULTS_LOG");
    if (!share || !of_a_pack(fd)) return 0;
    uint64_t z = atomic_fetch_add(&calls, 1) * 0x9E3779B97F4A7C15ull + 1; /* splitmix64: evenly spread, the same every time */
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9ull;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EBull;
    if ((z ^ (z >> 31)) % strtoull(share, NULL, 10)) return 0;
    int out = log ? open(log, O_WRONLY | O_CREAT | O_APPEND, 0644) : -1;
    if (out >= 0) {
        if (write(out, "x", 1) != 1) abort();
        close(out);
    }
    errno = EIO;
    return 1;
}

#define REAL(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))

ssize_t pread(int fd, void *to, size_t size, off_t from) { return fails(fd) ? -1 : REAL(pread)(fd, to, size, from); }
ssize_t pread64(int fd, void *to, size_t size, off64_t from) { return fails(fd) ? -1 : REAL(pread64)(fd, to, size, from); }
ssize_t read(int fd, void *to, size_t size) { return fails(fd) ? -1 : REAL(read)(fd, to, size); }
