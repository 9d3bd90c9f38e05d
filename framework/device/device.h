// Device: the control plane of one device: the plugin's device through its states, sessions of
// front-ends, queues started and stopped on their threads.
// Shared by the Host's table and an attached port; every public function is [any] and takes its
// turn on one lock, which queue threads never touch.
#ifndef VIRTBAY_FRAMEWORK_DEVICE_DEVICE_H_
#define VIRTBAY_FRAMEWORK_DEVICE_DEVICE_H_

#include <atomic>
#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/functional/any_invocable.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"
#include "framework/base/log.h"
#include "framework/device/device_core.h"
#include "framework/plugin/plugin.h"
#include "framework/virtq/ring.h"
#include "virtbay/device_port.h"
#include "virtbay/host.h"
#include "virtbay/sdk/abi.h"

namespace virtbay {

class Device : public std::enable_shared_from_this<Device> {
 public:
  // Makes the plugin's device and brings it to READY.
  // Takes its slots from `shared_pool` if its policy says so, which then must not be null.
  static absl::StatusOr<std::shared_ptr<Device>> Create(
      const DeviceSpec& spec, std::shared_ptr<Plugin> plugin, const Log& log,
      std::shared_ptr<SlotPool> shared_pool, std::shared_ptr<DescriptorBudget> descriptors,
      std::optional<DeviceState> state = std::nullopt);
  ~Device();

  absl::StatusOr<std::unique_ptr<DevicePort>> Attach(DevicePortEvents* events);
  DeviceInfo Inspect() const;
  absl::Status Stop();
  absl::Status Start();
  absl::StatusOr<std::string> Control(const std::string& command, absl::string_view text);
  absl::StatusOr<DeviceState> Save();
  // Ends service for good and destroys the plugin's device. DeadlineExceeded when something of it
  // does not end, and so may still write to guest memory: it is leaked then.
  absl::Status Retire();
  // Logs queue threads that have been in one plugin callback since the last call and for at least
  // `threshold`. Called by one watchdog thread.
  void ReportStuck(absl::Duration threshold);
  absl::Duration stop_deadline() const { return core_->spec.stop_deadline; }

  // The functions of DevicePort.
  void Detach();
  uint64_t offered_features() const;
  absl::Status SetFeatures(uint64_t acknowledged);
  absl::Status SetMemory(MemoryMapRef map);
  absl::Status StartQueue(uint32_t queue, QueueConfig config);
  absl::StatusOr<uint32_t> StopQueue(uint32_t queue);
  absl::Status ResetQueue(uint32_t queue);
  bool queue_running(uint32_t queue) const;
  // DevicePort::SignalError.
  void SignalError(uint32_t queue, SharedFd fd);
  absl::Status OnRunningQueue(uint32_t queue, absl::AnyInvocable<void(Queue*)> change);
  absl::Status ReadConfig(uint32_t offset, std::span<std::byte> data);
  absl::Status WriteConfig(uint32_t offset, std::span<const std::byte> data);
  uint8_t status() const;
  absl::Status SetStatus(uint8_t status);
  absl::Status Reset();

  const virtbay_device_properties& properties() const { return properties_; }
  uint32_t virtio_id() const { return virtio_id_; }
  uint16_t max_queue_size(uint32_t queue) const;
  bool wants_files() const { return core_->spec.dma_mode == DmaMode::kAperture; }

 private:
  Device(const DeviceSpec& spec, std::shared_ptr<Plugin> plugin, const Log& log);
  absl::Status Init(std::shared_ptr<SlotPool> shared_pool);
  absl::Status CreateQueues();
  absl::Status CheckServing() const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  absl::Status BeginSession() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  // `quiesced` is called when every queue has stopped and no thread of the device runs any more.
  void EndSession(bool forget, absl::AnyInvocable<void()> quiesced = nullptr)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  // Of a device that no front-end has had yet.
  absl::Status Restore(DeviceState state);
  absl::StatusOr<uint32_t> StopQueueLocked(uint32_t queue, bool forget, absl::Time deadline)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  // Descriptors that this device's session may still open, see DescriptorBudget.
  uint32_t RoomToKeep() const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  // The queues of each thread.
  std::vector<std::vector<Queue*>> ThreadShares() const;
  absl::Status StartThreads() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void EndThreads() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  // Runs a task on the thread; one that does not come to it is stuck in a callback of the plugin.
  absl::Status RunOrStuck(QueueThread* thread, absl::AnyInvocable<void()> task)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  // Frees threads that the front-end holds up in a notification.
  void ReleaseNotifiers() ABSL_EXCLUSIVE_LOCKS_REQUIRED(threads_mutex_);
  bool AnyQueueRunning() const;
  // The plugin's table with that id, or nullptr.
  const void* Extension(const char* id);
  // The plugin's table of what saves and restores the device, or nullptr.
  const virtbay_device_state* StateTable();
  // The plugin's table of commands, or nullptr.
  const virtbay_device_control* ControlTable() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  // The memory that a ring at this place and its requests may use; FailedPrecondition naming the
  // range that is missing or not allowed.
  absl::StatusOr<QueueMaps> MapsFor(const RingAddresses& ring)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);

  std::shared_ptr<Plugin> plugin_;
  std::shared_ptr<Device> self_;  // set only when a plugin callback never returned
  std::unique_ptr<DeviceCore> core_;
  virtbay_host_device host_device_;
  virtbay_device_properties properties_{};
  uint32_t virtio_id_ = 0;
  bool queue_parallel_ = false;
  std::string type_;

  mutable absl::Mutex mutex_;
  bool attached_ ABSL_GUARDED_BY(mutex_) = false;
  bool session_ ABSL_GUARDED_BY(mutex_) = false;  // ACTIVE or RUNNING
  bool stopped_ ABSL_GUARDED_BY(mutex_) = false;  // by the embedder
  bool served_ ABSL_GUARDED_BY(mutex_) = false;   // a front-end was attached at some time
  bool retired_ ABSL_GUARDED_BY(mutex_) = false;
  bool stuck_ ABSL_GUARDED_BY(mutex_) = false;      // a callback does not return
  bool leaked_io_ ABSL_GUARDED_BY(mutex_) = false;  // nor does the kernel from some I/O
  uint64_t features_ ABSL_GUARDED_BY(mutex_) = 0;
  uint8_t status_ ABSL_GUARDED_BY(mutex_) = 0;
  MemoryMapRef map_ ABSL_GUARDED_BY(mutex_);
  // The aperture's part of map_, made when it is needed first.
  MemoryMapRef window_ ABSL_GUARDED_BY(mutex_);
  std::vector<RingAddresses> rings_ ABSL_GUARDED_BY(mutex_);  // by queue, as last started

  // What Inspect shows without waiting for a slow change of the control plane.
  mutable absl::Mutex threads_mutex_;
  std::vector<QueueThread*> live_threads_ ABSL_GUARDED_BY(threads_mutex_);
  uint64_t ended_cpu_ns_ ABSL_GUARDED_BY(threads_mutex_) = 0;
  uint64_t ended_enters_ ABSL_GUARDED_BY(threads_mutex_) = 0;
  struct Watch {
    uint64_t sequence = 0;
    absl::Time since;
    bool reported = false;
  };
  std::map<const QueueThread*, Watch> watches_ ABSL_GUARDED_BY(threads_mutex_);
  std::atomic<const char*> state_{"created"};
  std::atomic<bool> attached_shown_{false};
  std::atomic<uint64_t> features_shown_{0};
};

}  // namespace virtbay

#endif  // VIRTBAY_FRAMEWORK_DEVICE_DEVICE_H_
