// LogLines: a Log whose lines are kept. Owned by whoever looks at them; every function is [any].
#ifndef VIRTBAY_HOSTIF_TESTKIT_LOG_LINES_H_
#define VIRTBAY_HOSTIF_TESTKIT_LOG_LINES_H_

#include <memory>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/synchronization/mutex.h"
#include "framework/base/log.h"

namespace virtbay::testkit {

class LogLines {
 public:
  explicit LogLines(LogLevel level)
      : kept_(std::make_shared<Kept>()),
        log_(Log::ToSink(
            [kept = kept_](LogLevel line_level, absl::string_view text) {
              absl::MutexLock lock(&kept->mutex);
              kept->lines.push_back(absl::StrCat(LogLevelName(line_level), " ", text));
            },
            level)) {}

  const Log& log() const { return log_; }
  // "level text" each, in order.
  std::vector<std::string> lines() const {
    absl::MutexLock lock(&kept_->mutex);
    return kept_->lines;
  }

 private:
  // Shared with the sink: a Log handle may outlive this.
  struct Kept {
    absl::Mutex mutex;
    std::vector<std::string> lines ABSL_GUARDED_BY(mutex);
  };
  std::shared_ptr<Kept> kept_;
  Log log_;
};

}  // namespace virtbay::testkit

#endif  // VIRTBAY_HOSTIF_TESTKIT_LOG_LINES_H_
