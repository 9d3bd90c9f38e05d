// QueueThread: one thread with its io_uring that serves one or more queues of one device: takes
// changes from the control plane at burst boundaries, pumps the queues, polls adaptively, sleeps.
// Owned by the DeviceCore. Made, started and stopped [control]; Post is [any]; the rest is [queue].
#ifndef VIRTBAY_FRAMEWORK_DEVICE_QUEUE_THREAD_H_
#define VIRTBAY_FRAMEWORK_DEVICE_QUEUE_THREAD_H_

#include <pthread.h>

#include <atomic>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <thread>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/functional/any_invocable.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/synchronization/mutex.h"
#include "absl/synchronization/notification.h"
#include "absl/time/time.h"
#include "framework/device/callback_monitor.h"
#include "framework/device/device_core.h"
#include "framework/device/mailbox.h"
#include "framework/device/poll_window.h"
#include "framework/device/queue.h"
#include "framework/device/transfer_helper.h"
#include "framework/io/loop.h"
#include "virtbay/sdk/abi.h"

namespace virtbay {

class QueueThread final : private LoopEvents {
 public:
  // [control] A thread that waits for Adopt.
  static absl::StatusOr<std::unique_ptr<QueueThread>> Make(DeviceCore* core, std::string name,
                                                           std::vector<Queue*> queues);
  ~QueueThread() override;
  // [control] Serves its queues from now on; no other thread does.
  void Adopt();
  // [queue] At the next burst boundary it leaves its queues alone, whose rings have stopped, and
  // sleeps until Continue or Join.
  void Pause() { paused_ = true; }
  // [control] After Pause: it serves its queues again, if no other thread does any more.
  void Continue();
  // [control] Ends the thread after the callback it is in; pending I/O is cancelled and awaited for
  // some seconds. A thread whose I/O does not end even then is left behind asleep for the life of
  // the process: the kernel would make its exit wait for the I/O.
  void Join();
  // [control] Before Join: the thread never leaves, as its exit would run code of a plugin that has
  // crashed.
  void LeaveBehind() { stays_.store(true, std::memory_order_release); }

  // [any] Runs `task` on the thread at the next burst boundary; dropped when the thread has ended.
  void Post(absl::AnyInvocable<void()> task);
  // [control] Posts and waits. DeadlineExceeded when the thread did not come to it in time (the
  // task may then still run later, so it must own what it uses), Unavailable when it has ended.
  absl::Status Run(absl::AnyInvocable<void()> task, absl::Duration timeout);
  // [control] Runs `check` on the thread after each burst until it is true.
  absl::Status RunUntil(absl::AnyInvocable<bool()> check, absl::Duration timeout);

  // [queue] Lets the plugin say its last words on each queue that runs (VIRTBAY_FAREWELL_*).
  void Farewell(uint32_t reason);
  // [queue] The thread takes no more requests, and ends when what it holds has ended.
  void Condemn(std::string why);

  // Services for the plugin, [queue].
  int32_t SubmitIo(const virtbay_io* ops, uint32_t count);
  int32_t Offload(Queue* queue, void (*work)(void*), void* argument, uint64_t cookie);
  Loop* loop() const { return loop_.get(); }
  // For large reads; null when the device is not to have one.
  TransferHelper* transfer_helper() { return helper_ ? &*helper_ : nullptr; }

  // [any]
  const CallbackMonitor& monitor() const { return monitor_; }
  const std::string& name() const { return name_; }
  const std::vector<Queue*>& queues() const { return queues_; }
  // Its number in the kernel; 0 before it runs.
  pid_t id() const { return id_.load(std::memory_order_relaxed); }
  bool ended() const { return ended_.load(std::memory_order_acquire); }
  uint64_t CpuNs() const;
  uint64_t enters() const { return enters_.value(); }
  // [control] After Join: I/O was left behind that would not end.
  bool leaked_io() const { return leaks_loop_; }

 private:
  struct Until {
    absl::AnyInvocable<bool()> check;
    std::shared_ptr<absl::Notification> done;
  };

  QueueThread(DeviceCore* core, std::string name, std::vector<Queue*> queues);
  void Main();
  void Bind();
  void Serve();
  void WaitForContinue();
  bool RunMail();
  void CheckConditions();
  bool PumpAll();
  bool ArmAll();
  void StopRings();
  void DrainIo();
  void DeliverIo();

  void OnIo(const IoOp& op, int32_t result) override;
  void OnWatch(uint32_t tag) override;
  void OnWatchLost(uint32_t tag, int32_t error) override;
  void OnTimer(uint16_t queue, uint64_t cookie) override;

  DeviceCore* const core_;
  const std::string name_;
  const std::vector<Queue*> queues_;
  std::unique_ptr<Loop> loop_;
  PollWindow window_;
  CallbackMonitor monitor_;
  std::vector<virtbay_io_result> results_;  // of one queue, delivered together
  Queue* results_queue_ = nullptr;
  std::vector<Until> conditions_;
  bool condemned_ = false;
  bool paused_ = false;
  bool leaks_loop_ = false;  // I/O that would not end still refers to it
  absl::Notification over_;  // nothing of this object is used by the thread any more
  std::string condemned_why_;
  StatCell enters_;
  std::optional<TransferHelper> helper_;

  absl::Notification adopted_;  // or to end without
  absl::Mutex pause_mutex_;
  bool continues_ ABSL_GUARDED_BY(pause_mutex_) = false;
  std::shared_ptr<Mailbox> mailbox_;
  std::atomic<bool> stop_{false};
  std::atomic<bool> ended_{false};
  std::atomic<bool> stays_{false};
  std::atomic<pid_t> id_{0};
  static constexpr int64_t kNoClock = INT64_MIN;
  std::atomic<int64_t> cpu_clock_{kNoClock};  // a clockid_t
  std::atomic<uint64_t> final_cpu_ns_{0};
  std::thread thread_;
};

}  // namespace virtbay

#endif  // VIRTBAY_FRAMEWORK_DEVICE_QUEUE_THREAD_H_
