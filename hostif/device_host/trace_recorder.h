// TraceRecorder: a thread that writes what devices trace to a file, for some time.
// Owned by the Service; every function is [any], but one thread at a time calls Stop.
#ifndef VIRTBAY_HOSTIF_DEVICE_HOST_TRACE_RECORDER_H_
#define VIRTBAY_HOSTIF_DEVICE_HOST_TRACE_RECORDER_H_

#include <atomic>
#include <cstdint>
#include <filesystem>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/synchronization/notification.h"
#include "absl/time/time.h"
#include "framework/base/unique_fd.h"
#include "hostif/trace/chrome_trace.h"
#include "virtbay/trace.h"

namespace virtbay::device_host {

inline constexpr int kMostTraceSeconds = 3600;

struct TraceReport {
  uint64_t devices = 0;
  uint64_t events = 0;
  uint64_t dropped = 0;  // for lack of room between a queue and the file, or in it
  uint64_t bytes = 0;    // of the file
};

class TraceRecorder {
 public:
  // What is past this size of the file is dropped: viewers open no larger ones.
  static constexpr uint64_t kMostBytes = uint64_t{1} << 30;

  struct Source {
    std::string name;
    std::string type;
    std::unique_ptr<DeviceTrace> trace;
  };

  // Writes to `output`, a regular file that is made or overwritten. InvalidArgument for any other
  // kind, or what opening it says.
  static absl::StatusOr<std::unique_ptr<TraceRecorder>> Start(const std::filesystem::path& output,
                                                              absl::Duration duration,
                                                              std::vector<Source> sources);
  // Ends it, with the file whole.
  ~TraceRecorder();
  TraceRecorder(const TraceRecorder&) = delete;
  TraceRecorder& operator=(const TraceRecorder&) = delete;

  // The time is over, or the file could not be written.
  bool ended() const { return ended_.load(std::memory_order_acquire); }
  // Ends it if it goes on, and says what is in the file; the error of writing it.
  absl::StatusOr<TraceReport> Stop();

 private:
  TraceRecorder(std::string path, UniqueFd file, std::vector<Source> sources);
  void Main(absl::Time end);
  void Collect();
  void Write();

  const std::string path_;
  UniqueFd file_;
  std::vector<Source> sources_;
  std::string text_;  // not yet written
  trace::ChromeTrace chrome_;
  // The thread's until it has ended.
  TraceReport report_;
  absl::Status status_;
  uint64_t past_end_ = 0;  // events that the file had no room for
  std::atomic<bool> ended_{false};
  absl::Notification stop_;
  std::thread thread_;
};

}  // namespace virtbay::device_host

#endif  // VIRTBAY_HOSTIF_DEVICE_HOST_TRACE_RECORDER_H_
