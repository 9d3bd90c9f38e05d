// DeviceCore: what the queue threads of a device share with its control plane: the plugin's device,
// the arena, options, metrics, and the failure flag.
// Owned by the Device, made before its threads and destroyed after them. Constant after the making
// unless a member says otherwise.
#ifndef VIRTBAY_FRAMEWORK_DEVICE_DEVICE_CORE_H_
#define VIRTBAY_FRAMEWORK_DEVICE_DEVICE_CORE_H_

#include <atomic>
#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/functional/any_invocable.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"
#include "framework/base/log.h"
#include "framework/base/log_limiter.h"
#include "framework/device/descriptor_budget.h"
#include "framework/device/metrics.h"
#include "framework/device/offload_pool.h"
#include "framework/memory/memory_map.h"
#include "framework/memory/slot_pool.h"
#include "virtbay/host.h"
#include "virtbay/sdk/abi.h"

namespace virtbay {

class Plugin;
class Queue;
class QueueThread;

// What of guest memory a queue may use: for the buffers of its chains, and for its ring. The same
// map unless the device has an aperture and its rings lie outside.
struct QueueMaps {
  MemoryMapRef buffers;
  MemoryMapRef rings;
};

class DeviceCore {
 public:
  DeviceCore(DeviceSpec device_spec, Log device_log);
  ~DeviceCore();
  DeviceCore(const DeviceCore&) = delete;
  DeviceCore& operator=(const DeviceCore&) = delete;

  const DeviceSpec spec;
  const Log log;
  bool contains = false;  // crashes of the plugin, see HostOptions::contain_crashes
  std::vector<std::string> option_keys;
  // Of the generation that serves; changed only while no queue thread runs.
  virtbay_host_device* host = nullptr;
  virtbay_device* device = nullptr;
  virtbay_device_ops ops{};              // members beyond the plugin's struct_size are null
  std::shared_ptr<SlotPool> pool;        // its own, or the one that it shares
  SlotAccount shared_slots;              // its part of a shared one
  std::unique_ptr<OffloadPool> offload;  // of the generation, as its threads may keep it loaded
  std::optional<DescriptorBudget::Share> descriptors;
  Metrics metrics;
  std::vector<std::unique_ptr<Queue>> queues;
  std::vector<std::unique_ptr<QueueThread>> threads;
  std::atomic<uint64_t> dma_violations{0};
  std::atomic<uint32_t> crashes{0};  // of generations that served
  // All generations that there are, for the watchdog: also one that is made ready, or is ended.
  absl::Mutex hosts_mutex;
  std::vector<virtbay_host_device*> hosts ABSL_GUARDED_BY(hosts_mutex);
  // What parked requests of all queues occupy of an aperture, in slots of the guest's pool.
  std::atomic<uint64_t> parked_pool_slots{0};

  // [any] The plugin's device cannot go on: DEVICE_NEEDS_RESET, or while it is tried (BeginTrial)
  // only an end to the taking of requests.
  void PluginFailed(absl::string_view why);
  // [control] From now on a failure of the plugin's device is told nobody but EndTrial.
  void BeginTrial() { trial_.store(true, std::memory_order_release); }
  // [control] Ends it; a failure of the time is told now unless `forgive`.
  void EndTrial(bool forgive);
  // [any] DEVICE_NEEDS_RESET with the first reason kept; `stops` also ends the taking of requests.
  void RaiseNeedsReset(absl::string_view why, bool stops);
  // [any] Tells the front-end, if one is attached, that the configuration or the status changed.
  void NotifyConfigChanged();
  bool needs_reset() const { return needs_reset_.load(std::memory_order_acquire); }
  bool shares_pool() const { return spec.arena_policy == ArenaPolicy::kShared; }
  // The slots that this device has.
  const SlotAccount& slot_account() const {
    return shares_pool() ? shared_slots : pool->slots().account();
  }
  bool failed() const { return failed_.load(std::memory_order_relaxed); }
  std::string failure() const {
    absl::MutexLock lock(&mutex_);
    return failure_;
  }
  // [control] A reset of the device. One whose plugin has crashed still takes no requests.
  void ClearFailure();
  // [control] Another generation comes, which has not failed.
  void ForgetFailure();
  // [control] The one that had failed is there again; `told`: its driver knew.
  void FailAgain(absl::string_view why, bool told);
  // [control] nullptr: detached. Returns after no call to the former one is going on.
  void SetEvents(DevicePortEvents* events) {
    absl::MutexLock lock(&mutex_);
    events_ = events;
  }

 private:
  std::atomic<bool> needs_reset_{false};
  std::atomic<bool> failed_{false};
  std::atomic<bool> trial_{false};
  mutable absl::Mutex mutex_;
  LogLimiter limited_ ABSL_GUARDED_BY(mutex_);
  std::string failure_ ABSL_GUARDED_BY(mutex_);
  DevicePortEvents* events_ ABSL_GUARDED_BY(mutex_) = nullptr;
};

}  // namespace virtbay

// What abi.h leaves opaque: the host's side of a plugin's device.
struct virtbay_host_device {
  explicit virtbay_host_device(virtbay::DeviceCore* device_core) : core(device_core) {}

  virtbay::DeviceCore* const core;
  virtbay::Plugin* plugin = nullptr;  // whose device it is
  std::atomic<uint32_t> generation{1};
  // [any] Its code has crashed, and is called no more.
  std::atomic<bool> crashed{false};
  bool restores = false;  // it will be given a state before anything else
  // It is the one that the driver sees; another one is being made ready, or has been replaced.
  std::atomic<bool> serves{false};
  // [any] The thread that is in a [control] call of it, for thread-check.
  std::atomic<uint64_t> control_thread{0};
  // For the watchdog: odd while such a call runs, and the thread by its number.
  std::atomic<uint64_t> control_sequence{0};
  std::atomic<int32_t> control_id{0};
  // The watchdog's own: since when it has seen the same call.
  uint64_t watched_sequence = 0;
  absl::Time watched_since;
  bool watch_reported = false;
  mutable absl::Mutex mutex;
  std::string control_name ABSL_GUARDED_BY(mutex);  // of that call
  std::string failure ABSL_GUARDED_BY(mutex);       // what it failed with while it did not serve
};

#endif  // VIRTBAY_FRAMEWORK_DEVICE_DEVICE_CORE_H_
