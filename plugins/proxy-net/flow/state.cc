#include "plugins/proxy-net/flow/state.h"

#include <unistd.h>

#include <algorithm>
#include <cstring>
#include <optional>
#include <string>
#include <type_traits>
#include <utility>

#include "plugins/proxy-net/flow/sequence.h"
#include "plugins/proxy-net/flow/socket_check.h"

namespace virtbay::proxy_net {
namespace {

constexpr uint32_t kMagic = 0x50464c57;  // "PFLW"
constexpr uint16_t kVersion = 1;
// kTagSockets: the kernel's names of the sockets, by their numbers.
// kTagService: as kTagTcp, of a stream to a service of the device's own.
enum Tag : uint16_t {
  kTagTcp = 1,
  kTagDatagram = 2,
  kTagListener = 3,
  kTagSockets = 4,
  kTagService = 5
};
constexpr uint32_t kNoFd = UINT32_MAX;
constexpr uint32_t kEventsOfTcp = 0x2005;     // EPOLLIN | EPOLLOUT | EPOLLRDHUP
constexpr uint32_t kEventsOfOthers = 0x0009;  // EPOLLIN | EPOLLERR

class StateWriter {
 public:
  template <typename T>
  void Put(const T& value) {
    static_assert(std::is_arithmetic_v<T> || std::is_enum_v<T>);
    const size_t at = bytes_.size();
    bytes_.resize(at + sizeof(value));
    std::memcpy(bytes_.data() + at, &value, sizeof(value));
  }
  void PutBytes(Bytes bytes) { bytes_.insert(bytes_.end(), bytes.begin(), bytes.end()); }
  void Put(const Endpoint& endpoint) {
    Put(static_cast<uint8_t>(endpoint.address.is_v6() ? 6 : 4));
    PutBytes(endpoint.address.bytes());
    Put(endpoint.port);
  }
  void Begin(Tag tag) {
    Put(static_cast<uint16_t>(tag));
    start_ = bytes_.size();
    Put(uint32_t{0});
  }
  void End() {
    const auto length = static_cast<uint32_t>(bytes_.size() - start_ - sizeof(uint32_t));
    std::memcpy(bytes_.data() + start_, &length, sizeof(length));
  }
  std::vector<uint8_t> Take() { return std::move(bytes_); }

 private:
  std::vector<uint8_t> bytes_;
  size_t start_ = 0;
};

// Past the end everything is zero: a record of an older writer.
class StateReader {
 public:
  explicit StateReader(Bytes bytes) : bytes_(bytes) {}
  template <typename T>
  void Get(T* value) {
    static_assert(std::is_arithmetic_v<T> || std::is_enum_v<T>);
    *value = T{};
    if (bytes_.size() - at_ < sizeof(T)) {
      at_ = bytes_.size();
      return;
    }
    std::memcpy(value, bytes_.data() + at_, sizeof(T));
    at_ += sizeof(T);
  }
  void Get(bool* value) {
    uint8_t byte = 0;
    Get(&byte);
    *value = byte != 0;
  }
  bool GetBytes(size_t n, Bytes* out) {
    if (bytes_.size() - at_ < n) return false;
    *out = bytes_.subspan(at_, n);
    at_ += n;
    return true;
  }
  bool Get(Endpoint* endpoint) {
    uint8_t version = 0;
    Get(&version);
    Bytes address;
    if ((version != 4 && version != 6) || !GetBytes(version == 4 ? 4 : 16, &address)) return false;
    proxy_net::Reader in(address);
    if (version == 4) {
      endpoint->address = ReadIpv4(&in);
    } else {
      endpoint->address = ReadIpv6(&in);
    }
    Get(&endpoint->port);
    return true;
  }

 private:
  Bytes bytes_;
  size_t at_ = 0;
};

// The numbers of a TCP flow, in the order of the record; more are appended only.
template <typename F>
void EachTcpField(TcpFlow& f, F&& field) {
  field(f.phase), field(f.inbound), field(f.scaling), field(f.sack), field(f.timestamps);
  field(f.send_scale), field(f.mss), field(f.ts_offset), field(f.ts_recent);
  field(f.last_ack_sent), field(f.iss), field(f.una), field(f.next), field(f.max);
  field(f.window), field(f.max_window), field(f.window_seq), field(f.window_ack);
  field(f.discarded), field(f.peer_hup), field(f.eof), field(f.eof_seq);
  field(f.backoff), field(f.srtt_us), field(f.rttvar_us), field(f.rto_us);
  field(f.irs), field(f.received), field(f.to_host), field(f.right_edge);
  field(f.receive_window), field(f.grown_at), field(f.shut), field(f.fin_seen);
  field(f.fin_received), field(f.guest_first), field(f.fin_seq), field(f.told_edge);
  field(f.keepalive), field(f.retransmit_at), field(f.life_at), field(f.active_ns);
  field(f.created_ns), field(f.to_host_bytes), field(f.to_guest_bytes), field(f.range_count);
}

void PutHeld(FlowCore* core, const TcpFlow& flow, uint32_t from, uint32_t to, StateWriter* out) {
  std::vector<iovec> pieces(Spill::kSlots);
  const uint32_t count = flow.spill.Gather(core->pool, from, to - from, pieces);
  for (uint32_t i = 0; i < count; ++i) {
    out->PutBytes({static_cast<const uint8_t*>(pieces[i].iov_base), pieces[i].iov_len});
  }
}

bool GetHeld(FlowCore* core, TcpFlow* flow, uint32_t from, uint32_t to, StateReader* in) {
  Bytes bytes;
  if (!in->GetBytes(to - from, &bytes)) return false;
  while (!bytes.empty()) {
    const std::span<uint8_t> room =
        flow->spill.Room(core->pool, from, static_cast<uint32_t>(bytes.size()));
    std::memcpy(room.data(), bytes.data(), room.size());
    from += static_cast<uint32_t>(room.size());
    bytes = bytes.subspan(room.size());
  }
  return true;
}

}  // namespace

struct Record {
  uint16_t tag = 0;
  Bytes bytes;
};

// Nothing: they are not well formed.
std::optional<std::vector<Record>> Split(Bytes bytes) {
  std::vector<Record> records;
  StateReader head(bytes);
  uint32_t magic = 0;
  uint16_t version = 0;
  head.Get(&magic);
  head.Get(&version);
  size_t at = sizeof(magic) + sizeof(version);
  if (bytes.size() < at || magic != kMagic || version < 1) return std::nullopt;
  while (at < bytes.size()) {
    uint16_t tag = 0;
    uint32_t length = 0;
    if (bytes.size() - at < sizeof(tag) + sizeof(length)) return std::nullopt;
    std::memcpy(&tag, bytes.data() + at, sizeof(tag));
    std::memcpy(&length, bytes.data() + at + sizeof(tag), sizeof(length));
    at += sizeof(tag) + sizeof(length);
    if (length > bytes.size() - at) return std::nullopt;
    records.push_back({tag, bytes.subspan(at, length)});
    at += length;
  }
  return records;
}

// What a record says of its socket.
struct Wanted {
  uint32_t index = kNoFd;
  uint8_t protocol = kProtocolTcp;
  Endpoint host;
  SocketRole role = SocketRole::kPeer;
};

// False: it ends too soon.
bool ReadWanted(const Record& record, Wanted* wanted) {
  StateReader in(record.bytes);
  Endpoint end;
  in.Get(&wanted->index);
  if (record.tag == kTagListener) {
    in.Get(&wanted->protocol);
    wanted->role = SocketRole::kListener;
    return in.Get(&wanted->host);
  }
  if (record.tag == kTagDatagram) in.Get(&wanted->protocol);
  if (!in.Get(&end) || !in.Get(&end) || !in.Get(&wanted->host)) return false;
  TcpFlow flow;
  if (record.tag == kTagService) {
    wanted->role = SocketRole::kService;
    return true;
  }
  if (record.tag == kTagTcp) EachTcpField(flow, [&](auto& value) { in.Get(&value); });
  // The kernel tells of no peer without a port.
  if (flow.phase == TcpPhase::kConnecting || wanted->host.port == 0) {
    wanted->role = SocketRole::kUndecided;
  }
  return true;
}

// Each descriptor is what exactly one record speaks of.
sdk::Status CheckSockets(std::span<const Record> records, std::span<const int> fds) {
  std::vector<bool> claimed(fds.size(), false);
  size_t claims = 0;
  for (const Record& record : records) {
    if (record.tag == kTagSockets) {
      StateReader in(record.bytes);
      uint32_t count = 0;
      in.Get(&count);
      if (count != fds.size()) {
        return sdk::InvalidArgument("the state has " + std::to_string(fds.size()) +
                                    " descriptors of flows, not " + std::to_string(count));
      }
      for (size_t i = 0; i < fds.size(); ++i) {
        uint64_t cookie = 0;
        in.Get(&cookie);
        if (cookie != 0 && cookie != SocketCookie(fds[i])) {
          return sdk::InvalidArgument("descriptor " + std::to_string(i) +
                                      " of the state's flows is not the socket that was saved");
        }
      }
      continue;
    }
    if (record.tag != kTagListener && record.tag != kTagTcp && record.tag != kTagDatagram &&
        record.tag != kTagService) {
      continue;
    }
    Wanted wanted;
    if (!ReadWanted(record, &wanted)) return sdk::InvalidArgument("a saved flow is cut short");
    if (wanted.index == kNoFd && record.tag != kTagListener) continue;
    const std::string what = "descriptor " + std::to_string(wanted.index) + " of the state's flows";
    if (wanted.index >= fds.size()) return sdk::InvalidArgument(what + " is missing");
    if (claimed[wanted.index]) return sdk::InvalidArgument(what + " is that of two flows");
    claimed[wanted.index] = true;
    ++claims;
    const char* const why =
        WhyNotSocket(fds[wanted.index], wanted.protocol, wanted.host.address.is_v4(), wanted.role);
    if (why != nullptr) {
      return sdk::InvalidArgument(what + ", for " + wanted.host.ToString() + ": " + why);
    }
  }
  if (claims == fds.size()) return {};
  return sdk::InvalidArgument("the state has " + std::to_string(fds.size()) +
                              " descriptors of flows, and flows for " + std::to_string(claims));
}

// The parts of Tcp that make a flow out of a record.
class TcpState {
 public:
  static void Save(Shard* shard, TcpFlow* flow, SavedFlows* saved, StateWriter* out) {
    if (flow->kind == FlowKind::kNone) return;
    out->Begin(flow->service ? kTagService : kTagTcp);
    uint32_t fd = kNoFd;
    if (flow->fd >= 0) {
      fd = static_cast<uint32_t>(saved->fds.size());
      saved->fds.push_back(flow->fd);
    }
    out->Put(fd);
    out->Put(flow->tuple.guest);
    out->Put(flow->tuple.remote);
    out->Put(flow->host);
    EachTcpField(*flow, [&](const auto& value) { out->Put(value); });
    for (uint32_t i = 0; i < flow->range_count; ++i) {
      out->Put(flow->ranges[i].left);
      out->Put(flow->ranges[i].right);
    }
    PutHeld(&shard->core(), *flow, flow->to_host, flow->data_end(), out);
    for (uint32_t i = 0; i < flow->range_count; ++i) {
      PutHeld(&shard->core(), *flow, flow->ranges[i].left, flow->ranges[i].right, out);
    }
    out->End();
    // Who goes on with the socket moves its peek offset; that this one does is not settled yet.
    flow->peek_known = false;
  }

  // False: the record says what cannot be.
  static bool Sane(const TcpFlow& f) {
    const uint32_t span = f.right_edge - f.to_host;
    bool sane = f.phase > TcpPhase::kClosed && f.phase <= TcpPhase::kTimeWait && f.mss >= 32 &&
                f.send_scale <= 14 && f.range_count <= TcpFlow::kMaxRanges &&
                f.receive_window >= Tcp::kFirstWindow && f.receive_window <= Tcp::kLargestWindow &&
                span <= Tcp::kLargestWindow && f.data_end() - f.to_host <= span &&
                f.max - f.una <= (1u << 30) && f.next - f.una <= f.max - f.una &&
                // Our SYN has a number, and no byte in the socket.
                (f.una - f.discarded <= (1u << 30) || f.una + 1 == f.discarded);
    uint32_t end = f.data_end();
    for (uint32_t i = 0; sane && i < f.range_count; ++i) {
      const auto& range = f.ranges[i];
      sane = SeqAfter(range.left, end) && SeqAfter(range.right, range.left) &&
             !SeqAfter(range.right, f.right_edge);
      end = range.right;
    }
    // The guest's end lies behind all of its bytes that are here, and inside the window.
    if (f.fin_seen && !f.fin_received) {
      sane = sane && !SeqBefore(f.fin_seq, end) && !SeqAfter(f.fin_seq, f.right_edge);
    }
    return sane && (!f.fin_received || f.received == f.fin_seq + 1);
  }

  // The flow, or nullptr: no room, or a record that cannot be. Takes fd.
  static TcpFlow* Restore(Shard* shard, Tag tag, StateReader* in, std::span<const int> fds,
                          std::vector<bool>* used) {
    Tcp& tcp = shard->tcp();
    FlowCore& core = shard->core();
    uint32_t index = 0;
    Tuple tuple;
    Endpoint host;
    in->Get(&index);
    tuple.protocol = kProtocolTcp;
    if (!in->Get(&tuple.guest) || !in->Get(&tuple.remote) || !in->Get(&host)) return nullptr;
    if (index != kNoFd && (index >= fds.size() || (*used)[index])) return nullptr;
    // What another shard gives is this one's from the moment on that it says so.
    const uint32_t hash = core.index.HashOf(tuple);
    if (core.Find(tuple, hash) != kNoFlow || core.tcp_ids.used == core.tcp_ids.capacity ||
        (!core.moving && !core.Claim(hash))) {
      return nullptr;
    }
    TcpFlow record;
    EachTcpField(record, [&](auto& value) { in->Get(&value); });
    const uint32_t ranges = std::min<uint32_t>(record.range_count, TcpFlow::kMaxRanges);
    for (uint32_t i = 0; i < ranges; ++i) {
      in->Get(&record.ranges[i].left);
      in->Get(&record.ranges[i].right);
    }
    const bool waits = record.phase == TcpPhase::kTimeWait;
    if (!Sane(record) || waits != (index == kNoFd)) return nullptr;

    TcpFlow* flow = tcp.Create(tuple);
    if (flow == nullptr) return nullptr;
    // What a flow is within this shard stays; the rest is the record's.
    const TcpFlow fresh = *flow;
    *flow = record;
    static_cast<Flow&>(*flow) = static_cast<const Flow&>(fresh);
    flow->reserved = fresh.reserved;
    flow->active_ns = std::min(record.active_ns, core.now_ns);
    flow->host = host;
    flow->inbound = record.inbound;
    flow->created_ns = record.created_ns;
    flow->to_host_bytes = record.to_host_bytes;
    flow->to_guest_bytes = record.to_guest_bytes;
    flow->recover = flow->una;
    flow->released = flow->to_host;
    const uint32_t needed =
        Spill::ChunksFor(std::max(flow->receive_window, flow->right_edge - flow->to_host));
    if (needed > flow->reserved) {
      if (!core.pool.Reserve(needed - flow->reserved)) {
        tcp.Remove(flow);
        return nullptr;
      }
      flow->reserved = needed;
    }
    bool whole = GetHeld(&core, flow, flow->to_host, flow->data_end(), in);
    for (uint32_t i = 0; whole && i < flow->range_count; ++i) {
      whole = GetHeld(&core, flow, flow->ranges[i].left, flow->ranges[i].right, in);
    }
    if (!whole) {
      tcp.Remove(flow);
      return nullptr;
    }
    flow->service = tag == kTagService;
    flow->ack_now =
        !waits && flow->phase == TcpPhase::kOpen && flow->last_ack_sent != flow->received;
    if (waits) {
      core.pool.Unreserve(flow->reserved);
      flow->reserved = 0;
      core.Age(flow, AgeList::kTimeWait);
    } else {
      (*used)[index] = true;
      flow->fd = fds[index];
      if (!core.Watch(*flow, kEventsOfTcp)) {
        tcp.Remove(flow);
        return nullptr;
      }
      if (flow->phase != TcpPhase::kConnecting) {
        tcp.Prepare(flow);
        flow->peek_known = false;
      }
      core.Age(flow, flow->phase == TcpPhase::kOpen ? Tcp::ListOf(*flow) : AgeList::kHalfOpen);
      flow->drain = true;
      core.MarkDirty(flow);
    }
    tcp.Rearm(flow);
    return flow;
  }
};

namespace {

// `listeners`: the ids of those that were saved, in their order.
void SaveDatagram(const DatagramFlow* flow, const std::vector<uint32_t>& listeners,
                  SavedFlows* saved, StateWriter* out) {
  out->Begin(kTagDatagram);
  uint32_t fd = kNoFd;
  uint32_t listener = kNoFlow;
  if (flow->shared) {
    const auto at = std::find(listeners.begin(), listeners.end(), flow->listener);
    listener = static_cast<uint32_t>(at - listeners.begin());
  } else {
    fd = static_cast<uint32_t>(saved->fds.size());
    saved->fds.push_back(flow->fd);
  }
  out->Put(fd);
  out->Put(flow->tuple.protocol);
  out->Put(flow->tuple.guest);
  out->Put(flow->tuple.remote);
  out->Put(flow->host);
  out->Put(listener);
  out->Put(flow->preserved);
  out->Put(flow->dont_fragment);
  out->Put(flow->hop_limit);
  out->Put(flow->active_ns);
  out->Put(flow->to_host_bytes);
  out->Put(flow->to_guest_bytes);
  out->End();
}

StateWriter Begin() {
  StateWriter out;
  out.Put(kMagic);
  out.Put(kVersion);
  return out;
}

// Listeners first: flows refer to them by their place among the records. Flows of a listener are in
// its own shard.
void SaveShard(Shard* shard, SavedFlows* saved, StateWriter* out,
               std::vector<uint32_t>* listeners) {
  FlowCore& core = shard->core();
  for (const uint32_t id : shard->listeners().ids()) {
    const Listener* listener = shard->listeners().At(id);
    listeners->push_back(id);
    out->Begin(kTagListener);
    out->Put(static_cast<uint32_t>(saved->fds.size()));
    saved->fds.push_back(listener->fd);
    out->Put(listener->protocol);
    out->Put(listener->host);
    out->Put(listener->guest_port);
    out->Put(listener->forward);
    out->End();
  }
  for (uint32_t i = 0; i < core.tcp_ids.fresh; ++i) {
    TcpState::Save(shard, shard->tcp().At(i), saved, out);
  }
  for (uint32_t i = 0; i < core.datagram_ids.fresh; ++i) {
    const DatagramFlow* flow = shard->datagrams().At(core.datagram_ids.first + i);
    if (flow->kind != FlowKind::kNone) SaveDatagram(flow, *listeners, saved, out);
  }
}

}  // namespace

SavedFlows TakeOut(Shard* shard, std::span<const uint32_t> buckets) {
  SavedFlows saved;
  StateWriter out = Begin();
  FlowCore& core = shard->core();
  core.moving = true;
  std::vector<uint32_t> ids;
  for (const uint32_t bucket : buckets) {
    core.EachInBucket(bucket, [&](uint32_t id) { ids.push_back(id); });
  }
  for (const uint32_t id : ids) {
    Flow* flow = core.At(id);
    if (flow->kind == FlowKind::kTcp) {
      TcpFlow* tcp = shard->tcp().At(id);
      TcpState::Save(shard, tcp, &saved, &out);
      core.TakeSocket(tcp);
      shard->tcp().LetGo(tcp);
    } else {
      SaveDatagram(shard->datagrams().At(id), {}, &saved, &out);
      core.TakeSocket(flow);
      shard->datagrams().Remove(shard->datagrams().At(id));
    }
  }
  core.moving = false;
  saved.bytes = out.Take();
  return saved;
}

std::vector<uint32_t> BucketsOf(Shard* shard) {
  FlowCore& core = shard->core();
  std::vector<uint32_t> buckets;
  const auto add = [&](const Flow& flow) {
    const uint32_t bucket = SharedFlows::BucketOf(flow.hash);
    if (flow.kind != FlowKind::kNone && !core.shared->IsPinned(bucket)) buckets.push_back(bucket);
  };
  for (uint32_t i = 0; i < core.tcp_ids.fresh; ++i) add(*shard->tcp().At(i));
  for (uint32_t i = 0; i < core.datagram_ids.fresh; ++i) {
    add(*shard->datagrams().At(core.datagram_ids.first + i));
  }
  std::sort(buckets.begin(), buckets.end());
  buckets.erase(std::unique(buckets.begin(), buckets.end()), buckets.end());
  return buckets;
}

SavedFlows SaveFlows(std::span<Shard* const> shards) {
  SavedFlows saved;
  StateWriter flows;
  std::vector<uint32_t> listeners;
  for (Shard* shard : shards) SaveShard(shard, &saved, &flows, &listeners);
  StateWriter out = Begin();
  out.Begin(kTagSockets);
  out.Put(static_cast<uint32_t>(saved.fds.size()));
  for (const int fd : saved.fds) out.Put(SocketCookie(fd));
  out.End();
  out.PutBytes(flows.Take());
  saved.bytes = out.Take();
  return saved;
}

RestoredFlows Adopt(Shard* shard, const SavedFlows& taken) {
  FlowCore& core = shard->core();
  core.moving = true;
  const auto result = RestoreFlows(shard, taken.bytes, taken.fds);
  core.moving = false;
  return result.ok() ? result.value() : RestoredFlows();
}

namespace {

// Who has been idle for long is so on this side of a restore as well.
void SortByUse(FlowCore* core) {
  std::vector<Flow*> flows;
  const auto add = [&](const FlowCore::Table& table) {
    for (uint32_t i = 0; i < table.fresh; ++i) {
      Flow* flow = core->At(table.first + i);
      const bool aged = flow->list == AgeList::kEstablished || flow->list == AgeList::kHalfClosed ||
                        flow->list == AgeList::kDatagram;
      if (flow->kind != FlowKind::kNone && aged) flows.push_back(flow);
    }
  };
  add(core->tcp_ids);
  add(core->datagram_ids);
  std::stable_sort(flows.begin(), flows.end(),
                   [](const Flow* a, const Flow* b) { return a->active_ns < b->active_ns; });
  for (Flow* flow : flows) {
    core->Age(flow, flow->list);
    flow->aged_ns = flow->active_ns;
  }
}

}  // namespace

sdk::Result<RestoredFlows> RestoreFlows(Shard* shard, Bytes bytes, std::span<const int> fds) {
  RestoredFlows result;
  FlowCore& core = shard->core();
  core.Refresh();
  // Between shards of a device descriptors stay counted.
  const bool counted = core.moving;
  const auto close_all = [&](const std::vector<bool>& used) {
    for (size_t i = 0; i < fds.size(); ++i) {
      if (used[i]) continue;
      close(fds[i]);
      if (counted) core.host->GiveDescriptor();
    }
  };
  std::vector<bool> used(fds.size(), false);
  // Every record is looked at before anything is made.
  const std::optional<std::vector<Record>> records = Split(bytes);
  sdk::Status good;
  if (!records.has_value()) {
    good = sdk::InvalidArgument("the saved flows are not well formed");
  } else if (!core.moving) {
    good = CheckSockets(*records, fds);
  }
  if (!good.ok()) {
    close_all(used);
    return good.error();
  }

  // A descriptor is counted before it is taken; without one the flow ends.
  const auto count = [&] { return counted || core.host->TakeDescriptor(); };
  const auto uncount = [&] {
    if (!counted) core.host->GiveDescriptor();
  };
  std::vector<uint32_t> listeners;
  for (const Record& record : *records) {
    StateReader in(record.bytes);
    if (record.tag == kTagListener) {
      ForwardSpec spec;
      uint32_t index = 0;
      in.Get(&index);
      in.Get(&spec.protocol);
      const bool whole = in.Get(&spec.host) && index < fds.size() && !used[index];
      in.Get(&spec.guest_port);
      in.Get(&spec.forward);
      listeners.push_back(kNoFlow);
      if (!whole || !count()) {
        ++result.dropped;
        continue;
      }
      used[index] = true;
      if (!shard->AddListener(spec, fds[index])) {
        ++result.dropped;
        continue;
      }
      listeners.back() = shard->listeners().ids().back();
      ++result.flows;
    } else if (record.tag == kTagTcp || record.tag == kTagService) {
      if (!count()) {
        ++result.dropped;
        continue;
      }
      const std::vector<bool> before = used;
      TcpFlow* flow = TcpState::Restore(shard, Tag{record.tag}, &in, fds, &used);
      if (flow == nullptr && before == used) uncount();
      if (flow != nullptr && flow->fd < 0) uncount();
      ++(flow != nullptr ? result.flows : result.dropped);
    } else if (record.tag == kTagDatagram) {
      uint32_t index = 0;
      uint32_t listener = 0;
      Tuple tuple;
      Endpoint host;
      in.Get(&index);
      in.Get(&tuple.protocol);
      const bool whole = in.Get(&tuple.guest) && in.Get(&tuple.remote) && in.Get(&host);
      in.Get(&listener);
      const bool shared = index == kNoFd;
      const Listener* owner = nullptr;
      if (shared && listener < listeners.size() && listeners[listener] != kNoFlow) {
        owner = shard->listeners().At(listeners[listener]);
        if (owner->protocol != kProtocolUdp) owner = nullptr;
      }
      const bool known =
          tuple.protocol == kProtocolUdp ||
          (!shared && (tuple.protocol == kProtocolIcmp || tuple.protocol == kProtocolIcmpv6));
      const bool possible =
          known && whole && (shared ? owner != nullptr : index < fds.size() && !used[index]);
      const uint32_t hash = core.index.HashOf(tuple);
      if (!possible || core.Find(tuple, hash) != kNoFlow || (!core.moving && !core.Claim(hash)) ||
          (!shared && !count())) {
        ++result.dropped;
        continue;
      }
      DatagramFlow* flow = shard->datagrams().Adopt(tuple, host, shared ? -1 : fds[index], owner);
      if (!shared) used[index] = true;
      if (flow == nullptr) {
        ++result.dropped;
        continue;
      }
      in.Get(&flow->preserved);
      if (flow->preserved && !shared && flow->kind == FlowKind::kUdp) {
        static_cast<void>(shard->datagrams().ClaimPort(flow));
      }
      in.Get(&flow->dont_fragment);
      in.Get(&flow->hop_limit);
      in.Get(&flow->active_ns);
      flow->active_ns = std::min(flow->active_ns, core.now_ns);
      in.Get(&flow->to_host_bytes);
      in.Get(&flow->to_guest_bytes);
      ++result.flows;
    }
  }
  close_all(used);
  if (!core.moving) SortByUse(&core);
  return result;
}

}  // namespace virtbay::proxy_net
