#include "plugins/proxy-net/flow/core.h"

#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <utility>

#include "plugins/proxy-net/packet/checksum.h"

namespace virtbay::proxy_net {
namespace {

constexpr uint32_t kScratch = 65536;

std::span<std::byte> AsBytes(std::span<uint8_t> bytes) { return std::as_writable_bytes(bytes); }

}  // namespace

FlowCore::FlowCore(sdk::GuestLink* guest_link, uint32_t queue_pair, FlowHost* flow_host,
                   EventCounters* event_counters, SharedFlows* shared_flows)
    : link(guest_link),
      pair(queue_pair),
      host(flow_host),
      counters(event_counters),
      shared(shared_flows),
      limits(shared->limits),
      index(limits.tcp_flows + limits.datagram_flows, shared->key),
      wheel(limits.tcp_flows + limits.datagram_flows + limits.listeners, flow_host->NowNs()),
      pool(limits.buffer_bytes, &shared->chunks),
      scratch(kScratch) {
  tcp_ids.capacity = limits.tcp_flows;
  datagram_ids.first = limits.tcp_flows;
  datagram_ids.capacity = limits.datagram_flows;
  listener_ids.first = limits.tcp_flows + limits.datagram_flows;
  listener_ids.capacity = limits.listeners;
  tcp_ids.budget = &shared->tcp;
  datagram_ids.budget = &shared->datagram;
  listener_ids.budget = &shared->listeners;
  for (Table* table : {&tcp_ids, &datagram_ids, &listener_ids}) {
    table->free.reserve(table->capacity);
  }
  const size_t all = size_t{limits.tcp_flows} + limits.datagram_flows + limits.listeners;
  dirty.reserve(all);
  waiting.reserve(all);
  epoll_fd_ = epoll_create1(EPOLL_CLOEXEC);
  Refresh();
}

FlowCore::~FlowCore() {
  if (epoll_fd_ >= 0) close(epoll_fd_);
}

uint32_t FlowCore::TakeId(Table* table) {
  if (table->used == table->capacity || !table->budget->Take()) return kNoFlow;
  ++table->used;
  if (table->free.empty()) return table->first + table->fresh++;
  const uint32_t id = table->free.back();
  table->free.pop_back();
  return id;
}

void FlowCore::GiveId(Table* table, uint32_t id) {
  --table->used;
  table->budget->Give();
  table->free.push_back(id);
}

void FlowCore::Enter(const Flow& flow) { index.Insert(flow.hash, flow.id); }

void FlowCore::Leave(const Flow& flow) {
  index.Erase(flow.hash, flow.id);
  if (!moving) Unclaim(flow.hash);
}

bool FlowCore::Claim(uint32_t hash) {
  if (!shared->sharded()) return true;
  const uint32_t bucket = SharedFlows::BucketOf(hash);
  const uint8_t owner = shared->OwnerOf(bucket);
  // The order matters: what made it this one's was sent before.
  if (owner == pair) return host->TakeGiven(), true;
  return owner == SharedFlows::kNobody && shared->TakeFree(bucket, pair);
}

bool FlowCore::Reclaim(uint32_t hash) {
  if (!shared->sharded()) return true;
  const uint32_t bucket = SharedFlows::BucketOf(hash);
  const uint8_t owner = shared->OwnerOf(bucket);
  return owner == pair || (owner == SharedFlows::kNobody && shared->TakeFree(bucket, pair));
}

void FlowCore::Unclaim(uint32_t hash) {
  if (!shared->sharded()) return;
  const uint32_t bucket = SharedFlows::BucketOf(hash);
  if (shared->OwnerOf(bucket) != pair) return;
  bool empty = true;
  bool pinned = false;
  EachInBucket(bucket, [&](uint32_t id) {
    empty = false;
    pinned = pinned || At(id)->stays;
  });
  if (empty) return shared->PassTo(bucket, SharedFlows::kNobody);
  shared->Pin(bucket, pair, pinned);
}

void FlowCore::Age(Flow* flow, AgeList list) {
  Unlist(flow);
  Ages& ages = ages_[static_cast<size_t>(list)];
  flow->list = list;
  flow->aged_ns = now_ns;
  flow->older = ages.newest;
  flow->newer = kNoFlow;
  if (ages.newest != kNoFlow) {
    At(ages.newest)->newer = flow->id;
  } else {
    ages.oldest = flow->id;
  }
  ages.newest = flow->id;
  ++ages.count;
  if (list == AgeList::kHalfOpen) shared->half_open.fetch_add(1, std::memory_order_relaxed);
}

void FlowCore::Unlist(Flow* flow) {
  if (flow->list == AgeList::kNone) return;
  Ages& ages = ages_[static_cast<size_t>(flow->list)];
  if (flow->list == AgeList::kHalfOpen) shared->half_open.fetch_sub(1, std::memory_order_relaxed);
  flow->list = AgeList::kNone;
  --ages.count;
  (flow->older == kNoFlow ? ages.oldest : At(flow->older)->newer) = flow->newer;
  (flow->newer == kNoFlow ? ages.newest : At(flow->newer)->older) = flow->older;
}

bool FlowCore::TakeDescriptor() {
  return host->TakeDescriptor() || (MakeRoom(Room::kDescriptor) && host->TakeDescriptor());
}

int FlowCore::OpenSocket(int family, int type, int protocol) {
  if (!TakeDescriptor()) {
    Count(Event::kNoDescriptor);
    return -EMFILE;
  }
  type |= SOCK_NONBLOCK | SOCK_CLOEXEC;
  int fd = socket(family, type, protocol);
  // The process may have none left although it counts some.
  if (fd < 0 && (errno == EMFILE || errno == ENFILE) && MakeRoom(Room::kDescriptor)) {
    fd = socket(family, type, protocol);
  }
  if (fd >= 0) return fd;
  const int error = errno;
  host->GiveDescriptor();
  if (error == EMFILE || error == ENFILE || error == ENOMEM || error == ENOBUFS) {
    Count(Event::kNoDescriptor);
  }
  return -error;
}

void FlowCore::CloseSocket(Flow* flow, bool reset) {
  if (flow->fd < 0) return;
  if (reset) {
    const linger abort = {1, 0};
    setsockopt(flow->fd, SOL_SOCKET, SO_LINGER, &abort, sizeof(abort));
  }
  close(flow->fd);
  flow->fd = -1;
  host->GiveDescriptor();
}

int FlowCore::TakeSocket(Flow* flow) {
  if (flow->fd >= 0) epoll_ctl(epoll_fd_, EPOLL_CTL_DEL, flow->fd, nullptr);
  return std::exchange(flow->fd, -1);
}

bool FlowCore::Watch(const Flow& flow, uint32_t events) {
  epoll_event event = {};
  event.events = events | EPOLLET;
  event.data.u64 = uint64_t{flow.generation} << 32 | flow.id;
  return epoll_ctl(epoll_fd_, EPOLL_CTL_ADD, flow.fd, &event) == 0;
}

void FlowCore::WriteHeaders(const IpAddress& source, const IpAddress& destination, uint8_t protocol,
                            uint8_t hop_limit, uint32_t payload_length, Writer* out) {
  EthernetHeader ethernet;
  ethernet.destination = guest_mac;
  ethernet.source = gateway_mac;
  ethernet.type = source.is_v4() ? kEtherIpv4 : kEtherIpv6;
  WriteEthernet(ethernet, out);
  IpHeader ip;
  ip.source = source;
  ip.destination = destination;
  ip.protocol = protocol;
  ip.hop_limit = hop_limit;
  ip.dont_fragment = true;
  ip.payload_length = payload_length;
  WriteIp(ip, out);
}

bool FlowCore::SendPacket(const IpAddress& source, const IpAddress& destination, uint8_t protocol,
                          uint8_t hop_limit, std::span<uint8_t> transport) {
  const size_t headers = kEthernetSize + (source.is_v4() ? kIpv4Size : kIpv6Size);
  FillChecksum(source, destination, protocol, transport);
  sdk::RxFrame frame = link->BeginFrame(pair, static_cast<uint32_t>(headers + transport.size()));
  if (!frame || frame.capacity() < headers + transport.size()) return false;
  const std::span<std::byte> header = frame.Header(static_cast<uint32_t>(headers));
  Writer writer({reinterpret_cast<uint8_t*>(header.data()), header.size()});
  WriteHeaders(source, destination, protocol, hop_limit, static_cast<uint32_t>(transport.size()),
               &writer);
  return frame.Append(AsBytes(transport)) && frame.Commit();
}

bool FlowCore::SendIcmpError(const IpAddress& source, uint8_t type, uint8_t code, uint32_t rest,
                             Bytes offending) {
  EthernetHeader ethernet;
  ethernet.destination = guest_mac;
  ethernet.source = gateway_mac;
  ethernet.type = source.is_v4() ? kEtherIpv4 : kEtherIpv6;
  const size_t size = WriteIcmpError(ethernet, source, type, code, rest, offending, scratch);
  if (size == 0) return false;
  if (link->SendFrame(pair, AsBytes(std::span(scratch).first(size)))) {
    Count(Event::kIcmpErrorsPassed);
    return true;
  }
  Count(Event::kNoReceiveBuffers);
  return false;
}

bool FlowCore::InboundTuple(uint8_t protocol, const Endpoint& guest, const Endpoint& peer,
                            Tuple* tuple, uint32_t* existing) {
  constexpr int kTries = 128;
  IpAddress seen = peer.address.Canonical();
  if (seen.is_v6() != guest.address.is_v6() || seen.IsLoopback() || seen.IsUnspecified() ||
      seen.IsLinkLocal() || seen == guest.address) {
    seen = host->GatewayAddress(guest.address.is_v6());
  }
  uint16_t port = peer.port;
  for (int i = 0; i < kTries; ++i) {
    *tuple = {protocol, guest, {seen, port}};
    const uint32_t hash = index.HashOf(*tuple);
    // One that another shard may have a flow of is not free either.
    if (Claim(hash)) {
      *existing = Find(*tuple, hash);
      if (*existing == kNoFlow) return true;
      if (protocol == kProtocolUdp && At(*existing)->host == peer) return true;
    }
    port = port == UINT16_MAX ? 1024 : static_cast<uint16_t>(port + 1);
  }
  *existing = kNoFlow;
  return false;
}

}  // namespace virtbay::proxy_net
