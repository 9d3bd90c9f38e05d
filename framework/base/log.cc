#include "framework/base/log.h"

#include <spdlog/logger.h>
#include <spdlog/sinks/base_sink.h>
#include <spdlog/sinks/stdout_color_sinks.h>
#include <spdlog/sinks/syslog_sink.h>
#include <syslog.h>

#include <atomic>
#include <mutex>
#include <utility>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"

namespace virtbay {
namespace {

constexpr absl::string_view kNames[] = {"trace", "debug", "info", "warn", "error", "off"};

spdlog::level::level_enum ToSpdlog(LogLevel level) {
  switch (level) {
    case LogLevel::kTrace:
      return spdlog::level::trace;
    case LogLevel::kDebug:
      return spdlog::level::debug;
    case LogLevel::kInfo:
      return spdlog::level::info;
    case LogLevel::kWarn:
      return spdlog::level::warn;
    case LogLevel::kError:
      return spdlog::level::err;
    case LogLevel::kOff:
      break;
  }
  return spdlog::level::off;
}

LogLevel FromSpdlog(spdlog::level::level_enum level) {
  switch (level) {
    case spdlog::level::trace:
      return LogLevel::kTrace;
    case spdlog::level::debug:
      return LogLevel::kDebug;
    case spdlog::level::info:
      return LogLevel::kInfo;
    case spdlog::level::warn:
      return LogLevel::kWarn;
    default:
      return LogLevel::kError;
  }
}

// Hands lines to a LogSink instead of a stream.
class CallbackSink final : public spdlog::sinks::base_sink<std::mutex> {
 public:
  explicit CallbackSink(LogSink callback) : callback_(std::move(callback)) {}

 private:
  void sink_it_(const spdlog::details::log_msg& message) override {
    callback_(FromSpdlog(message.level),
              absl::string_view(message.payload.data(), message.payload.size()));
  }
  void flush_() override {}

  LogSink callback_;
};

}  // namespace

struct Log::Core {
  // Not registered with spdlog's process-wide registry: a library owns no global state.
  spdlog::logger logger;
  std::atomic<LogLevel> level;

  Core(std::shared_ptr<spdlog::sinks::sink> sink, LogLevel initial)
      : logger("virtbay", std::move(sink)), level(initial) {
    logger.set_level(spdlog::level::trace);
    logger.flush_on(spdlog::level::warn);
  }
};

absl::StatusOr<LogLevel> ParseLogLevel(absl::string_view text) {
  for (uint32_t i = 0; i <= static_cast<uint32_t>(LogLevel::kOff); ++i) {
    if (text == kNames[i]) return static_cast<LogLevel>(i);
  }
  return absl::InvalidArgumentError(
      absl::StrCat("log level '", text, "' is not one of trace, debug, info, warn, error, off"));
}

absl::string_view LogLevelName(LogLevel level) { return kNames[static_cast<uint32_t>(level)]; }

Log::Log() = default;

Log Log::ToStderr(LogLevel level) {
  auto sink = std::make_shared<spdlog::sinks::stderr_color_sink_mt>();
  sink->set_pattern("%Y-%m-%d %H:%M:%S.%e %^%l%$ %v");
  Log log;
  log.core_ = std::make_shared<Core>(std::move(sink), level);
  return log;
}

Log Log::ToSyslog(const std::string& ident, LogLevel level) {
  Log log;
  log.core_ = std::make_shared<Core>(
      std::make_shared<spdlog::sinks::syslog_sink_mt>(ident, LOG_PID, LOG_DAEMON,
                                                      /*enable_formatting=*/false),
      level);
  return log;
}

Log Log::ToSink(LogSink sink, LogLevel level) {
  Log log;
  log.core_ = std::make_shared<Core>(std::make_shared<CallbackSink>(std::move(sink)), level);
  return log;
}

Log Log::Named(absl::string_view name) const {
  Log log = *this;
  log.prefix_ = absl::StrCat(prefix_, name, ": ");
  return log;
}

void Log::Write(LogLevel level, absl::string_view text) const {
  if (core_ == nullptr || !enabled(level)) return;
  const std::string line = absl::StrCat(prefix_, text);
  core_->logger.log(ToSpdlog(level), spdlog::string_view_t(line.data(), line.size()));
}

LogLevel Log::level() const {
  return core_ == nullptr ? LogLevel::kOff : core_->level.load(std::memory_order_relaxed);
}

void Log::set_level(LogLevel level) const {
  if (core_ != nullptr) core_->level.store(level, std::memory_order_relaxed);
}

}  // namespace virtbay
