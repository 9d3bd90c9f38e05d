#include "framework/device/queue.h"

#include <linux/virtio_config.h>

#include <algorithm>
#include <bit>
#include <cerrno>
#include <new>
#include <utility>

#include "absl/strings/str_cat.h"
#include "framework/base/status.h"
#include "framework/device/plugin_call.h"
#include "framework/device/queue_steps.h"
#include "framework/device/queue_thread.h"

namespace virtbay {
namespace {

constexpr uint64_t kCacheLine = 64;

bool SameRing(const RingAddresses& a, const RingAddresses& b) {
  return a.size == b.size && a.descriptors == b.descriptors && a.driver_area == b.driver_area &&
         a.device_area == b.device_area;
}

}  // namespace

Queue::Queue(DeviceCore* core, uint16_t index, const virtbay_queue_properties& properties,
             uint16_t max_size)
    : core_(core),
      index_(index),
      max_size_(max_size),
      cache_(core->shares_pool()
                 ? std::make_unique<SlotCache>(&core->pool->slots(), &core->shared_slots)
                 : std::make_unique<SlotCache>(&core->pool->slots())),
      refusals_(core->log) {
  SetProperties(properties, /*quiesced=*/false);
}

void Queue::SetProperties(const virtbay_queue_properties& properties, bool quiesced) {
  in_view_ = properties.in_view;
  out_view_ = properties.out_view;
  out_at_ = (in_view_ + 15u) & ~15u;
  const uint64_t bytes = uint64_t{out_at_} + out_view_;
  view_slots_ = SlotsFor(bytes);
  view_step_ = (bytes + kCacheLine - 1) / kCacheLine * kCacheLine;
  view_places_ = bytes == 0 ? 1 : std::bit_floor(view_slots_ * uint64_t{kSlotSize} / view_step_);
  auxiliary_ = (properties.flags & VIRTBAY_QUEUE_AUXILIARY) != 0;
  quiesced_ = quiesced;
}

void Queue::BindToThread(Loop* loop, CallbackMonitor* monitor) {
  loop_ = loop;
  monitor_ = monitor;
  thread_.store(pthread_self(), std::memory_order_relaxed);
  TakeTaps();
}

bool Queue::OnOwnThread() const {
  return pthread_equal(thread_.load(std::memory_order_relaxed), pthread_self()) != 0;
}

// ---- life of the ring -------------------------------------------------------------------------

template <typename Ring>
void Queue::UseRing(Ring ring) {
  ring_.emplace<Ring>(std::move(ring));
  UsePath();
}

template <typename Ring, typename RingLog>
void Queue::UseRing(Ring ring, std::optional<RingLog> log) {
  if (log.has_value()) {
    UseRing(LoggedRing<Ring, RingLog>(std::move(ring), *std::move(log)));
  } else {
    UseRing(std::move(ring));
  }
}

template <template <bool, bool> class Ring, typename RingLog>
void Queue::MakeRing(const typename Ring<false, false>::Memory& memory, uint32_t position,
                     uint64_t features, std::optional<RingLog> log) {
  const bool indirect = (features & (1ull << VIRTIO_RING_F_INDIRECT_DESC)) != 0;
  const bool event_idx = (features & (1ull << VIRTIO_RING_F_EVENT_IDX)) != 0;
  if (event_idx) {
    if (in_order_) {
      UseRing(Ring<true, true>(memory, position, indirect), std::move(log));
    } else {
      UseRing(Ring<true, false>(memory, position, indirect), std::move(log));
    }
  } else if (in_order_) {
    UseRing(Ring<false, true>(memory, position, indirect), std::move(log));
  } else {
    UseRing(Ring<false, false>(memory, position, indirect), std::move(log));
  }
}

absl::Status Queue::Start(QueueConfig config, const QueueMaps& maps, uint64_t features) {
  if ((features & (1ull << VIRTIO_F_RING_PACKED)) != 0) {
    return StartRing<PackedRingMemory>(std::move(config), maps, features);
  }
  return StartRing<SplitRingMemory>(std::move(config), maps, features);
}

template <typename Memory>
absl::Status Queue::StartRing(QueueConfig config, const QueueMaps& maps, uint64_t features) {
  constexpr bool kPacked = std::is_same_v<Memory, PackedRingMemory>;
  using RingLog = std::conditional_t<kPacked, PackedLog, SplitLog>;
  const MemoryMapRef& map = maps.buffers;
  const RingAddresses where{config.size, config.descriptors, config.avail, config.used};
  VIRTBAY_ASSIGN_OR_RETURN(const Memory memory, Memory::Create(*maps.rings, where));
  if (config.size > max_size_) {
    return absl::InvalidArgumentError(
        absl::StrCat("ring size ", config.size, " is above this queue's limit of ", max_size_));
  }
  in_order_ = (features & (1ull << VIRTIO_F_IN_ORDER)) != 0;
  if (given_.has_value()) {
    if (given_->packed == kPacked &&
        SameRing(where, {given_->size, given_->descriptors, given_->avail, given_->used})) {
      VIRTBAY_RETURN_IF_ERROR(BringIn(memory, map, in_order_));
    }
    given_.reset();
  }
  const bool same = left_ != nullptr && packed_ == kPacked && SameRing(where, where_);
  bool resumes = same && memory.GoesOn(config.base, left_position_);
  uint32_t position = left_position_;
  if (!resumes) {
    VIRTBAY_ASSIGN_OR_RETURN(position, memory.StartPosition(config.base));
  }
  std::optional<RingLog> log;
  bool notify = false;
  std::vector<typename RingLog::Pending> pending;
  if (config.in_flight) {
    VIRTBAY_ASSIGN_OR_RETURN(log, RingLog::Open(config.in_flight, memory, &position, &pending));
    resumes = same && position == left_position_;
    notify = log->goes_on();
  }
  if (resumes) {
    table_ = std::exchange(left_, nullptr);
    table_->abandoned = table_->waits = false;
  } else {
    GiveUp();
    table_ = EmptyTable(config.size, in_order_);
    shadow_used_.reserve(config.size);
  }

  hold_ = HoldOf(map);
  rings_map_ = maps.rings;
  log_area_ = std::move(config.in_flight);

  where_ = where;
  packed_ = kPacked;
  {
    absl::MutexLock lock(&shown_mutex_);
    shown_ = where;
    packed_shown_ = kPacked;
  }
  if constexpr (kPacked) {
    MakeRing<PackedRing>(memory, position, features, std::move(log));
  } else {
    MakeRing<SplitRing>(memory, position, features, std::move(log));
  }
  enabled_ = config.enabled;
  draining_ = false;
  stalled_ = false;
  kick_lost_ = false;
  kicks_armed_ = true;  // so that the first burst turns them off
  moved_ = 0;
  broken_.store(false, std::memory_order_relaxed);
  error_.Set(std::move(config.error));
  SetKick(std::move(config.kick));
  SetCall(std::move(config.call));
  if (notify) call_.Notify();
  TellResume();
  if (resumes) {
    TakeUp();
  } else if (!pending.empty()) {
    const bool indirect = (features & (1ull << VIRTIO_RING_F_INDIRECT_DESC)) != 0;
    if (absl::Status status = Resubmit(memory, indirect, pending); !status.ok()) {
      Finish(/*forget=*/true);
      return status;
    }
  }
  in_flight_.store(table_->count, std::memory_order_relaxed);
  running_.store(true, std::memory_order_release);
  return absl::OkStatus();
}

MapHold* Queue::HoldOf(const MemoryMapRef& map) {
  for (const std::unique_ptr<MapHold>& hold : holds_) {
    if (hold->map == map) return hold.get();
  }
  return holds_.emplace_back(std::make_unique<MapHold>(MapHold{map, 0})).get();
}

template <typename Memory, typename Pending>
absl::Status Queue::Resubmit(const Memory& memory, bool indirect,
                             const std::vector<Pending>& pending) {
  for (const Pending& one : pending) {
    InFlightRequest& request = table_->At(one.head);
    const ChainError error = one.Walk(memory, *hold_->map, indirect, &request.chain);
    if (BreaksRing(error)) {
      return absl::InvalidArgumentError(
          absl::StrCat("in-flight log: chain ", one.head, ": ", ChainErrorName(error)));
    }
    if (in_order_) request.turn = table_->order.Append();
    if (error != ChainError::kNone) {
      Refuse(&request, error);
      AwaitTurn(&request);
      continue;
    }
    request.hold = hold_;
    ++hold_->users;
    request.state = RequestState::kRequeued;
    ++table_->count;
    requeued_.push_back(&request);
  }
  present_requeued_ = !requeued_.empty();
  core_->log.Info(absl::StrCat("queue ", index_, ": goes on with ", pending.size(),
                               " requests that were in flight"));
  return absl::OkStatus();
}

InFlightTable* Queue::EmptyTable(uint16_t size, bool in_order) {
  for (const std::unique_ptr<InFlightTable>& table : tables_) {
    if (table->count == 0 && table->order.empty() && table->size() == size) {
      table->abandoned = false;
      table->order.Resize(in_order ? size : uint16_t{0});
      return table.get();
    }
  }
  InFlightTable* const table =
      tables_.emplace_back(std::make_unique<InFlightTable>(this, index_, size)).get();
  table->order.Resize(in_order ? size : uint16_t{0});
  return table;
}

void Queue::BeginDrain() {
  if (draining_) return;
  draining_ = true;
  pump_ = nullptr;
  if (record_) record_->Mark(RecordKind::kStop);
  Quiesce();
  Publish();
}

void Queue::EndDrain() {
  if (!draining_ || !running()) return;
  draining_ = false;
  UsePath();
  TellResume();
  present_requeued_ = !requeued_.empty();
}

void Queue::TellResume() {
  if (std::exchange(quiesced_, false) && core_->ops.resume != nullptr && !core_->failed()) {
    CallOnQueue(core_, monitor_, "resume", index_,
                [this] { core_->ops.resume(core_->device, index_); });
  }
}

QueueConfig Queue::Leave() {
  QueueConfig config{.size = where_.size,
                     .descriptors = where_.descriptors,
                     .avail = where_.driver_area,
                     .used = where_.device_area,
                     .kick = kick_fd_,
                     .call = call_.fd(),
                     .error = error_.fd(),
                     .enabled = enabled_,
                     .in_flight = log_area_};
  config.base = Finish(/*forget=*/false);
  return config;
}

void Queue::Farewell(uint32_t reason) {
  if (core_->ops.farewell == nullptr || draining_ || !running() || core_->failed()) return;
  CallOnQueue(core_, monitor_, "farewell", index_,
              [&] { core_->ops.farewell(core_->device, index_, reason); });
}

void Queue::ReleaseBroken() {
  if (broken() && !quiesced_) Quiesce();
}

void Queue::Quiesce() {
  quiesced_ = true;
  if (core_->ops.quiesce == nullptr || core_->failed()) return;
  CallOnQueue(core_, monitor_, "quiesce", index_,
              [this] { core_->ops.quiesce(core_->device, index_); });
}

uint32_t Queue::Finish(bool forget) {
  if (!std::holds_alternative<std::monostate>(ring_)) {
    Publish();
    WithRing([this](auto& ring) {
      stop_base_.store(ring.base(), std::memory_order_relaxed);
      left_position_ = ring.position();
    });
  }
  pump_ = nullptr;
  publish_ = nullptr;
  if (stalled_since_ != 0) slot_waits_.End(std::exchange(stalled_since_, 0));
  shadow_used_.clear();
  if (draining_) loop_->CancelTimers(index_);  // on_timer is for RUNNING and QUIESCING
  ring_.emplace<std::monostate>();
  running_.store(false, std::memory_order_release);
  SetKick(SharedFd());
  call_.Set(SharedFd());
  error_.Set(SharedFd());
  if (table_ != nullptr && (table_->count > 0 || !table_->order.empty())) {
    // What the plugin still holds may end at any later time; the ring's heads must be free before
    // that, so the whole table steps aside.
    table_->abandoned = table_->waits = true;
    left_ = std::exchange(table_, nullptr);
  }
  if (forget) GiveUp();
  in_flight_.store(table_ == nullptr ? 0 : table_->count, std::memory_order_relaxed);
  hold_ = nullptr;
  rings_map_ = nullptr;
  log_area_ = SharedArea();
  std::erase_if(holds_, [](const std::unique_ptr<MapHold>& hold) { return hold->users == 0; });
  cache_->Trim();
  return stop_base();
}

void Queue::EndSession() {
  thread_.store(pthread_t{}, std::memory_order_relaxed);
  {
    absl::MutexLock lock(&offer_mutex_);
    offered_.reset();  // its task has gone with the thread
    maps_offered_.store(false, std::memory_order_relaxed);
  }
  GiveUp();
  if (record_) record_->Mark(RecordKind::kReset);
  for (const std::unique_ptr<InFlightTable>& table : tables_) {
    if (table->count == 0) continue;
    for (InFlightRequest& request : table->made()) {
      if (request.state == RequestState::kFree) continue;
      if (request.io_pending != 0) {
        // The thread had to leak its ring: the kernel may still write to this memory.
        static_cast<void>(new MemoryMapRef(request.hold->map));
        request.io_pending = 0;
      }
      Free(&request);
    }
  }
  cache_->Trim();
  busy_ = 0;
  quiesced_ = false;
  broken_.store(false, std::memory_order_relaxed);
  in_flight_.store(0, std::memory_order_relaxed);
}

bool Queue::OfferMaps(absl::StatusOr<QueueMaps> maps) {
  std::optional<absl::StatusOr<QueueMaps>> replaced(std::move(maps));
  absl::MutexLock lock(&offer_mutex_);
  offered_.swap(replaced);
  maps_offered_.store(true, std::memory_order_relaxed);
  return !replaced.has_value();
}

void Queue::TakeMaps() {
  std::optional<absl::StatusOr<QueueMaps>> maps;
  {
    absl::MutexLock lock(&offer_mutex_);
    maps.swap(offered_);
    maps_offered_.store(false, std::memory_order_relaxed);
  }
  if (!maps.has_value()) return;
  if (maps->ok()) {
    SetMemory(**maps);
  } else {
    Break(maps->status().message());
  }
}

void Queue::SetMemory(const QueueMaps& maps) {
  if (!running() || hold_ == nullptr) return;
  if (hold_->map == maps.buffers && rings_map_ == maps.rings) return;
  absl::Status rebound;
  WithRing([&](auto& ring) {
    using Memory = typename std::decay_t<decltype(ring)>::Memory;
    absl::StatusOr<Memory> memory = Memory::Create(*maps.rings, where_);
    rebound = memory.status();
    if (memory.ok()) ring.Rebind(*memory);
  });
  if (!rebound.ok()) {
    Break(absl::StrCat("its ring left the memory map: ", rebound.message()));
    return;
  }
  rings_map_ = maps.rings;
  MapHold* old = hold_;
  holds_.push_back(std::make_unique<MapHold>(MapHold{maps.buffers, 0}));
  hold_ = holds_.back().get();
  if (old->users == 0) ReleaseMap(old);
}

void Queue::SetKick(SharedFd fd) {
  if (kick_ != nullptr) {
    loop_->Unwatch(kick_);
    kick_ = nullptr;
  }
  kick_lost_ = false;
  kick_fd_ = fd;
  if (fd) kick_ = loop_->Watch(std::move(fd), index_);
}

void Queue::OnKickLost(int32_t error) {
  // The watch is released by the loop's owner of the fd: nobody, so give it back here.
  if (kick_ != nullptr) loop_->Unwatch(kick_);
  kick_ = nullptr;
  kick_lost_ = true;
  core_->log.Warn(absl::StrCat("queue ", index_, ": kick descriptor is unusable (",
                               error == 0 ? "end of file" : absl::StrCat("errno ", -error), ")"));
}

void Queue::SetCall(SharedFd fd) {
  call_.Set(std::move(fd));
  // Whoever set the fd late may have missed a notification.
  if (running() && completions_.value() > 0) call_.Notify();
}

void Queue::SetError(SharedFd fd) { error_.Set(std::move(fd)); }

void Queue::StopForGood() {
  Publish();
  broken_.store(true, std::memory_order_relaxed);
  SharedFd error = error_.fd();
  Finish(/*forget=*/true);
  error_.Set(std::move(error));
}

void Queue::Break(absl::string_view why, bool device_fails) {
  if (!running()) return;
  StopForGood();
  core_->RaiseNeedsReset(absl::StrCat("queue ", index_, ": ", why), device_fails);
  // Last, so that a front-end that wakes up by it finds the ring stopped and the status set.
  TellStopped();
}

void Queue::TellStopped() {
  error_.Notify();
  error_.Set(SharedFd());
}

void Queue::TellError(SharedFd fd) {
  if (!running()) error_.Set(std::move(fd));
  error_.Notify();
}

bool Queue::ReleaseNotifiers() {
  const bool call = call_.Release();
  return error_.Release() || call;
}

QueueStats Queue::Stats() const {
  QueueStats stats;
  stats.requests = requests_.value();
  stats.completions = completions_.value();
  stats.kicks = kicks_.value();
  stats.calls = calls_.value();
  stats.calls_suppressed = calls_suppressed_.value();
  stats.batches = batches_.value();
  stats.poll_hits = poll_hits_.value();
  stats.poll_misses = poll_misses_.value();
  const SlotWaits::Totals waits = slot_waits_.Read();
  stats.slot_waits = waits.times;
  stats.slot_wait_ns = waits.ns;
  stats.bytes_copied_in = bytes_in_.value();
  stats.bytes_copied_out = bytes_out_.value();
  stats.bytes_direct = bytes_direct_.value();
  stats.syscalls = syscalls_.value();
  stats.parked = parked_.load(std::memory_order_relaxed);
  stats.parks_refused = parks_refused_.value();
  stats.in_flight = in_flight_.load(std::memory_order_relaxed);
  stats.running = running();
  stats.broken = broken();
  if (stats.running) {
    absl::MutexLock lock(&shown_mutex_);
    stats.ring_size = shown_.size;
    stats.ring_descriptors = shown_.descriptors;
    stats.ring_avail = shown_.driver_area;
    stats.ring_used = shown_.device_area;
    stats.ring_packed = packed_shown_;
  }
  return stats;
}

}  // namespace virtbay
