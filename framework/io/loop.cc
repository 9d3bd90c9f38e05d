#include "framework/io/loop.h"

#include <liburing.h>
#include <linux/futex.h>
#include <poll.h>
#include <pthread.h>
#include <sys/eventfd.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <climits>

#include "framework/base/clock.h"
#include "framework/base/status.h"

#ifdef __SANITIZE_THREAD__
extern "C" void __tsan_acquire(void* address);  // NOLINT(bugprone-reserved-identifier)
extern "C" void __tsan_release(void* address);  // NOLINT(bugprone-reserved-identifier)
#endif

namespace virtbay {

namespace {

// Newer than the headers of Debian 12.
constexpr uint8_t kOpFutexWait = 51;                       // IORING_OP_FUTEX_WAIT, Linux 6.7
constexpr uint32_t kFutex = 2 | 128;                       // FUTEX2_SIZE_U32, FUTEX2_PRIVATE
constexpr unsigned kFeatureRegisteredRegister = 1u << 13;  // IORING_FEAT_REG_REG_RING, Linux 6.3
constexpr unsigned kUseRegisteredRing = 1u << 31;          // IORING_REGISTER_USE_REGISTERED_RING

// Of a ring, or of the kernel.
bool HasFutexWait(io_uring* ring = nullptr) {
  io_uring_probe* const probe =
      ring == nullptr ? io_uring_get_probe() : io_uring_get_probe_ring(ring);
  if (probe == nullptr) return false;
  const bool has = io_uring_opcode_supported(probe, kOpFutexWait) != 0;
  io_uring_free_probe(probe);
  return has;
}

}  // namespace

struct Loop::Ring {
  io_uring ring{};
  bool ready = false;
  bool disabled = false;  // set up R_DISABLED, to be enabled by its thread
  bool keeps_descriptor = false;
  // Registered with the thread and without a descriptor of its own; goes with that thread.
  bool registered_only = false;
  pthread_t thread{};

  // The thread knows the ring by a number of its own, which saves the kernel the look-up of the
  // descriptor at each call. Where everything can be done by that number, the descriptor is given
  // back: thousands of devices have two threads and more each.
  void Register() {
    if (io_uring_register_ring_fd(&ring) != 1) return;
    if (keeps_descriptor || (ring.features & kFeatureRegisteredRegister) == 0) return;
    ::close(ring.ring_fd);
    ring.ring_fd = -1;
    registered_only = true;
    thread = pthread_self();
  }

  ~Ring() {
    if (!ready) return;
    // On any other thread the number means nothing, and the ring's own has ended before.
    if (registered_only && pthread_equal(thread, pthread_self()) != 0) {
      io_uring_rsrc_update number{};
      number.offset = static_cast<unsigned>(ring.enter_ring_fd);
      io_uring_register(static_cast<unsigned>(ring.enter_ring_fd),
                        IORING_UNREGISTER_RING_FDS | kUseRegisteredRing, &number, 1);
    }
#ifdef __SANITIZE_THREAD__
    __tsan_release(ring.sq.sqes);
#endif
    io_uring_queue_exit(&ring);
  }
};

namespace {

absl::Status CheckFeatures(const io_uring& ring) {
  if ((ring.features & IORING_FEAT_EXT_ARG) != 0) return absl::OkStatus();
  return absl::UnimplementedError("io_uring of this kernel has no timeouts (needs Linux 5.11)");
}

}  // namespace

absl::Status Loop::Check() {
  io_uring ring{};
  const int error = -io_uring_queue_init(1, &ring, 0);
  if (error == 0) {
    absl::Status checked = CheckFeatures(ring);
    io_uring_queue_exit(&ring);
    return checked;
  }
  if (error != EPERM && error != EACCES && error != ENOSYS) return absl::OkStatus();
  return ErrnoStatus(error,
                     "io_uring_setup: devices need io_uring, which the kernel does not have, or "
                     "kernel.io_uring_disabled or a seccomp filter keeps from this process");
}

Loop::Loop(LoopEvents* events) : events_(events), ring_(std::make_unique<Ring>()) {}

absl::StatusOr<std::unique_ptr<Loop>> Loop::Create(uint32_t entries, LoopEvents* events,
                                                   Kernel kernel) {
  std::unique_ptr<Loop> loop(new Loop(events));
  // From the cheapest way to get completions to what every kernel with io_uring has.
  constexpr std::array<unsigned, 3> kFlags = {
      IORING_SETUP_SINGLE_ISSUER | IORING_SETUP_DEFER_TASKRUN | IORING_SETUP_R_DISABLED |
          IORING_SETUP_TASKRUN_FLAG,
      IORING_SETUP_COOP_TASKRUN | IORING_SETUP_TASKRUN_FLAG, 0};
  int error = 0;
  for (const unsigned flags : kFlags) {
    error = -io_uring_queue_init(entries, &loop->ring_->ring, flags);
    if (error == 0) {
      loop->ring_->ready = true;
      loop->ring_->disabled = (flags & IORING_SETUP_R_DISABLED) != 0;
#ifdef __SANITIZE_THREAD__
      // The library maps memory where another thread's ring may have been, by system calls of its
      // own, which the sanitizer does not see; ~Ring has the other half.
      __tsan_acquire(loop->ring_->ring.sq.sqes);
#endif
      break;
    }
    if (error != EINVAL) break;
  }
  if (error != 0) return ErrnoStatus(error, "io_uring_setup");
  VIRTBAY_RETURN_IF_ERROR(CheckFeatures(loop->ring_->ring));
  IoOp* op = loop->NewOp();
  op->kind = IoKind::kWake;
  loop->ring_->keeps_descriptor = kernel == Kernel::kOldKernel;
  if (kernel == Kernel::kOldKernel || !HasFutexWait(&loop->ring_->ring)) {
    op->owned_ = UniqueFd(eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK));
    if (!op->owned_) return ErrnoStatus(errno, "eventfd");
    loop->wake_fd_ = op->owned_.get();
    op->fd = loop->wake_fd_;
  }
  return loop;
}

bool Loop::NeedsDescriptors() {
  static const bool needs = !HasFutexWait();
  return needs;
}

Loop::~Loop() {
  // The ring goes before the memory that its operations refer to.
  ring_.reset();
}

absl::Status Loop::Enable() {
  if (ring_->disabled) {
    // Debian 12's shared liburing does not export io_uring_enable_rings.
    const int error = -io_uring_register(static_cast<unsigned>(ring_->ring.ring_fd),
                                         IORING_REGISTER_ENABLE_RINGS, nullptr, 0);
    if (error != 0) return ErrnoStatus(error, "io_uring enable");
  }
  ring_->Register();
  Start(&ops_.front());  // the wake-up watch that Create put there
  return absl::OkStatus();
}

IoOp* Loop::NewOp() {
  if (free_.empty()) return &ops_.emplace_back();
  IoOp* op = free_.back();
  free_.pop_back();
  return op;
}

void Loop::Release(IoOp* op) {
  op->owned_.reset();
  op->segments.clear();
  op->fd = -1;
  op->flags = 0;
  op->on_worker = false;
  op->length = 0;
  op->context = nullptr;
  op->pending_ = false;
  op->dead_ = false;
  op->queued_ = false;
  op->polls_ = false;
  // Whoever gets the object next is not meant by a cancellation that still waits.
  if (!cancels_.empty()) std::erase(cancels_, op);
  free_.push_back(op);
}

io_uring_sqe* Loop::NextSqe() {
  io_uring_sqe* sqe = io_uring_get_sqe(&ring_->ring);
  if (sqe != nullptr) return sqe;
  ++enters_;
  io_uring_submit(&ring_->ring);
  return io_uring_get_sqe(&ring_->ring);
}

void Loop::Prepare(io_uring_sqe* sqe, IoOp* op) {
  const auto count = static_cast<unsigned>(op->segments.size());
  switch (op->kind) {
    case IoKind::kRead:
      io_uring_prep_readv2(sqe, op->fd, op->segments.data(), count, op->file_offset,
                           static_cast<int>(op->flags));
      break;
    case IoKind::kWrite:
      io_uring_prep_writev2(sqe, op->fd, op->segments.data(), count, op->file_offset,
                            static_cast<int>(op->flags));
      break;
    case IoKind::kFsync:
      io_uring_prep_fsync(sqe, op->fd, op->flags == 1 ? IORING_FSYNC_DATASYNC : 0);
      break;
    case IoKind::kFallocate:
      io_uring_prep_fallocate(sqe, op->fd, static_cast<int>(op->flags),
                              static_cast<off_t>(op->file_offset), static_cast<off_t>(op->length));
      break;
    case IoKind::kPoll:
      io_uring_prep_poll_add(sqe, op->fd, op->flags);
      break;
    case IoKind::kWatch:
    case IoKind::kWake:
      if (op->kind == IoKind::kWake && wake_fd_ < 0) {
        // Waits while the word is what it is now.
        const uint32_t word = wake_word_.load(std::memory_order_seq_cst);
        io_uring_prep_rw(kOpFutexWait, sqe, kFutex, &wake_word_, 0, word);
        sqe->addr3 = FUTEX_BITSET_MATCH_ANY;
      } else if (op->polls_) {
        io_uring_prep_poll_add(sqe, op->fd, POLLIN);
      } else {
        io_uring_prep_read(sqe, op->fd, &op->word_, sizeof(op->word_), UINT64_MAX);
      }
      break;
  }
  if (op->on_worker) io_uring_sqe_set_flags(sqe, IOSQE_ASYNC);
  io_uring_sqe_set_data(sqe, op);
}

void Loop::Start(IoOp* op) {
  op->pending_ = true;
  io_uring_sqe* sqe = NextSqe();
  if (sqe == nullptr) {
    op->queued_ = true;
    queued_.push_back(op);
    return;
  }
  Prepare(sqe, op);
}

void Loop::Submit(IoOp* op) {
  ++pending_;
  Start(op);
}

void Loop::PrepareCancel(IoOp* op) {
  // An operation that the kernel does not have yet is cancelled when it does.
  io_uring_sqe* sqe = op->queued_ ? nullptr : NextSqe();
  if (sqe == nullptr) {
    cancels_.push_back(op);
    return;
  }
  io_uring_prep_cancel(sqe, op, 0);
  io_uring_sqe_set_data(sqe, nullptr);
}

void Loop::RetryQueued() {
  size_t done = 0;
  for (; done < queued_.size(); ++done) {
    io_uring_sqe* sqe = NextSqe();
    if (sqe == nullptr) break;
    queued_[done]->queued_ = false;
    Prepare(sqe, queued_[done]);
  }
  queued_.erase(queued_.begin(), queued_.begin() + static_cast<std::ptrdiff_t>(done));
  std::vector<IoOp*> cancels;
  cancels.swap(cancels_);
  for (IoOp* op : cancels) {
    if (op->pending_) PrepareCancel(op);
  }
}

void Loop::Cancel(uint16_t queue, uint64_t cookie) {
  for (IoOp& op : ops_) {
    if (op.pending_ && op.kind < IoKind::kWatch && op.queue == queue && op.cookie == cookie) {
      PrepareCancel(&op);
    }
  }
}

void Loop::CancelAll() {
  for (IoOp& op : ops_) {
    if (op.pending_ && op.kind < IoKind::kWatch) PrepareCancel(&op);
  }
}

WatchHandle Loop::Watch(SharedFd fd, uint32_t tag) {
  IoOp* op = NewOp();
  op->kind = IoKind::kWatch;
  op->fd = fd.get();
  op->owned_ = std::move(fd);
  op->tag_ = tag;
  Start(op);
  return op;
}

void Loop::Unwatch(WatchHandle watch) {
  if (!watch->pending_) {
    Release(watch);
    return;
  }
  // The read is still with the kernel: the op and its fd live until it has come back.
  watch->dead_ = true;
  PrepareCancel(watch);
}

void Loop::Settle() {
  const auto leaving = [](const IoOp& op) { return op.pending_ && op.dead_; };
  while (std::any_of(ops_.begin(), ops_.end(), leaving)) {
    Wait(0);
    ReapReady();
  }
}

void Loop::SetTimer(uint16_t queue, uint64_t cookie, uint64_t deadline_ns) {
  CancelTimer(queue, cookie);
  timers_.push_back({deadline_ns, cookie, queue});
  next_deadline_ns_ = std::min(next_deadline_ns_, deadline_ns);
}

void Loop::CancelTimer(uint16_t queue, uint64_t cookie) {
  std::erase_if(timers_, [&](const Timer& t) { return t.queue == queue && t.cookie == cookie; });
}

void Loop::CancelTimers(uint16_t queue) {
  std::erase_if(timers_, [&](const Timer& t) { return t.queue == queue; });
}

uint32_t Loop::ReportTimers() {
  if (next_deadline_ns_ == UINT64_MAX) return 0;
  const uint64_t now = MonotonicNs();
  if (now < next_deadline_ns_) return 0;
  uint32_t reports = 0;
  // A timer's report may set or cancel others, so the list is searched anew after each.
  for (;;) {
    const auto due = std::min_element(
        timers_.begin(), timers_.end(),
        [](const Timer& a, const Timer& b) { return a.deadline_ns < b.deadline_ns; });
    if (due == timers_.end() || due->deadline_ns > now) break;
    const Timer timer = *due;
    timers_.erase(due);
    events_->OnTimer(timer.queue, timer.cookie);
    ++reports;
  }
  next_deadline_ns_ = UINT64_MAX;
  for (const Timer& timer : timers_) {
    next_deadline_ns_ = std::min(next_deadline_ns_, timer.deadline_ns);
  }
  return reports;
}

void Loop::Handle(IoOp* op, int32_t result) {
  if (op->kind != IoKind::kWatch && op->kind != IoKind::kWake) {
    op->pending_ = false;
    --pending_;
    events_->OnIo(*op, result);
    Release(op);
    return;
  }
  if (op->dead_) {
    Release(op);
    return;
  }
  if (op->kind == IoKind::kWake && wake_fd_ < 0) {
    // Woken, or the word had changed before the wait began.
    Start(op);
    return;
  }
  if (result > 0 || result == -EINTR || result == -EAGAIN || result == -ECANCELED) {
    const bool was_read = !op->polls_ && result > 0;
    // Some kernels answer EAGAIN at once for a non-blocking file that cannot be tried (no
    // FMODE_NOWAIT; pipes until 6.4): such a file is polled first, or the loop would spin.
    op->polls_ = result == -EAGAIN;
    Start(op);
    if (op->kind == IoKind::kWatch && was_read) events_->OnWatch(op->tag_);
    return;
  }
  op->pending_ = false;
  if (op->kind == IoKind::kWatch) events_->OnWatchLost(op->tag_, result);
}

uint32_t Loop::ReapReady() {
  uint32_t reports = 0;
  io_uring_cqe* cqe = nullptr;
  // One at a time: a report may submit, which may need room in the completion queue.
  while (io_uring_cq_ready(&ring_->ring) != 0 && io_uring_peek_cqe(&ring_->ring, &cqe) == 0) {
    auto* op = static_cast<IoOp*>(io_uring_cqe_get_data(cqe));
    const int32_t result = cqe->res;
    io_uring_cqe_seen(&ring_->ring, cqe);
    if (op == nullptr) continue;  // the answer to a cancellation
    Handle(op, result);
    ++reports;
  }
  return reports;
}

uint32_t Loop::Poll() {
  const unsigned flags =
      std::atomic_ref<unsigned>(*ring_->ring.sq.kflags).load(std::memory_order_acquire);
  // With DEFER_TASKRUN the kernel shows finished work only to a caller that asks for it.
  if ((flags & (IORING_SQ_TASKRUN | IORING_SQ_CQ_OVERFLOW)) != 0) {
    ++enters_;
    io_uring_get_events(&ring_->ring);
  }
  return ReapReady() + ReportTimers();
}

void Loop::Flush() {
  if (!queued_.empty() || !cancels_.empty()) RetryQueued();
  if (io_uring_sq_ready(&ring_->ring) == 0) return;
  ++enters_;
  io_uring_submit(&ring_->ring);
}

void Loop::Wait(uint64_t deadline_ns) {
  if (!queued_.empty() || !cancels_.empty()) RetryQueued();
  sleeping_.store(true, std::memory_order_seq_cst);
  // A Wake before this store left woken_ set; one after it writes the eventfd.
  if (woken_.load(std::memory_order_seq_cst)) {
    Flush();
  } else {
    uint64_t deadline = next_deadline_ns_;
    if (deadline_ns != 0) deadline = std::min(deadline, deadline_ns);
    io_uring_cqe* cqe = nullptr;
    ++enters_;
    if (deadline == UINT64_MAX) {
      io_uring_submit_and_wait(&ring_->ring, 1);
    } else {
      const uint64_t now = MonotonicNs();
      const uint64_t left = deadline > now ? deadline - now : 0;
      __kernel_timespec timeout{};
      timeout.tv_sec = static_cast<int64_t>(left / 1'000'000'000u);
      timeout.tv_nsec = static_cast<long long>(left % 1'000'000'000u);
      io_uring_submit_and_wait_timeout(&ring_->ring, &cqe, 1, &timeout, nullptr);
    }
  }
  sleeping_.store(false, std::memory_order_relaxed);
  woken_.store(false, std::memory_order_seq_cst);
}

void Loop::Wake() {
  if (woken_.exchange(true, std::memory_order_seq_cst)) return;
  if (!sleeping_.load(std::memory_order_seq_cst)) return;
  if (wake_fd_ < 0) {
    wake_word_.fetch_add(1, std::memory_order_seq_cst);
    // All that wait on it: a ring that has ended may leave its wait behind for a while, on memory
    // that is this loop's by now.
    syscall(SYS_futex, &wake_word_, FUTEX_WAKE_PRIVATE, INT_MAX, nullptr, nullptr, 0);
    return;
  }
  const uint64_t one = 1;
  [[maybe_unused]] const ssize_t n = ::write(wake_fd_, &one, sizeof(one));
}

}  // namespace virtbay
