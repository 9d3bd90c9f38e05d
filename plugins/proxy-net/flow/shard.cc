#include "plugins/proxy-net/flow/shard.h"

#include <sys/epoll.h>

#include <algorithm>
#include <array>
#include <cstddef>

namespace virtbay::proxy_net {
namespace {

// Frames to the guest before the thread looks at its queues again, and those of one flow before the
// next one has its turn.
constexpr uint32_t kFramesPerFlush = 64;
constexpr uint32_t kFramesPerFlow = 8;
constexpr int kEventsPerCall = 128;
// What epoll says of descriptors that are no flow's; generations stay below.
constexpr uint64_t kOther = uint64_t{UINT32_MAX} << 32;

}  // namespace

Shard::Shard(sdk::GuestLink* link, uint32_t pair, FlowHost* host, EventCounters* counters,
             SharedFlows* shared)
    : core_(link, pair, host, counters, shared),
      tcp_(&core_),
      datagrams_(&core_),
      listeners_(&core_, &tcp_, &datagrams_) {
  core_.SetFinder([](void* self, uint32_t id) { return static_cast<Shard*>(self)->At(id); }, this);
  core_.SetRoomMaker(
      [](void* self, Room what) { return static_cast<Shard*>(self)->MakeRoom(what); });
}

Shard::~Shard() { Clear(); }

bool Shard::ok() const { return core_.ok() && tcp_.ok() && datagrams_.ok() && listeners_.ok(); }

Flow* Shard::At(uint32_t id) const {
  if (id < core_.datagram_ids.first) return tcp_.At(id);
  if (id < core_.listener_ids.first) return datagrams_.At(id);
  return listeners_.At(id);
}

void Shard::BeginBurst() { core_.Refresh(); }

std::optional<Shard::Place> Shard::PlaceOf(const Frame& parsed) const {
  if (!parsed.ip.has_value() || parsed.ip->fragment) return std::nullopt;
  const IpHeader& ip = *parsed.ip;
  Place place;
  if (const TcpHeader* tcp = parsed.tcp()) {
    place.tuple = {
        kProtocolTcp, {ip.source, tcp->source_port}, {ip.destination, tcp->destination_port}};
  } else if (const UdpHeader* udp = parsed.udp()) {
    place.tuple = {
        kProtocolUdp, {ip.source, udp->source_port}, {ip.destination, udp->destination_port}};
  } else if (const IcmpHeader* icmp = parsed.icmp()) {
    const bool request = ip.is_v4() ? icmp->type == IcmpHeader::kEchoRequest
                                    : icmp->type == IcmpHeader::kV6EchoRequest;
    if (!request || icmp->code != 0) return std::nullopt;
    const uint16_t identifier = icmp->identifier();
    place.tuple = {ip.is_v4() ? kProtocolIcmp : kProtocolIcmpv6,
                   {ip.source, identifier},
                   {ip.destination, identifier}};
  } else {
    return std::nullopt;
  }
  place.hash = core_.index.HashOf(place.tuple);
  return place;
}

void Shard::OnPacket(const sdk::TxFrame& frame, const Frame& parsed) {
  if (const std::optional<Place> place = PlaceOf(parsed)) {
    OnPacket(frame, parsed, *place);
    return;
  }
  if (!parsed.ip.has_value()) return;
  const bool icmp = parsed.icmp() != nullptr;
  core_.Count(parsed.ip->fragment ? Event::kFragments
              : icmp              ? Event::kIcmpIgnored
                                  : Event::kOtherProtocol);
}

void Shard::OnPacket(const sdk::TxFrame& frame, const Frame& parsed, const Place& place) {
  const IpHeader& ip = *parsed.ip;
  if (const TcpHeader* tcp = parsed.tcp()) {
    TcpSegment segment;
    segment.frame = &frame;
    segment.tuple = place.tuple;
    segment.hash = place.hash;
    segment.header = *tcp;
    segment.payload_offset = static_cast<uint32_t>(parsed.payload_offset);
    segment.payload_length = static_cast<uint32_t>(parsed.payload_length);
    return tcp_.OnSegment(segment);
  }
  const std::span<const std::byte> headers = frame.headers();
  GuestDatagram packet;
  packet.frame = &frame;
  packet.hop_limit = ip.hop_limit;
  packet.dont_fragment = ip.dont_fragment || !ip.is_v4();
  packet.packet = Bytes(reinterpret_cast<const uint8_t*>(headers.data()), headers.size())
                      .subspan(parsed.network_offset);
  packet.tuple = place.tuple;
  packet.hash = place.hash;
  if (parsed.udp() != nullptr) {
    packet.offset = static_cast<uint32_t>(parsed.payload_offset);
    packet.length = static_cast<uint32_t>(parsed.payload_length);
    if (frame.offload().gso == sdk::Gso::kUdp) packet.segment_size = frame.offload().gso_size;
  } else {
    packet.offset = static_cast<uint32_t>(parsed.transport_offset);
    packet.length = static_cast<uint32_t>(kIcmpSize + parsed.payload_length);
  }
  datagrams_.OnPacket(packet);
}

void Shard::EndBurst() {
  Flush();
  tcp_.ForgetPieces();
}

bool Shard::WatchOther(int fd, uint32_t events, uint32_t token) {
  epoll_event event = {};
  event.events = events;
  event.data.u64 = kOther | token;
  return epoll_ctl(core_.epoll_fd(), EPOLL_CTL_ADD, fd, &event) == 0;
}

void Shard::OnReady() {
  core_.Refresh();
  std::array<epoll_event, kEventsPerCall> events;
  const int n = epoll_wait(core_.epoll_fd(), events.data(), kEventsPerCall, 0);
  for (int i = 0; i < n; ++i) {
    const uint64_t data = events[static_cast<size_t>(i)].data.u64;
    const uint32_t ready = events[static_cast<size_t>(i)].events;
    const auto id = static_cast<uint32_t>(data);
    if (data >= kOther) {
      core_.host->OnOther(id);
      continue;
    }
    Flow* flow = At(id);
    // One that was closed by an event before this one, in the same batch.
    if (flow->generation != data >> 32) continue;
    switch (flow->kind) {
      case FlowKind::kTcp:
        tcp_.OnEvents(tcp_.At(id), ready);
        break;
      case FlowKind::kUdp:
      case FlowKind::kEcho:
        datagrams_.OnEvents(datagrams_.At(id), ready);
        break;
      case FlowKind::kListener:
        listeners_.OnEvents(listeners_.At(id), ready);
        break;
      case FlowKind::kNone:
        break;
    }
  }
  Flush();
  if (n == kEventsPerCall) core_.host->ContinueSoon();
}

void Shard::OnTimer() {
  core_.Refresh();
  core_.wheel.Advance(core_.now_ns, [this](uint32_t id) {
    Flow* flow = At(id);
    flow->armed_ns = UINT64_MAX;
    switch (flow->kind) {
      case FlowKind::kTcp:
        tcp_.OnTimer(tcp_.At(id));
        break;
      case FlowKind::kUdp:
      case FlowKind::kEcho:
        datagrams_.OnTimer(datagrams_.At(id));
        break;
      case FlowKind::kListener:
        listeners_.OnTimer(listeners_.At(id));
        break;
      case FlowKind::kNone:
        break;
    }
  });
  Flush();
}

void Shard::OnRxBuffers() {
  core_.Refresh();
  for (const uint32_t id : core_.waiting) {
    Flow* flow = At(id);
    flow->waits_rx = false;
    if (flow->kind != FlowKind::kNone) core_.MarkDirty(flow);
  }
  core_.waiting.clear();
  Flush();
}

void Shard::Continue() {
  core_.Refresh();
  Flush();
}

// Round robin over what there is to do. Every flow has its turn once, so that the bytes of the
// burst are taken; how much goes to the guest is limited, and what is left has its turn soon.
void Shard::Flush() {
  std::vector<uint32_t>& dirty = core_.dirty;
  const size_t all = dirty.size();
  uint32_t frames = 0;
  size_t at = 0;
  while (at < dirty.size() && (at < all || frames < kFramesPerFlush)) {
    const uint32_t left = frames < kFramesPerFlush ? kFramesPerFlush - frames : 0;
    const uint32_t most = std::min(left, kFramesPerFlow);
    const uint32_t id = dirty[at++];
    Flow* flow = At(id);
    if (!flow->dirty) continue;
    switch (flow->kind) {
      case FlowKind::kTcp:
        frames += tcp_.Flush(tcp_.At(id), most);
        break;
      case FlowKind::kUdp:
      case FlowKind::kEcho:
        frames += datagrams_.Flush(datagrams_.At(id), most);
        break;
      case FlowKind::kListener:
        frames += listeners_.Flush(listeners_.At(id), most);
        break;
      case FlowKind::kNone:
        flow->dirty = false;
        break;
    }
  }
  dirty.erase(dirty.begin(), dirty.begin() + static_cast<std::ptrdiff_t>(at));
  if (!dirty.empty()) core_.host->ContinueSoon();
}

bool Shard::AddListener(const ForwardSpec& spec, int fd) {
  core_.Refresh();
  return listeners_.Add(spec, fd);
}

uint32_t Shard::RemoveListener(uint32_t forward) { return listeners_.Remove(forward); }

uint32_t Shard::Recheck() {
  core_.Refresh();
  uint32_t cut = 0;
  for (uint32_t i = 0; i < core_.tcp_ids.fresh; ++i) {
    TcpFlow* flow = tcp_.At(i);
    if (flow->kind == FlowKind::kNone || flow->inbound) continue;
    if (core_.host->StillAllowed(kProtocolTcp, flow->tuple.remote)) continue;
    tcp_.Abort(flow);
    ++cut;
  }
  for (uint32_t i = 0; i < core_.datagram_ids.fresh; ++i) {
    DatagramFlow* flow = datagrams_.At(core_.datagram_ids.first + i);
    if (flow->kind == FlowKind::kNone || flow->inbound) continue;
    if (core_.host->StillAllowed(flow->tuple.protocol, flow->tuple.remote)) continue;
    datagrams_.Remove(flow);
    ++cut;
  }
  core_.Count(Event::kPolicyCut, cut);
  return cut;
}

void Shard::DropFlows() {
  for (uint32_t i = 0; i < core_.tcp_ids.fresh; ++i) {
    if (tcp_.At(i)->kind != FlowKind::kNone) tcp_.Drop(tcp_.At(i));
  }
  for (uint32_t i = 0; i < core_.datagram_ids.fresh; ++i) {
    datagrams_.Remove(datagrams_.At(core_.datagram_ids.first + i));
  }
}

void Shard::Forget() {
  for (uint32_t i = 0; i < core_.tcp_ids.fresh; ++i) tcp_.LetGo(tcp_.At(i));
  listeners_.RemoveAll();
  DropFlows();
}

void Shard::Clear() {
  listeners_.RemoveAll();
  DropFlows();
}

std::string Shard::Describe(uint32_t most) const {
  std::string text;
  uint32_t lines = 0;
  for (uint32_t i = 0; i < core_.tcp_ids.fresh && lines < most; ++i) {
    const TcpFlow* flow = tcp_.At(i);
    if (flow->kind == FlowKind::kNone) continue;
    text += tcp_.Describe(*flow) + "\n";
    ++lines;
  }
  for (uint32_t i = 0; i < core_.datagram_ids.fresh && lines < most; ++i) {
    const DatagramFlow* flow = datagrams_.At(core_.datagram_ids.first + i);
    if (flow->kind == FlowKind::kNone) continue;
    text += datagrams_.Describe(*flow) + "\n";
    ++lines;
  }
  return text;
}

Shard::Totals Shard::totals() const {
  return {core_.tcp_ids.used,
          core_.datagram_ids.used,
          core_.Count(AgeList::kHalfOpen),
          core_.Count(AgeList::kTimeWait),
          core_.listener_ids.used,
          core_.pool.used(),
          core_.pool.reserved(),
          core_.wheel.armed()};
}

}  // namespace virtbay::proxy_net
