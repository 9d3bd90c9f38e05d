// Tells the thread sanitizer about Abseil's locks. Built in thread-sanitizer builds only.
// Debian's Abseil is not instrumented, so the sanitizer sees no order between a thread that unlocks
// an absl::Mutex and the next that locks it, and reports every guarded variable. The linker's
// --wrap (CMakeLists.txt takes the names from this file) leads the project's calls through here.
// Also names what the sanitizer misjudges for want of such a hook.
// Stateless; [any].
#include "absl/synchronization/blocking_counter.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"

extern "C" {
void __tsan_acquire(void* address);
void __tsan_release(void* address);
}

namespace {

// Ends a call that has got the lock; a destructor, so that void and bool results need no two forms.
struct AcquireAtEnd {
  explicit AcquireAtEnd(void* lock) : lock_(lock) {}
  ~AcquireAtEnd() { __tsan_acquire(lock_); }
  void* const lock_;
};

// A condition that is evaluated under the lock by whichever thread unlocks: each evaluation sees
// what the last holder did and is seen by the next.
struct Watched {
  Watched(const absl::Condition& condition, void* lock) : condition_(condition), lock_(lock) {}
  static bool Eval(Watched* watched) {
    __tsan_acquire(watched->lock_);
    const bool result = watched->condition_.Eval();
    __tsan_release(watched->lock_);
    return result;
  }
  const absl::Condition& condition_;
  void* const lock_;
};

}  // namespace

// Reports that mean nothing:
// - the bytes of guest memory are ordered by the ring, which driver and device map at different
//   addresses, so that the sanitizer sees no order between two that use the same bytes in turn;
// - liburing maps and unmaps its queues without libc, so that whatever is mapped there later seems
//   to race with their last users;
// - bytes that recv discards (MSG_TRUNC) are written nowhere, whatever its interceptor thinks;
// - Abseil's lock graph has a spin lock of its own.
extern "C" __attribute__((visibility("default"))) const char* __tsan_default_suppressions();
const char* __tsan_default_suppressions() {
  return "race:virtbay::payload_internal::CopyBytes\n"
         "race:^io_uring_\n"
         "race:virtbay::proxy_net::Tcp::Discard\n"
         "called_from_lib:libabsl_graphcycles_internal\n";
}

// The wrappers are visible because the linker resolves the libraries' own references with them.
// Unlocking publishes what came before, locking sees it, waiting does both.
#define VIRTBAY_UNLOCKS __tsan_release(self);
#define VIRTBAY_LOCKS const AcquireAtEnd end(self);
#define VIRTBAY_WAITS VIRTBAY_UNLOCKS VIRTBAY_LOCKS
#define VIRTBAY_WATCHES                           \
  Watched watched(c, self);                       \
  const Condition seen(&Watched::Eval, &watched); \
  VIRTBAY_WAITS
#define VIRTBAY_WRAP(what, result, name, parameters, arguments)                      \
  extern "C" result __real_##name parameters;                                        \
  extern "C" __attribute__((visibility("default"))) result __wrap_##name parameters; \
  extern "C" result __wrap_##name parameters { VIRTBAY_##what return __real_##name arguments; }

using absl::Condition;
using absl::Duration;
using absl::Time;

// clang-format off
VIRTBAY_WRAP(LOCKS, void, _ZN4absl7debian35Mutex4LockEv, (void* self), (self))
VIRTBAY_WRAP(LOCKS, bool, _ZN4absl7debian35Mutex7TryLockEv, (void* self), (self))
VIRTBAY_WRAP(UNLOCKS, void, _ZN4absl7debian35Mutex6UnlockEv, (void* self), (self))
VIRTBAY_WRAP(LOCKS, void, _ZN4absl7debian35Mutex10ReaderLockEv, (void* self), (self))
VIRTBAY_WRAP(LOCKS, bool, _ZN4absl7debian35Mutex13ReaderTryLockEv, (void* self), (self))
VIRTBAY_WRAP(UNLOCKS, void, _ZN4absl7debian35Mutex12ReaderUnlockEv, (void* self), (self))
VIRTBAY_WRAP(WATCHES, void, _ZN4absl7debian35Mutex5AwaitERKNS0_9ConditionE,
             (void* self, const Condition& c), (self, seen))
VIRTBAY_WRAP(WATCHES, bool, _ZN4absl7debian35Mutex16AwaitWithTimeoutERKNS0_9ConditionENS0_8DurationE,
             (void* self, const Condition& c, Duration d), (self, seen, d))
VIRTBAY_WRAP(WATCHES, bool, _ZN4absl7debian35Mutex17AwaitWithDeadlineERKNS0_9ConditionENS0_4TimeE,
             (void* self, const Condition& c, Time t), (self, seen, t))
VIRTBAY_WRAP(WATCHES, void, _ZN4absl7debian35Mutex8LockWhenERKNS0_9ConditionE,
             (void* self, const Condition& c), (self, seen))
VIRTBAY_WRAP(WATCHES, bool, _ZN4absl7debian35Mutex19LockWhenWithTimeoutERKNS0_9ConditionENS0_8DurationE,
             (void* self, const Condition& c, Duration d), (self, seen, d))
VIRTBAY_WRAP(WATCHES, bool, _ZN4absl7debian35Mutex20LockWhenWithDeadlineERKNS0_9ConditionENS0_4TimeE,
             (void* self, const Condition& c, Time t), (self, seen, t))
VIRTBAY_WRAP(UNLOCKS, void, _ZN4absl7debian312Notification6NotifyEv, (void* self), (self))
VIRTBAY_WRAP(LOCKS, void, _ZNK4absl7debian312Notification19WaitForNotificationEv,
             (void* self), (self))
VIRTBAY_WRAP(LOCKS, bool,
             _ZNK4absl7debian312Notification30WaitForNotificationWithTimeoutENS0_8DurationE,
             (void* self, Duration d), (self, d))
VIRTBAY_WRAP(LOCKS, bool,
             _ZNK4absl7debian312Notification31WaitForNotificationWithDeadlineENS0_4TimeE,
             (void* self, Time t), (self, t))
VIRTBAY_WRAP(WAITS, bool, _ZN4absl7debian315BlockingCounter14DecrementCountEv, (void* self), (self))
VIRTBAY_WRAP(LOCKS, void, _ZN4absl7debian315BlockingCounter4WaitEv, (void* self), (self))
// A CondVar's mutex is what orders its threads.
VIRTBAY_WRAP(WAITS, void, _ZN4absl7debian37CondVar4WaitEPNS0_5MutexE,
             (void* condvar, void* self), (condvar, self))
VIRTBAY_WRAP(WAITS, bool, _ZN4absl7debian37CondVar15WaitWithTimeoutEPNS0_5MutexENS0_8DurationE,
             (void* condvar, void* self, Duration d), (condvar, self, d))
VIRTBAY_WRAP(WAITS, bool, _ZN4absl7debian37CondVar16WaitWithDeadlineEPNS0_5MutexENS0_4TimeE,
             (void* condvar, void* self, Time t), (condvar, self, t))
// clang-format on
