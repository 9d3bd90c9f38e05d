// Datagrams: the UDP and ICMP echo flows of a shard. Each has a connected socket of its own, so
// that the kernel gives it what comes from its other end only; flows that came in by a port forward
// use the forward's socket, so that answers leave from the published port. Owned by a Shard; every
// function is [queue].
#ifndef VIRTBAY_PLUGINS_PROXY_NET_FLOW_DATAGRAM_H_
#define VIRTBAY_PLUGINS_PROXY_NET_FLOW_DATAGRAM_H_

#include <cstdint>
#include <string>

#include "plugins/proxy-net/flow/core.h"
#include "plugins/proxy-net/flow/port_claims.h"
#include "plugins/proxy-net/flow/slab.h"
#include "plugins/proxy-net/packet/parse.h"
#include "plugins/proxy-net/packet/socket_address.h"
#include "virtbay/sdk/net_link.h"

namespace virtbay::proxy_net {

struct DatagramFlow : Flow {
  bool readable = false;
  bool shared = false;     // the socket is the listener's
  bool preserved = false;  // the host's source port is the guest's
  bool claims = false;     // that port, see PortClaims
  bool dont_fragment = false;
  uint8_t hop_limit = 0;  // what the socket sends with; 0: the kernel's
};

// A UDP or echo packet of the guest's, in a frame of the burst.
struct GuestDatagram {
  const sdk::TxFrame* frame = nullptr;
  Tuple tuple;  // the port of both ends of an echo is its identifier
  uint32_t hash = 0;
  uint8_t hop_limit = 64;
  bool dont_fragment = true;
  uint32_t offset = 0;  // in the frame: of the payload; with an echo, of its ICMP header
  uint32_t length = 0;
  uint16_t segment_size = 0;  // of a large frame to be cut
  Bytes packet;               // the IP packet, as far as its headers were copied
};

class Datagrams {
 public:
  explicit Datagrams(FlowCore* core);
  bool ok() const { return flows_.ok(); }

  // A packet of the burst.
  void OnPacket(const GuestDatagram& packet);
  void OnEvents(DatagramFlow* flow, uint32_t events);
  void OnTimer(DatagramFlow* flow);
  // Passes on what the socket has, at most `frames` frames; how many went.
  uint32_t Flush(DatagramFlow* flow, uint32_t frames);

  // The flow of a datagram that came to a forwarded port, made if need be; nullptr: no room.
  DatagramFlow* Inbound(const Tuple& tuple, const Endpoint& peer, const Flow& listener);
  // A flow with a socket that it had before, which is counted, or with that of `listener`; nullptr:
  // no room, and the socket is closed.
  DatagramFlow* Adopt(const Tuple& tuple, const Endpoint& peer, int fd, const Flow* listener);
  // The guest's port is its own on the host as well, as it was before.
  PortClaims::Claim ClaimPort(DatagramFlow* flow);
  void Remove(DatagramFlow* flow);

  DatagramFlow* At(uint32_t id) const { return flows_.At(id - core_->datagram_ids.first); }
  uint32_t Find(const Tuple& tuple) const { return core_->Find(tuple); }
  std::string Describe(const DatagramFlow& flow) const;

  enum class Outcome : uint8_t { kSent, kEmpty, kNoBuffers, kDropped, kError };
  // So many errors of a socket in a row that are not the network's word about a datagram are the
  // socket's about itself: it would say so again, and again.
  static constexpr uint32_t kMostErrors = 4;
  // Passes one datagram of a listener's socket on, to the flow of its sender.
  Outcome PassInbound(const Flow& listener, const Endpoint& guest);

 private:
  DatagramFlow* Create(const Tuple& tuple);
  DatagramFlow* Open(const GuestDatagram& packet);
  bool OpenSocket(DatagramFlow* flow, const GuestDatagram& packet);
  static bool BindAsGuest(const DatagramFlow& flow);
  void PreservePort(DatagramFlow* flow);
  void GivePort(DatagramFlow* flow);
  int64_t Send(DatagramFlow* flow, const GuestDatagram& packet);
  int64_t SendTranslatedEcho(const DatagramFlow& flow, const GuestDatagram& packet);
  void SetHopLimit(DatagramFlow* flow, uint8_t hop_limit);
  // False: there was none to read.
  bool ReadErrors(DatagramFlow* flow);
  void PassError(DatagramFlow* flow, uint8_t type, uint8_t code, uint32_t rest,
                 const IpAddress& from, Bytes payload);
  // One datagram of `fd` to the guest. Without a flow, `listener` tells whom it is for.
  Outcome Pass(int fd, DatagramFlow* flow, const Flow* listener, const Endpoint* guest);
  Outcome PassEcho(DatagramFlow* flow);
  void SendUnreachable(const GuestDatagram& packet, bool forbidden);
  uint64_t IdleNs(const DatagramFlow& flow) const;

  FlowCore* const core_;
  Slab<DatagramFlow> flows_;
  bool noted_ping_ = false;
};

}  // namespace virtbay::proxy_net

#endif  // VIRTBAY_PLUGINS_PROXY_NET_FLOW_DATAGRAM_H_
