#include "framework/device/queue_thread.h"

#include <sched.h>
#include <signal.h>
#include <time.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <climits>
#include <system_error>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/synchronization/notification.h"
#include "framework/base/clock.h"
#include "framework/base/join.h"
#include "framework/base/signals.h"
#include "framework/base/status.h"
#include "framework/device/plugin_call.h"
#include "framework/memory/payload.h"

namespace virtbay {
namespace {

constexpr uint32_t kRingEntries = 128;
// For queues of small messages: its memory shows where a process has a thousand devices.
constexpr uint32_t kAuxiliaryRingEntries = 16;
constexpr uint64_t kStalledLookNs = 1'000'000;
constexpr uint64_t kKicklessLookNs = 100'000;  // and twice as long after each look in vain
constexpr uint64_t kKicklessLongestNs = 10'000'000;
constexpr uint64_t kSpinAloneNs = 5'000;
// Giving the core up takes longer than this only when somebody else wanted it.
constexpr uint64_t kYieldAloneNs = 2'000;
constexpr uint64_t kPreemptedNs = 500'000;
constexpr absl::Duration kIoDrain = absl::Seconds(5);

}  // namespace

QueueThread::QueueThread(DeviceCore* core, std::string name, std::vector<Queue*> queues)
    : core_(core),
      name_(std::move(name)),
      queues_(std::move(queues)),
      window_(static_cast<uint64_t>(
                  std::max<int64_t>(0, absl::ToInt64Nanoseconds(core->spec.poll_window_max))),
              core->spec.poll_share_max_percent) {
  results_.reserve(64);
  if (core->spec.transfer_helper) helper_.emplace(name_ + "+");
}

absl::StatusOr<std::unique_ptr<QueueThread>> QueueThread::Make(DeviceCore* core, std::string name,
                                                               std::vector<Queue*> queues) {
  std::unique_ptr<QueueThread> self(new QueueThread(core, std::move(name), std::move(queues)));
  const bool auxiliary = std::all_of(self->queues_.begin(), self->queues_.end(),
                                     [](const Queue* queue) { return queue->auxiliary(); });
  VIRTBAY_ASSIGN_OR_RETURN(
      self->loop_, Loop::Create(auxiliary ? kAuxiliaryRingEntries : kRingEntries, self.get()));
  self->mailbox_ = std::make_shared<Mailbox>(self->loop_.get());
  try {
    self->thread_ = std::thread([raw = self.get()] { raw->Main(); });
  } catch (const std::system_error& e) {
    return absl::ResourceExhaustedError(
        absl::StrCat("no thread for ", self->name_, ": ", e.what()));
  }
  return self;
}

QueueThread::~QueueThread() {
  Join();
  if (leaks_loop_) static_cast<void>(loop_.release());
}

void QueueThread::Adopt() {
  for (Queue* queue : queues_) queue->set_thread(this);
  adopted_.Notify();
}

void QueueThread::Continue() {
  for (Queue* queue : queues_) queue->set_thread(this);
  absl::MutexLock lock(&pause_mutex_);
  continues_ = true;
}

void QueueThread::Join() {
  {
    // Under the lock, so that a paused thread looks at it.
    absl::MutexLock lock(&pause_mutex_);
    stop_.store(true, std::memory_order_release);
  }
  if (!adopted_.HasBeenNotified()) adopted_.Notify();
  if (loop_ != nullptr) loop_->Wake();
  if (!thread_.joinable()) return;
  over_.WaitForNotification();
  if (leaks_loop_ || stays_.load(std::memory_order_acquire)) {
    thread_.detach();
  } else if (!JoinUntil(&thread_, absl::Now() + kIoDrain)) {
    // The kernel does not let it go, and has the ring still.
    core_->log.Error(absl::StrCat(name_,
                                  ": the queue thread does not leave the kernel; it is left "
                                  "behind with its ring"));
    leaks_loop_ = true;
    thread_.detach();
  }
}

void QueueThread::Post(absl::AnyInvocable<void()> task) { mailbox_->Post(std::move(task)); }

absl::Status QueueThread::Run(absl::AnyInvocable<void()> task, absl::Duration timeout) {
  return RunUntil(
      [task = std::move(task)]() mutable {
        task();
        return true;
      },
      timeout);
}

absl::Status QueueThread::RunUntil(absl::AnyInvocable<bool()> check, absl::Duration timeout) {
  // Shared with the thread: a caller that gave up must not be written to.
  auto done = std::make_shared<absl::Notification>();
  Post([this, done, check = std::move(check)]() mutable {
    if (check()) {
      done->Notify();
    } else {
      conditions_.push_back(Until{std::move(check), done});
    }
  });
  const absl::Time deadline = absl::Now() + timeout;
  while (!done->WaitForNotificationWithTimeout(absl::Milliseconds(100))) {
    if (ended() && !done->HasBeenNotified()) {
      return absl::UnavailableError(absl::StrCat(name_, ": the queue thread has ended"));
    }
    if (absl::Now() > deadline) {
      return absl::DeadlineExceededError(absl::StrCat(
          name_, ": the queue thread did not answer within ", absl::FormatDuration(timeout)));
    }
  }
  return absl::OkStatus();
}

void QueueThread::Farewell(uint32_t reason) {
  for (Queue* queue : queues_) queue->Farewell(reason);
  for (Queue* queue : queues_) queue->Publish();
}

void QueueThread::Condemn(std::string why) {
  condemned_ = true;
  condemned_why_ = std::move(why);
}

uint64_t QueueThread::CpuNs() const {
  if (ended()) return final_cpu_ns_.load(std::memory_order_relaxed);
  timespec now{};
  const int64_t clock = cpu_clock_.load(std::memory_order_relaxed);
  if (clock == kNoClock || clock_gettime(static_cast<clockid_t>(clock), &now) != 0) return 0;
  return static_cast<uint64_t>(now.tv_sec) * 1'000'000'000u + static_cast<uint64_t>(now.tv_nsec) +
         (helper_ ? helper_->CpuNs() : 0);
}

// ---- the loop ---------------------------------------------------------------------------------

void QueueThread::Main() {
  pthread_setname_np(pthread_self(), name_.substr(0, 15).c_str());
  id_.store(gettid(), std::memory_order_relaxed);
  // Others look at the clock by its number: the thread itself may be joined meanwhile.
  if (clockid_t clock{}; pthread_getcpuclockid(pthread_self(), &clock) == 0) {
    cpu_clock_.store(clock, std::memory_order_relaxed);
  }
  const sigset_t blocked = SignalsToBlock();
  pthread_sigmask(SIG_BLOCK, &blocked, nullptr);
  const QueueScene scene(core_, &monitor_);
  std::optional<CrashScope> scope(std::in_place, &scene);
  const absl::Status enabled = loop_->Enable();
  adopted_.WaitForNotification();
  if (enabled.ok()) {
    if (!stop_.load(std::memory_order_acquire)) Bind();
    Serve();
  } else if (!stop_.load(std::memory_order_acquire)) {
    core_->RaiseNeedsReset(absl::StrCat(name_, ": ", enabled.message()), /*stops=*/true);
  }
  if (condemned_) StopRings();
  DrainIo();
  mailbox_->Close();
  conditions_.clear();
  final_cpu_ns_.store(ThreadCpuNs() + (helper_ ? helper_->CpuNs() : 0), std::memory_order_relaxed);
  ended_.store(true, std::memory_order_release);
  scope.reset();
  const bool stays = leaks_loop_ || stays_.load(std::memory_order_acquire);
  over_.Notify();
  // An exit would wait for the ring's operations. Nothing of this object is touched from here on.
  if (stays) {
    for (;;) pause();
  }
}

void QueueThread::Bind() {
  for (Queue* queue : queues_) queue->BindToThread(loop_.get(), &monitor_);
}

void QueueThread::WaitForContinue() {
  {
    absl::MutexLock lock(&pause_mutex_);
    const auto ends = [this]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(pause_mutex_) {
      return continues_ || stop_.load(std::memory_order_acquire);
    };
    pause_mutex_.Await(absl::Condition(&ends));
    if (!std::exchange(continues_, false)) return;
  }
  paused_ = false;
  Bind();
}

void QueueThread::Serve() {
  uint64_t idle_since = 0;  // 0: not idle
  uint64_t spin_until = 0;
  uint64_t last_look = 0;
  uint64_t kickless_look = kKicklessLookNs;
  bool spun = false;
  bool shares_core = false;
  while (!stop_.load(std::memory_order_acquire) && !condemned_) {
    bool progress = RunMail();
    if (paused_) [[unlikely]] {
      WaitForContinue();
      continue;
    }
    progress |= loop_->Poll() > 0;
    DeliverIo();
    progress |= PumpAll();
    loop_->Flush();
    if (progress) {
      kickless_look = kKicklessLookNs;
      if (!conditions_.empty()) CheckConditions();
      if (spun) {
        window_.Hit(MonotonicNs() - idle_since);
        queues_.front()->CountPoll(true);
        spun = false;
      }
      idle_since = 0;
      continue;
    }
    const uint64_t now = MonotonicNs();
    if (idle_since == 0) {
      idle_since = now;
      spin_until = now + window_.Open(now);
    }
    if (now < spin_until && !(spun && now - last_look > kPreemptedNs)) {
      spun = true;
      last_look = now;
      // A driver that answers at once does so within the first microseconds; after that, whoever
      // else wants this core goes first. A driver on this very core can only answer then, so once
      // the core has been found shared it is given up without a look.
      if (now - idle_since < kSpinAloneNs && !shares_core) {
        CpuRelax();
      } else {
        sched_yield();
        shares_core = MonotonicNs() - now > kYieldAloneNs;
      }
      continue;
    }
    if (now < spin_until) {
      window_.Preempted(now, now - idle_since);
      queues_.front()->CountPoll(false);
      spun = false;
    }
    const uint64_t looked = spun ? now - idle_since : 0;
    if (spun) {
      window_.Miss(looked);
      queues_.front()->CountPoll(false);
      spun = false;
    }
    if (ArmAll()) {
      idle_since = 0;
      continue;
    }
    if (mailbox_->waiting()) continue;
    uint64_t look_again = 0;
    for (const Queue* queue : queues_) {
      if (queue->stalled()) look_again = now + kStalledLookNs;
      if (queue->wants_polling()) look_again = now + kickless_look;
    }
    kickless_look = std::min(2 * kickless_look, kKicklessLongestNs);
    loop_->Wait(look_again);
    enters_.Add(loop_->enters() - enters_.value());
    const uint64_t woken = MonotonicNs();
    window_.Woke(woken, woken - idle_since, looked);
    idle_since = 0;
  }
}

bool QueueThread::RunMail() {
  if (!mailbox_->waiting()) return false;
  for (Mailbox::Task& task : mailbox_->Take()) task();
  return true;
}

void QueueThread::CheckConditions() {
  std::erase_if(conditions_, [](Until& until) {
    if (!until.check()) return false;
    until.done->Notify();
    return true;
  });
}

bool QueueThread::PumpAll() {
  bool progress = false;
  for (Queue* queue : queues_) {
    progress |= queue->Pump();
    if (condemned_) break;
  }
  // A callback may have ended requests of other queues than its own.
  for (Queue* queue : queues_) queue->Publish();
  return progress;
}

bool QueueThread::ArmAll() {
  bool more = false;
  for (Queue* queue : queues_) more |= queue->ArmKicks();
  return more;
}

void QueueThread::StopRings() {
  // What was taken ends as far as it can, so that it is answered.
  for (Queue* queue : queues_) {
    if (queue->running()) queue->BeginDrain();
  }
  const auto busy = [](const Queue* queue) { return queue->running() && !queue->drained(); };
  const uint64_t deadline =
      MonotonicNs() + static_cast<uint64_t>(absl::ToInt64Nanoseconds(kIoDrain));
  while (!stop_.load(std::memory_order_acquire) && MonotonicNs() < deadline &&
         std::any_of(queues_.begin(), queues_.end(), busy)) {
    if (!mailbox_->waiting()) loop_->Wait(deadline);
    loop_->Poll();
    DeliverIo();
    RunMail();
    for (Queue* queue : queues_) queue->Publish();
    CheckConditions();
  }
  std::vector<Queue*> stopped;
  for (Queue* queue : queues_) {
    if (!queue->running()) continue;
    queue->StopForGood();
    stopped.push_back(queue);
  }
  core_->log.Error(absl::StrCat(name_, ": the queue thread ends: ", condemned_why_));
  // Of two threads that end at the same time, one at least sees that nobody is left.
  std::atomic_thread_fence(std::memory_order_seq_cst);
  const bool others =
      std::any_of(core_->queues.begin(), core_->queues.end(),
                  [](const auto& queue) { return queue->running() && !queue->auxiliary(); });
  if (!stopped.empty() && !others) {
    core_->RaiseNeedsReset(absl::StrCat(name_, ": ", condemned_why_), /*stops=*/false);
  }
  for (Queue* queue : stopped) queue->TellStopped();
}

void QueueThread::DrainIo() {
  if (loop_->pending() == 0) return;
  loop_->CancelAll();
  const uint64_t deadline =
      MonotonicNs() + static_cast<uint64_t>(absl::ToInt64Nanoseconds(kIoDrain));
  while (loop_->pending() > 0 && MonotonicNs() < deadline) {
    loop_->Wait(deadline);
    loop_->Poll();
    DeliverIo();
  }
  if (loop_->pending() > 0) {
    // The kernel still writes into memory that the ring's end does not take from it: leaking the
    // ring keeps everything in place.
    core_->log.Error(absl::StrCat(name_, ": ", loop_->pending(),
                                  " I/O operations would not end; their ring is leaked"));
    leaks_loop_ = true;
  }
}

// ---- reports ----------------------------------------------------------------------------------

void QueueThread::OnIo(const IoOp& op, int32_t result) {
  Queue* queue = core_->queues[op.queue].get();
  if (results_queue_ != queue || results_.size() == results_.capacity()) DeliverIo();
  results_queue_ = queue;
  auto* request = static_cast<InFlightRequest*>(op.context);
  if (request != nullptr) {
    --request->io_pending;
    if (result > 0 && op.kind <= IoKind::kWrite) {
      queue->CountDirect(static_cast<uint64_t>(result));
    }
  }
  if (queue->trace() != nullptr) [[unlikely]]
    queue->TraceIoEnd(op.trace_id, result);
  queue->IoEnded();
  constexpr uint32_t kOps[] = {VIRTBAY_IO_READ, VIRTBAY_IO_WRITE, VIRTBAY_IO_FSYNC,
                               VIRTBAY_IO_FALLOCATE, VIRTBAY_IO_POLL};
  results_.push_back({op.cookie, request == nullptr ? nullptr : &request->abi, result,
                      kOps[static_cast<size_t>(op.kind)]});
}

void QueueThread::DeliverIo() {
  if (results_.empty()) return;
  if (core_->ops.on_io != nullptr) {
    const uint32_t index = results_queue_->index();
    const TraceCallScope traced(results_queue_->trace(), TraceCall::kOnIo,
                                static_cast<uint32_t>(results_.size()));
    CallOnQueue(core_, &monitor_, "on_io", index, [&] {
      core_->ops.on_io(core_->device, index, results_.data(),
                       static_cast<uint32_t>(results_.size()));
    });
  }
  results_.clear();
  results_queue_->Publish();
}

void QueueThread::OnWatch(uint32_t tag) { core_->queues[tag]->OnKick(); }

void QueueThread::OnWatchLost(uint32_t tag, int32_t error) {
  core_->queues[tag]->OnKickLost(error);
}

void QueueThread::OnTimer(uint16_t index, uint64_t cookie) {
  if (core_->ops.on_timer == nullptr) return;
  DeliverIo();
  const TraceCallScope traced(core_->queues[index]->trace(), TraceCall::kOnTimer, 1);
  CallOnQueue(core_, &monitor_, "on_timer", index,
              [&] { core_->ops.on_timer(core_->device, index, cookie); });
  core_->queues[index]->Publish();
}

// ---- services ---------------------------------------------------------------------------------

int32_t QueueThread::SubmitIo(const virtbay_io* ops, uint32_t count) {
  // All or none: check first.
  for (uint32_t i = 0; i < count; ++i) {
    const virtbay_io& io = ops[i];
    if (io.struct_size < sizeof(virtbay_io) || io.op < VIRTBAY_IO_READ || io.op > VIRTBAY_IO_POLL ||
        io.queue >= core_->queues.size()) {
      return VIRTBAY_INVALID_ARGUMENT;
    }
    const bool moves = io.op == VIRTBAY_IO_READ || io.op == VIRTBAY_IO_WRITE;
    if (io.request == nullptr) {
      if (moves) return VIRTBAY_INVALID_ARGUMENT;
      continue;
    }
    const InFlightRequest* request = InFlightRequest::From(io.request);
    if (!request->queue->OnOwnThread() || request->state != RequestState::kHeld) {
      return VIRTBAY_FAILED_PRECONDITION;
    }
    if (!moves) continue;
    const uint32_t total =
        io.op == VIRTBAY_IO_READ ? request->abi.out_total : request->abi.in_total;
    if (io.payload_len == 0 || io.payload_offset > total ||
        total - io.payload_offset < io.payload_len) {
      return VIRTBAY_OUT_OF_RANGE;
    }
  }
  for (uint32_t i = 0; i < count; ++i) {
    const virtbay_io& io = ops[i];
    IoOp* op = loop_->NewOp();
    op->kind = static_cast<IoKind>(io.op - VIRTBAY_IO_READ);
    op->queue = io.queue;
    op->fd = io.fd;
    op->flags = io.op <= VIRTBAY_IO_WRITE ? io.rw_flags : io.arg;
    op->on_worker = io.op <= VIRTBAY_IO_WRITE && (io.arg & VIRTBAY_IO_WORKER) != 0;
    op->file_offset = io.file_offset;
    op->length = io.length;
    op->cookie = io.cookie;
    if (io.request != nullptr) {
      InFlightRequest* request = InFlightRequest::From(io.request);
      op->context = request;
      ++request->io_pending;
      if (io.op <= VIRTBAY_IO_WRITE) {
        const auto chain =
            io.op == VIRTBAY_IO_READ ? request->chain.writable() : request->chain.readable();
        op->segments.resize(std::min<size_t>(chain.size(), IOV_MAX));
        op->segments.resize(SliceSegments(chain, io.payload_offset, io.payload_len, op->segments));
      }
    }
    Queue* const queue = core_->queues[io.queue].get();
    queue->IoBegun();
    op->trace_id = 0;
    if (queue->trace() != nullptr) [[unlikely]]
      op->trace_id = queue->TraceIo(static_cast<InFlightRequest*>(op->context), io.op);
    loop_->Submit(op);
  }
  return VIRTBAY_OK;
}

int32_t QueueThread::Offload(Queue* queue, void (*work)(void*), void* argument, uint64_t cookie) {
  queue->IoBegun();
  // The mailbox outlives this thread for as long as work is out; a closed one drops the report.
  const bool accepted = core_->offload->Run(
      [this, core = core_, host = core_->host, mailbox = mailbox_, queue, work, argument, cookie] {
        try {
          OffloadGuarded(host, [&] { work(argument); });
        } catch (const std::exception& e) {
          NoteException(host);
          core->PluginFailed(absl::StrCat("offloaded work threw: ", e.what()));
        } catch (...) {
          NoteException(host);
          core->PluginFailed("offloaded work threw");
        }
        mailbox->Post([this, queue, argument, cookie] {
          queue->IoEnded();
          if (core_->ops.on_offload != nullptr) {
            const TraceCallScope traced(queue->trace(), TraceCall::kOnOffload, 1);
            CallOnQueue(core_, &monitor_, "on_offload", queue->index(), [&] {
              core_->ops.on_offload(core_->device, queue->index(), argument, cookie);
            });
          }
          queue->Publish();
        });
      });
  if (accepted) return VIRTBAY_OK;
  queue->IoEnded();
  return VIRTBAY_RESOURCE_EXHAUSTED;
}

}  // namespace virtbay
