#include "framework/device/queue.h"

#include <linux/virtio_config.h>
#include <sys/uio.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <climits>
#include <new>
#include <utility>

#include "absl/strings/str_cat.h"
#include "framework/base/clock.h"
#include "framework/base/status.h"
#include "framework/device/failed_answer.h"
#include "framework/device/plugin_call.h"
#include "framework/device/queue_thread.h"
#include "framework/memory/payload.h"

namespace virtbay {
namespace {

constexpr char kMemoryGone[] = "guest memory behind it is gone (the front-end truncated its file)";

constexpr uint32_t AlignView(uint32_t bytes) { return (bytes + 15u) & ~15u; }

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
  view_slots_ = SlotsFor(uint64_t{AlignView(in_view_)} + out_view_);
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

template <typename F>
void Queue::WithRing(F f) {
  std::visit(
      [&](auto& ring) {
        if constexpr (!std::is_same_v<std::decay_t<decltype(ring)>, std::monostate>) f(ring);
      },
      ring_);
}

template <typename Ring>
void Queue::UseRing(Ring ring) {
  ring_.emplace<Ring>(std::move(ring));
  pump_ = &Queue::PumpRing<Ring>;
  publish_ = &Queue::PublishRing<Ring>;
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
  WithRing([this](auto& ring) { pump_ = &Queue::PumpRing<std::decay_t<decltype(ring)>>; });
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

uint32_t Queue::Reclaim(bool crashed) {
  for (InFlightTable* table : {table_, left_}) {
    if (table == nullptr) continue;
    for (InFlightRequest& request : table->made()) {
      if (request.state != RequestState::kHeld || request.io_pending != 0) continue;
      FreeExtra(&request);
      Unpark(&request);
      request.state = RequestState::kRequeued;
      if (crashed) ++request.crashes;
      requeued_.push_back(&request);
    }
  }
  return static_cast<uint32_t>(requeued_.size());
}

void Queue::VisitHeld(absl::FunctionRef<void(const Chain&)> visit) {
  if (table_ == nullptr) return;
  for (const InFlightRequest& request : table_->made()) {
    if (request.state == RequestState::kHeld && request.io_pending == 0 &&
        request.chain.readable_bytes() != 0 && request.crashes == 0) {
      visit(request.chain);
    }
  }
}

uint32_t Queue::FailHeld(uint32_t virtio_id, absl::FunctionRef<bool(const Chain&)> may_repeat) {
  if (table_ == nullptr) return 0;
  uint32_t failed = 0;
  for (InFlightRequest& request : table_->made()) {
    if (request.io_pending != 0 || request.chain.readable_bytes() == 0) continue;
    // One that was there in two crashes may be what crashes the plugin.
    if (request.state == RequestState::kHeld) {
      if (++request.crashes < 2 && may_repeat(request.chain)) continue;
    } else if (request.state == RequestState::kRequeued && request.crashes >= 2) {
      std::erase(requeued_, &request);
    } else {
      continue;
    }
    EndChain(&request, WriteFailedAnswer(virtio_id, request.chain),
             request.chain.writable_bytes() == 0);
    Free(&request);
    AwaitTurn(&request);
    ++failed;
  }
  return failed;
}

bool Queue::left_nothing() const {
  const auto ended = [](const std::unique_ptr<InFlightTable>& table) {
    return std::none_of(table->made().begin(), table->made().end(), [](const auto& request) {
      return request.state == RequestState::kHeld || request.state == RequestState::kLate;
    });
  };
  return std::all_of(tables_.begin(), tables_.end(), ended);
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

void Queue::DropRequeued() {
  present_requeued_ = false;
  lost_.clear();
  while (!requeued_.empty()) {
    InFlightRequest* request = requeued_.back();
    requeued_.pop_back();
    Free(request);
  }
}

void Queue::GiveUp() {
  DropRequeued();
  if (left_ == nullptr) return;
  left_->waits = false;
  for (InFlightRequest& request : left_->made()) {
    Unpark(&request);  // the driver has its descriptors back
    if (request.state == RequestState::kLate) Free(&request);
    if (request.state == RequestState::kWaits) request.state = RequestState::kFree;
  }
  left_->order.Clear();
  left_ = nullptr;
}

void Queue::SetHold(InFlightRequest* request, MapHold* hold) {
  MapHold* const old = std::exchange(request->hold, hold);
  ++hold->users;
  if (--old->users == 0 && old != hold_) ReleaseMap(old);
}

void Queue::TakeUp() {
  // Handed back: begun anew, and their buffers may be mapped elsewhere by now.
  const auto lost = std::exchange(lost_, {});
  std::erase_if(requeued_, [&](InFlightRequest* request) {
    ChainError error = ChainError::kNone;
    const auto found = std::find_if(lost.begin(), lost.end(),
                                    [request](const auto& one) { return one.first == request; });
    if (found != lost.end()) {
      error = found->second;
    } else if (request->hold != hold_) {
      error = request->chain.MoveTo(*request->hold->map, *hold_->map);
      SetHold(request, hold_);
    }
    if (error == ChainError::kNone) return false;
    Refuse(request, error);
    Free(request);
    AwaitTurn(request);
    return true;
  });
  present_requeued_ = !requeued_.empty();
  for (InFlightRequest& request : table_->made()) {
    if (request.state != RequestState::kLate) continue;
    request.state = RequestState::kHeld;
    Complete(&request, request.late_out, request.late_written);
  }
}

bool Queue::OfferMaps(absl::StatusOr<QueueMaps> maps) {
  std::optional<absl::StatusOr<QueueMaps>> replaced(std::move(maps));
  absl::MutexLock lock(&offer_mutex_);
  offered_.swap(replaced);
  return !replaced.has_value();
}

void Queue::TakeMaps() {
  std::optional<absl::StatusOr<QueueMaps>> maps;
  {
    absl::MutexLock lock(&offer_mutex_);
    maps.swap(offered_);
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

// ---- the path of a request --------------------------------------------------------------------

template <typename Ring>
ChainError Queue::Take(Ring& ring, InFlightRequest** out) {
  uint16_t head = 0;
  ChainError error = ring.PeekHead(&head);
  if (error != ChainError::kNone) return error;
  InFlightRequest& request = table_->At(head);
  if (request.state != RequestState::kFree) return ChainError::kHeadInFlight;
  // Before the chain is taken, so that a full arena leaves it in the ring.
  std::byte* view = nullptr;
  if (view_slots_ > 0) {
    view = cache_->Allocate(view_slots_);
    if (view == nullptr) {
      stalled_ = true;
      return ChainError::kNone;
    }
  }
  error = ring.PopHead(*hold_->map, head, &request.chain);
  if (error != ChainError::kNone) {
    if (view != nullptr) cache_->Free(view, view_slots_);
    if (BreaksRing(error)) return error;
    if (in_order_) request.turn = table_->order.Append();
    Refuse(&request, error);
    AwaitTurn(&request);
    return error;
  }
  if (in_order_) request.turn = table_->order.Append();
  request.view = SlotRun{view, view_slots_};
  request.hold = hold_;
  ++hold_->users;
  request.state = RequestState::kHeld;
  request.crashes = 0;
  ++table_->count;
  *out = &request;
  return ChainError::kNone;
}

void Queue::FillViews(InFlightRequest* request) {
  virtbay_request& abi = request->abi;
  abi.in_total = request->chain.readable_bytes();
  abi.out_total = request->chain.writable_bytes();
  abi.in_len = std::min(abi.in_total, in_view_);
  abi.out_len = std::min(abi.out_total, out_view_);
  abi.user = 0;
  auto* view = reinterpret_cast<uint8_t*>(request->view.data);
  abi.in = view;
  abi.out = view + AlignView(in_view_);
  request->out_in_guest = false;
  if (abi.in_len > 0) {
    CopyFromSegments(request->chain.readable(), 0, view, abi.in_len);
    bytes_in_.Add(abi.in_len);
  }
}

template <typename Ring>
bool Queue::PumpRing() {
  if (!enabled_ || core_->failed()) return false;
  if (present_requeued_ && !PresentRequeued()) {
    const bool was_stalled = std::exchange(stalled_, true);
    CountStall(was_stalled, /*took=*/false);
    return false;
  }
  auto& ring = *std::get_if<Ring>(&ring_);
  const int32_t available = ring.Available();
  if (available == 0) {
    if (stalled_) [[unlikely]] {
      stalled_ = false;
      CountStall(/*was_stalled=*/true, /*took=*/false);
    }
    return false;
  }
  if (available < 0) {
    Break(ChainErrorName(ChainError::kAvailIndex));
    return false;
  }
  if (kicks_armed_) {
    ring.DisableKicks();
    kicks_armed_ = false;
  }
  const bool was_stalled = std::exchange(stalled_, false);

  // Not initialised: only what is filled is touched.
  std::array<virtbay_request*, kBurst> burst;
  uint32_t count = 0;
  uint32_t taken = 0;
  ChainError error = ChainError::kNone;
  const uint32_t limit = std::min(static_cast<uint32_t>(available), kBurst);
  for (uint32_t i = 1; i < std::min(limit, kPrefetch); ++i) ring.Prefetch(static_cast<uint16_t>(i));
  for (; taken < limit; ++taken) {
    if (!ring.More()) break;
    if (taken + kPrefetch < limit) ring.Prefetch(kPrefetch);
    InFlightRequest* request = nullptr;
    error = Take(ring, &request);
    if (BreaksRing(error) || stalled_) break;
    if (request == nullptr) continue;  // refused
    // The heads are copied in a second pass, when they have arrived.
    if (const auto readable = request->chain.readable(); !readable.empty()) {
      // Both ends: a small frame behind its header takes two lines.
      const auto* head = static_cast<const char*>(readable.front().iov_base);
      __builtin_prefetch(head);
      const size_t shown = std::min<size_t>(readable.front().iov_len, in_view_);
      __builtin_prefetch(head + (shown > 0 ? shown - 1 : 0));
    }
    burst[count++] = &request->abi;
  }
  for (uint32_t i = 0; i < count; ++i) FillViews(InFlightRequest::From(burst[i]));
  if (stalled_ || was_stalled) [[unlikely]]
    CountStall(was_stalled, taken > 0);
  if (MemoryGone()) {
    for (uint32_t i = 0; i < count; ++i) Free(InFlightRequest::From(burst[i]));
    Break(kMemoryGone);
    return true;
  }
  if (taken > 0) {
    requests_.Add(taken);
    batches_.Add();
  }
  in_flight_.store(table_->count, std::memory_order_relaxed);
  // A burst of one is published at its end anyway.
  if (count > 1) published_ticks_ = CoarseTicks();
  if (count > 0) {
    if (tapped_) [[unlikely]] {
      PresentTapped(burst.data(), count);
    } else {
      Present(burst.data(), count);
    }
  }
  Publish();
  if (BreaksRing(error)) Break(ChainErrorName(error));
  return taken > 0;
}

void Queue::Present(virtbay_request* const* requests, uint32_t count) {
  monitor_->SetBatch(requests, count);
  CallOnQueue(core_, monitor_, "on_requests", index_,
              [&] { core_->ops.on_requests(core_->device, index_, requests, count); });
}

bool Queue::PresentRequeued() {
  present_requeued_ = false;
  std::vector<InFlightRequest*> requests;
  requests.swap(requeued_);
  for (auto next = requests.begin(); next != requests.end(); ++next) {
    InFlightRequest* const request = *next;
    // One that was parked has given its slots away.
    // And another generation may want other views.
    if (request->view.data != nullptr && request->view.count != view_slots_) {
      cache_->Free(request->view.data, request->view.count);
      request->view = SlotRun();
    }
    if (view_slots_ > 0 && request->view.data == nullptr) {
      std::byte* const view = cache_->Allocate(view_slots_);
      if (view == nullptr) {
        requeued_.insert(requeued_.begin(), next, requests.end());
        present_requeued_ = true;
        break;
      }
      request->view = SlotRun{view, view_slots_};
    }
    request->state = RequestState::kHeld;
    FillViews(request);
    virtbay_request* raw = &request->abi;
    const TraceCallScope traced(trace(), TraceCall::kOnRequests, 1);
    Present(&raw, 1);
  }
  Publish();
  return !present_requeued_;
}

void Queue::Refuse(InFlightRequest* request, ChainError error) {
  if (error == ChainError::kUnmappedAddress) {
    core_->dma_violations.fetch_add(1, std::memory_order_relaxed);
  }
  refusals_.Warn(absl::StrCat("queue ", index_, ": chain ", request->chain.head(),
                              " refused: ", ChainErrorName(error)));
  EndChain(request, 0, /*read_only=*/false);
}

void Queue::EndChain(InFlightRequest* request, uint32_t written, bool read_only) {
  const auto descriptors = static_cast<uint16_t>(request->chain.ring_descriptors());
  const UsedEntry used{request->chain.head(), descriptors, written, read_only};
  if (in_order_) {
    request->table->order.End(request->turn, used);
  } else {
    shadow_used_.push_back(used);
  }
}

void Queue::AwaitTurn(InFlightRequest* request) {
  if (!in_order_) return;
  // Its head is not the driver's again before that.
  request->state = RequestState::kWaits;
  InFlightTable* const table = request->table;
  for (UsedEntry used; table->order.Next(&used);) {
    table->At(used.head).state = RequestState::kFree;
    shadow_used_.push_back(used);
  }
}

template <typename Ring>
void Queue::PublishRing() {
  auto& ring = *std::get_if<Ring>(&ring_);
  for (const UsedEntry& used : shadow_used_) ring.PushUsed(used);
  completions_.Add(shadow_used_.size());
  shadow_used_.clear();
  moved_ = 0;
  in_flight_.store(table_->count, std::memory_order_relaxed);
  ring.PublishUsed();
  if (!call_.valid()) return;
  if (ring.ShouldNotify()) {
    WriteCall();
  } else {
    calls_suppressed_.Add();
  }
}

void Queue::WriteCall() {
  calls_.Add();
  syscalls_.Add();
  if (TraceRing* const ring = trace(); ring != nullptr) [[unlikely]]
    ring->Record({.kind = TraceKind::kNotify});
  call_.Notify();
}

bool Queue::ArmKicks() {
  if (!running() || draining_ || !enabled_ || core_->failed() || stalled_) return false;
  kicks_armed_ = true;
  bool more = false;
  WithRing([&more](auto& ring) { more = ring.EnableKicks(); });
  // The zeroes that stand in for a truncated file look like an empty ring, so that no burst would
  // ever come to notice them.
  if (MemoryGone()) {
    Break(kMemoryGone);
    return false;
  }
  return more;
}

int32_t Queue::Complete(InFlightRequest* request, uint32_t out_bytes, uint32_t written) {
  if (request->state != RequestState::kHeld || request->io_pending != 0) {
    core_->log.Error(absl::StrCat(
        "queue ", index_, ": request ", request->abi.head,
        request->io_pending != 0 ? " ended while its I/O is under way" : " ended twice"));
    return VIRTBAY_FAILED_PRECONDITION;
  }
  int32_t result = VIRTBAY_OK;
  if (out_bytes > written || written > request->abi.out_total || out_bytes > request->abi.out_len) {
    core_->log.Error(absl::StrCat("queue ", index_, ": request ", request->abi.head,
                                  " completed with sizes that lie (", out_bytes, " of ", written,
                                  " bytes, room for ", request->abi.out_total, ")"));
    out_bytes = 0;
    written = 0;
    result = VIRTBAY_OUT_OF_RANGE;
  }
  if (request->table->abandoned) {
    if (request->table->waits) {
      request->state = RequestState::kLate;
      request->late_out = out_bytes;
      request->late_written = written;
    } else {
      Free(request);
    }
    return result;
  }
  if (out_bytes > 0 && !request->out_in_guest) {
    CopyToSegments(request->chain.writable(), 0, request->abi.out, out_bytes);
    bytes_out_.Add(out_bytes);
  }
  if (tapped_) [[unlikely]]
    TapComplete(request, written);
  EndChain(request, written, request->chain.writable_bytes() == 0);
  moved_ += uint64_t{written} + request->abi.in_total;
  Free(request);
  AwaitTurn(request);
  PublishIfDue();
  return result;
}

void Queue::PublishIfDue() {
  if (grouping_) return;
  if (moved_ >= kPublishBytes || shadow_used_.size() >= kPublishCount ||
      CoarseTicks() - published_ticks_ >= kCoarseTicksPer20Us) {
    Publish();
    published_ticks_ = CoarseTicks();
  }
}

void Queue::EndGroup() {
  grouping_ = false;
  if (!shadow_used_.empty()) PublishIfDue();
}

int32_t Queue::Requeue(InFlightRequest* request) {
  if (request->state != RequestState::kHeld || request->io_pending != 0) {
    core_->log.Error(absl::StrCat("queue ", index_, ": request ", request->abi.head,
                                  " requeued after its end or during its I/O"));
    return VIRTBAY_FAILED_PRECONDITION;
  }
  if (request->table->abandoned && !request->table->waits) {
    Free(request);
    return VIRTBAY_OK;
  }
  FreeExtra(request);
  Unpark(request);
  request->state = RequestState::kRequeued;
  requeued_.push_back(request);
  return VIRTBAY_OK;
}

void Queue::Unpark(InFlightRequest* request) {
  if (request->parked_descriptors == 0) return;
  request->table->parked_descriptors -= std::exchange(request->parked_descriptors, 0);
  core_->parked_pool_slots.fetch_sub(std::exchange(request->parked_pool_slots, 0),
                                     std::memory_order_relaxed);
  parked_.fetch_sub(1, std::memory_order_relaxed);
}

void Queue::Free(InFlightRequest* request) {
  Unpark(request);
  if (request->view.data != nullptr) cache_->Free(request->view.data, request->view.count);
  request->view = SlotRun();
  if (!request->extra.empty()) [[unlikely]]
    FreeExtra(request);
  MapHold* hold = request->hold;
  request->hold = nullptr;
  if (--hold->users == 0 && hold != hold_) ReleaseMap(hold);
  request->state = RequestState::kFree;
  --request->table->count;
}

void Queue::FreeExtra(InFlightRequest* request) {
  for (const SlotRun& run : request->extra) cache_->Free(run.data, run.count);
  request->extra.clear();
  if (request->waits_since != 0) slot_waits_.End(std::exchange(request->waits_since, 0));
}

void Queue::CountStall(bool was_stalled, bool took) {
  // A burst that took something has ended the wait before it, whatever it met then.
  if (stalled_since_ != 0 && (took || !stalled_)) slot_waits_.End(std::exchange(stalled_since_, 0));
  if (stalled_ && (took || !was_stalled)) stalled_since_ = slot_waits_.Begin();
}

void Queue::ReleaseMap(MapHold* hold) {
  std::erase_if(holds_, [&](const std::unique_ptr<MapHold>& h) { return h.get() == hold; });
}

uint32_t Queue::outstanding() const {
  return table_->count - static_cast<uint32_t>(requeued_.size()) + busy_;
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
