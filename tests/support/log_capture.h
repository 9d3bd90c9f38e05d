// LogCapture: a Log whose lines a test can look at. Owned by the test; every function is [any].
#ifndef VIRTBAY_TESTS_SUPPORT_LOG_CAPTURE_H_
#define VIRTBAY_TESTS_SUPPORT_LOG_CAPTURE_H_

#include <memory>
#include <string>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"
#include "framework/base/log.h"

namespace virtbay::testing {

class LogCapture {
 public:
  explicit LogCapture(LogLevel level = LogLevel::kTrace)
      : lines_(std::make_shared<Lines>()),
        log_(Log::ToSink(
            [lines = lines_](LogLevel line_level, absl::string_view text) {
              absl::MutexLock lock(&lines->mutex);
              lines->all.push_back(absl::StrCat(LogLevelName(line_level), " ", text));
            },
            level)) {}

  const Log& log() const { return log_; }
  // "level text" each, in order.
  std::vector<std::string> lines() const {
    absl::MutexLock lock(&lines_->mutex);
    return lines_->all;
  }
  // Whether a line with that part has come.
  bool Contains(absl::string_view part) const {
    absl::MutexLock lock(&lines_->mutex);
    return Has(part);
  }
  // Waits until such a line has come; false when the timeout passed first.
  bool WaitFor(absl::string_view part, absl::Duration timeout = absl::Seconds(30)) const {
    const auto has = [&] { return Has(part); };
    absl::MutexLock lock(&lines_->mutex);
    return lines_->mutex.AwaitWithTimeout(absl::Condition(&has), timeout);
  }

 private:
  // Shared with the sink: a Log handle may outlive the capture.
  struct Lines {
    mutable absl::Mutex mutex;
    std::vector<std::string> all;
  };
  bool Has(absl::string_view part) const {
    for (const std::string& line : lines_->all) {
      if (absl::StrContains(line, part)) return true;
    }
    return false;
  }

  std::shared_ptr<Lines> lines_;
  Log log_;
};

}  // namespace virtbay::testing

#endif  // VIRTBAY_TESTS_SUPPORT_LOG_CAPTURE_H_
