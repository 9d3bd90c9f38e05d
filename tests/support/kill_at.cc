// A library to be preloaded: ends the process by SIGKILL before or after the n-th of the system
// calls by which a share is changed or looked at, as the test says in a file that both have mapped
// (VIRTBAY_KILL_AT).
// Loaded into a device host; every function is [any].
#include "tests/support/kill_at.h"

#include <dlfcn.h>
#include <fcntl.h>
#include <signal.h>
#include <stdarg.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/xattr.h>
#include <time.h>
#include <unistd.h>

#include <atomic>
#include <cstdlib>

namespace {

using virtbay::testing::KillAt;

KillAt* Map() {
  const char* const path = std::getenv("VIRTBAY_KILL_AT");
  const int fd = path == nullptr ? -1 : ::open(path, O_RDWR | O_CLOEXEC);
  if (fd < 0) return nullptr;
  void* const at = ::mmap(nullptr, sizeof(KillAt), PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
  ::close(fd);
  return at == MAP_FAILED ? nullptr : static_cast<KillAt*>(at);
}

KillAt* const kill_at = Map();

void Point() {
  if (kill_at == nullptr || kill_at->left.load() <= 0 || kill_at->left.fetch_sub(1) != 1) return;
  kill_at->left.store(kill_at->next.exchange(0));
  kill_at->fired.fetch_add(1);
  ::kill(::getpid(), SIGKILL);
  for (;;) ::pause();
}

// Calls the function of that name that this one stands before.
template <typename Function, typename... Arguments>
auto Between(Function* function, Arguments... arguments) {
  Point();
  const auto result = function(arguments...);
  Point();
  return result;
}

// Not by a static that is initialised when it is first met: whoever waits for that calls syscall.
template <typename Function>
Function* Next(std::atomic<void*>* known, const char* name, Function* /*type*/) {
  void* next = known->load(std::memory_order_relaxed);
  if (next == nullptr) known->store(next = ::dlsym(RTLD_NEXT, name));
  return reinterpret_cast<Function*>(next);
}

}  // namespace

#define VIRTBAY_NEXT(function)              \
  static std::atomic<void*> known{nullptr}; \
  auto* const next = Next(&known, #function, &function)
#define VIRTBAY_BETWEEN(function, ...) \
  VIRTBAY_NEXT(function);              \
  return Between(next, __VA_ARGS__)

// NOLINTBEGIN(readability-identifier-naming)
extern "C" {

int unlinkat(int fd, const char* name, int flags) __THROW {
  VIRTBAY_BETWEEN(unlinkat, fd, name, flags);
}
int mkdirat(int fd, const char* name, mode_t mode) __THROW {
  VIRTBAY_BETWEEN(mkdirat, fd, name, mode);
}
int mknodat(int fd, const char* name, mode_t mode, dev_t dev) __THROW {
  VIRTBAY_BETWEEN(mknodat, fd, name, mode, dev);
}
int symlinkat(const char* to, int fd, const char* name) __THROW {
  VIRTBAY_BETWEEN(symlinkat, to, fd, name);
}
int linkat(int from, const char* name, int to, const char* other, int flags) __THROW {
  VIRTBAY_BETWEEN(linkat, from, name, to, other, flags);
}
int renameat(int from, const char* name, int to, const char* other) __THROW {
  VIRTBAY_BETWEEN(renameat, from, name, to, other);
}
int setxattr(const char* path, const char* name, const void* value, size_t size,
             int flags) __THROW {
  VIRTBAY_BETWEEN(setxattr, path, name, value, size, flags);
}
ssize_t getxattr(const char* path, const char* name, void* value, size_t size) __THROW {
  VIRTBAY_BETWEEN(getxattr, path, name, value, size);
}
int removexattr(const char* path, const char* name) __THROW {
  VIRTBAY_BETWEEN(removexattr, path, name);
}
int statx(int fd, const char* name, int flags, unsigned mask, struct statx* st) __THROW {
  VIRTBAY_BETWEEN(statx, fd, name, flags, mask, st);
}
int fstat(int fd, struct stat* st) __THROW { VIRTBAY_BETWEEN(fstat, fd, st); }
int fchmodat(int fd, const char* name, mode_t mode, int flags) __THROW {
  VIRTBAY_BETWEEN(fchmodat, fd, name, mode, flags);
}
int ftruncate(int fd, off_t size) __THROW { VIRTBAY_BETWEEN(ftruncate, fd, size); }
ssize_t pwritev2(int fd, const struct iovec* parts, int count, off_t at, int flags) {
  VIRTBAY_BETWEEN(pwritev2, fd, parts, count, at, flags);
}
ssize_t preadv2(int fd, const struct iovec* parts, int count, off_t at, int flags) {
  VIRTBAY_BETWEEN(preadv2, fd, parts, count, at, flags);
}
ssize_t copy_file_range(int from, off64_t* at, int to, off64_t* to_at, size_t size,
                        unsigned flags) {
  VIRTBAY_BETWEEN(copy_file_range, from, at, to, to_at, size, flags);
}
int close(int fd) { VIRTBAY_BETWEEN(close, fd); }

// Of a journal's step.
int clock_gettime(clockid_t clock, struct timespec* time) __THROW {
  VIRTBAY_NEXT(clock_gettime);
  return clock == CLOCK_REALTIME_COARSE ? Between(next, clock, time) : next(clock, time);
}
// Of notifications.
ssize_t write(int fd, const void* data, size_t size) {
  VIRTBAY_NEXT(write);
  return size == sizeof(uint64_t) ? Between(next, fd, data, size) : next(fd, data, size);
}
// openat2 and renameat2 among them.
long syscall(long number, ...) __THROW {
  VIRTBAY_NEXT(syscall);
  va_list list;
  va_start(list, number);
  long a[6];
  for (long& one : a) one = va_arg(list, long);
  va_end(list);
  if (number != SYS_openat2 && number != SYS_renameat2) {
    return next(number, a[0], a[1], a[2], a[3], a[4], a[5]);
  }
  return Between(next, number, a[0], a[1], a[2], a[3], a[4], a[5]);
}

}  // extern "C"
// NOLINTEND(readability-identifier-naming)
