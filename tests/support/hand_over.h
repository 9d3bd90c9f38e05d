// What a test gives a plugin in guest memory, a descriptor for example: two mappings of the same
// file, between which ThreadSanitizer does not see that one thread's stores come before another's
// loads. HandOver before the request is sent, TakeOver when it has come; nothing in other builds.
// Stateless; any thread.
#ifndef VIRTBAY_TESTS_SUPPORT_HAND_OVER_H_
#define VIRTBAY_TESTS_SUPPORT_HAND_OVER_H_

#include <unistd.h>

#ifdef __SANITIZE_THREAD__
extern "C" void __tsan_acquire(void* address);  // NOLINT(bugprone-reserved-identifier)
extern "C" void __tsan_release(void* address);  // NOLINT(bugprone-reserved-identifier)
#endif

namespace virtbay::testing {

// An address that test and plugin have in common.
inline void HandOver() {
#ifdef __SANITIZE_THREAD__
  __tsan_release(&::environ);
#endif
}
inline void TakeOver() {
#ifdef __SANITIZE_THREAD__
  __tsan_acquire(&::environ);
#endif
}

}  // namespace virtbay::testing

#endif  // VIRTBAY_TESTS_SUPPORT_HAND_OVER_H_
