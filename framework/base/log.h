// Log: the framework's and the plugins' way to say something; spdlog stays behind it.
// A cheap copyable handle; the sinks belong to the LogConfig's maker (usually the Host). [any]
#ifndef VIRTBAY_FRAMEWORK_BASE_LOG_H_
#define VIRTBAY_FRAMEWORK_BASE_LOG_H_

#include <cstdint>
#include <functional>
#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "framework/base/export.h"

namespace virtbay {

// The numeric values are those of VIRTBAY_LOG_*.
enum class LogLevel : uint32_t {
  kTrace = 0,
  kDebug = 1,
  kInfo = 2,
  kWarn = 3,
  kError = 4,
  kOff = 5
};

// "trace", "debug", "info", "warn", "error" or "off"; anything else is InvalidArgument.
VIRTBAY_EXPORT absl::StatusOr<LogLevel> ParseLogLevel(absl::string_view text);
VIRTBAY_EXPORT absl::string_view LogLevelName(LogLevel level);

// Receives finished lines on the thread that logs; must not block for long, must not throw.
using LogSink = std::function<void(LogLevel, absl::string_view line)>;

class VIRTBAY_EXPORT Log {
 public:
  // A log that drops everything.
  Log();
  // Writes "time level text" lines to stderr.
  static Log ToStderr(LogLevel level);
  // Writes lines to syslog(3) as a daemon named `ident`, with the process id. For whoever owns the
  // process: openlog(3) is the whole process's, so that there should be one such log at a time.
  static Log ToSyslog(const std::string& ident, LogLevel level);
  // Hands every line to the embedder.
  static Log ToSink(LogSink sink, LogLevel level);

  // The same sinks and level with "name: " before each text.
  Log Named(absl::string_view name) const;

  void Write(LogLevel level, absl::string_view text) const;
  void Debug(absl::string_view text) const { Write(LogLevel::kDebug, text); }
  void Info(absl::string_view text) const { Write(LogLevel::kInfo, text); }
  void Warn(absl::string_view text) const { Write(LogLevel::kWarn, text); }
  void Error(absl::string_view text) const { Write(LogLevel::kError, text); }

  // The level is shared by all handles that come from one To... function.
  LogLevel level() const;
  void set_level(LogLevel level) const;
  bool enabled(LogLevel l) const { return l >= level(); }

 private:
  struct Core;
  std::shared_ptr<Core> core_;
  std::string prefix_;
};

}  // namespace virtbay

#endif  // VIRTBAY_FRAMEWORK_BASE_LOG_H_
