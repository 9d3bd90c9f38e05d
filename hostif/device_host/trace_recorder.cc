#include "hostif/device_host/trace_recorder.h"

#include <fcntl.h>
#include <pthread.h>
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

absl::StatusOr<std::unique_ptr<TraceRecorder>> TraceRecorder::Start(
    const std::filesystem::path& output, absl::Duration duration, std::vector<Source> sources) {
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
  if (::ftruncate(file.get(), 0) != 0) return ErrnoStatus(errno, output.native());
  std::unique_ptr<TraceRecorder> self(
      new TraceRecorder(output.native(), std::move(file), std::move(sources)));
  try {
    self->thread_ =
        std::thread([raw = self.get(), end = absl::Now() + duration] { raw->Main(end); });
  } catch (const std::system_error& e) {
    return absl::ResourceExhaustedError(absl::StrCat("no thread for the trace: ", e.what()));
  }
  return self;
}

TraceRecorder::TraceRecorder(std::string path, UniqueFd file, std::vector<Source> sources)
    : path_(std::move(path)),
      file_(std::move(file)),
      sources_(std::move(sources)),
      chrome_(&text_) {
  for (const Source& source : sources_) {
    const auto queues = static_cast<uint32_t>(source.trace->Take().size());
    chrome_.AddDevice(source.name, source.type, queues);
  }
  report_.devices = sources_.size();
}

TraceRecorder::~TraceRecorder() { static_cast<void>(Stop()); }

absl::StatusOr<TraceReport> TraceRecorder::Stop() {
  if (!stop_.HasBeenNotified()) stop_.Notify();
  if (thread_.joinable()) thread_.join();
  if (!status_.ok()) return status_;
  return report_;
}

void TraceRecorder::Main(absl::Time end) {
  pthread_setname_np(pthread_self(), "trace");
  bool stopped = false;
  while (!stopped && status_.ok()) {
    const absl::Duration left = end - absl::Now();
    stopped = left <= absl::ZeroDuration() ||
              stop_.WaitForNotificationWithTimeout(std::min(left, kInterval));
    if (stopped) {
      for (const Source& source : sources_) source.trace->Stop();
    }
    Collect();
    Write();
  }
  // What the queues would keep goes now, not when the report is asked for.
  sources_.clear();
  chrome_.Finish();
  Write();
  file_.reset();
  report_.events = chrome_.events();
  report_.dropped = chrome_.dropped() + past_end_;
  ended_.store(true, std::memory_order_release);
}

void TraceRecorder::Collect() {
  for (size_t i = 0; i < sources_.size(); ++i) {
    std::vector<QueueTrace> queues = sources_[i].trace->Take();
    if (report_.bytes >= kMostBytes) {
      for (QueueTrace& queue : queues) {
        past_end_ += queue.events.size();
        queue.events.clear();
      }
    }
    chrome_.Add(static_cast<uint32_t>(i), queues);
  }
}

void TraceRecorder::Write() {
  absl::string_view rest = text_;
  while (!rest.empty() && status_.ok()) {
    const ssize_t n = ::write(file_.get(), rest.data(), rest.size());
    if (n < 0) {
      if (errno != EINTR) status_ = ErrnoStatus(errno, path_);
      continue;
    }
    rest.remove_prefix(static_cast<size_t>(n));
    report_.bytes += static_cast<uint64_t>(n);
  }
  text_.clear();
}

}  // namespace virtbay::device_host
