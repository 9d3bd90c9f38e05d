// Loop: the io_uring of one queue thread: payload I/O, watched fds (kicks, wake-ups) and timers.
// Owned by its queue thread, made on the control thread; every function is [queue] unless tagged.
#ifndef VIRTBAY_FRAMEWORK_IO_LOOP_H_
#define VIRTBAY_FRAMEWORK_IO_LOOP_H_

#include <sys/uio.h>

#include <atomic>
#include <cstdint>
#include <deque>
#include <memory>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "framework/base/shared_fd.h"

struct io_uring_sqe;
struct io_uring_cqe;

namespace virtbay {

enum class IoKind : uint8_t { kRead, kWrite, kFsync, kFallocate, kPoll, kWatch, kWake };

// One operation. Allocated by Loop::NewOp, filled by the caller, gone after OnIo returned.
struct IoOp {
  IoKind kind = IoKind::kRead;
  uint16_t queue = 0;
  int fd = -1;
  bool on_worker = false;    // kRead, kWrite: not tried on this thread first
  uint32_t flags = 0;        // RWF_*, or 1 for fdatasync, or poll events, or fallocate mode
  uint64_t file_offset = 0;  // UINT64_MAX: none
  uint64_t length = 0;       // fallocate
  uint64_t cookie = 0;
  uint64_t trace_id = 0;        // the caller's
  void* context = nullptr;      // the caller's
  std::vector<iovec> segments;  // keeps its capacity from use to use

 private:
  friend class Loop;
  SharedFd owned_;     // of a watch
  uint64_t word_ = 0;  // what a watch reads into
  uint32_t tag_ = 0;
  bool pending_ = false;  // the kernel, or the queue to it, has it
  bool dead_ = false;     // a watch that is going away
  bool queued_ = false;   // waits for a free SQE
  bool polls_ = false;    // a watch whose file cannot be read before it says so
};

// A watched fd; handed back to Unwatch.
using WatchHandle = IoOp*;

class LoopEvents {
 public:
  virtual ~LoopEvents() = default;
  // The operation ended; result is bytes, revents or -errno.
  virtual void OnIo(const IoOp& op, int32_t result) = 0;
  // The watched fd was readable and has been read.
  virtual void OnWatch(uint32_t tag) = 0;
  // The watched fd failed or reached its end; it is not watched any more.
  virtual void OnWatchLost(uint32_t tag, int32_t error) = 0;
  virtual void OnTimer(uint16_t queue, uint64_t cookie) = 0;
};

class Loop {
 public:
  // [control] Sets the ring up with `entries` submission entries; the kernel memory for it is small
  // and its first use belongs to the thread that calls Enable. kOldKernel: does without what
  // kernels older than 6.7 lack, for tests.
  enum class Kernel { kThis, kOldKernel };
  static absl::StatusOr<std::unique_ptr<Loop>> Create(uint32_t entries, LoopEvents* events,
                                                      Kernel kernel = Kernel::kThis);
  // [any] Why no loop can be made at all: this kernel has no io_uring, or none for this process.
  // OK also where one may fail for a lack that passes.
  static absl::Status Check();
  // [any] Each loop has descriptors of its own for as long as it lives: the kernel is older
  // than 6.7.
  static bool NeedsDescriptors();
  ~Loop();
  Loop(const Loop&) = delete;
  Loop& operator=(const Loop&) = delete;

  // Once, first, on the thread that runs the loop.
  absl::Status Enable();

  IoOp* NewOp();
  // Queues the operation; it enters the kernel with the next Flush or Wait.
  void Submit(IoOp* op);
  // Asks for the end of the pending operations of that queue and cookie.
  void Cancel(uint16_t queue, uint64_t cookie);
  // Asks for the end of every pending operation.
  void CancelAll();
  // Operations submitted and not yet reported (watches do not count).
  uint32_t pending() const { return pending_; }

  // Reads 8 bytes from fd whenever it is readable, and reports the tag.
  WatchHandle Watch(SharedFd fd, uint32_t tag);
  void Unwatch(WatchHandle watch);
  // Waits until watches that were handed back are gone: one that is not quite would take a kick
  // from whoever watches the descriptor next.
  void Settle();

  // One-shot timer; the same (queue, cookie) again moves it.
  void SetTimer(uint16_t queue, uint64_t cookie, uint64_t deadline_ns);
  void CancelTimer(uint16_t queue, uint64_t cookie);
  void CancelTimers(uint16_t queue);

  // Reports what has finished, without entering the kernel unless it says that it has something.
  // Returns how many reports were made.
  uint32_t Poll();
  // Gives queued operations to the kernel, if there are any.
  void Flush();
  // Sleeps until something finishes, a timer is due, Wake is called, or deadline_ns (0: none).
  void Wait(uint64_t deadline_ns);

  // [any] Ends a Wait that is going on or about to begin.
  void Wake();

  // io_uring_enter calls made so far.
  uint64_t enters() const { return enters_; }

 private:
  struct Ring;
  struct Timer {
    uint64_t deadline_ns;
    uint64_t cookie;
    uint16_t queue;
  };

  explicit Loop(LoopEvents* events);
  void Prepare(io_uring_sqe* sqe, IoOp* op);
  void PrepareCancel(IoOp* op);
  io_uring_sqe* NextSqe();
  void Start(IoOp* op);
  void RetryQueued();
  void Release(IoOp* op);
  void Handle(IoOp* op, int32_t result);
  uint32_t ReportTimers();
  uint32_t ReapReady();

  LoopEvents* const events_;
  std::unique_ptr<Ring> ring_;
  // A deque keeps addresses stable while it grows; ops are recycled through free_.
  std::deque<IoOp> ops_;
  std::vector<IoOp*> free_;
  std::vector<IoOp*> queued_;   // found no SQE
  std::vector<IoOp*> cancels_;  // cancellations that found no SQE
  std::vector<Timer> timers_;   // few: searched linearly
  uint64_t next_deadline_ns_ = UINT64_MAX;
  uint32_t pending_ = 0;
  uint64_t enters_ = 0;
  // How others wake the thread: the ring waits on a word of memory, or, before Linux 6.7, reads an
  // eventfd, which costs a descriptor for each thread of each device.
  std::atomic<uint32_t> wake_word_{0};
  int wake_fd_ = -1;  // owned by its watch; -1: the word
  std::atomic<bool> sleeping_{false};
  std::atomic<bool> woken_{false};
};

}  // namespace virtbay

#endif  // VIRTBAY_FRAMEWORK_IO_LOOP_H_
