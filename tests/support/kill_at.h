// KillAt: what a test tells kill_at.cc in the process that it is to kill.
// In a file that both map; [any].
#ifndef VIRTBAY_TESTS_SUPPORT_KILL_AT_H_
#define VIRTBAY_TESTS_SUPPORT_KILL_AT_H_

#include <atomic>
#include <cstdint>

namespace virtbay::testing {

struct KillAt {
  // The process ends at the `left`-th place from now, if that is above 0, and the one after it at
  // the `next`-th.
  std::atomic<int32_t> left;
  std::atomic<int32_t> next;
  std::atomic<int32_t> fired;  // how many have ended
};

}  // namespace virtbay::testing

#endif  // VIRTBAY_TESTS_SUPPORT_KILL_AT_H_
