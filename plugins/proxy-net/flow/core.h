// FlowCore: what the protocols of a shard share: tables of flows, their index, timers, epoll,
// buffer memory, budgets, counters and frames to the guest.
// Owned by a Shard; every function is [queue], of the shard's queue pair.
#ifndef VIRTBAY_PLUGINS_PROXY_NET_FLOW_CORE_H_
#define VIRTBAY_PLUGINS_PROXY_NET_FLOW_CORE_H_

#include <array>
#include <atomic>
#include <cstdint>
#include <span>
#include <vector>

#include "plugins/proxy-net/flow/chunk_pool.h"
#include "plugins/proxy-net/flow/events.h"
#include "plugins/proxy-net/flow/flow.h"
#include "plugins/proxy-net/flow/flow_index.h"
#include "plugins/proxy-net/flow/shared_flows.h"
#include "plugins/proxy-net/flow/timer_wheel.h"
#include "plugins/proxy-net/packet/build.h"
#include "plugins/proxy-net/packet/headers.h"
#include "virtbay/sdk/net_link.h"

namespace virtbay::proxy_net {

// A counter per event; the cells may be the host's.
class EventCounters {
 public:
  EventCounters() {
    for (size_t i = 0; i < kEvents; ++i) cells_[i] = &own_[i];
  }
  EventCounters(const EventCounters&) = delete;
  EventCounters& operator=(const EventCounters&) = delete;
  // [control] Counts in `cell` from now on; nullptr leaves it.
  void Bind(Event event, uint64_t* cell) {
    if (cell != nullptr) cells_[static_cast<size_t>(event)] = cell;
  }
  // [any]
  void Add(Event event, uint64_t n = 1) {
    __atomic_fetch_add(cells_[static_cast<size_t>(event)], n, __ATOMIC_RELAXED);
  }
  uint64_t Get(Event event) const {
    return __atomic_load_n(cells_[static_cast<size_t>(event)], __ATOMIC_RELAXED);
  }

 private:
  std::array<uint64_t, kEvents> own_{};
  std::array<uint64_t*, kEvents> cells_{};
};

class FlowCore {
 public:
  static constexpr uint32_t kRoomForHeaders = 128;

  FlowCore(sdk::GuestLink* link, uint32_t pair, FlowHost* host, EventCounters* counters,
           SharedFlows* shared);
  ~FlowCore();
  FlowCore(const FlowCore&) = delete;
  FlowCore& operator=(const FlowCore&) = delete;
  bool ok() const { return epoll_fd_ >= 0 && pool.ok(); }

  // ---- flows ----------------------------------------------------------------------------------
  // A table of flows of one size; ids begin at `first`.
  struct Table {
    uint32_t first = 0;
    uint32_t capacity = 0;
    uint32_t used = 0;
    Budget* budget = nullptr;  // of all shards
    std::vector<uint32_t> free;
    uint32_t fresh = 0;
  };
  // The next free id of a table, or kNoFlow: it is full, or those of all shards together are.
  uint32_t TakeId(Table* table);
  void GiveId(Table* table, uint32_t id);

  // The flow of a tuple, whose hash it is, or kNoFlow.
  uint32_t Find(const Tuple& tuple, uint32_t hash) const {
    return index.Find(hash, [&](uint32_t id) { return At(id)->tuple == tuple; });
  }
  uint32_t Find(const Tuple& tuple) const { return Find(tuple, index.HashOf(tuple)); }

  // Has others find the flow, whose tuple and hash are set. Where there are several shards its
  // bucket has to be this one's.
  void Enter(const Flow& flow);
  // The opposite; a bucket without flows is nobody's.
  void Leave(const Flow& flow);
  // The bucket is this shard's now, and all its flows are here: it was, or was nobody's.
  bool Claim(uint32_t hash);
  // The bucket, which was this shard's, is so again after flows of it have ended; false: another
  // shard was faster.
  bool Reclaim(uint32_t hash);
  // Lets go of a bucket of this shard's that has no flow.
  void Unclaim(uint32_t hash);
  // Calls visit(id) for each flow of the bucket; it may not add or remove any.
  template <typename F>
  void EachInBucket(uint32_t bucket, F&& visit) const {
    index.EachNear(bucket, [&](uint32_t hash, uint32_t id) {
      if (SharedFlows::BucketOf(hash) == bucket) visit(id);
    });
  }

  // [queue] The flow with that id, used or not.
  Flow* At(uint32_t id) const { return at_(owner_, id); }
  // [control] Who finds it.
  void SetFinder(Flow* (*at)(void*, uint32_t), void* owner) {
    at_ = at;
    owner_ = owner;
  }
  // [control] Who makes room, of the same owner.
  void SetRoomMaker(bool (*make_room)(void*, Room)) { make_room_ = make_room; }

  // Appends to a list by age, or moves there.
  void Age(Flow* flow, AgeList list);
  void Unlist(Flow* flow);
  // The flow has just been used. The list need not be exact: a second is enough to tell who is
  // idle, and a busy flow moves in it no more often.
  void Touch(Flow* flow, AgeList list) {
    flow->active_ns = now_ns;
    if (flow->list != list || now_ns - flow->aged_ns >= kAgeStepNs) Age(flow, list);
  }
  // The least recently used flow of a list that has not been used for `idle_ns` and for which
  // may_go(flow) holds; nullptr: none of those that were looked at, which are a few. One that may
  // not go is passed over and becomes the youngest, so that it is not in the way of the next look.
  template <typename F>
  Flow* LeastRecent(AgeList list, uint64_t idle_ns, F&& may_go) {
    for (uint32_t looks = 0; looks < kMostLooks; ++looks) {
      const uint32_t id = ages_[static_cast<size_t>(list)].oldest;
      if (id == kNoFlow) return nullptr;
      Flow* flow = At(id);
      if (now_ns - flow->aged_ns < idle_ns) return nullptr;
      if (may_go(*flow)) return flow;
      Age(flow, list);
    }
    return nullptr;
  }
  // Ends the flow that matters least of those that have some of `what`. False: none may end; other
  // shards are asked then.
  bool MakeRoom(Room what) {
    if (make_room_(owner_, what)) return true;
    if (now_ns - wanted_ns_ >= kWantEveryNs) host->WantRoom(what), wanted_ns_ = now_ns;
    return false;
  }
  uint32_t Count(AgeList list) const { return ages_[static_cast<size_t>(list)].count; }
  // Half-open ones of all shards.
  uint32_t HalfOpen() const { return shared->half_open.load(std::memory_order_relaxed); }

  // Has the end of the burst look at the flow.
  void MarkDirty(Flow* flow) {
    if (flow->dirty) return;
    flow->dirty = true;
    dirty.push_back(flow->id);
  }
  // Has OnRxBuffers look at the flow.
  void WaitForRx(Flow* flow) {
    if (flow->waits_rx) return;
    flow->waits_rx = true;
    waiting.push_back(flow->id);
  }

  // Sets the flow's one timer to `deadline_ns`; cheap when it is later than what is armed.
  void Arm(Flow* flow, uint64_t deadline_ns) {
    if (deadline_ns >= flow->armed_ns) return;
    flow->armed_ns = deadline_ns;
    wheel.Arm(flow->id, deadline_ns);
  }
  void Disarm(Flow* flow) {
    wheel.Disarm(flow->id);
    flow->armed_ns = UINT64_MAX;
  }

  // ---- sockets --------------------------------------------------------------------------------
  // Counts a descriptor that is about to be opened, for which another flow may have to end; false:
  // there is none.
  bool TakeDescriptor();
  // A non-blocking socket that is counted, or -errno.
  int OpenSocket(int family, int type, int protocol);
  // Closes the flow's socket; `reset`: with a TCP RST.
  void CloseSocket(Flow* flow, bool reset);
  // Takes the socket away from the flow; it stays open and counted.
  int TakeSocket(Flow* flow);
  // Edge-triggered; the event carries the flow's id and generation.
  bool Watch(const Flow& flow, uint32_t events);
  int epoll_fd() const { return epoll_fd_; }

  // ---- frames to the guest ----------------------------------------------------------------------
  // Ethernet and IP headers to the guest with what the protocols fill in.
  void WriteHeaders(const IpAddress& source, const IpAddress& destination, uint8_t protocol,
                    uint8_t hop_limit, uint32_t payload_length, Writer* out);
  // A small frame of one's own bytes: headers, then `transport`, whose checksum is computed here.
  // False: no receive buffers.
  bool SendPacket(const IpAddress& source, const IpAddress& destination, uint8_t protocol,
                  uint8_t hop_limit, std::span<uint8_t> transport);
  // An ICMP error about `offending`, an IP packet of the guest's.
  bool SendIcmpError(const IpAddress& source, uint8_t type, uint8_t code, uint32_t rest,
                     Bytes offending);
  uint32_t mtu() const { return mtu_; }

  // The tuple under which the guest sees a host's connection or datagrams from `peer`: with the
  // peer's own address where the guest can answer it, the gateway's otherwise, and the peer's port
  // or the next one that is free and whose bucket this shard can have; it has it then. `existing`:
  // a datagram flow of that very peer, or kNoFlow. False: no port is free.
  bool InboundTuple(uint8_t protocol, const Endpoint& guest, const Endpoint& peer, Tuple* tuple,
                    uint32_t* existing);

  void Count(Event event, uint64_t n = 1) { counters->Add(event, n); }

  // What a call from the device begins with.
  void Refresh() {
    now_ns = host->NowNs();
    offloads = link->offloads();
    mtu_ = link->mtu();
  }

  sdk::GuestLink* const link;
  const uint32_t pair;
  FlowHost* const host;
  EventCounters* const counters;
  SharedFlows* const shared;
  const FlowLimits limits;

  uint64_t now_ns = 0;
  sdk::GuestOffloads offloads;
  MacAddress guest_mac;
  MacAddress gateway_mac;

  FlowIndex index;
  TimerWheel wheel;
  ChunkPool pool;
  // Flows come from another shard, or go to one: they neither begin nor end, their sockets stay
  // counted, and what becomes of their buckets is decided by who moves them.
  bool moving = false;
  Table tcp_ids;
  Table datagram_ids;
  Table listener_ids;
  std::vector<uint32_t> dirty;
  std::vector<uint32_t> waiting;
  uint32_t largest_frame = 0;    // bytes that BeginFrame ever had room for
  std::vector<uint8_t> scratch;  // 64 KiB: payload on its way to a guest without checksum offload

 private:
  struct Ages {
    uint32_t oldest = kNoFlow;
    uint32_t newest = kNoFlow;
    uint32_t count = 0;
  };

  static constexpr uint64_t kAgeStepNs = 1'000'000'000;
  static constexpr uint32_t kMostLooks = 16;
  static constexpr uint64_t kWantEveryNs = 1'000'000;

  int epoll_fd_ = -1;
  uint32_t mtu_ = 1500;
  uint64_t wanted_ns_ = 0;
  std::array<Ages, static_cast<size_t>(AgeList::kCount)> ages_;
  Flow* (*at_)(void* owner, uint32_t id) = nullptr;
  bool (*make_room_)(void* owner, Room what) = nullptr;
  void* owner_ = nullptr;
};

}  // namespace virtbay::proxy_net

#endif  // VIRTBAY_PLUGINS_PROXY_NET_FLOW_CORE_H_
