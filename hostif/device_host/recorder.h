// Recorder: a thread that writes what devices tell of their queues to a file, for some time: a
// trace, or a record.
// Owned by the Service; every function is [any], but one thread at a time calls Stop.
#ifndef VIRTBAY_HOSTIF_DEVICE_HOST_RECORDER_H_
#define VIRTBAY_HOSTIF_DEVICE_HOST_RECORDER_H_

#include <atomic>
#include <cstdint>
#include <filesystem>
#include <memory>
#include <string>
#include <thread>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/synchronization/notification.h"
#include "absl/time/time.h"
#include "framework/base/log.h"
#include "framework/base/unique_fd.h"

namespace virtbay::device_host {

inline constexpr int kMostRecordingSeconds = 3600;

struct RecordingReport {
  uint64_t devices = 0;
  uint64_t events = 0;
  uint64_t dropped = 0;  // for lack of room between a queue and the file, or in it
  uint64_t bytes = 0;    // of the file
};

// Where the events come from, and how they are written. Used by the Recorder's thread alone.
class RecordingSource {
 public:
  virtual ~RecordingSource() = default;
  // Ends the recording; what was recorded is still to be collected.
  virtual void Stop() = 0;
  // Appends what came since the last time. `full`: the file has no room, it is dropped.
  virtual void Collect(bool full, std::string* out) = 0;
  // Lets go of the devices, and appends what the file ends with.
  virtual void Finish(std::string* out) = 0;
  // `bytes` is the Recorder's.
  virtual RecordingReport report() const = 0;
};

class Recorder {
 public:
  // What is past this size of the file is dropped.
  static constexpr uint64_t kMostBytes = uint64_t{1} << 30;

  // Writes to `output`, a regular file that is made or overwritten, with mode 0600. InvalidArgument
  // for any other kind, or what opening it says. `log` has a line when the file takes no more, as
  // nobody may ask how it went.
  static absl::StatusOr<std::unique_ptr<Recorder>> Start(const std::filesystem::path& output,
                                                         absl::Duration duration,
                                                         std::unique_ptr<RecordingSource> source,
                                                         Log log = Log());
  // Ends it, with the file whole.
  ~Recorder();
  Recorder(const Recorder&) = delete;
  Recorder& operator=(const Recorder&) = delete;

  // The time is over, or the file could not be written.
  bool ended() const { return ended_.load(std::memory_order_acquire); }
  // Ends it if it goes on, and says what is in the file; the error of writing it.
  absl::StatusOr<RecordingReport> Stop();

 private:
  Recorder(std::string path, UniqueFd file, std::unique_ptr<RecordingSource> source, Log log);
  void Main(absl::Time end);
  void Write();

  const std::string path_;
  UniqueFd file_;
  std::unique_ptr<RecordingSource> source_;
  const Log log_;
  std::string text_;  // not yet written
  // The thread's until it has ended.
  RecordingReport report_;
  uint64_t bytes_ = 0;
  absl::Status status_;
  std::atomic<bool> ended_{false};
  absl::Notification stop_;
  std::thread thread_;
};

}  // namespace virtbay::device_host

#endif  // VIRTBAY_HOSTIF_DEVICE_HOST_RECORDER_H_
