// LogLimiter: lets a burst of lines through, then a trickle, so that a guest or front-end that does
// everything wrong cannot fill the disk of the host. Owned by what outlives whoever causes the
// lines (a server, a device), or each new one would have a new burst. One thread at a time.
#ifndef VIRTBAY_FRAMEWORK_BASE_LOG_LIMITER_H_
#define VIRTBAY_FRAMEWORK_BASE_LOG_LIMITER_H_

#include <algorithm>
#include <cstdint>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"
#include "framework/base/clock.h"
#include "framework/base/log.h"

namespace virtbay {

class LogLimiter {
 public:
  explicit LogLimiter(Log log) : log_(std::move(log)) {}

  void Info(absl::string_view text) { Write(LogLevel::kInfo, text); }
  void Warn(absl::string_view text) { Write(LogLevel::kWarn, text); }
  void Error(absl::string_view text) { Write(LogLevel::kError, text); }

  const Log& log() const { return log_; }

 private:
  static constexpr uint64_t kBurst = 50;
  static constexpr uint64_t kNsPerLine = 1'000'000'000;

  void Write(LogLevel level, absl::string_view text) {
    const uint64_t now = MonotonicNs();
    const uint64_t earned = (now - last_) / kNsPerLine;
    if (earned != 0) {
      credit_ = std::min(kBurst, credit_ + earned);
      last_ = now;
    }
    if (credit_ == 0) {
      ++dropped_;
      return;
    }
    --credit_;
    if (dropped_ != 0) log_.Warn(absl::StrCat(dropped_, " more lines like these were left out"));
    dropped_ = 0;
    log_.Write(level, text);
  }

  Log log_;
  uint64_t last_ = MonotonicNs();
  uint64_t credit_ = kBurst;
  uint64_t dropped_ = 0;
};

}  // namespace virtbay

#endif  // VIRTBAY_FRAMEWORK_BASE_LOG_LIMITER_H_
