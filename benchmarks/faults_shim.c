/* A fault at the N-th call that changes the file system below a folder, by LD_PRELOAD. benchmarks/faults_files.py arms it.

   The state lies in memory that forked processes share: the calls of all of them are counted together. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/sendfile.h>
#include <sys/stat.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <unistd.h>

enum { NONE, KILL, TORN, FAIL, FAIL_ON }; /* FAIL_ON: this call and all that follow */
#define LOG_BYTES (8 << 20)
#define DESCRIPTORS (1 << 16)

struct state {
  char prefix[4096];
  size_t length;
  long target, count;
  int mode, error;
  long logged;
  char log[LOG_BYTES];
};
static struct state *shared;
static char below_prefix[DESCRIPTORS]; /* by descriptor, of this process */
static void (*witness)(long number, const char *call, const char *path); /* sees each call, where there is one */

#define REAL(name) static __typeof__(name) *real; if (!real) real = (__typeof__(name) *)dlsym(RTLD_NEXT, #name)

__attribute__((constructor)) static void start(void) {
  shared = mmap(NULL, sizeof *shared, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
  unsetenv("LD_PRELOAD"); /* programs that this one starts are left alone */
}

void faults_arm(const char *prefix, long target, int mode, int error) {
  shared->length = 0;
  strncpy(shared->prefix, prefix, sizeof shared->prefix - 1);
  shared->target = target, shared->mode = mode, shared->error = error, shared->count = shared->logged = 0;
  shared->length = strlen(prefix);
}
void faults_watch(void (*seen)(long, const char *, const char *)) { witness = seen; }
void faults_stop(void) { shared->length = 0; } /* count no more; the calls so far stay */
long faults_count(void) { return shared->count; }
const char *faults_log(void) { return shared->log; }

static int is_below(const char *path) {
  return shared && shared->length && path && !strncmp(path, shared->prefix, shared->length);
}
static int is_below_at(int folder, const char *path) {
  if (!shared || !shared->length || !path) return 0;
  if (path[0] == '/') return is_below(path);
  char link[64], name[4096] = "";
  snprintf(link, sizeof link, "/proc/self/fd/%d", folder);
  if (folder == AT_FDCWD) return getcwd(name, sizeof name) && is_below(name);
  ssize_t size = readlink(link, name, sizeof name - 1);
  return size > 0 && (name[size] = 0, is_below(name));
}
static int is_tracked(int fd) {
  return shared && shared->length && fd >= 0 && fd < DESCRIPTORS && below_prefix[fd];
}
static void die(void) {
  kill(getpid(), SIGKILL);
  for (;;) pause();
}
/* Count a call and note its name: 0 where it may go on, else the error it fails with. */
static int hit(const char *call, const char *path) {
  long number = __atomic_add_fetch(&shared->count, 1, __ATOMIC_SEQ_CST);
  char line[4400];
  int size = snprintf(line, sizeof line, "%s %s\n", call, path ? path : "");
  long at = __atomic_fetch_add(&shared->logged, size, __ATOMIC_SEQ_CST);
  if (size < (int)sizeof line && at + size < LOG_BYTES) memcpy(shared->log + at, line, size + 1);
  if (witness) witness(number, call, path ? path : "");
  int now = shared->target && number == shared->target;
  if (now && shared->mode == KILL) die();
  if (now && shared->mode == TORN) return -1;
  if (!(now && shared->mode == FAIL) && !(shared->target && number >= shared->target && shared->mode == FAIL_ON)) return 0;
  if (shared->error == ENOSPC && (!strncmp(call, "unlink", 6) || !strcmp(call, "rmdir") || !strcmp(call, "remove")))
    return 0; /* of a full disk one may delete */
  return shared->error;
}

/* Do a call unless it fails; where it is to be torn it is done, and the process dies. */
#define CALL(type, condition, call, path, expression)      \
  if (!(condition)) return (expression);                    \
  int fault = hit(call, path);                              \
  if (fault > 0) { errno = fault; return -1; }              \
  type answer = (expression);                               \
  if (fault < 0) die();                                     \
  return answer;

#define CHANGES(flags) ((flags) & (O_CREAT | O_TRUNC | O_WRONLY | O_RDWR))
static int note(int fd, int below) {
  if (fd >= 0 && fd < DESCRIPTORS) below_prefix[fd] = below;
  return fd;
}
#define OPEN(name)                                                                                    \
  int name(const char *path, int flags, ...) {                                                        \
    static int (*real)(const char *, int, ...);                                                       \
    if (!real) real = (int (*)(const char *, int, ...))dlsym(RTLD_NEXT, #name);                       \
    va_list rest; va_start(rest, flags); mode_t mode = va_arg(rest, int); va_end(rest);               \
    int below = is_below(path);                                                                       \
    CALL(int, below && CHANGES(flags), "open", path, note(real(path, flags, mode), below))            \
  }
OPEN(open) OPEN(open64)
#define OPENAT(name)                                                                                  \
  int name(int folder, const char *path, int flags, ...) {                                            \
    static int (*real)(int, const char *, int, ...);                                                  \
    if (!real) real = (int (*)(int, const char *, int, ...))dlsym(RTLD_NEXT, #name);                  \
    va_list rest; va_start(rest, flags); mode_t mode = va_arg(rest, int); va_end(rest);               \
    int below = is_below_at(folder, path);                                                            \
    CALL(int, below && CHANGES(flags), "open", path, note(real(folder, path, flags, mode), below))    \
  }
OPENAT(openat) OPENAT(openat64)
int close(int fd) {
  REAL(close);
  note(fd, 0);
  return real(fd);
}

/* Of a full disk the first half of the bytes still fits; a torn write has as much. */
#define WRITE(first_half, all)                             \
  if (!is_tracked(fd)) return all;                         \
  int fault = hit("write", "");                            \
  if (fault < 0) { (void)!(first_half); die(); }           \
  if (fault == ENOSPC && size > 1) (void)!(first_half);    \
  if (fault > 0) { errno = fault; return -1; }             \
  return all;
ssize_t write(int fd, const void *bytes, size_t size) {
  REAL(write);
  WRITE(real(fd, bytes, size / 2), real(fd, bytes, size))
}
ssize_t pwrite(int fd, const void *bytes, size_t size, off_t at) {
  REAL(pwrite);
  WRITE(real(fd, bytes, size / 2, at), real(fd, bytes, size, at))
}
ssize_t pwrite64(int fd, const void *bytes, size_t size, off64_t at) {
  REAL(pwrite64);
  WRITE(real(fd, bytes, size / 2, at), real(fd, bytes, size, at))
}
ssize_t sendfile(int fd, int from, off_t *at, size_t size) {
  REAL(sendfile);
  WRITE(real(fd, from, at, size / 2), real(fd, from, at, size))
}
ssize_t sendfile64(int fd, int from, off64_t *at, size_t size) {
  REAL(sendfile64);
  WRITE(real(fd, from, at, size / 2), real(fd, from, at, size))
}
ssize_t writev(int fd, const struct iovec *parts, int size) {
  REAL(writev);
  WRITE(real(fd, parts, size / 2), real(fd, parts, size))
}
#define OF_DESCRIPTOR(name, parameters, arguments)  \
  int name parameters {                             \
    REAL(name);                                     \
    CALL(int, is_tracked(fd), #name, "", real arguments) \
  }
OF_DESCRIPTOR(fsync, (int fd), (fd))
OF_DESCRIPTOR(fdatasync, (int fd), (fd))
OF_DESCRIPTOR(ftruncate, (int fd, off_t size), (fd, size))
OF_DESCRIPTOR(ftruncate64, (int fd, off64_t size), (fd, size))
OF_DESCRIPTOR(posix_fallocate, (int fd, off_t at, off_t size), (fd, at, size))
#define OF_PATH(name, parameters, arguments, path)  \
  int name parameters {                             \
    REAL(name);                                     \
    CALL(int, is_below(path), #name, path, real arguments) \
  }
OF_PATH(unlink, (const char *path), (path), path)
OF_PATH(rmdir, (const char *path), (path), path)
OF_PATH(remove, (const char *path), (path), path)
OF_PATH(mkdir, (const char *path, mode_t mode), (path, mode), path)
OF_PATH(truncate, (const char *path, off_t size), (path, size), path)
OF_PATH(chmod, (const char *path, mode_t mode), (path, mode), path)
OF_PATH(link, (const char *from, const char *to), (from, to), to)
OF_PATH(symlink, (const char *from, const char *to), (from, to), to)
#define OF_PATH_AT(name, parameters, arguments, folder, path) \
  int name parameters {                                        \
    REAL(name);                                                \
    CALL(int, is_below_at(folder, path), #name, path, real arguments) \
  }
OF_PATH_AT(unlinkat, (int folder, const char *path, int flags), (folder, path, flags), folder, path)
OF_PATH_AT(mkdirat, (int folder, const char *path, mode_t mode), (folder, path, mode), folder, path)
OF_PATH_AT(fchmodat, (int folder, const char *path, mode_t mode, int flags), (folder, path, mode, flags), folder, path)
OF_PATH_AT(linkat, (int from, const char *old, int folder, const char *path, int flags), (from, old, folder, path, flags),
           folder, path)
int rename(const char *from, const char *to) {
  REAL(rename);
  CALL(int, is_below(from) || is_below(to), "rename", to, real(from, to))
}
int renameat(int from, const char *old, int folder, const char *path) {
  REAL(renameat);
  CALL(int, is_below_at(folder, path), "renameat", path, real(from, old, folder, path))
}
