#include "plugins/proxy-net/lan/dhcp4.h"

#include <algorithm>
#include <array>

namespace virtbay::proxy_net {
namespace {

constexpr uint32_t kCookie = 0x63825363;
// A message of BOOTP has at least this many bytes, and some clients still look.
constexpr size_t kMinSize = 300;
constexpr size_t kIpUdpSize = 28;
constexpr uint64_t kOfferNs = 120 * kSecondNs;
constexpr uint64_t kDeclineNs = 600 * kSecondNs;

enum MessageType : uint8_t {
  kDiscover = 1,
  kOffer = 2,
  kRequest = 3,
  kDecline = 4,
  kAck = 5,
  kNak = 6,
  kRelease = 7,
  kInform = 8,
};

enum Option : uint8_t {
  kPad = 0,
  kSubnetMask = 1,
  kRouter = 3,
  kDns = 6,
  kHostName = 12,
  kDomain = 15,
  kMtu = 26,
  kBroadcastAddress = 28,
  kRequestedAddress = 50,
  kLeaseTime = 51,
  kOverload = 52,
  kMessageType = 53,
  kServerId = 54,
  kMaxSize = 57,
  kRenewalTime = 58,
  kRebindingTime = 59,
  kClientId = 61,
  kRapidCommit = 80,
  kDomainSearch = 119,
  kEnd = 255,
};

}  // namespace

struct Dhcp4Server::Request {
  uint8_t type = 0;
  uint32_t xid = 0;
  uint16_t secs = 0;
  uint16_t flags = 0;
  Ipv4Address ciaddr;
  Bytes chaddr;  // all 16 bytes
  MacAddress mac;
  std::string client;
  Bytes client_id;  // to be sent back (RFC 6842)
  std::optional<Ipv4Address> requested;
  std::optional<Ipv4Address> server;
  std::optional<uint32_t> lease_s;
  size_t max_size = 576;
  bool rapid_commit = false;

  // What one field of options says; false when it is none.
  bool ReadOptions(Bytes field, uint8_t* overload) {
    Reader in(field);
    while (in.left() != 0) {
      const uint8_t code = in.U8();
      if (code == kPad) continue;
      if (code == kEnd) return true;
      Reader value(in.Take(in.U8()));
      if (!in.ok()) return false;
      const size_t size = value.left();
      switch (code) {
        case kMessageType:
          if (size != 1) return false;
          type = value.U8();
          break;
        case kRequestedAddress:
          if (size != 4) return false;
          requested = Ipv4Address{value.U32()};
          break;
        case kServerId:
          if (size != 4) return false;
          server = Ipv4Address{value.U32()};
          break;
        case kLeaseTime:
          if (size != 4) return false;
          lease_s = value.U32();
          break;
        case kOverload:
          if (size != 1) return false;
          *overload = value.U8();
          break;
        case kMaxSize:
          if (size != 2) return false;
          max_size = std::max<size_t>(value.U16(), 576);
          break;
        case kClientId:
          if (size < 2) return false;
          client_id = value.rest();
          break;
        case kRapidCommit:
          rapid_commit = true;
          break;
        default:
          break;
      }
    }
    // A message cut behind its last whole option is taken for one that ends there.
    return true;
  }
};

Dhcp4Server::Dhcp4Server(const LanConfig* config) : config_(config), pool_(config->pool_size) {}

std::optional<Dhcp4Server::Request> Dhcp4Server::ParseRequest(Bytes message) {
  Reader in(message);
  Request out;
  const uint8_t op = in.U8();
  const uint8_t hardware = in.U8();
  const uint8_t hardware_length = in.U8();
  in.Skip(1);
  out.xid = in.U32();
  out.secs = in.U16();
  out.flags = in.U16();
  out.ciaddr = {in.U32()};
  in.Skip(8);
  const uint32_t giaddr = in.U32();
  out.chaddr = in.Take(16);
  const Bytes server_name = in.Take(64);
  const Bytes file = in.Take(128);
  const uint32_t cookie = in.U32();
  // What a relay sent belongs to another link.
  if (!in.ok() || op != 1 || hardware != 1 || hardware_length != 6 || giaddr != 0 ||
      cookie != kCookie) {
    return std::nullopt;
  }
  std::copy_n(out.chaddr.begin(), 6, out.mac.bytes.begin());
  if (out.mac.IsMulticast() || out.mac.IsZero()) return std::nullopt;
  uint8_t overload = 0;
  uint8_t none = 0;
  if (!out.ReadOptions(in.rest(), &overload)) return std::nullopt;
  if ((overload & 1) != 0 && !out.ReadOptions(file, &none)) return std::nullopt;
  if ((overload & 2) != 0 && !out.ReadOptions(server_name, &none)) return std::nullopt;
  // BOOTP without DHCP has no type, and no lease.
  if (out.type == 0) return std::nullopt;
  const Bytes id = out.client_id.empty() ? out.chaddr.first(6) : out.client_id;
  out.client.assign(out.client_id.empty() ? "m" : "i");
  out.client.append(id.begin(), id.end());
  out.client.resize(std::min(out.client.size(), LeasePool::kMaxClient));
  return out;
}

std::optional<uint32_t> Dhcp4Server::IndexOf(Ipv4Address address) const {
  if (address < config_->guest) return std::nullopt;
  const uint32_t index = address.value - config_->guest.value;
  return index < pool_.leases().size() ? std::optional(index) : std::nullopt;
}

uint32_t Dhcp4Server::LeaseSeconds(const Request& request) const {
  return std::clamp<uint32_t>(request.lease_s.value_or(config_->lease_s), 1, config_->lease_s);
}

Dhcp4Server::Reply Dhcp4Server::Handle(Bytes message, uint64_t now_ns, std::span<uint8_t> out) {
  const std::optional<Request> request = ParseRequest(message);
  if (!request.has_value()) return {};
  Reply reply;
  switch (request->type) {
    case kDiscover:
      return Discover(*request, now_ns, out);
    case kRequest:
      return HandleRequest(*request, now_ns, out);
    case kDecline:
      // RFC 2131 table 5: the address is in the option, ciaddr is 0.
      if (request->server == config_->gateway && request->requested.has_value()) {
        const auto index = IndexOf(*request->requested);
        if (index && pool_.Decline(request->client, *index, now_ns + kDeclineNs, now_ns)) {
          reply.released = request->requested;
        }
      }
      return reply;
    case kRelease:
      if (request->server == config_->gateway) {
        const auto index = IndexOf(request->ciaddr);
        if (index && pool_.Release(request->client, *index, now_ns)) {
          reply.released = request->ciaddr;
        }
      }
      return reply;
    case kInform:
      if (!config_->InSubnet(request->ciaddr)) return reply;
      return Write(*request, kAck, std::nullopt, out);
    default:
      return reply;
  }
}

Dhcp4Server::Reply Dhcp4Server::Discover(const Request& request, uint64_t now_ns,
                                         std::span<uint8_t> out) {
  std::optional<uint32_t> wish;
  if (request.requested.has_value()) wish = IndexOf(*request.requested);
  const std::optional<uint32_t> index = pool_.Choose(request.client, wish, now_ns);
  if (!index.has_value()) return {};
  if (request.rapid_commit) {
    pool_.Give(request.client, *index, LeasePool::State::kBound,
               now_ns + LeaseSeconds(request) * kSecondNs);
    Reply reply = Write(request, kAck, AddressOf(*index), out);
    reply.bound = AddressOf(*index);
    return reply;
  }
  // One that is bound stays bound: who asks again may just have lost the answer.
  const LeasePool::Lease& lease = pool_.leases()[*index];
  if (lease.state != LeasePool::State::kBound || lease.client != request.client ||
      lease.expires_ns < now_ns + kOfferNs) {
    pool_.Give(request.client, *index, LeasePool::State::kOffered, now_ns + kOfferNs);
  }
  return Write(request, kOffer, AddressOf(*index), out);
}

Dhcp4Server::Reply Dhcp4Server::HandleRequest(const Request& request, uint64_t now_ns,
                                              std::span<uint8_t> out) {
  const bool selecting = request.server.has_value();
  if (selecting && *request.server != config_->gateway) {
    // It took the offer of somebody else.
    if (const auto offered = pool_.Of(request.client, now_ns)) {
      pool_.Release(request.client, *offered, now_ns);
    }
    return {};
  }
  // SELECTING and INIT-REBOOT name the address in the option, RENEWING and REBINDING in ciaddr
  // (RFC 2131 4.3.2).
  const Ipv4Address address = request.requested.value_or(request.ciaddr);
  if (address.IsUnspecified()) return {};
  const std::optional<uint32_t> index = IndexOf(address);
  const std::optional<uint32_t> own = pool_.Of(request.client, now_ns);
  const bool granted = index.has_value() && (!own.has_value() || *own == *index) &&
                       pool_.MayHave(request.client, *index, now_ns) &&
                       (!selecting || own.has_value());
  if (!granted) return Nak(request, out);
  pool_.Give(request.client, *index, LeasePool::State::kBound,
             now_ns + LeaseSeconds(request) * kSecondNs);
  Reply reply = Write(request, kAck, address, out);
  reply.bound = address;
  return reply;
}

Dhcp4Server::Reply Dhcp4Server::Nak(const Request& request, std::span<uint8_t> out) const {
  Request plain = request;
  plain.ciaddr = {};
  Reply reply = Write(plain, kNak, std::nullopt, out);
  // Whoever it is has no address that is good for anything (RFC 2131 4.1).
  reply.destination = {0xffffffff};
  reply.mac = MacAddress::Broadcast();
  return reply;
}

Dhcp4Server::Reply Dhcp4Server::Write(const Request& request, uint8_t type,
                                      std::optional<Ipv4Address> address,
                                      std::span<uint8_t> out) const {
  const bool nak = type == kNak;
  const bool inform = request.type == kInform;
  // Within what the client takes, what the link carries, and the buffer.
  const size_t room = std::min({out.size(), request.max_size - kIpUdpSize,
                                std::max<size_t>(config_->mtu, 576) - kIpUdpSize});
  Writer w(out.first(room));
  w.U8(2);
  w.U8(1);
  w.U8(6);
  w.U8(0);
  w.U32(request.xid);
  w.U16(0);
  w.U16(request.flags);
  w.U32(type == kAck ? request.ciaddr.value : 0);
  w.U32(address.value_or(Ipv4Address()).value);
  w.U32(0);
  w.U32(0);
  w.Put(request.chaddr);
  w.Fill(64 + 128);
  w.U32(kCookie);
  if (!w.ok()) return {};

  // Those that do not fit with the end behind them are left out, the last ones first.
  const auto option = [&](Option code, auto write) {
    std::array<uint8_t, 255> value;
    Writer v(value);
    write(&v);
    const auto written = v.written();
    if (!v.ok() || written.size() + 2 + 1 > w.left()) return;
    w.U8(code);
    w.U8(static_cast<uint8_t>(written.size()));
    w.Put(written);
  };
  const auto address_option = [&](Option code, Ipv4Address a) {
    option(code, [&](Writer* v) { v->U32(a.value); });
  };
  const auto text_option = [&](Option code, const std::string& text) {
    option(code, [&](Writer* v) {
      v->Put(Bytes(reinterpret_cast<const uint8_t*>(text.data()), text.size()));
    });
  };
  option(kMessageType, [&](Writer* v) { v->U8(type); });
  address_option(kServerId, config_->gateway);
  if (!nak) {
    if (!inform) {
      const uint32_t lease = LeaseSeconds(request);
      option(kLeaseTime, [&](Writer* v) { v->U32(lease); });
      option(kRenewalTime, [&](Writer* v) { v->U32(lease / 2); });
      option(kRebindingTime, [&](Writer* v) { v->U32(lease - lease / 8); });
      if (request.rapid_commit && request.type == kDiscover) option(kRapidCommit, [](Writer*) {});
    }
    // The mask stands before the router (RFC 2132 3.3).
    address_option(kSubnetMask, Netmask(config_->prefix_length));
    address_option(kRouter, config_->gateway);
    option(kDns, [&](Writer* v) {
      bool any = false;
      for (const IpAddress& a : config_->dns) {
        if (!a.is_v4()) continue;
        any = true;
        if (v->left() >= 4) v->U32(a.v4().value);
      }
      if (!any) v->U32(config_->gateway.value);
    });
    option(kMtu, [&](Writer* v) { v->U16(config_->mtu); });
    address_option(kBroadcastAddress, config_->SubnetBroadcast());
    if (config_->domain.has_value()) text_option(kDomain, config_->domain->ToString());
    if (!config_->hostname.empty()) text_option(kHostName, config_->hostname);
    if (!config_->search.empty()) {
      // A list longer than one option goes on in the next of the same code (RFC 3396).
      std::array<uint8_t, 1024> list;
      Writer v(list);
      WriteNamesCompressed(config_->search, &v);
      const std::span<const uint8_t> written = v.written();
      const size_t pieces = (written.size() + 254) / 255;
      if (v.ok() && written.size() + 2 * pieces + 1 <= w.left()) {
        for (size_t at = 0; at < written.size(); at += 255) {
          const auto piece = written.subspan(at, std::min<size_t>(255, written.size() - at));
          w.U8(kDomainSearch);
          w.U8(static_cast<uint8_t>(piece.size()));
          w.Put(piece);
        }
      }
    }
  }
  if (!request.client_id.empty()) option(kClientId, [&](Writer* v) { v->Put(request.client_id); });
  w.U8(kEnd);
  if (w.position() < kMinSize) w.Fill(kMinSize - w.position());
  if (!w.ok()) return {};

  Reply reply;
  reply.size = w.position();
  reply.mac = request.mac;
  if (!request.ciaddr.IsUnspecified()) {
    reply.destination = request.ciaddr;
  } else if ((request.flags & 0x8000) != 0 || !address.has_value()) {
    reply.destination = {0xffffffff};
    reply.mac = MacAddress::Broadcast();
  } else {
    reply.destination = *address;
  }
  return reply;
}

}  // namespace virtbay::proxy_net
