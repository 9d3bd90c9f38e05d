// What all flows of a shard have in common, the budgets, and what a shard asks of its device.
// Plain data and an interface; see core.h for who uses it. [queue]
#ifndef VIRTBAY_PLUGINS_PROXY_NET_FLOW_FLOW_H_
#define VIRTBAY_PLUGINS_PROXY_NET_FLOW_FLOW_H_

#include <cstdint>
#include <optional>

#include "plugins/proxy-net/flow/flow_index.h"
#include "plugins/proxy-net/packet/address.h"

namespace virtbay::proxy_net {

enum class FlowKind : uint8_t { kNone, kTcp, kUdp, kEcho, kListener };

// Lists of flows by when they were last used, for eviction.
enum class AgeList : uint8_t {
  kNone,
  kHalfOpen,
  kTimeWait,
  kHalfClosed,   // TCP of which one end has closed
  kEstablished,  // TCP of which none has
  kDatagram,
  kCount
};

// What a new flow found none of.
enum class Room : uint8_t { kTcpFlow, kHalfOpen, kDatagramFlow, kDescriptor, kMemory };

inline constexpr uint32_t kNoFlow = UINT32_MAX;

// The head of every flow; zero is a valid, unused one.
struct Flow {
  Tuple tuple;    // as the guest sees it
  Endpoint host;  // the other end as the host's socket sees it
  uint32_t id = 0;
  uint32_t hash = 0;
  uint32_t generation = 0;  // tells events of an earlier user of the id
  FlowKind kind = FlowKind::kNone;
  AgeList list = AgeList::kNone;
  bool inbound = false;
  bool stays = false;     // its socket is a listener's: it cannot go to another shard
  bool dirty = false;     // in the list of what the end of the burst looks at
  bool waits_rx = false;  // in the list of what receive buffers are wanted for
  int fd = -1;
  uint32_t older = kNoFlow;
  uint32_t newer = kNoFlow;
  uint32_t listener = kNoFlow;  // of an inbound flow: the forward it came by
  uint64_t created_ns = 0;
  uint64_t active_ns = 0;          // when the guest was last heard of
  uint64_t aged_ns = 0;            // when it came to its place in the list
  uint64_t armed_ns = UINT64_MAX;  // what the wheel knows
  uint64_t to_host_bytes = 0;
  uint64_t to_guest_bytes = 0;
};

// Budgets and times; constant while a shard lives.
struct FlowLimits {
  uint32_t tcp_flows = 16384;
  uint32_t datagram_flows = 8192;  // UDP and echo
  uint32_t listeners = 4096;       // sockets of port forwards
  uint32_t half_open = 1024;
  uint32_t new_flows_per_second = 50000;
  uint64_t buffer_bytes = uint64_t{256} << 20;
  uint32_t tcp_idle_s = 7200;  // then the guest is asked whether it is still there
  uint32_t connect_s = 130;    // for the other end to answer
  uint32_t time_wait_s = 10;
  uint32_t evict_idle_s = 120;   // so long a connection that stands is left alone
  uint32_t udp_idle_s = 300;     // RFC 4787 4.3
  uint32_t udp_dns_idle_s = 17;  // port 53, as RFC 4787 allows
  uint32_t echo_idle_s = 60;
  bool peek_offset = true;  // false: as a kernel without SO_PEEK_OFF for TCP
};

// Where a flow may go.
struct Route {
  bool allowed = false;
  Endpoint host;  // what to connect to
  // A stream to a service of the device's own, connected and counted; -1: there is none.
  int service = -1;
};

// What a shard asks of its device. [queue] of the shard's pair unless said otherwise; the functions
// are called when flows begin and end, not per packet.
class FlowHost {
 public:
  virtual ~FlowHost() = default;

  // CLOCK_MONOTONIC.
  virtual uint64_t NowNs() const = 0;
  // Counts a descriptor that is about to be opened; false: there is none left.
  virtual bool TakeDescriptor() = 0;
  virtual void GiveDescriptor() = 0;
  // What the rules say of a packet from the guest to `destination`.
  virtual Route RouteOf(uint8_t protocol, const Endpoint& destination) = 0;
  // The same of a flow that has begun.
  virtual bool StillAllowed(uint8_t protocol, const Endpoint& destination) = 0;
  // A descriptor that was added to the shard's epoll with Shard::WatchOther is ready.
  virtual void OnOther(uint32_t /*token*/) {}
  // The guest's address, where forwarded connections go; nothing while it has none.
  virtual std::optional<IpAddress> GuestAddress(bool v6) const = 0;
  // The gateway's address: source of ICMP errors, and of connections whose other end has an address
  // that the guest cannot answer.
  virtual IpAddress GatewayAddress(bool v6) const = 0;
  // A new flow found no room because of those that other shards have: the oldest of them that may
  // go should.
  virtual void WantRoom(Room /*what*/) {}
  // Takes in flows that other shards have sent.
  virtual void TakeGiven() {}
  // Calls Shard::Continue from the thread's loop soon, after other events had their turn.
  virtual void ContinueSoon() = 0;
  // Something that an administrator should know, once.
  virtual void Note(const char* text) = 0;
};

}  // namespace virtbay::proxy_net

#endif  // VIRTBAY_PLUGINS_PROXY_NET_FLOW_FLOW_H_
