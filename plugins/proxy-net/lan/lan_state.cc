// The state of the Lan as bytes: a version, then records of a type, a length and a value, all in
// network byte order. Records of unknown types are passed over, so that a later version can add
// some.
#include <limits>

#include "plugins/proxy-net/lan/lan.h"

namespace virtbay::proxy_net {
namespace {

constexpr uint32_t kMagic = 0x76626c6e;  // "vbln"
constexpr uint16_t kVersion = 1;

enum Record : uint16_t {
  kLease4 = 1,    // index, state, nanoseconds left (or since it is free), client
  kLease6 = 2,    // the same
  kNeighbor = 3,  // 4 or 6, address, MAC address
  kIpv6Up = 4,    // one byte
};

void Append(std::vector<uint8_t>* out, Record type, Bytes value) {
  uint8_t header[4];
  Writer w(header);
  w.U16(type);
  w.U16(static_cast<uint16_t>(value.size()));
  out->insert(out->end(), header, header + sizeof header);
  out->insert(out->end(), value.begin(), value.end());
}

void AppendLeases(std::vector<uint8_t>* out, Record type, const LeasePool& pool, uint64_t now_ns) {
  uint32_t index = 0;
  for (const LeasePool::Lease& lease : pool.leases()) {
    const uint32_t i = index++;
    if (lease.state == LeasePool::State::kFree && lease.client.empty()) continue;
    uint8_t value[16 + LeasePool::kMaxClient];
    Writer w(value);
    w.U32(i);
    w.U8(static_cast<uint8_t>(lease.state));
    w.U64(lease.expires_ns > now_ns ? lease.expires_ns - now_ns : 0);
    w.Put(Bytes(reinterpret_cast<const uint8_t*>(lease.client.data()), lease.client.size()));
    Append(out, type, w.written());
  }
}

struct LeaseRecord {
  uint32_t index = 0;
  LeasePool::Lease lease;
};

bool ReadLease(Reader* in, uint64_t now_ns, LeaseRecord* out) {
  out->index = in->U32();
  const uint8_t state = in->U8();
  const uint64_t left_ns = in->U64();
  if (!in->ok() || state > static_cast<uint8_t>(LeasePool::State::kDeclined)) return false;
  out->lease.state = static_cast<LeasePool::State>(state);
  out->lease.expires_ns =
      left_ns < std::numeric_limits<uint64_t>::max() - now_ns ? now_ns + left_ns : now_ns;
  const Bytes client = in->rest();
  out->lease.client.assign(client.begin(), client.end());
  return client.size() <= LeasePool::kMaxClient;
}

}  // namespace

std::vector<uint8_t> Lan::Save(uint64_t now_ns) const {
  std::vector<uint8_t> out(6);
  Writer w(out);
  w.U32(kMagic);
  w.U16(kVersion);
  AppendLeases(&out, kLease4, dhcp4_.pool(), now_ns);
  AppendLeases(&out, kLease6, dhcp6_.pool(), now_ns);
  for (const NeighborTable::Entry& e : neighbors_.entries()) {
    uint8_t value[23];
    Writer v(value);
    v.U8(e.address.is_v4() ? 4 : 6);
    v.Put(e.address.bytes());
    v.Put(e.mac.bytes);
    Append(&out, kNeighbor, v.written());
  }
  const uint8_t up = router_.running() ? 1 : 0;
  Append(&out, kIpv6Up, Bytes(&up, 1));
  return out;
}

sdk::Status Lan::Restore(Bytes state, uint64_t now_ns) {
  Reader in(state);
  if (in.U32() != kMagic || !in.ok()) {
    return sdk::InvalidArgument("state of the link: does not begin as one");
  }
  const uint16_t version = in.U16();
  if (!in.ok() || version == 0 || version > kVersion) {
    return sdk::InvalidArgument("state of the link: version " + std::to_string(version) +
                                " is not known");
  }
  std::vector<LeaseRecord> leases4;
  std::vector<LeaseRecord> leases6;
  std::vector<NeighborTable::Entry> neighbors;
  bool up = false;
  while (in.left() != 0) {
    const uint16_t type = in.U16();
    Reader value(in.Take(in.U16()));
    bool good = in.ok();
    if (good && (type == kLease4 || type == kLease6)) {
      LeaseRecord lease;
      good = ReadLease(&value, now_ns, &lease);
      (type == kLease4 ? leases4 : leases6).push_back(lease);
    } else if (good && type == kNeighbor) {
      NeighborTable::Entry entry;
      const uint8_t family = value.U8();
      if (family == 4) {
        entry.address = ReadIpv4(&value);
      } else {
        entry.address = ReadIpv6(&value);
      }
      entry.mac = ReadMac(&value);
      good = (family == 4 || family == 6) && value.ok() && value.left() == 0;
      neighbors.push_back(entry);
    } else if (good && type == kIpv6Up) {
      up = value.U8() != 0;
      good = value.ok();
    }
    if (!good) {
      return sdk::InvalidArgument("state of the link: a record of type " + std::to_string(type) +
                                  " is not well formed");
    }
  }
  for (LeaseRecord& r : leases4) dhcp4_.pool().Set(r.index, std::move(r.lease));
  for (LeaseRecord& r : leases6) dhcp6_.pool().Set(r.index, std::move(r.lease));
  for (const NeighborTable::Entry& e : neighbors) LearnGuest(e.address, e.mac, now_ns);
  // The guest was told of a router: it is told again, rather than left to find out.
  if (up) SetIpv6(true, now_ns);
  return {};
}

}  // namespace virtbay::proxy_net
