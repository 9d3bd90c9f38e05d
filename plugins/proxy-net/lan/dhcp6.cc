#include "plugins/proxy-net/lan/dhcp6.h"

#include <algorithm>

namespace virtbay::proxy_net {
namespace {

constexpr uint64_t kOfferNs = 120 * kSecondNs;
constexpr uint64_t kDeclineNs = 600 * kSecondNs;
constexpr size_t kMaxDuid = 130;  // RFC 8415 11.1, with its type

enum MessageType : uint8_t {
  kSolicit = 1,
  kAdvertise = 2,
  kRequest = 3,
  kConfirm = 4,
  kRenew = 5,
  kRebind = 6,
  kReply = 7,
  kRelease = 8,
  kDecline = 9,
  kInformationRequest = 11,
};

enum Option : uint16_t {
  kClientId = 1,
  kServerId = 2,
  kIaNa = 3,
  kIaTa = 4,
  kIaAddress = 5,
  kStatus = 13,
  kRapidCommit = 14,
  kDnsServers = 23,
  kDomainList = 24,
  kIaPd = 25,
};

enum Status : uint16_t {
  kSuccess = 0,
  kNoAddrsAvail = 2,
  kNoBinding = 3,
  kNotOnLink = 4,
  kUseMulticast = 5,
  kNoPrefixAvail = 6,
};

void WriteStatus(Status status, Writer* out) {
  out->U16(kStatus);
  out->U16(2);
  out->U16(status);
}

// An option whose length is known when its content is written.
template <typename F>
void WriteOption(uint16_t code, Writer* out, F content) {
  out->U16(code);
  const size_t at = out->position();
  out->U16(0);
  content();
  if (out->ok()) out->PatchU16(at, static_cast<uint16_t>(out->position() - at - 2));
}

}  // namespace

struct Dhcp6Server::Ia {
  uint16_t kind = 0;
  uint32_t id = 0;
  std::array<Ipv6Address, 4> addresses;
  size_t count = 0;
};

struct Dhcp6Server::Request {
  uint8_t type = 0;
  uint32_t transaction = 0;
  Bytes client;
  Bytes server;
  bool rapid_commit = false;
  std::array<Ia, kMaxIas> ias;
  size_t ia_count = 0;

  // What a binding is known by: the client and its association (RFC 8415 12).
  std::string KeyOf(const Ia& ia) const {
    std::string key(client.begin(), client.end());
    for (int shift = 24; shift >= 0; shift -= 8) key.push_back(static_cast<char>(ia.id >> shift));
    return key;
  }
};

Dhcp6Server::Dhcp6Server(const LanConfig* config) : config_(config), pool_(config->pool_size) {}

Ipv6Address Dhcp6Server::AddressOf(uint32_t index) const {
  Ipv6Address a = config_->guest6();
  a.bytes[14] = static_cast<uint8_t>(index >> 8);
  a.bytes[15] = static_cast<uint8_t>(index);
  return a;
}

std::optional<uint32_t> Dhcp6Server::IndexOf(const Ipv6Address& address) const {
  const uint32_t index = uint32_t{address.bytes[14]} << 8 | address.bytes[15];
  return index < pool_.leases().size() && AddressOf(index) == address ? std::optional(index)
                                                                      : std::nullopt;
}

std::optional<Dhcp6Server::Request> Dhcp6Server::ParseRequest(Bytes message) {
  Reader in(message);
  Request out;
  const uint32_t first = in.U32();
  out.type = static_cast<uint8_t>(first >> 24);
  out.transaction = first & 0xffffff;
  if (!in.ok()) return std::nullopt;
  while (in.left() != 0) {
    const uint16_t code = in.U16();
    Reader value(in.Take(in.U16()));
    if (!in.ok()) return std::nullopt;
    switch (code) {
      case kClientId:
        out.client = value.rest();
        if (out.client.size() < 3 || out.client.size() > kMaxDuid) return std::nullopt;
        break;
      case kServerId:
        out.server = value.rest();
        if (out.server.size() < 3) return std::nullopt;
        break;
      case kRapidCommit:
        out.rapid_commit = true;
        break;
      case kIaNa:
      case kIaTa:
      case kIaPd: {
        Ia ia;
        ia.kind = code;
        ia.id = value.U32();
        if (code != kIaTa) value.Skip(8);
        if (!value.ok()) return std::nullopt;
        while (value.left() != 0) {
          const uint16_t inner_code = value.U16();
          Reader inner(value.Take(value.U16()));
          if (!value.ok()) return std::nullopt;
          if (inner_code != kIaAddress || code == kIaPd) continue;
          const Ipv6Address address = ReadIpv6(&inner);
          inner.Skip(8);
          if (!inner.ok()) return std::nullopt;
          if (ia.count < ia.addresses.size()) ia.addresses[ia.count++] = address;
        }
        if (out.ia_count < kMaxIas) out.ias[out.ia_count++] = ia;
        break;
      }
      default:
        break;
    }
  }
  return out;
}

bool Dhcp6Server::IsServer(Bytes duid) const {
  std::array<uint8_t, 10> own;
  Writer w(own);
  w.U32(0x00030001);  // DUID-LL of Ethernet
  w.Put(config_->gateway_mac.bytes);
  return std::equal(duid.begin(), duid.end(), own.begin(), own.end());
}

void Dhcp6Server::WriteHeader(const Request& request, uint8_t type, Writer* out) const {
  out->U32(uint32_t{type} << 24 | request.transaction);
  if (!request.client.empty()) {
    WriteOption(kClientId, out, [&] { out->Put(request.client); });
  }
  WriteOption(kServerId, out, [&] {
    out->U32(0x00030001);
    out->Put(config_->gateway_mac.bytes);
  });
}

void Dhcp6Server::WriteConfiguration(Writer* out) const {
  WriteOption(kDnsServers, out, [&] {
    bool any = false;
    for (const IpAddress& a : config_->dns) {
      if (!a.is_v6()) continue;
      any = true;
      out->Put(a.bytes());
    }
    if (!any) out->Put(config_->gateway6().bytes);
  });
  if (!config_->search.empty()) {
    size_t size = 0;
    for (const DomainName& name : config_->search) size += name.wire().size();
    // Better no list than no answer.
    if (size + 4 <= out->left()) {
      WriteOption(kDomainList, out, [&] { WriteNames(config_->search, out); });
    }
  }
}

// SOLICIT, REQUEST, RENEW and REBIND: the association with its address, or why it has none.
void Dhcp6Server::AnswerIa(const Request& request, const Ia& ia, uint64_t now_ns, size_t at,
                           bool brief, Writer* out, Reply* reply) {
  if (ia.kind != kIaNa) {
    const bool prefix = ia.kind == kIaPd;
    WriteOption(ia.kind, out, [&] {
      out->U32(ia.id);
      if (prefix) out->U64(0);
      WriteStatus(prefix ? kNoPrefixAvail : kNoAddrsAvail, out);
    });
    return;
  }
  const std::string client = request.KeyOf(ia);
  std::optional<uint32_t> wish;
  for (size_t i = 0; i < ia.count && !wish; ++i) wish = IndexOf(ia.addresses[i]);
  const std::optional<uint32_t> index = pool_.Choose(client, wish, now_ns);
  WriteOption(kIaNa, out, [&] {
    out->U32(ia.id);
    if (!index.has_value()) {
      out->U64(0);
      WriteStatus(kNoAddrsAvail, out);
      return;
    }
    const uint32_t lease = config_->lease_s;
    out->U32(lease / 2);
    out->U32(lease - lease / 5);
    const Ipv6Address address = AddressOf(*index);
    const auto write_address = [&](const Ipv6Address& a, uint32_t lifetime) {
      WriteOption(kIaAddress, out, [&] {
        out->Put(a.bytes);
        out->U32(lifetime);
        out->U32(lifetime);
      });
    };
    write_address(address, lease);
    // What it has of elsewhere, it is to stop using (RFC 8415 18.3.4).
    if (!brief && (request.type == kRenew || request.type == kRebind)) {
      for (size_t i = 0; i < ia.count; ++i) {
        if (ia.addresses[i] != address) write_address(ia.addresses[i], 0);
      }
    }
    const bool commit = request.type != kSolicit || request.rapid_commit;
    const LeasePool::Lease& lease_now = pool_.leases()[*index];
    if (commit) {
      pool_.Give(client, *index, LeasePool::State::kBound, now_ns + lease * kSecondNs);
      reply->bound[at] = address;
    } else if (lease_now.state != LeasePool::State::kBound || lease_now.client != client ||
               lease_now.expires_ns < now_ns + kOfferNs) {
      pool_.Give(client, *index, LeasePool::State::kOffered, now_ns + kOfferNs);
    }
  });
}

// RELEASE and DECLINE.
void Dhcp6Server::EndIa(const Request& request, const Ia& ia, uint64_t now_ns, size_t at,
                        Writer* out, Reply* reply) {
  const std::string client = request.KeyOf(ia);
  bool found = false;
  for (size_t i = 0; i < ia.count && ia.kind == kIaNa; ++i) {
    const std::optional<uint32_t> index = IndexOf(ia.addresses[i]);
    if (!index.has_value()) continue;
    const bool ended = request.type == kDecline
                           ? pool_.Decline(client, *index, now_ns + kDeclineNs, now_ns)
                           : pool_.Release(client, *index, now_ns);
    if (!ended) continue;
    found = true;
    reply->released[at] = ia.addresses[i];
  }
  if (found) return;
  WriteOption(ia.kind, out, [&] {
    out->U32(ia.id);
    if (ia.kind != kIaTa) out->U64(0);
    WriteStatus(kNoBinding, out);
  });
}

Dhcp6Server::Reply Dhcp6Server::Handle(Bytes message, bool unicast, uint64_t now_ns,
                                       std::span<uint8_t> out) {
  Reply reply;
  const std::optional<Request> request = ParseRequest(message);
  if (!request.has_value()) return reply;
  const bool known = !request->client.empty();
  const bool to_server = !request->server.empty();
  Writer w(out);
  const std::span<const Ia> ias(request->ias.data(), request->ia_count);
  const auto finish = [&] {
    reply.size = w.ok() ? w.position() : 0;
    return reply;
  };

  // Which messages are valid: RFC 8415 16.
  switch (request->type) {
    case kSolicit:
    case kConfirm:
    case kRebind:
      if (!known || to_server || unicast) return reply;
      break;
    case kRequest:
    case kRenew:
    case kRelease:
    case kDecline:
      if (!known || !to_server || !IsServer(request->server)) return reply;
      if (unicast) {
        WriteHeader(*request, kReply, &w);
        WriteStatus(kUseMulticast, &w);
        return finish();
      }
      break;
    case kInformationRequest:
      if ((to_server && !IsServer(request->server)) || !ias.empty() || unicast) return reply;
      break;
    default:
      return reply;
  }

  if (request->type == kInformationRequest) {
    WriteHeader(*request, kReply, &w);
    WriteConfiguration(&w);
    return finish();
  }
  if (request->type == kConfirm) {
    bool any = false;
    bool on_link = true;
    for (const Ia& ia : ias) {
      for (size_t i = 0; i < ia.count; ++i) {
        any = true;
        on_link = on_link && ia.addresses[i].InPrefix(config_->prefix6, 64);
      }
    }
    if (!any) return reply;
    WriteHeader(*request, kReply, &w);
    WriteStatus(on_link ? kSuccess : kNotOnLink, &w);
    return finish();
  }
  if (request->type == kRelease || request->type == kDecline) {
    WriteHeader(*request, kReply, &w);
    WriteStatus(kSuccess, &w);
    for (size_t i = 0; i < ias.size(); ++i) EndIa(*request, ias[i], now_ns, i, &w, &reply);
    return finish();
  }
  const bool advertise = request->type == kSolicit && !request->rapid_commit;
  // An answer that does not fit says again no more than what is the client's.
  for (const bool brief : {false, true}) {
    w = Writer(out);
    WriteHeader(*request, advertise ? kAdvertise : kReply, &w);
    if (request->type == kSolicit && request->rapid_commit) WriteOption(kRapidCommit, &w, [] {});
    for (size_t i = 0; i < ias.size(); ++i) {
      AnswerIa(*request, ias[i], now_ns, i, brief, &w, &reply);
    }
    WriteConfiguration(&w);
    if (w.ok()) break;
  }
  return finish();
}

}  // namespace virtbay::proxy_net
