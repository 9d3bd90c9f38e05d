#include "framework/device/device.h"

#include <linux/virtio_config.h>
#ifdef __SANITIZE_ADDRESS__
#include <sanitizer/lsan_interface.h>
#endif
// The header's legacy helpers are not valid C++.
#define VIRTIO_RING_NO_LEGACY
#include <linux/virtio_ring.h>

#include <algorithm>
#include <cstring>
#include <utility>

#include "absl/algorithm/container.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "framework/base/status.h"
#include "framework/device/account.h"
#include "framework/device/plugin_call.h"
#include "framework/device/port.h"
#include "framework/device/queue.h"
#include "framework/device/queue_thread.h"
#include "framework/device/saved_state.h"
#include "framework/io/loop.h"
#include "framework/isolation/crash_guard.h"

namespace virtbay {
namespace {

constexpr uint32_t kOffloadThreads = 16;
constexpr uint64_t Bit(unsigned n) { return uint64_t{1} << n; }

const char* DmaModeName(DmaMode mode) {
  switch (mode) {
    case DmaMode::kBounce:
      return "bounce";
    case DmaMode::kDirect:
      return "direct";
    case DmaMode::kAperture:
      return "aperture";
  }
  return "unknown";
}

absl::Status CheckDma(const DeviceSpec& spec) {
  const Aperture& aperture = spec.aperture;
  if (spec.dma_mode != DmaMode::kAperture) {
    if (aperture.size == 0 && spec.rings == RingPlacement::kAnywhere) return absl::OkStatus();
    return absl::InvalidArgumentError("an aperture needs the DMA mode aperture");
  }
  if (spec.arena_policy == ArenaPolicy::kShared) {
    return absl::InvalidArgumentError("an aperture cannot be had together with a shared arena");
  }
  return Annotate(CheckDeviceAperture(aperture),
                  absl::StrFormat("aperture %#x, size %#x", aperture.base, aperture.size));
}

}  // namespace

Device::Device(const DeviceSpec& spec, const Log& log)
    : core_(std::make_unique<DeviceCore>(spec, log.Named(spec.name))) {}

Device::~Device() { Retire().IgnoreError(); }

std::shared_ptr<Device> Device::New(const DeviceSpec& spec, const Log& log,
                                    std::shared_ptr<DescriptorBudget> descriptors, bool contain) {
  std::shared_ptr<Device> device(new Device(spec, log));
  device->core_->contains = contain;
  device->core_->descriptors.emplace(std::move(descriptors));
  return device;
}

absl::Status Device::Make(std::shared_ptr<Plugin> plugin, std::shared_ptr<SlotPool> shared_pool,
                          DeviceState* state, const DeviceShape* before) {
  DescriptorBudget::Share& descriptors = *core_->descriptors;
  const auto too_few = [&descriptors] {
    return absl::ResourceExhaustedError(
        absl::StrCat("the limit on open files (RLIMIT_NOFILE) leaves too few for one more device "
                     "and its front-end; it has to be at least ",
                     descriptors.LimitNeeded()));
  };
  const bool restores = state != nullptr || (before != nullptr && before->has_state);
  if (const absl::Status made = Init(std::move(plugin), std::move(shared_pool), restores);
      !made.ok()) {
    // The plugin has its own words for it, but not the number.
    return absl::IsResourceExhausted(made) && descriptors.refused() ? too_few() : made;
  }
  if (state != nullptr) VIRTBAY_RETURN_IF_ERROR(RestoreState(state));
  {
    absl::MutexLock lock(&mutex_);
    if (before != nullptr) {
      VIRTBAY_RETURN_IF_ERROR(generation_->CheckFollows(*before));
      if (before->has_state) {
        VIRTBAY_RETURN_IF_ERROR(CheckStateVersion(generation_.get(), before->state_version));
      }
      staged_ = *before;
    }
    descriptors.SetRoom(RoomToKeep());
  }
  return descriptors.suffices() ? absl::OkStatus() : too_few();
}

absl::Status Device::Init(std::shared_ptr<Plugin> plugin, std::shared_ptr<SlotPool> shared_pool,
                          bool restores) {
  const DeviceSpec& spec = core_->spec;
  if (spec.queue_size_max == 0 || (spec.queue_size_max & (spec.queue_size_max - 1)) != 0 ||
      spec.queue_size_max > 32768) {
    return absl::InvalidArgumentError(
        absl::StrCat("queue_size_max ", spec.queue_size_max, " is not a power of two up to 32768"));
  }
  VIRTBAY_RETURN_IF_ERROR(CheckDma(spec));
  if (core_->shares_pool()) {
    core_->pool = std::move(shared_pool);
  } else {
    VIRTBAY_ASSIGN_OR_RETURN(core_->pool, SlotPool::Create(spec.name, spec.arena_size));
  }
  VIRTBAY_ASSIGN_OR_RETURN(generation_, Generation::Make(core_.get(), std::move(plugin), restores));
  virtio_id_ = generation_->virtio_id();
  config_size_ = generation_->properties().config_size;
  UseGeneration(NewOffloadPool());
  VIRTBAY_RETURN_IF_ERROR(generation_->EarlyFailure());
  const std::vector<virtbay_queue_properties>& queues = generation_->queues();
  for (uint32_t i = 0; i < queues.size(); ++i) {
    core_->queues.push_back(std::make_unique<Queue>(core_.get(), static_cast<uint16_t>(i),
                                                    queues[i], MaxQueueSize(queues[i])));
  }
  state_ = "ready";
  return absl::OkStatus();
}

std::unique_ptr<OffloadPool> Device::NewOffloadPool() const {
  return std::make_unique<OffloadPool>(absl::StrCat("vb-off-", core_->spec.name), kOffloadThreads);
}

uint16_t Device::MaxQueueSize(const virtbay_queue_properties& queue) const {
  const uint32_t limit = core_->spec.queue_size_max;
  return static_cast<uint16_t>(queue.max_size == 0 ? limit : std::min(limit, queue.max_size));
}

std::unique_ptr<OffloadPool> Device::UseGeneration(std::unique_ptr<OffloadPool> offload) {
  core_->host = generation_->host();
  core_->device = generation_->device();
  core_->ops = generation_->ops();
  core_->host->serves.store(true, std::memory_order_release);
  features_offered_.store(generation_->features(), std::memory_order_relaxed);
  return std::exchange(core_->offload, std::move(offload));
}

// ---- sessions ---------------------------------------------------------------------------------

absl::StatusOr<std::unique_ptr<DevicePort>> Device::Attach(DevicePortEvents* events) {
  absl::MutexLock lock(&mutex_);
  if (!attached_) Recover();
  VIRTBAY_RETURN_IF_ERROR(CheckServing());
  if (attached_) {
    return absl::AlreadyExistsError(
        absl::StrCat("device ", core_->spec.name, " is in use by another front-end"));
  }
  attached_ = true;
  served_ = true;
  attached_shown_ = true;
  core_->SetEvents(events);
  return MakeDevicePort(shared_from_this());
}

void Device::Detach() {
  absl::MutexLock lock(&mutex_);
  if (suspended_.has_value()) ResumeLocked();
  core_->SetEvents(nullptr);
  EndSession(/*forget=*/true);
  map_ = nullptr;
  features_ = 0;
  features_shown_ = 0;
  status_ = 0;
  attached_ = false;
  attached_shown_ = false;
  core_->ClearFailure();
}

absl::Status Device::CheckServing() const {
  if (retired_) return absl::UnavailableError("the device has been removed");
  if (suspended_.has_value()) {
    return absl::UnavailableError(
        absl::StrCat("device ", core_->spec.name, ": another process is about to go on with it"));
  }
  if (staged_.has_value()) {
    return absl::UnavailableError(
        absl::StrCat("device ", core_->spec.name, ": what it goes on with has not come yet"));
  }
  if (stuck_) {
    return absl::UnavailableError(absl::StrCat("device ", core_->spec.name, ": ", stuck_why_));
  }
  return absl::OkStatus();
}

absl::Status Device::CheckOwnsState() const {
  VIRTBAY_RETURN_IF_ERROR(CheckServing());
  if (!saved_) return absl::OkStatus();
  return absl::FailedPreconditionError(absl::StrCat(
      "device ", core_->spec.name, ": its state was taken; all that is left is to remove it"));
}

absl::Status Device::CheckCallable() const {
  VIRTBAY_RETURN_IF_ERROR(CheckOwnsState());
  if (!generation_->crashed()) return absl::OkStatus();
  return absl::FailedPreconditionError(
      absl::StrCat("device ", core_->spec.name, ": its plugin has crashed; reload it"));
}

absl::Status Device::PrepareSession() {
  if (generation_->crashed()) core_->log.Warn("its plugin has crashed; requests wait for a reload");
  VIRTBAY_RETURN_IF_ERROR(generation_->Negotiate(features_));
  VIRTBAY_RETURN_IF_ERROR(generation_->Activate());
  absl::StatusOr<Threads> threads = MakeThreads(*generation_);
  if (!threads.ok()) {
    generation_->Deactivate();
    return threads.status();
  }
  prepared_ = *std::move(threads);
  return absl::OkStatus();
}

void Device::UndoPrepare() {
  if (!prepared_.has_value()) return;
  JoinThreads(*std::exchange(prepared_, std::nullopt), *generation_);
  generation_->Deactivate();
}

absl::Status Device::BeginSession() {
  if (session_) return absl::OkStatus();
  if (!prepared_.has_value()) VIRTBAY_RETURN_IF_ERROR(PrepareSession());
  UseThreads(*std::exchange(prepared_, std::nullopt));
  for (const auto& thread : core_->threads) thread->Adopt();
  if (const absl::Status status = generation_->Start(); !status.ok()) {
    EndThreads();
    generation_->Deactivate();
    return status;
  }
  session_ = true;
  state_ = "running";
  return absl::OkStatus();
}

void Device::EndSession(bool forget, absl::AnyInvocable<void()> quiesced) {
  UndoPrepare();
  if (!session_) return;
  // All queues end their requests at the same time, within one deadline.
  const absl::Time deadline = absl::Now() + core_->spec.stop_deadline;
  for (const auto& queue : core_->queues) {
    if (stuck_) break;
    if (queue->running()) {
      RunOrStuck(queue->thread(), [raw = queue.get()] { raw->BeginDrain(); }).IgnoreError();
    } else if (queue->broken()) {
      RunOrStuck(queue->thread(), [raw = queue.get()] { raw->ReleaseBroken(); }).IgnoreError();
    }
  }
  for (uint32_t i = 0; i < core_->queues.size(); ++i) {
    const absl::StatusOr<uint32_t> stopped = StopQueueLocked(i, forget, deadline);
    if (!stopped.ok() && stopped.status().code() != absl::StatusCode::kFailedPrecondition) {
      core_->log.Error(stopped.status().message());
    }
  }
  session_ = false;
  last_state_.reset();
  // A thread without a running queue may be in a callback too (a timer's, an I/O's).
  for (const auto& thread : core_->threads) {
    if (!stuck_) RunOrStuck(thread.get(), [] {}).IgnoreError();
  }
  if (stuck_) {
    state_ = "failed";
    return;
  }
  EndThreads();
  for (const auto& queue : core_->queues) queue->EndSession();
  if (quiesced) quiesced();
  generation_->Stop();
  generation_->Deactivate();
  state_ = "ready";
  core_->descriptors->SetRoom(RoomToKeep());
}

uint32_t Device::RoomToKeep() const {
  // Kick and call, and of some front-ends an error descriptor.
  constexpr uint32_t kOfQueue = 3;
  constexpr uint32_t kOfLateQueue = 2;
  // The front-end's two sockets, and its memory.
  constexpr uint32_t kOfFrontEnd = 3;
  // Where the kernel is old: a thread's io_uring and what wakes it.
  constexpr uint32_t kOfThread = 2;
  const auto queues = static_cast<uint32_t>(core_->queues.size());
  if (!session_) {
    const auto threads =
        Loop::NeedsDescriptors() ? static_cast<uint32_t>(ThreadShares(*generation_).size()) : 0;
    return kOfFrontEnd + queues * kOfQueue + threads * kOfThread;
  }
  const auto waiting = std::count_if(core_->queues.begin(), core_->queues.end(),
                                     [](const auto& queue) { return !queue->running(); });
  // One of the two sockets may come at any time.
  return 1 + static_cast<uint32_t>(waiting) * kOfLateQueue;
}

std::vector<std::vector<Queue*>> Device::ThreadShares(const Generation& generation) const {
  // Queues that may run in parallel get a thread each, or one for those of a group; otherwise one
  // thread serves them all.
  const bool parallel = generation.queue_parallel() && !core_->spec.one_thread;
  std::vector<std::vector<Queue*>> shares;
  std::map<uint32_t, size_t> groups;
  for (const auto& queue : core_->queues) {
    const uint32_t group = generation.queues()[queue->index()].thread_group;
    size_t share = parallel ? shares.size() : 0;
    if (parallel && group != 0) {
      share = groups.emplace(group, share).first->second;
    }
    if (share == shares.size()) shares.emplace_back();
    shares[share].push_back(queue.get());
  }
  return shares;
}

absl::StatusOr<Device::Threads> Device::MakeThreads(const Generation& generation) {
  Threads threads;
  for (std::vector<Queue*>& queues : ThreadShares(generation)) {
    const std::string name = absl::StrCat("vb-", core_->spec.name, "-", queues.front()->index());
    VIRTBAY_ASSIGN_OR_RETURN(std::unique_ptr<QueueThread> thread,
                             QueueThread::Make(core_.get(), name, std::move(queues)));
    threads.push_back(std::move(thread));
  }
  return threads;
}

Device::Threads Device::UseThreads(Threads threads) {
  absl::MutexLock lock(&threads_mutex_);
  for (const auto& thread : threads) {
    if (!absl::c_linear_search(live_threads_, thread.get())) live_threads_.push_back(thread.get());
  }
  return std::exchange(core_->threads, std::move(threads));
}

void Device::EndThreads() { JoinThreads(UseThreads({}), *generation_); }

void Device::JoinThreads(Threads threads, const Generation& of) {
  // A thread's last figures are taken when it can no longer change them.
  for (auto& thread : threads) {
    if (of.crashed()) thread->LeaveBehind();
    thread->Join();
  }
  absl::MutexLock lock(&threads_mutex_);
  for (const auto& thread : threads) {
    std::erase(live_threads_, thread.get());
    watches_.erase(thread.get());
    leaked_io_ |= thread->leaked_io();
    ended_cpu_ns_ += thread->CpuNs();
    ended_enters_ += thread->enters();
  }
}

absl::Status Device::Stop() {
  absl::MutexLock lock(&mutex_);
  VIRTBAY_RETURN_IF_ERROR(CheckServing());
  if (stopped_) return absl::OkStatus();
  EndSession(/*forget=*/true);
  stopped_ = true;
  state_ = "stopped";
  core_->log.Info(absl::StrCat("stopped; ", AccountLine(Inspect())));
  // A front-end that is attached learns of it as of any failure of the device.
  if (attached_) core_->RaiseNeedsReset("stopped by its host", /*stops=*/true);
  return absl::OkStatus();
}

absl::Status Device::Start() {
  absl::MutexLock lock(&mutex_);
  VIRTBAY_RETURN_IF_ERROR(CheckOwnsState());
  if (!stopped_) return absl::OkStatus();
  stopped_ = false;
  state_ = "ready";
  core_->ClearFailure();
  return absl::OkStatus();
}

void Device::Farewell(FarewellReason reason) {
  const uint32_t code =
      reason == FarewellReason::kRemoved ? VIRTBAY_FAREWELL_REMOVED : VIRTBAY_FAREWELL_HOST_ENDS;
  absl::MutexLock lock(&threads_mutex_);
  if (live_threads_.empty() || std::exchange(farewell_asked_, true)) return;
  for (QueueThread* thread : live_threads_) {
    thread->Post([thread, code] { thread->Farewell(code); });
  }
}

absl::Status Device::Retire(FarewellReason reason) {
  absl::MutexLock lock(&mutex_);
  if (retired_) return absl::OkStatus();
  if (suspended_.has_value()) ResumeLocked();
  retired_ = true;
  Recover();
  Farewell(reason);
  EndSession(/*forget=*/true);
  // A device that served nobody has nothing to account for, and Stop has said it already.
  if (served_ && !stopped_) {
    core_->log.Info(absl::StrCat("removed; ", AccountLine(Inspect())));
  }
  state_ = "removed";
  if (attached_) core_->RaiseNeedsReset("removed by its host", /*stops=*/true);
  if (generation_ == nullptr) return absl::OkStatus();
  // Work of the plugin's may still run on the pool's threads; it ends first.
  const bool quiet = stuck_ || core_->offload->Drain(core_->spec.stop_deadline);
  if (stuck_ || !quiet) {
    // Its code is still being executed: nothing of it may go away, so the device keeps itself.
    const std::string why = absl::StrCat("the device is leaked with its plugin, because ",
                                         stuck_ ? stuck_why_ : "offloaded work does not return");
    core_->log.Error(why);
    self_ = shared_from_this();
#ifdef __SANITIZE_ADDRESS__
    __lsan_ignore_object(this);
#endif
    return absl::DeadlineExceededError(why);
  }
  EndOffload(std::move(core_->offload), *generation_);
  generation_->Destroy();
  core_->device = nullptr;
  if (core_->crashes.load(std::memory_order_relaxed) > 0) self_ = weak_from_this().lock();
  if (!leaked_io_) return absl::OkStatus();
  return absl::DeadlineExceededError("I/O of the device does not end, and is leaked");
}

void Device::EndOffload(std::unique_ptr<OffloadPool> pool, const Generation& of) {
  if (pool == nullptr || !of.crashed()) return;
  pool->LeaveBehind();
  static_cast<void>(pool.release());
}

// ---- the port's functions ---------------------------------------------------------------------

uint16_t Device::max_queue_size(uint32_t queue) const {
  return queue < core_->queues.size() ? core_->queues[queue]->max_size() : uint16_t{0};
}

uint64_t Device::offered_features() const {
  uint64_t features = features_offered_.load(std::memory_order_relaxed) | Bit(VIRTIO_F_VERSION_1) |
                      Bit(VIRTIO_RING_F_INDIRECT_DESC) | Bit(VIRTIO_RING_F_EVENT_IDX) |
                      kFeatureRingReset;
  if (core_->spec.offer_packed_ring) features |= Bit(VIRTIO_F_RING_PACKED);
  if (core_->spec.offer_access_platform || wants_files()) features |= Bit(VIRTIO_F_ACCESS_PLATFORM);
  return features;
}

bool Device::AnyQueueRunning() const {
  return std::any_of(core_->queues.begin(), core_->queues.end(),
                     [](const auto& queue) { return queue->running(); });
}

absl::Status Device::SetFeatures(uint64_t acknowledged) {
  absl::MutexLock lock(&mutex_);
  VIRTBAY_RETURN_IF_ERROR(CheckServing());
  if ((acknowledged & ~offered_features()) != 0) {
    return absl::InvalidArgumentError(absl::StrCat(
        "features 0x", absl::Hex(acknowledged & ~offered_features()), " were not offered"));
  }
  if (acknowledged != features_) UndoPrepare();
  if (session_ && acknowledged != features_) {
    if (AnyQueueRunning()) {
      return absl::FailedPreconditionError("features cannot change while a ring runs");
    }
    // A driver that negotiates anew without a reset in between (user-mode Linux does).
    EndSession(/*forget=*/true);
  }
  features_ = acknowledged;
  features_shown_ = acknowledged;
  return absl::OkStatus();
}

absl::Status Device::SetMemory(MemoryMapRef map) {
  absl::MutexLock lock(&mutex_);
  VIRTBAY_RETURN_IF_ERROR(CheckServing());
  if (map == nullptr) return absl::InvalidArgumentError("no memory map");
  map_ = std::move(map);
  window_ = nullptr;
  // A queue that cannot follow stops by itself and does not keep the others from it.
  for (const auto& queue : core_->queues) {
    if (!session_ || !queue->running()) continue;
    // Not waited for: a thread in a slow callback takes the map before it takes a chain again, and
    // what it holds keeps the old one.
    if (queue->OfferMaps(MapsFor(rings_[queue->index()]))) {
      queue->thread()->Post([raw = queue.get()] { raw->TakeMaps(); });
    }
  }
  return absl::OkStatus();
}

absl::StatusOr<QueueMaps> Device::MapsFor(const RingAddresses& ring) {
  if (!wants_files()) return QueueMaps{map_, map_};
  const GuestSpan aperture{core_->spec.aperture.base, core_->spec.aperture.size};
  if (window_ == nullptr) {
    absl::StatusOr<MemoryMapRef> window = map_->Window({aperture});
    if (!window.ok()) return Annotate(window.status(), "aperture");
    window_ = *std::move(window);
  }
  const bool packed = (features_ & Bit(VIRTIO_F_RING_PACKED)) != 0;
  const std::vector<GuestSpan> parts = packed ? PackedRingParts(ring) : SplitRingParts(ring);
  const auto outside = std::find_if(parts.begin(), parts.end(), [&](const GuestSpan& part) {
    return !aperture.Contains(part.address, part.size);
  });
  if (outside == parts.end()) return QueueMaps{window_, window_};
  if (core_->spec.rings == RingPlacement::kPool) {
    core_->dma_violations.fetch_add(1, std::memory_order_relaxed);
    return absl::FailedPreconditionError(
        absl::StrFormat("part of the ring at %#x, size %#x, lies outside the pool at %#x, size %#x",
                        outside->address, outside->size, aperture.address, aperture.size));
  }
  absl::StatusOr<MemoryMapRef> rings = map_->Window(parts);
  if (!rings.ok()) return Annotate(rings.status(), "ring");
  return QueueMaps{window_, *std::move(rings)};
}

absl::Status Device::Prepare() {
  absl::MutexLock lock(&mutex_);
  VIRTBAY_RETURN_IF_ERROR(CheckServing());
  if (session_ || prepared_.has_value()) return absl::OkStatus();
  // All that can fail does so while the other process can still serve on.
  return std::exchange(goes_on_, false) ? BeginSession() : PrepareSession();
}

absl::Status Device::StartQueue(uint32_t index, QueueConfig config) {
  absl::MutexLock lock(&mutex_);
  VIRTBAY_RETURN_IF_ERROR(CheckServing());
  if (stopped_) return absl::UnavailableError("the device is stopped by its host");
  if (index >= core_->queues.size()) {
    return absl::OutOfRangeError(absl::StrCat("there is no queue ", index));
  }
  Queue* queue = core_->queues[index].get();
  if (queue->running()) {
    return absl::FailedPreconditionError(absl::StrCat("queue ", index, " runs already"));
  }
  if (map_ == nullptr) return absl::FailedPreconditionError("no memory map has been set");
  // One that has crashed may be begun with after a reset, and serves when it is reloaded.
  if (core_->failed() && (!generation_->crashed() || core_->needs_reset())) {
    return absl::FailedPreconditionError("the device needs a reset");
  }
  VIRTBAY_RETURN_IF_ERROR(BeginSession());
  rings_.resize(core_->queues.size());
  rings_[index] = RingAddresses{config.size, config.descriptors, config.avail, config.used};
  absl::StatusOr<QueueMaps> maps = MapsFor(rings_[index]);
  if (!maps.ok()) return Annotate(maps.status(), absl::StrCat("queue ", index));
  auto result = std::make_shared<absl::Status>();
  auto shared_config = std::make_shared<QueueConfig>(std::move(config));
  VIRTBAY_RETURN_IF_ERROR(queue->thread()->Run(
      [queue, result, shared_config, maps = *std::move(maps), features = features_] {
        *result = queue->Start(std::move(*shared_config), maps, features);
      },
      core_->spec.stop_deadline));
  core_->descriptors->SetRoom(RoomToKeep());
  if (std::exchange(config_differs_, false)) core_->NotifyConfigChanged();
  return Annotate(*result, absl::StrCat("queue ", index));
}

absl::StatusOr<uint32_t> Device::StopQueue(uint32_t index) {
  absl::MutexLock lock(&mutex_);
  VIRTBAY_RETURN_IF_ERROR(CheckServing());
  if (index >= core_->queues.size()) {
    return absl::OutOfRangeError(absl::StrCat("there is no queue ", index));
  }
  return StopQueueLocked(index, /*forget=*/false, absl::Now() + core_->spec.stop_deadline);
}

absl::Status Device::ResetQueue(uint32_t index) {
  absl::MutexLock lock(&mutex_);
  VIRTBAY_RETURN_IF_ERROR(CheckServing());
  if (index >= core_->queues.size()) {
    return absl::OutOfRangeError(absl::StrCat("there is no queue ", index));
  }
  if ((features_ & kFeatureRingReset) == 0) {
    return absl::FailedPreconditionError("the driver has not acknowledged VIRTIO_F_RING_RESET");
  }
  if (!session_) return absl::OkStatus();
  Queue* queue = core_->queues[index].get();
  if (queue->running()) {
    return StopQueueLocked(index, /*forget=*/true, absl::Now() + core_->spec.stop_deadline)
        .status();
  }
  // It was stopped before, perhaps with requests that it would have gone on with.
  return RunOrStuck(queue->thread(), [queue] { queue->Finish(/*forget=*/true); });
}

absl::StatusOr<uint32_t> Device::StopQueueLocked(uint32_t index, bool forget, absl::Time deadline) {
  Queue* queue = core_->queues[index].get();
  if (!session_ || stuck_ || (!queue->running() && !queue->broken())) {
    return absl::FailedPreconditionError(absl::StrCat("queue ", index, " does not run"));
  }
  if (queue->broken()) return queue->stop_base();
  QueueThread* thread = queue->thread();
  VIRTBAY_RETURN_IF_ERROR(RunOrStuck(thread, [queue] { queue->BeginDrain(); }));
  const absl::Status status =
      thread->RunUntil([queue] { return queue->drained(); }, deadline - absl::Now());
  if (absl::IsDeadlineExceeded(status)) {
    core_->log.Error(absl::StrCat("queue ", index, ": requests did not end within ",
                                  absl::FormatDuration(core_->spec.stop_deadline),
                                  "; they are dropped",
                                  forget ? "" : ", unless the ring goes on where it stopped"));
  }
  auto base = std::make_shared<uint32_t>();
  VIRTBAY_RETURN_IF_ERROR(
      RunOrStuck(thread, [queue, base, forget] { *base = queue->Finish(forget); }));
  return *base;
}

absl::Status Device::RunOrStuck(QueueThread* thread, absl::AnyInvocable<void()> task) {
  auto came_back = std::make_shared<std::atomic<bool>>(false);
  const absl::Status status = thread->Run(
      [task = std::move(task), came_back]() mutable {
        task();
        came_back->store(true, std::memory_order_release);
      },
      core_->spec.stop_deadline);
  if (absl::IsDeadlineExceeded(status)) {
    stuck_ = true;
    came_back_ = std::move(came_back);
    core_->RaiseNeedsReset(DescribeStuck(thread), /*stops=*/true);
  }
  return status;
}

std::string Device::DescribeStuck(const QueueThread* thread) {
  // A notification may be made in a callback, which then is not to blame.
  for (const auto& queue : core_->queues) {
    if (queue->thread() != thread || !queue->notifying()) continue;
    stuck_why_ = "a descriptor of the front-end holds a thread up";
    return absl::StrCat("queue ", queue->index(),
                        ": a call or error descriptor of the front-end holds its thread up");
  }
  const CallbackMonitor& monitor = thread->monitor();
  if (monitor.sequence() % 2 != 0) {
    stuck_why_ = "a callback does not return";
    return absl::StrCat("queue ", monitor.queue(), ": the plugin's ", monitor.name(),
                        " does not return");
  }
  stuck_why_ = "the kernel holds a thread up";
  return absl::StrCat(thread->name(), ": the queue thread is held up outside of the plugin");
}

void Device::Recover() {
  if (!stuck_ || !came_back_->load(std::memory_order_acquire)) return;
  core_->log.Info("the thread that did not answer has come back");
  stuck_ = false;
  session_ = !core_->threads.empty();
  EndSession(/*forget=*/true);
  if (!stuck_ && !stopped_) core_->ClearFailure();
}

bool Device::queue_running(uint32_t queue) const {
  return queue < core_->queues.size() && core_->queues[queue]->running();
}

absl::Status Device::OnRunningQueue(uint32_t index, absl::AnyInvocable<void(Queue*)> change) {
  absl::MutexLock lock(&mutex_);
  VIRTBAY_RETURN_IF_ERROR(CheckServing());
  if (index >= core_->queues.size()) {
    return absl::OutOfRangeError(absl::StrCat("there is no queue ", index));
  }
  Queue* queue = core_->queues[index].get();
  if (!session_ || !queue->running()) {
    return absl::FailedPreconditionError(absl::StrCat("queue ", index, " does not run"));
  }
  return queue->thread()->Run(
      [queue, change = std::move(change)]() mutable {
        if (queue->running()) change(queue);
      },
      core_->spec.stop_deadline);
}

void Device::SignalError(uint32_t index, SharedFd fd) {
  absl::MutexLock lock(&mutex_);
  if (!session_ || stuck_ || index >= core_->queues.size()) return;
  Queue* queue = core_->queues[index].get();
  // On its thread, where the watchdog sees a write that the front-end holds up.
  RunOrStuck(queue->thread(), [queue, fd = std::move(fd)]() mutable {
    queue->TellError(std::move(fd));
  }).IgnoreError();
}

absl::Status Device::ReadConfig(uint32_t offset, std::span<std::byte> data) {
  absl::MutexLock lock(&mutex_);
  VIRTBAY_RETURN_IF_ERROR(CheckServing());
  const uint32_t size = config_size();
  if (offset > size || data.size() > size - offset) {
    return absl::OutOfRangeError(absl::StrCat("configuration read of ", data.size(), " bytes at ",
                                              offset, "; there are ", size));
  }
  if (data.empty()) return absl::OkStatus();
  if (core_->ops.config_read == nullptr) {
    return absl::UnimplementedError("the device has no readable configuration");
  }
  if (core_->contains) config_seen_.resize(size);
  if (generation_->crashed()) {
    std::memcpy(data.data(), config_seen_.data() + offset, data.size());
    return absl::OkStatus();
  }
  const absl::Status status = CallOnControl(core_.get(), "config_read", [&](virtbay_error*) {
    return core_->ops.config_read(core_->device, offset, data.data(),
                                  static_cast<uint32_t>(data.size()));
  });
  if (core_->contains && status.ok()) {
    std::memcpy(config_seen_.data() + offset, data.data(), data.size());
  }
  return status;
}

absl::Status Device::WriteConfig(uint32_t offset, std::span<const std::byte> data) {
  absl::MutexLock lock(&mutex_);
  VIRTBAY_RETURN_IF_ERROR(CheckServing());
  const uint32_t size = config_size();
  if (offset > size || data.size() > size - offset) {
    return absl::OutOfRangeError(absl::StrCat("configuration write of ", data.size(), " bytes at ",
                                              offset, "; there are ", size));
  }
  if (data.empty()) return absl::OkStatus();
  if (core_->ops.config_write == nullptr) {
    return absl::UnimplementedError("the device has no writable configuration");
  }
  return CallOnControl(core_.get(), "config_write", [&](virtbay_error*) {
    return core_->ops.config_write(core_->device, offset, data.data(),
                                   static_cast<uint32_t>(data.size()));
  });
}

uint8_t Device::status() const {
  absl::MutexLock lock(&mutex_);
  return core_->needs_reset() ? static_cast<uint8_t>(status_ | kStatusNeedsReset) : status_;
}

absl::Status Device::SetStatus(uint8_t status) {
  if (status == 0) return Reset();
  absl::MutexLock lock(&mutex_);
  VIRTBAY_RETURN_IF_ERROR(CheckServing());
  status_ = status & static_cast<uint8_t>(~kStatusNeedsReset);
  return absl::OkStatus();
}

absl::Status Device::Reset() {
  absl::MutexLock lock(&mutex_);
  VIRTBAY_RETURN_IF_ERROR(CheckServing());
  EndSession(/*forget=*/true);
  VIRTBAY_RETURN_IF_ERROR(CheckServing());  // it may have got stuck just now
  features_ = 0;
  features_shown_ = 0;
  status_ = 0;
  if (!stopped_) core_->ClearFailure();
  return absl::OkStatus();
}

// ---- what others see --------------------------------------------------------------------------

DeviceInfo Device::Inspect() const {
  DeviceInfo info;
  info.state = state_.load();
  info.connected = attached_shown_.load();
  info.features = features_shown_.load();
  absl::MutexLock lock(&threads_mutex_);
  info.name = core_->spec.name;
  info.plugin = generation_->name();
  info.plugin_version = generation_->version();
  info.plugin_build = generation_->build();
  info.plugin_path = generation_->plugin().path();
  info.generation = generation_number_;
  info.type = generation_->type();
  info.virtio_id = generation_->virtio_id();
  info.options = core_->spec.options;
  info.dma_mode = DmaModeName(core_->spec.dma_mode);
  info.aperture = core_->spec.aperture;
  info.rings = core_->spec.rings;
  info.needs_reset = core_->needs_reset();
  info.failure = core_->failure();
  if (core_->failed() && (info.state == "running" || generation_->crashed())) info.state = "failed";
  info.crashes = core_->crashes.load(std::memory_order_relaxed);
  info.arena_policy = core_->shares_pool() ? "shared" : "private";
  info.arena_size = core_->pool->arena().size();
  info.arena_slots = core_->pool->slots().slots();
  // A queue's stock is in use by no request. It moves while this looks at it.
  uint32_t stocked = 0;
  for (const auto& queue : core_->queues) stocked += queue->stocked_slots();
  const uint32_t out = core_->slot_account().used();
  info.arena_slots_used = out - std::min(out, stocked);
  info.arena_slots_high_water = core_->slot_account().high_water();
  info.dma_violations = core_->dma_violations.load(std::memory_order_relaxed);
  info.metrics = core_->metrics.Values();
  info.metric_help = core_->metrics.Help();
  info.metric_kind = core_->metrics.Kinds();
  for (const auto& queue : core_->queues) info.queues.push_back(queue->Stats());
  info.cpu_ns = ended_cpu_ns_;
  uint64_t enters = ended_enters_;
  for (const QueueThread* thread : live_threads_) {
    info.cpu_ns += thread->CpuNs();
    enters += thread->enters();
  }
  // A ring serves the thread, not one queue of it; the first queue carries the figure.
  info.queues.front().syscalls += enters;
  return info;
}

void Device::ReportStuck(absl::Duration threshold) {
  absl::MutexLock lock(&threads_mutex_);
  if (!live_threads_.empty()) ReleaseNotifiers();
  const absl::Time now = absl::Now();
  for (const QueueThread* thread : live_threads_) {
    const CallbackMonitor& monitor = thread->monitor();
    const uint64_t sequence = monitor.sequence();
    Watch& watch = watches_[thread];
    if (sequence % 2 == 0 || sequence != watch.sequence) {
      watch = Watch{sequence, now, false};
      continue;
    }
    if (watch.reported || now - watch.since < threshold) continue;
    watch.reported = true;
    core_->log.Error(absl::StrCat("queue ", monitor.queue(), ": the plugin has been in ",
                                  monitor.name(), " for more than ",
                                  absl::FormatDuration(now - watch.since),
                                  StackOfThread(generation_->plugin(), thread->id())));
  }
  ReportStuckControl(threshold);
}

void Device::ReportStuckControl(absl::Duration threshold) {
  absl::MutexLock lock(&core_->hosts_mutex);
  for (virtbay_host_device* host : core_->hosts) {
    const uint64_t sequence = host->control_sequence.load(std::memory_order_acquire);
    const absl::Time now = absl::Now();
    if (sequence % 2 == 0 || sequence != host->watched_sequence) {
      host->watched_sequence = sequence;
      host->watched_since = now;
      host->watch_reported = false;
      continue;
    }
    if (host->watch_reported || now - host->watched_since < threshold) continue;
    host->watch_reported = true;
    std::string name;
    {
      absl::MutexLock named(&host->mutex);
      name = host->control_name;
    }
    core_->log.Error(absl::StrCat(
        "the plugin has been in ", name, ", a call of the control plane, for more than ",
        absl::FormatDuration(now - host->watched_since), ", generation ",
        host->generation.load(std::memory_order_relaxed),
        StackOfThread(*host->plugin, host->control_id.load(std::memory_order_relaxed))));
  }
}

std::string Device::StackOfThread(const Plugin& plugin, pid_t thread) {
  constexpr absl::Duration kPatience = absl::Milliseconds(250);
  const std::vector<void*> frames = StackOf(thread, kPatience);
  return frames.empty() ? "" : absl::StrCat("\n", plugin.StackText(frames));
}

void Device::ReleaseNotifiers() {
  for (const auto& queue : core_->queues) {
    if (!queue->ReleaseNotifiers()) continue;
    // It would do so again with the next request.
    queue->thread()->Post([raw = queue.get()] {
      raw->Break("the front-end made its call or error descriptor block, and filled it");
    });
  }
}

}  // namespace virtbay
