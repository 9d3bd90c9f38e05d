// What a test asks of its own process: descriptors, threads; and waiting for what makes no event.
// Stateless; any thread.
#ifndef VIRTBAY_TESTS_SUPPORT_PROCESS_STATE_H_
#define VIRTBAY_TESTS_SUPPORT_PROCESS_STATE_H_

#include <unistd.h>

#include <cstddef>
#include <filesystem>
#include <functional>
#include <string>
#include <system_error>

#include "framework/base/clock.h"

namespace virtbay::testing {

// Entries of a directory of /proc/self.
inline size_t CountEntries(const char* directory) {
  const std::filesystem::directory_iterator all(directory);
  return static_cast<size_t>(std::distance(begin(all), end(all)));
}

// Descriptors of this process that are open on `path` or something under it.
inline size_t CountOpenUnder(const std::filesystem::path& path) {
  size_t count = 0;
  for (const auto& entry : std::filesystem::directory_iterator("/proc/self/fd")) {
    std::error_code closed;  // it may have been by now
    const std::string target = std::filesystem::read_symlink(entry.path(), closed).native();
    const std::string& prefix = path.native();
    if (target == prefix || target.rfind(prefix + "/", 0) == 0) ++count;
  }
  return count;
}

// Looks again and again, giving way in between, until the condition holds; false after a minute.
inline bool Eventually(const std::function<bool()>& condition) {
  const uint64_t limit = MonotonicNs() + 60'000'000'000u;
  while (!condition()) {
    if (MonotonicNs() > limit) return false;
    usleep(1000);
  }
  return true;
}

}  // namespace virtbay::testing

#endif  // VIRTBAY_TESTS_SUPPORT_PROCESS_STATE_H_
