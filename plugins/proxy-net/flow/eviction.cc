// Which flow ends when a new one finds no room.
#include "plugins/proxy-net/flow/shard.h"

namespace virtbay::proxy_net {
namespace {

constexpr uint64_t kSecond = 1'000'000'000;
// A connection that is being made has had time to be answered then: a flood would end every one
// otherwise. A datagram's flow is left alone as long when its table has room.
constexpr uint64_t kGraceNs = 5 * kSecond;

Event ReasonOf(Room what) {
  switch (what) {
    case Room::kTcpFlow:
    case Room::kDatagramFlow:
      return Event::kEvictedForFlow;
    case Room::kHalfOpen:
      return Event::kEvictedForHalfOpen;
    case Room::kDescriptor:
      return Event::kEvictedForDescriptor;
    case Room::kMemory:
      break;
  }
  return Event::kEvictedForMemory;
}

}  // namespace

// What is over anyway comes first (it has neither a socket nor memory), then what never stood, then
// connections of which one end has closed, then those that both ends still want and nobody uses.
// RFC 5382 5 (REQ-5) asks that those are kept for 2 hours and 4 minutes; it is about a table that
// has room, and one that has none is of no use to the connection that is wanted now.
bool Shard::MakeRoom(Room what) {
  const uint64_t idle_ns = core_.limits.evict_idle_s * kSecond;
  const auto any = [](const Flow&) { return true; };
  const auto has_socket = [](const Flow& flow) { return flow.fd >= 0; };
  const auto quiet = [this](const Flow& flow) {
    return tcp_.IsQuiet(static_cast<const TcpFlow&>(flow));
  };
  Flow* flow = nullptr;
  switch (what) {
    case Room::kDatagramFlow:
      flow = core_.LeastRecent(AgeList::kDatagram, 0, any);
      break;
    case Room::kHalfOpen:
      flow = core_.LeastRecent(AgeList::kHalfOpen, kGraceNs, any);
      break;
    case Room::kTcpFlow:
      flow = core_.LeastRecent(AgeList::kTimeWait, 0, any);
      [[fallthrough]];
    case Room::kMemory:
    case Room::kDescriptor:
      if (flow == nullptr) flow = core_.LeastRecent(AgeList::kHalfOpen, kGraceNs, any);
      if (flow == nullptr) flow = core_.LeastRecent(AgeList::kHalfClosed, idle_ns, quiet);
      if (flow == nullptr) flow = core_.LeastRecent(AgeList::kEstablished, idle_ns, quiet);
      break;
  }
  if (what == Room::kDescriptor && (flow == nullptr || flow->list == AgeList::kEstablished)) {
    Flow* datagram = core_.LeastRecent(AgeList::kDatagram, kGraceNs, has_socket);
    const bool older =
        datagram != nullptr && (flow == nullptr || datagram->active_ns < flow->active_ns);
    if (older) flow = datagram;
  }
  if (flow == nullptr) return false;
  core_.Count(Event::kFlowsEvicted);
  core_.Count(ReasonOf(what));
  if (flow->kind != FlowKind::kTcp) {
    datagrams_.Remove(static_cast<DatagramFlow*>(flow));
    return true;
  }
  auto* const tcp = static_cast<TcpFlow*>(flow);
  if (tcp->phase != TcpPhase::kOpen) return tcp_.Drop(tcp), true;
  core_.Count(Event::kEvictedEstablished);
  tcp_.Abort(tcp);
  return true;
}

}  // namespace virtbay::proxy_net
