// Device: the control plane of one device: the plugin's device through its states, sessions of
// front-ends, queues started and stopped on their threads.
// Shared by the Host's table and an attached port; every public function is [any] and takes its
// turn on one lock, which queue threads never touch.
#ifndef VIRTBAY_FRAMEWORK_DEVICE_DEVICE_H_
#define VIRTBAY_FRAMEWORK_DEVICE_DEVICE_H_

#include <atomic>
#include <cstdint>
#include <filesystem>
#include <map>
#include <memory>
#include <optional>
#include <set>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/functional/any_invocable.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"
#include "framework/base/log.h"
#include "framework/device/device_core.h"
#include "framework/device/generation.h"
#include "framework/plugin/plugin.h"
#include "framework/virtq/ring.h"
#include "virtbay/device_port.h"
#include "virtbay/host.h"
#include "virtbay/record.h"
#include "virtbay/sdk/abi.h"
#include "virtbay/trace.h"

namespace virtbay {

class SavedState;

class Device : public std::enable_shared_from_this<Device> {
 public:
  // Without a plugin yet, so that the watchdog sees what Make calls of one.
  // `contain`: a crash of the plugin fails the device, not the process.
  static std::shared_ptr<Device> New(const DeviceSpec& spec, const Log& log,
                                     std::shared_ptr<DescriptorBudget> descriptors, bool contain);
  // Makes the plugin's device and brings it to READY; a device that fails is to be retired.
  // Takes its slots from `shared_pool` if its policy says so, which then must not be null.
  // `state`: what it goes on with, or null; left as it is unless the plugin was given it.
  // `before`: what Restore is to have it go on in the place of, or null.
  absl::Status Make(std::shared_ptr<Plugin> plugin, std::shared_ptr<SlotPool> shared_pool,
                    DeviceState* state = nullptr, const DeviceShape* before = nullptr);
  ~Device();

  absl::StatusOr<std::unique_ptr<DevicePort>> Attach(DevicePortEvents* events);
  DeviceInfo Inspect() const;
  absl::Status Stop();
  absl::Status Start();
  absl::StatusOr<std::string> Control(const std::string& command, absl::string_view text);
  absl::StatusOr<DeviceState> Save();
  // Puts another image of its plugin in the place of the one that serves, see Host::Reload.
  absl::StatusOr<ReloadReport> Reload(std::shared_ptr<Plugin> plugin, const ReloadOptions& options);
  std::filesystem::path plugin_path() const;
  // The functions of DeviceHandle.
  absl::StatusOr<DeviceShape> Shape();
  absl::StatusOr<LeftDevice> Suspend(absl::Duration quiesce_deadline);
  absl::Status Resume();
  absl::Status Release();
  absl::Status Restore(LeftDevice left);
  // DeviceHandle::StartTrace and StartRecord, and the ends of them.
  absl::StatusOr<std::unique_ptr<DeviceTrace>> StartTrace(uint32_t events);
  absl::StatusOr<std::unique_ptr<DeviceRecord>> StartRecord(const RecordOptions& options);
  void EndTrace();
  void EndRecord();
  // [any] Asks the threads that serve to let the plugin say its last words, if none has been asked
  // yet. Waits for nothing: what stops a ring comes to its thread after this.
  void Farewell(FarewellReason reason);
  // Ends service for good and destroys the plugin's device. DeadlineExceeded when something of it
  // does not end, and so may still write to guest memory: it is leaked then.
  absl::Status Retire(FarewellReason reason = FarewellReason::kRemoved);
  // Logs queue threads that have been in one plugin callback since the last call and for at least
  // `threshold`, and the same of calls of the control plane. Called by one watchdog thread.
  void ReportStuck(absl::Duration threshold);
  absl::Duration stop_deadline() const { return core_->spec.stop_deadline; }

  // The functions of DevicePort.
  void Detach();
  uint64_t offered_features() const;
  absl::Status SetFeatures(uint64_t acknowledged);
  absl::Status SetMemory(MemoryMapRef map);
  absl::Status Prepare();
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

  // The same in every generation.
  uint32_t queue_count() const { return static_cast<uint32_t>(core_->queues.size()); }
  uint32_t config_size() const { return config_size_; }
  uint32_t virtio_id() const { return virtio_id_; }
  uint16_t max_queue_size(uint32_t queue) const;
  bool wants_files() const { return core_->spec.dma_mode == DmaMode::kAperture; }

 private:
  using Threads = std::vector<std::unique_ptr<QueueThread>>;

  Device(const DeviceSpec& spec, const Log& log);
  absl::Status Init(std::shared_ptr<Plugin> plugin, std::shared_ptr<SlotPool> shared_pool,
                    bool restores);
  std::unique_ptr<OffloadPool> NewOffloadPool() const;
  uint16_t MaxQueueSize(const virtbay_queue_properties& queue) const;
  // The queue threads call generation_ from now on; they must not run. Returns the former pool.
  std::unique_ptr<OffloadPool> UseGeneration(std::unique_ptr<OffloadPool> offload);
  absl::Status CheckServing() const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  // The same, and its state is still its own.
  absl::Status CheckOwnsState() const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  // The same, and its plugin can be called.
  absl::Status CheckCallable() const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  // What of BeginSession can be done, and can fail, before the device has to serve.
  absl::Status PrepareSession() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void UndoPrepare() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  absl::Status BeginSession() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  // `quiesced` is called when every queue has stopped and no thread of the device runs any more.
  void EndSession(bool forget, absl::AnyInvocable<void()> quiesced = nullptr)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  // Of a device that no front-end has had yet.
  absl::Status RestoreState(DeviceState* state);
  absl::StatusOr<uint32_t> StopQueueLocked(uint32_t queue, bool forget, absl::Time deadline)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  // Descriptors that this device's session may still open, see DescriptorBudget.
  uint32_t RoomToKeep() const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  // The queues of each thread.
  std::vector<std::vector<Queue*>> ThreadShares(const Generation& generation) const;
  // Threads that wait for UseThreads.
  absl::StatusOr<Threads> MakeThreads(const Generation& generation)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  // The session's threads from now on; they are still to be told. Returns the former ones.
  Threads UseThreads(Threads threads) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  // `of`: whose code ran on them.
  void JoinThreads(Threads threads, const Generation& of) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void EndThreads() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  // Runs a task on the thread; the device is stuck when that does not come to it, be it in a
  // callback of the plugin or held up by the front-end.
  absl::Status RunOrStuck(QueueThread* thread, absl::AnyInvocable<void()> task)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  // Says who holds the thread up, and sets stuck_why_.
  std::string DescribeStuck(const QueueThread* thread) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  // Of a device that was stuck, and whose thread has come back: ends the session that could not be
  // ended then, after which it serves as before.
  void Recover() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  // ---- parts of Reload (reload.cc) ----
  // A generation with what its queues run on: the one to come, later the one that was.
  struct Replacement {
    std::unique_ptr<Generation> generation;
    std::unique_ptr<OffloadPool> offload;
    Threads threads;
    bool restores = false;
    bool activated = false;
    bool lost = false;  // the new one can be neither used nor taken away
  };
  struct StoppedRing {
    Queue* queue = nullptr;
    QueueConfig config;
    uint32_t failed = 0;  // requests of a plugin that has crashed that were answered for it
  };
  // The new device, made ready while the old one serves.
  absl::StatusOr<Replacement> Stage(std::shared_ptr<Plugin> plugin, ReloadReport* report)
      ABSL_LOCKS_EXCLUDED(mutex_);
  // Which requests that the crashed device holds the new one lets be done again, by queue and head;
  // fails when it crashes at one of them: none has been touched then. Of rings that drain.
  absl::StatusOr<std::set<std::pair<uint16_t, uint16_t>>> AskRepeatable(Generation* next,
                                                                        absl::Time deadline)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  // Whether it can go on with what the driver knows; FailedPrecondition.
  absl::Status CheckReloadable(Replacement* next) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  // Every ring is one that another generation can go on with; FailedPrecondition.
  absl::Status CheckQueuesWhole() const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  static absl::Status CheckNeedsNoState(const Plugin& plugin);
  // ---- parts of Suspend (suspend.cc) ----
  absl::StatusOr<DeviceShape> ShapeLocked() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  // All goes on as before PauseThreads.
  void Unpause(std::vector<StoppedRing> rings) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void ResumeLocked() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  // Stops the rings where they are, with everything ended or handed back, and has the threads
  // sleep. On failure all goes on as before.
  // What a plugin that has crashed holds is answered as failed, unless `next` may repeat it; not
  // without a `next`.
  absl::StatusOr<std::vector<StoppedRing>> PauseThreads(absl::Time deadline, Generation* next)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void StartRings(std::vector<StoppedRing> rings) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  // Saves the old device and restores the new one, up to ACTIVE if a driver is there. One that has
  // crashed saves nothing; then it is what was saved last.
  absl::Status PassState(Replacement* next, ReloadReport* report)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  // Lets the new one serve. On failure the old one has the rings again, which do not run.
  absl::Status Commit(Replacement* next, std::vector<StoppedRing>* rings,
                      const ReloadOptions& options, ReloadReport* report)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void Exchange(Replacement* other, bool quiesced) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  // The state that the next generation of one that has crashed goes on with is there.
  bool HasLastState() const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    return last_state_.has_value();
  }
  // Keeps a copy of what was saved, if crashes are contained.
  void KeepState(const SavedState& state) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  // Waits for the first answers of the new one, or its failure.
  absl::Status Try(absl::Duration time) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  // The old one goes on where it was, on the threads that it had; `failure` if it had failed, which
  // its driver may have been told.
  void RollBack(Replacement* next, std::vector<StoppedRing> rings, absl::string_view failure,
                bool told) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void EndGeneration(Replacement old, ReloadReport* report) ABSL_LOCKS_EXCLUDED(mutex_);
  // Lets go of what ran offloaded work of a generation.
  static void EndOffload(std::unique_ptr<OffloadPool> pool, const Generation& of);
  // A stack that the watchdog asked a thread for, in lines that begin with an end of line.
  static std::string StackOfThread(const Plugin& plugin, pid_t thread);
  void ReportStuckControl(absl::Duration threshold);
  // The bytes of a generation's configuration space.
  std::string ConfigOf(const Generation& generation);

  template <typename Ring>
  void OfferTaps(const std::vector<std::shared_ptr<Ring>>& rings)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(threads_mutex_);
  // Frees threads that the front-end holds up in a notification.
  void ReleaseNotifiers() ABSL_EXCLUSIVE_LOCKS_REQUIRED(threads_mutex_);
  bool AnyQueueRunning() const;
  // The plugin's table of commands, or nullptr.
  const virtbay_device_control* ControlTable() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  // The memory that a ring at this place and its requests may use; FailedPrecondition naming the
  // range that is missing or not allowed.
  absl::StatusOr<QueueMaps> MapsFor(const RingAddresses& ring)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);

  // Set only when a plugin callback never returned, or crashed: threads of the plugin's own may
  // still ask for services.
  std::shared_ptr<Device> self_;
  std::unique_ptr<DeviceCore> core_;
  // Changes with mutex_ and threads_mutex_ held, read with either.
  std::unique_ptr<Generation> generation_;
  uint32_t generation_number_ = 1;
  uint32_t virtio_id_ = 0;
  uint32_t config_size_ = 0;
  std::atomic<uint64_t> features_offered_{0};

  absl::Mutex reload_mutex_;  // one at a time; taken before mutex_
  mutable absl::Mutex mutex_;
  bool attached_ ABSL_GUARDED_BY(mutex_) = false;
  bool session_ ABSL_GUARDED_BY(mutex_) = false;  // ACTIVE or RUNNING
  bool stopped_ ABSL_GUARDED_BY(mutex_) = false;  // by the embedder
  bool saved_ ABSL_GUARDED_BY(mutex_) = false;    // its state is another device's
  // Suspended, with these rings.
  std::optional<std::vector<StoppedRing>> suspended_ ABSL_GUARDED_BY(mutex_);
  // Waits for the state of a device of that shape.
  std::optional<DeviceShape> staged_ ABSL_GUARDED_BY(mutex_);
  // Of PrepareSession, for BeginSession.
  std::optional<Threads> prepared_ ABSL_GUARDED_BY(mutex_);
  // It was restored with rings that another process has run.
  bool goes_on_ ABSL_GUARDED_BY(mutex_) = false;
  // The configuration space is not the one that the driver knows; it is told when it is served.
  bool config_differs_ ABSL_GUARDED_BY(mutex_) = false;
  bool served_ ABSL_GUARDED_BY(mutex_) = false;  // a front-end was attached at some time
  bool retired_ ABSL_GUARDED_BY(mutex_) = false;
  bool stuck_ ABSL_GUARDED_BY(mutex_) = false;  // a thread does not come back
  const char* stuck_why_ ABSL_GUARDED_BY(mutex_) = "";
  std::shared_ptr<const std::atomic<bool>> came_back_ ABSL_GUARDED_BY(mutex_);  // of that thread
  bool leaked_io_ ABSL_GUARDED_BY(mutex_) = false;  // nor does the kernel from some I/O
  // The configuration space as the driver has seen it, to be seen while a crashed plugin has none;
  // kept if crashes are contained.
  std::string config_seen_ ABSL_GUARDED_BY(mutex_);
  // Saved by the last reload of this session, for the generation after one that crashes.
  std::optional<DeviceState> last_state_ ABSL_GUARDED_BY(mutex_);
  uint64_t features_ ABSL_GUARDED_BY(mutex_) = 0;
  uint8_t status_ ABSL_GUARDED_BY(mutex_) = 0;
  MemoryMapRef map_ ABSL_GUARDED_BY(mutex_);
  // The aperture's part of map_, made when it is needed first.
  MemoryMapRef window_ ABSL_GUARDED_BY(mutex_);
  std::vector<RingAddresses> rings_ ABSL_GUARDED_BY(mutex_);  // by queue, as last started

  // What Inspect shows without waiting for a slow change of the control plane.
  mutable absl::Mutex threads_mutex_;
  std::vector<QueueThread*> live_threads_ ABSL_GUARDED_BY(threads_mutex_);
  bool traced_ ABSL_GUARDED_BY(threads_mutex_) = false;
  bool recorded_ ABSL_GUARDED_BY(threads_mutex_) = false;
  bool farewell_asked_ ABSL_GUARDED_BY(threads_mutex_) = false;
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
