// Shard: every flow of one queue pair. The device gives it the IP packets that are for others than
// the gateway; it gives the guest what comes back. Shards share budgets, and who has which bucket
// of flows (shared_flows.h); nothing else, and no lock. Owned by the device; [queue] of its pair,
// unless said otherwise.
#ifndef VIRTBAY_PLUGINS_PROXY_NET_FLOW_SHARD_H_
#define VIRTBAY_PLUGINS_PROXY_NET_FLOW_SHARD_H_

#include <cstdint>
#include <optional>
#include <string>

#include "plugins/proxy-net/flow/core.h"
#include "plugins/proxy-net/flow/datagram.h"
#include "plugins/proxy-net/flow/listener.h"
#include "plugins/proxy-net/flow/tcp.h"
#include "plugins/proxy-net/packet/parse.h"
#include "virtbay/sdk/net_link.h"

namespace virtbay::proxy_net {

class Shard {
 public:
  // `shared` is that of all shards of the device.
  Shard(sdk::GuestLink* link, uint32_t pair, FlowHost* host, EventCounters* counters,
        SharedFlows* shared);
  ~Shard();
  Shard(const Shard&) = delete;
  Shard& operator=(const Shard&) = delete;
  // [control] Whether it could be made; false: no descriptor or no address space.
  bool ok() const;

  // Both ends of the Ethernet link.
  void SetMacs(const MacAddress& guest, const MacAddress& gateway) {
    core_.guest_mac = guest;
    core_.gateway_mac = gateway;
  }

  // ---- what happens ---------------------------------------------------------------------------
  // A burst of frames of the guest's: Begin, a Packet for each that is for a flow, End. The frames
  // stay until End has returned.
  void BeginBurst();
  void OnPacket(const sdk::TxFrame& frame, const Frame& parsed);
  // Which flow a packet is of, or would be. Nothing: it is of none.
  struct Place {
    Tuple tuple;
    uint32_t hash = 0;
  };
  std::optional<Place> PlaceOf(const Frame& parsed) const;
  // The same with what PlaceOf said. Where there are several shards the bucket has to be this
  // one's.
  void OnPacket(const sdk::TxFrame& frame, const Frame& parsed, const Place& place);
  void EndBurst();
  // Readable: OnReady is due.
  int epoll_fd() const { return core_.epoll_fd(); }
  void OnReady();
  // [control or queue] FlowHost::OnOther(token) while `fd` is ready for `events` of epoll. False:
  // no.
  bool WatchOther(int fd, uint32_t events, uint32_t token);
  // When OnTimer is due at the latest, in CLOCK_MONOTONIC ns; UINT64_MAX: never.
  uint64_t NextTimer() const { return core_.wheel.NextNs(); }
  void OnTimer();
  // The guest has receive buffers again.
  void OnRxBuffers();
  // Goes on with what ContinueSoon was asked for.
  void Continue();

  // ---- what is asked --------------------------------------------------------------------------
  // Takes over a socket of ForwardSpec::OpenSocket.
  bool AddListener(const ForwardSpec& spec, int fd);
  uint32_t RemoveListener(uint32_t forward);
  // Ends every flow that the rules now forbid; how many.
  uint32_t Recheck();
  // Ends the flow that matters least of those that have some of `what`, the guest's and the host's
  // connections with a reset. False: none may end. eviction.cc says which.
  bool MakeRoom(Room what);
  // Ends every flow, with a reset to the host: the guest is gone. Listeners stay.
  void DropFlows();
  // Lets go of every flow and listener: the sockets live on elsewhere.
  void Forget();
  // Ends every flow and closes the listeners.
  void Clear();
  // A line per flow, at most `most`.
  std::string Describe(uint32_t most) const;

  struct Totals {
    uint32_t tcp = 0;
    uint32_t datagram = 0;
    uint32_t half_open = 0;
    uint32_t time_wait = 0;
    uint32_t listeners = 0;
    uint32_t spill_chunks = 0;
    uint32_t reserved_chunks = 0;
    uint32_t timers = 0;
  };
  Totals totals() const;

  Tcp& tcp() { return tcp_; }
  Datagrams& datagrams() { return datagrams_; }
  Listeners& listeners() { return listeners_; }
  FlowCore& core() { return core_; }

 private:
  void Flush();
  Flow* At(uint32_t id) const;

  FlowCore core_;
  Tcp tcp_;
  Datagrams datagrams_;
  Listeners listeners_;
};

}  // namespace virtbay::proxy_net

#endif  // VIRTBAY_PLUGINS_PROXY_NET_FLOW_SHARD_H_
