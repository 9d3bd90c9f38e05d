// DriverQueue: one virtqueue from the driver's side: a ring, its kick and call descriptors, and how
// to wait. Owned by a Driver (or a test); one thread at a time uses it. The path of a buffer
// (Add, Publish, TakeUsed) makes no system call but the kicks that the device asks for.
#ifndef VIRTBAY_HOSTIF_GUEST_DRIVER_QUEUE_H_
#define VIRTBAY_HOSTIF_GUEST_DRIVER_QUEUE_H_

#include <poll.h>
#include <sys/eventfd.h>

#include <cerrno>
#include <cstdint>
#include <memory>
#include <span>
#include <utility>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "framework/base/clock.h"
#include "framework/base/status.h"
#include "framework/base/unique_fd.h"
#include "hostif/guest/guest_memory.h"
#include "hostif/guest/layout_ring.h"

namespace virtbay::guest {

struct QueueOptions {
  RingOptions ring;
  bool kick_fd = true;  // false: the device has to poll
  bool call_fd = true;  // false: the driver has to poll
};

// How a driver waits for used buffers.
enum class WaitMode { kSleep, kPoll };

// What the driver did; only its own thread changes it.
struct DriverQueueStats {
  uint64_t buffers = 0;    // added
  uint64_t published = 0;  // Publish with at least one buffer
  uint64_t kicks = 0;      // eventfd writes
  uint64_t calls = 0;      // notifications of the device that were read
  uint64_t sleeps = 0;     // times it waited in the kernel
};

template <DriverRing Ring>
class BasicDriverQueue {
 public:
  // Makes the ring and the eventfds. [control]
  static absl::StatusOr<std::unique_ptr<BasicDriverQueue>> Create(GuestMemory* memory,
                                                                  const QueueOptions& options) {
    VIRTBAY_ASSIGN_OR_RETURN(Ring ring, Ring::Create(memory, options.ring));
    std::unique_ptr<BasicDriverQueue> queue(new BasicDriverQueue(std::move(ring)));
    VIRTBAY_RETURN_IF_ERROR(queue->MakeEventFd(options.kick_fd, &queue->kick_));
    VIRTBAY_RETURN_IF_ERROR(queue->MakeEventFd(options.call_fd, &queue->call_));
    VIRTBAY_RETURN_IF_ERROR(queue->MakeEventFd(true, &queue->error_));
    return queue;
  }

  // Puts a buffer on the ring, unseen by the device until Publish. False: no descriptors left.
  bool Add(std::span<const Segment> readable, std::span<const Segment> writable, uint64_t token) {
    if (!ring_.Add(readable, writable, token)) return false;
    ++stats_.buffers;
    return true;
  }

  // Shows what was added to the device, and kicks if it asks for that.
  void Publish() {
    const bool wanted = ring_.Publish();
    ++stats_.published;
    if (wanted) Kick();
  }

  // Kicks the device whether it asks for that or not.
  void Kick() {
    if (!kick_) return;
    const uint64_t one = 1;
    // A full eventfd (EAGAIN) wakes the device just as well.
    [[maybe_unused]] const ssize_t n = ::write(kick_.get(), &one, sizeof(one));
    ++stats_.kicks;
  }

  // Used buffers that are there now, at most used.size(); never waits.
  size_t TakeUsed(std::span<UsedBuffer> used) { return ring_.TakeUsed(used); }

  // Waits until a used buffer is there. kPoll spins with calls turned off; kSleep asks for a call
  // and sleeps on its eventfd. `hangup_fd` (or -1) ends a sleep when it becomes readable: the
  // connection of a transport. DeadlineExceeded, Unavailable on a hang-up.
  absl::Status Wait(WaitMode mode, absl::Duration timeout = absl::Seconds(30), int hangup_fd = -1) {
    if (ring_.HasUsed()) return absl::OkStatus();
    return mode == WaitMode::kPoll ? Spin(timeout, hangup_fd) : Sleep(timeout, hangup_fd);
  }

  // Makes ring and eventfds as new; the device must not be running the queue.
  void Reset() {
    ring_.Reset();
    Drain(kick_.get());
    Drain(call_.get());
    Drain(error_.get());
  }

  Ring& ring() { return ring_; }
  const Ring& ring() const { return ring_; }
  // -1 where QueueOptions left it out.
  int kick_fd() const { return kick_.get(); }
  int call_fd() const { return call_.get(); }
  // Written by the device when it stops the ring because of an error.
  int error_fd() const { return error_.get(); }
  // Whether the device has written the error descriptor since the last ask.
  bool TakeError() { return Drain(error_.get()) != 0; }
  // Takes up notifications that nobody waited for, so that stats().calls counts them too.
  void CountCalls() { stats_.calls += Drain(call_.get()); }
  const DriverQueueStats& stats() const { return stats_; }
  void ClearStats() { stats_ = {}; }

 private:
  explicit BasicDriverQueue(Ring ring) : ring_(std::move(ring)) {}

  absl::Status MakeEventFd(bool wanted, UniqueFd* fd) {
    if (!wanted) return absl::OkStatus();
    fd->reset(::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK));
    return fd->valid() ? absl::OkStatus() : ErrnoStatus(errno, "eventfd");
  }

  static uint64_t Drain(int fd) {
    uint64_t count = 0;
    if (fd < 0 || ::read(fd, &count, sizeof(count)) != sizeof(count)) return 0;
    return count;
  }

  static bool Readable(int fd) {
    pollfd one{.fd = fd, .events = POLLIN, .revents = 0};
    return fd >= 0 && ::poll(&one, 1, 0) > 0;
  }

  absl::Status Spin(absl::Duration timeout, int hangup_fd) {
    ring_.DisarmCalls();
    const uint64_t start = MonotonicNs();
    const uint64_t limit = start + static_cast<uint64_t>(absl::ToInt64Nanoseconds(timeout));
    uint64_t next_look = start + kHangupLookNs;
    for (;;) {
      for (int i = 0; i < 256; ++i) {
        if (ring_.HasUsed()) return absl::OkStatus();
        CpuRelax();
      }
      const uint64_t now = MonotonicNs();
      if (now < next_look) continue;
      if (now >= limit) return absl::DeadlineExceededError("no used buffer in time");
      if (Readable(hangup_fd)) return HungUp();
      next_look = now + kHangupLookNs;
    }
  }

  absl::Status Sleep(absl::Duration timeout, int hangup_fd) {
    if (!call_) return absl::FailedPreconditionError("a queue without a call fd cannot sleep");
    const absl::Time deadline = absl::Now() + timeout;
    while (ring_.ArmCalls()) {
      pollfd fds[2] = {{.fd = call_.get(), .events = POLLIN, .revents = 0},
                       {.fd = hangup_fd, .events = POLLIN, .revents = 0}};
      const int64_t ms = absl::ToInt64Milliseconds(deadline - absl::Now());
      if (ms <= 0) return absl::DeadlineExceededError("no used buffer in time");
      ++stats_.sleeps;
      const int n = ::poll(fds, 2, static_cast<int>(ms < 1'000'000 ? ms : 1'000'000));
      if (n < 0 && errno != EINTR) return ErrnoStatus(errno, "waiting for a call");
      if (n <= 0) continue;
      if (fds[0].revents != 0) CountCalls();
      // The buffer goes before the hang-up: what was done before the end is still to be had.
      if (fds[1].revents != 0 && !ring_.HasUsed()) return HungUp();
    }
    return absl::OkStatus();
  }

  static absl::Status HungUp() {
    return absl::UnavailableError("the device's connection has something to say or has ended");
  }

  static constexpr uint64_t kHangupLookNs = 1'000'000;

  Ring ring_;
  UniqueFd kick_;
  UniqueFd call_;
  UniqueFd error_;
  DriverQueueStats stats_;
};

using DriverQueue = BasicDriverQueue<LayoutRing>;

}  // namespace virtbay::guest

#endif  // VIRTBAY_HOSTIF_GUEST_DRIVER_QUEUE_H_
