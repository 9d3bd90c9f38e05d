#include "hostif/device_host/recorder.h"

#include <fcntl.h>
#include <pthread.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <system_error>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"
#include "absl/time/clock.h"
#include "framework/base/status.h"

namespace virtbay::device_host {
namespace {

// A queue's ring holds what comes in that time at some million events a second.
constexpr absl::Duration kInterval = absl::Milliseconds(10);

}  // namespace

absl::StatusOr<std::unique_ptr<Recorder>> Recorder::Start(const std::filesystem::path& output,
                                                          absl::Duration duration,
                                                          std::unique_ptr<RecordingSource> source,
                                                          Log log) {
  // O_NONBLOCK: a FIFO without a reader must not hold the caller up. Nothing is truncated before it
  // is known to be a file.
  UniqueFd file(
      ::open(output.c_str(), O_WRONLY | O_CREAT | O_CLOEXEC | O_NONBLOCK | O_NOCTTY, 0600));
  if (!file) return ErrnoStatus(errno, output.native());
  struct stat what = {};
  if (::fstat(file.get(), &what) != 0) return ErrnoStatus(errno, output.native());
  if (!S_ISREG(what.st_mode)) {
    return absl::InvalidArgumentError(absl::StrCat(output.native(), ": is not a regular file"));
  }
  // Two that write to one file would leave neither whole.
  if (::flock(file.get(), LOCK_EX | LOCK_NB) != 0 && errno == EWOULDBLOCK) {
    return absl::AlreadyExistsError(
        absl::StrCat(output.native(), ": is being written by another trace or record"));
  }
  // Guests' data is nobody else's, whatever was there before.
  if ((what.st_mode & 07777) != 0600 && ::fchmod(file.get(), 0600) != 0) {
    return ErrnoStatus(errno, absl::StrCat(output.native(), ": making it private (mode 0600)"));
  }
  if (::ftruncate(file.get(), 0) != 0) return ErrnoStatus(errno, output.native());
  std::unique_ptr<Recorder> self(
      new Recorder(output.native(), std::move(file), std::move(source), std::move(log)));
  try {
    self->thread_ =
        std::thread([raw = self.get(), end = absl::Now() + duration] { raw->Main(end); });
  } catch (const std::system_error& e) {
    return absl::ResourceExhaustedError(absl::StrCat("no thread to record: ", e.what()));
  }
  return self;
}

Recorder::Recorder(std::string path, UniqueFd file, std::unique_ptr<RecordingSource> source,
                   Log log)
    : path_(std::move(path)),
      file_(std::move(file)),
      source_(std::move(source)),
      log_(std::move(log)) {}

Recorder::~Recorder() { static_cast<void>(Stop()); }

absl::StatusOr<RecordingReport> Recorder::Stop() {
  if (!stop_.HasBeenNotified()) stop_.Notify();
  if (thread_.joinable()) thread_.join();
  if (!status_.ok()) return status_;
  return report_;
}

void Recorder::Main(absl::Time end) {
  pthread_setname_np(pthread_self(), "recorder");
  bool stopped = false;
  bool full = false;
  while (!stopped && status_.ok()) {
    const absl::Duration left = end - absl::Now();
    stopped = left <= absl::ZeroDuration() ||
              stop_.WaitForNotificationWithTimeout(std::min(left, kInterval));
    if (stopped) source_->Stop();
    if (!full && bytes_ >= kMostBytes) {
      full = true;
      log_.Warn(absl::StrCat(path_, ": ", bytes_, " bytes are in it; what follows is dropped"));
    }
    source_->Collect(full, &text_);
    Write();
  }
  source_->Finish(&text_);
  Write();
  file_.reset();
  report_ = source_->report();
  report_.bytes = bytes_;
  // What the queues would keep goes now, not when the report is asked for.
  source_.reset();
  ended_.store(true, std::memory_order_release);
}

void Recorder::Write() {
  absl::string_view rest = text_;
  while (!rest.empty() && status_.ok()) {
    const ssize_t n = ::write(file_.get(), rest.data(), rest.size());
    if (n < 0) {
      if (errno == EINTR) continue;
      status_ = ErrnoStatus(errno, path_);
      log_.Error(absl::StrCat(status_.message(), ": the recording ends after ", bytes_, " bytes"));
      continue;
    }
    rest.remove_prefix(static_cast<size_t>(n));
    bytes_ += static_cast<uint64_t>(n);
  }
  text_.clear();
}

}  // namespace virtbay::device_host
