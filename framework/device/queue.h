// Queue: the runtime of one virtqueue: takes chains in bursts, gives them to the plugin, takes its
// answers back, publishes and notifies once per burst.
// Owned by the DeviceCore; used on its queue thread only ([queue]) but for the statistics ([any]).
#ifndef VIRTBAY_FRAMEWORK_DEVICE_QUEUE_H_
#define VIRTBAY_FRAMEWORK_DEVICE_QUEUE_H_

#include <pthread.h>

#include <atomic>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <utility>
#include <variant>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/functional/function_ref.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/synchronization/mutex.h"
#include "framework/base/log_limiter.h"
#include "framework/base/shared_fd.h"
#include "framework/device/callback_monitor.h"
#include "framework/device/device_core.h"
#include "framework/device/in_flight.h"
#include "framework/device/notifier.h"
#include "framework/device/record_ring.h"
#include "framework/device/slot_waits.h"
#include "framework/device/tap_slot.h"
#include "framework/device/trace_ring.h"
#include "framework/io/loop.h"
#include "framework/memory/memory_map.h"
#include "framework/memory/slot_allocator.h"
#include "framework/virtq/in_flight_log.h"
#include "framework/virtq/packed_ring.h"
#include "framework/virtq/split_ring.h"
#include "virtbay/device_port.h"
#include "virtbay/host.h"
#include "virtbay/sdk/abi.h"

namespace virtbay {

// A counter that one thread writes and any may read.
class StatCell {
 public:
  void Add(uint64_t n = 1) {
    value_.store(value_.load(std::memory_order_relaxed) + n, std::memory_order_relaxed);
  }
  uint64_t value() const { return value_.load(std::memory_order_relaxed); }

 private:
  std::atomic<uint64_t> value_{0};
};

class Queue {
 public:
  Queue(DeviceCore* core, uint16_t index, const virtbay_queue_properties& properties,
        uint16_t max_size);

  uint16_t index() const { return index_; }
  uint16_t max_size() const { return max_size_; }
  // Of no use to the driver by itself.
  bool auxiliary() const { return auxiliary_; }
  // [queue] The thread that serves this queue from now on says so itself.
  void BindToThread(Loop* loop, CallbackMonitor* monitor);
  bool OnOwnThread() const;
  // [control] The thread that was given the queue last.
  QueueThread* thread() const { return queue_thread_; }
  void set_thread(QueueThread* thread) { queue_thread_ = thread; }
  Loop* loop() const { return loop_; }
  DeviceCore* core() const { return core_; }

  // ---- life of the ring -----------------------------------------------------------------------
  // Starts on the ring of `config`; InvalidArgument when its memory is not there.
  absl::Status Start(QueueConfig config, const QueueMaps& maps, uint64_t features);
  // Takes no more chains and asks the plugin to end what it holds.
  void BeginDrain();
  // Takes back what BeginDrain said: the ring goes on, first with what was handed back.
  void EndDrain();
  // Finish(false) of a drained ring; what it ran with, to go on where it is by Start.
  QueueConfig Leave();
  // [control] Without a thread, of a ring that has stopped: where, and what it holds of the
  // driver's. `runs`: it ran until Leave, and has a place to go on also when it holds nothing.
  LeftRing Left(bool runs) const;
  // [control] Before the first Start: the ring of another process that goes on with it, if it is
  // started where that one stopped. InvalidArgument for what no ring can have left.
  absl::Status TakeLeft(LeftRing left);
  // [control] Without a thread: another generation of the plugin serves it from now on, or the one
  // that was told to quiesce again.
  void SetProperties(const virtbay_queue_properties& properties, bool quiesced);
  // [control] The same: what the plugin still holds is presented again after the next Start, as
  // what was handed back before; returns how many there are. `crashed`: the plugin has, maybe for
  // one of these.
  uint32_t Reclaim(bool crashed);
  // What the plugin, which has crashed, holds, and what was in flight in two crashes, is answered
  // as failed, but for buffers that are only to be filled, of which nothing can be half done, and
  // those that `may_repeat` for the first time; returns how many were. Of a drained ring.
  uint32_t FailHeld(uint32_t virtio_id, absl::FunctionRef<bool(const Chain&)> may_repeat);
  // [queue] Those that FailHeld would ask about, of a drained ring.
  void VisitHeld(absl::FunctionRef<void(const Chain&)> visit);
  // Nothing is left that only the generation which got it can end.
  bool left_nothing() const;
  // Lets the plugin say its last words (VIRTBAY_FAREWELL_*) while the ring still runs; what they
  // are is not published here.
  void Farewell(uint32_t reason);
  // The session of a ring that broke ends: the plugin lets go of what it holds of it, before the
  // requests' entries become others'.
  void ReleaseBroken();
  // Nothing is under way any more; of a device that has failed, only I/O is waited for.
  bool drained() const {
    return table_ == nullptr || (core_->failed() ? busy_ == 0 : outstanding() == 0);
  }
  // The ring is gone from here on; returns its base. What the plugin has handed back or
  // still holds is kept for a ring that goes on where this one stopped, and writes nothing until
  // then. `forget`: it is abandoned for good.
  uint32_t Finish(bool forget);
  // [control] The session is over and the queue's thread has ended: whatever the plugin still holds
  // lets go of guest memory and arena.
  void EndSession();
  // [any] The maps to take next, in place of any that were offered and not taken yet (so that a
  // thread in a slow callback keeps no more than two alive). True: TakeMaps has to be posted.
  bool OfferMaps(absl::StatusOr<QueueMaps> maps);
  // Takes what was offered: rebinds the ring or stops it.
  void TakeMaps();
  void SetEnabled(bool enabled) { enabled_ = enabled; }
  // [any] What TakeTaps takes, now or when a thread binds to the queue; null: nothing any more.
  void OfferTap(std::shared_ptr<TraceRing> ring) { trace_.Offer(std::move(ring)); }
  void OfferTap(std::shared_ptr<RecordRing> ring) { record_.Offer(std::move(ring)); }
  void TakeTaps();
  // Null unless it is being traced; stays during a callback.
  TraceRing* trace() const { return tapped_ ? trace_.get() : nullptr; }
  void SetKick(SharedFd fd);
  void SetCall(SharedFd fd);
  void SetError(SharedFd fd);
  // Stops the ring: DEVICE_NEEDS_RESET, config interrupt and the error fd (virtio 1.3 2.1.2).
  void Break(absl::string_view why, bool device_fails = false);
  // Stops a running ring for good and no more; TellStopped comes after the status has been set.
  void StopForGood();
  void TellStopped();
  // Writes to the error descriptor: the ring's, or of one that has stopped this one.
  void TellError(SharedFd fd);
  // [watchdog] Frees notifications that have waited since the last call, and lets no other follow
  // them; true: the front-end had filled a descriptor that blocks.
  bool ReleaseNotifiers();
  // [any] It is writing a descriptor of the front-end's.
  bool notifying() const { return call_.writing() || error_.writing(); }

  // [any]
  bool running() const { return running_.load(std::memory_order_acquire); }
  // The base (VirtqRing) where the ring stopped last.
  uint32_t stop_base() const { return stop_base_.load(std::memory_order_relaxed); }
  bool broken() const { return broken_.load(std::memory_order_relaxed); }
  QueueStats Stats() const;
  uint32_t stocked_slots() const { return cache_->stocked(); }

  // ---- the path of a request ------------------------------------------------------------------
  // Takes and presents one burst; true if it took anything.
  bool Pump() { return pump_ != nullptr && (this->*pump_)(); }
  // Publishes what was completed since the last time and notifies if the driver wants it.
  void Publish() {
    if (!shadow_used_.empty()) (this->*publish_)();
  }
  // Before sleeping: asks the driver for kicks. True: chains came meanwhile, do not sleep.
  bool ArmKicks();
  // Waits for arena slots, so it must look again without a kick.
  bool stalled() const { return stalled_; }
  // Started without a kick fd: has to be looked at.
  bool wants_polling() const { return running() && kick_ == nullptr && !kick_lost_; }
  void OnKick() {
    kicks_.Add();
    if (TraceRing* const ring = trace(); ring != nullptr) [[unlikely]]
      ring->Record({.kind = TraceKind::kKick});
  }
  void OnKickLost(int32_t error);
  // Operations and work the plugin waits for; a drain ends when there are none.
  void IoBegun() { ++busy_; }
  void IoEnded() { --busy_; }

  int32_t Complete(InFlightRequest* request, uint32_t out_bytes, uint32_t written);
  // Completes requests of this queue, none of which is published without the others; the first
  // error.
  int32_t CompleteGroup(std::span<const virtbay_completion> completions);
  int32_t Requeue(InFlightRequest* request);
  int32_t Park(InFlightRequest* request);
  int32_t Fetch(InFlightRequest* request, uint32_t offset, uint32_t len, const uint8_t** data);
  int32_t Reserve(InFlightRequest* request, uint32_t len);
  int64_t Transfer(InFlightRequest* request, bool read, int fd, uint64_t file_offset,
                   uint32_t offset, uint32_t len, uint32_t rw_flags);
  // Of a queue that is traced: an operation VIRTBAY_IO_* `op` begins; its id for TraceIoEnd.
  uint64_t TraceIo(const InFlightRequest* request, uint32_t op);
  void TraceIoEnd(uint64_t id, int32_t result);
  void CountDirect(uint64_t bytes) { bytes_direct_.Add(bytes); }
  void CountSyscall() { syscalls_.Add(); }
  void CountPoll(bool hit) { (hit ? poll_hits_ : poll_misses_).Add(); }

 private:
  static constexpr uint32_t kBurst = 64;
  static constexpr uint32_t kPrefetch = 4;
  // Publish within a burst after so many completions, 20 us, or so much payload: the driver works
  // on them, or wakes up, while the rest of the burst is served. 4 against 16: 1.5 times the
  // look-ups at depth 16 with a driver that sleeps, no difference at depth 32.
  static constexpr size_t kPublishCount = 4;
  static constexpr uint64_t kPublishBytes = uint64_t{128} << 10;

  template <typename Memory>
  absl::Status StartRing(QueueConfig config, const QueueMaps& maps, uint64_t features);
  template <template <bool, bool> class Ring, typename RingLog>
  void MakeRing(const typename Ring<false, false>::Memory& memory, uint32_t position,
                uint64_t features, std::optional<RingLog> log);
  template <typename Ring, typename RingLog>
  void UseRing(Ring ring, std::optional<RingLog> log);
  template <typename Ring>
  void UseRing(Ring ring);
  // Sets what is called to take from the ring that runs and to publish in it.
  void UsePath();
  // Enters what a ring's log had in flight, to be presented before anything else.
  template <typename Memory, typename Pending>
  absl::Status Resubmit(const Memory& memory, bool indirect, const std::vector<Pending>& pending);
  // f(ring) with the ring that runs, if any does.
  template <typename F>
  void WithRing(F f);
  template <typename Ring>
  bool PumpRing();
  template <typename Ring>
  void PublishRing();
  template <typename Ring>
  ChainError Take(Ring& ring, InFlightRequest** out);
  void Present(virtbay_request* const* requests, uint32_t count);
  void SetMemory(const QueueMaps& maps);
  // False: some of them wait for arena slots.
  bool PresentRequeued();
  int64_t TransferWithHelper(InFlightRequest* request, int fd, uint64_t file_offset,
                             uint32_t offset, uint32_t len, uint32_t rw_flags);
  void DropRequeued();
  // The ring that stopped goes on: the requests of then are its again, with the present memory.
  void TakeUp();
  // What TakeLeft was given, as if it had been left by this queue.
  template <typename Memory>
  absl::Status BringIn(const Memory& memory, const MemoryMapRef& map, bool in_order);
  MapHold* HoldOf(const MemoryMapRef& map);
  void GiveUp();
  void Quiesce();
  // After a Quiesce.
  void TellResume();
  // The chain's entry for the driver, in its turn.
  inline void EndChain(InFlightRequest* request, uint32_t written, bool read_only);
  // It has ended before its turn, if turns are kept.
  inline void AwaitTurn(InFlightRequest* request);
  // Complete, but for publishing.
  inline int32_t End(InFlightRequest* request, uint32_t out_bytes, uint32_t written);
  void EndLate(InFlightRequest* request, uint32_t out_bytes, uint32_t written);
  void LogWrongEnd(const InFlightRequest& request);
  void LogWrongSizes(const InFlightRequest& request, uint32_t out_bytes, uint32_t written);
  void PublishIfDue();
  void SetHold(InFlightRequest* request, MapHold* hold);
  void FillViews(InFlightRequest* request);
  void Refuse(InFlightRequest* request, ChainError error);
  inline void Free(InFlightRequest* request);
  // What the request occupies counts no more as parked.
  void Unpark(InFlightRequest* request) {
    if (request->parked_descriptors != 0) [[unlikely]]
      UnparkCounted(request);
  }
  void UnparkCounted(InFlightRequest* request);
  // Slots of the guest's pool that the chain occupies, where its driver bounces.
  uint32_t PoolSlots(const InFlightRequest& request) const;
  // For fetch and reserve; nullptr: the request waits for them.
  std::byte* AllocateExtra(InFlightRequest* request, uint32_t count);
  void FreeExtra(InFlightRequest* request);
  // Of a queue that is traced or recorded.
  void PresentTapped(virtbay_request* const* requests, uint32_t count);
  void TapPop(virtbay_request* const* requests, uint32_t count);
  void TapComplete(const InFlightRequest* request, uint32_t written);
  // After a burst that met a full arena, or the first one after that.
  void CountStall(bool was_stalled, bool took);
  void ReleaseMap(MapHold* hold);
  uint32_t outstanding() const;
  // An empty table of that size; tables stay, so that a request which the plugin ends too late or
  // twice is never freed memory.
  InFlightTable* EmptyTable(uint16_t size, bool in_order);
  void WriteCall();
  // A front-end has truncated the file behind something of ours.
  bool MemoryGone() const {
    return hold_->map->poisoned() || (rings_map_ != hold_->map && rings_map_->poisoned()) ||
           log_area_.poisoned();
  }

  DeviceCore* const core_;
  const uint16_t index_;
  const uint16_t max_size_;
  // Of the generation; changed while no thread runs it.
  uint32_t in_view_ = 0;
  uint32_t out_view_ = 0;
  uint32_t out_at_ = 0;  // of the out view behind the in view
  uint32_t view_slots_ = 0;
  bool auxiliary_ = false;
  uint64_t view_step_ = 0;    // bytes between the places that views may have in their slots
  uint64_t view_places_ = 1;  // a power of two
  Loop* loop_ = nullptr;
  CallbackMonitor* monitor_ = nullptr;
  QueueThread* queue_thread_ = nullptr;
  std::atomic<pthread_t> thread_{};

  // The hot members of a burst.
  bool (Queue::*pump_)() = nullptr;
  void (Queue::*publish_)() = nullptr;
  template <bool kEventIdx, bool kInOrder>
  using LoggedSplit = LoggedRing<SplitRing<kEventIdx, kInOrder>, SplitLog>;
  template <bool kEventIdx, bool kInOrder>
  using LoggedPacked = LoggedRing<PackedRing<kEventIdx, kInOrder>, PackedLog>;
  std::variant<std::monostate, SplitRing<false>, SplitRing<true>, SplitRing<false, true>,
               SplitRing<true, true>, PackedRing<false>, PackedRing<true>, PackedRing<false, true>,
               PackedRing<true, true>, LoggedSplit<false, false>, LoggedSplit<true, false>,
               LoggedSplit<false, true>, LoggedSplit<true, true>, LoggedPacked<false, false>,
               LoggedPacked<true, false>, LoggedPacked<false, true>, LoggedPacked<true, true>>
      ring_;
  InFlightTable* table_ = nullptr;         // of the ring, in tables_
  MapHold* hold_ = nullptr;                // of the current map
  bool tapped_ = false;                    // there is a trace_ or a record_
  std::atomic<bool> maps_offered_{false};  // written with offered_
  MemoryMapRef rings_map_;                 // what ring_ points into
  SharedArea log_area_;                    // the same, of its log
  std::unique_ptr<SlotCache> cache_;
  std::vector<UsedEntry> shadow_used_;
  uint64_t published_ticks_ = 0;
  uint64_t moved_ = 0;  // payload bytes since the last publish
  uint32_t busy_ = 0;
  bool in_order_ = false;
  bool enabled_ = true;
  bool draining_ = false;
  bool stalled_ = false;
  bool kicks_armed_ = false;
  bool kick_lost_ = false;
  bool present_requeued_ = false;
  bool quiesced_ = false;  // the plugin was told to quiesce and not yet to resume

  std::vector<std::unique_ptr<MapHold>> holds_;
  std::vector<std::unique_ptr<InFlightTable>> tables_;
  std::vector<InFlightRequest*> requeued_;
  std::optional<LeftRing> given_;
  // Of requeued_, that came from another process: their memory is not there.
  std::vector<std::pair<InFlightRequest*, ChainError>> lost_;
  absl::Mutex offer_mutex_;
  std::optional<absl::StatusOr<QueueMaps>> offered_ ABSL_GUARDED_BY(offer_mutex_);
  TapSlot<TraceRing> trace_;
  TapSlot<RecordRing> record_;
  uint64_t next_tap_id_ = 1;
  RingAddresses where_;
  mutable absl::Mutex shown_mutex_;
  RingAddresses shown_ ABSL_GUARDED_BY(shown_mutex_);  // where_ as others may see it
  bool packed_shown_ ABSL_GUARDED_BY(shown_mutex_) = false;
  bool packed_ = false;
  InFlightTable* left_ = nullptr;  // of the ring that stopped, if requests were left in it
  uint32_t left_position_ = 0;     // where that stopped
  std::atomic<uint32_t> stop_base_{0};
  WatchHandle kick_ = nullptr;
  SharedFd kick_fd_;
  Notifier call_;
  Notifier error_;
  LogLimiter refusals_;
  std::atomic<bool> running_{false};
  std::atomic<bool> broken_{false};

  StatCell requests_;
  StatCell completions_;
  StatCell kicks_;
  StatCell calls_;
  StatCell calls_suppressed_;
  StatCell batches_;
  StatCell poll_hits_;
  StatCell poll_misses_;
  SlotWaits slot_waits_;
  uint64_t stalled_since_ = 0;
  StatCell bytes_in_;
  StatCell bytes_out_;
  StatCell bytes_direct_;
  StatCell syscalls_;
  StatCell parks_refused_;
  std::atomic<uint32_t> parked_{0};
  std::atomic<uint32_t> in_flight_{0};
};

}  // namespace virtbay

#endif  // VIRTBAY_FRAMEWORK_DEVICE_QUEUE_H_
