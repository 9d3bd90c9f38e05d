#include "plugins/proxy-net/gateway.h"

#include <sys/epoll.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "plugins/proxy-net/flow/socket_check.h"
#include "plugins/proxy-net/packet/build.h"
#include "plugins/proxy-net/packet/cursor.h"

namespace virtbay::proxy_net {
namespace {

constexpr uint16_t kDnsPort = 53;

Bytes AsBytes(std::span<const std::byte> bytes) {
  return {reinterpret_cast<const uint8_t*>(bytes.data()), bytes.size()};
}

}  // namespace

uint64_t NumberOf(const MacAddress& mac) {
  uint64_t number = 0;
  for (const uint8_t byte : mac.bytes) number = number << 8 | byte;
  return number;
}

MacAddress MacOf(uint64_t number) {
  MacAddress mac;
  for (size_t i = 0; i < 6; ++i) mac.bytes[i] = static_cast<uint8_t>(number >> (40 - 8 * i));
  return mac;
}

std::optional<IpAddress> OwnAddress(const Frame& frame, Bytes headers) {
  if (!frame.ip.has_value()) return std::nullopt;
  IpAddress mine = frame.ip->source;
  const IcmpHeader* icmp = frame.icmp();
  if (!mine.is_v4() && mine.IsUnspecified() && icmp != nullptr &&
      icmp->type == IcmpHeader::kV6NeighborSolicitation) {
    Reader in(headers.subspan(std::min(headers.size(), frame.transport_offset + kIcmpSize)));
    mine = ReadIpv6(&in);
    if (!in.ok()) return std::nullopt;
  }
  if (mine.IsUnspecified()) return std::nullopt;
  return mine;
}

Gateway::Gateway(sdk::NetDevice* device, const Options* options, std::atomic<uint64_t>* mac)
    : device_(device), options_(options), mac_(mac), lan_(options->lan, [this](Bytes bytes) {
        if (!running_) return;
        UpdateMetrics();
        device_->SendFrame(0, std::as_bytes(bytes));
      }) {}

sdk::Status Gateway::Open(DnsConfig config, Shard* shard, std::function<void()> rules_changed) {
  shard_ = shard;
  rules_changed_ = std::move(rules_changed);
  DnsService::Callbacks callbacks;
  callbacks.answer = [this](const DnsClient& to, Bytes answer, DnsTransport) {
    SendDnsAnswer(to.endpoint, answer);
  };
  callbacks.search = [this](const std::vector<DomainName>& search) {
    if (!options_->search.has_value()) lan_.SetNames(options_->lan.dns, search, NowNs());
  };
  const sdk::Host& host = device_->host();
  config.resolver.descriptors = {[&host] { return host.TakeDescriptor(0); },
                                 [&host] { host.GiveDescriptor(); }};
  auto dns = DnsService::Create(std::move(config), std::move(callbacks));
  if (!dns.ok()) return dns.error();
  dns_ = std::move(dns.value());
  metrics_.Bind(host);
  bool watched = shard_->WatchOther(dns_->fd(), EPOLLIN, kDnsToken);
  if (options_->ipv6 == Ipv6Mode::kAuto || options_->deny_host_addresses) {
    auto uplink = UplinkWatcher::Open();
    if (!uplink.ok()) return uplink.error();
    uplink_ = std::move(uplink.value());
    watched = watched && shard_->WatchOther(uplink_.fd(), EPOLLIN, kUplinkToken);
  }
  if (!watched) return sdk::Errno(errno, "proxy-net: epoll");
  return {};
}

// ---- frames -------------------------------------------------------------------------------------

bool Gateway::Wants(const Frame& frame) const {
  if (lan_.Wants(frame)) return true;
  const UdpHeader* udp = frame.udp();
  return udp != nullptr && udp->destination_port == kDnsPort &&
         lan_.IsGateway(frame.ip->destination);
}

void Gateway::OnFrame(const sdk::TxFrame& frame, const Frame& parsed) {
  if (!lan_.Wants(parsed)) return OnDnsQuery(frame, parsed, *parsed.udp());
  if (frame.size() > Lan::kMaxFrame) return device_->CountTxDrop("lan_too_long");
  std::array<std::byte, Lan::kMaxFrame> copy;
  const std::span<std::byte> bytes = std::span(copy).first(frame.size());
  if (!frame.Copy(0, bytes)) return device_->CountTxDrop("copy");
  lan_.OnFrame(parsed, AsBytes(bytes), !frame.offload().needs_csum, NowNs());
}

void Gateway::Note(const Frame& frame, Bytes headers) {
  const MacAddress& mac = frame.ethernet.source;
  if (mac != Mac() && !mac.IsMulticast() && !mac.IsZero()) {
    mac_->store(NumberOf(mac), std::memory_order_relaxed);
  }
  const std::optional<IpAddress> mine = OwnAddress(frame, headers);
  if (!mine.has_value()) return;
  if (mine->is_v4()) {
    if (mine == guest4_ || !options_->lan.InSubnet(mine->v4())) return;
    guest4_ = mine;
    return lan_.Learn(frame, NowNs());
  }
  if (mine == guest6_ || mine->IsLinkLocal() || !mine->v6().InPrefix(options_->lan.prefix6, 64)) {
    return;
  }
  guest6_ = mine;
  if (mine == frame.ip->source) lan_.Learn(frame, NowNs());
}

void Gateway::OnDnsQuery(const sdk::TxFrame& frame, const Frame& parsed, const UdpHeader& udp) {
  std::array<std::byte, 4096> copy;
  if (parsed.payload_length > copy.size()) return device_->CountTxDrop("dns_too_long");
  const std::span<std::byte> query = std::span(copy).first(parsed.payload_length);
  if (!frame.Copy(static_cast<uint32_t>(parsed.payload_offset), query)) {
    return device_->CountTxDrop("copy");
  }
  dns_->Query({{parsed.ip->source, udp.source_port}, 0}, AsBytes(query), DnsTransport::kDatagram,
              NowNs());
}

void Gateway::SendDnsAnswer(const Endpoint& to, Bytes answer) {
  const size_t size = kUdpSize + answer.size();
  if (size > transport_.size()) return;
  Writer writer(transport_);
  UdpHeader udp;
  udp.source_port = kDnsPort;
  udp.destination_port = to.port;
  udp.length = static_cast<uint16_t>(size);
  WriteUdp(udp, &writer);
  writer.Put(answer);
  UpdateMetrics();
  IpAddress from = Address(to.address.is_v6());
  if (to.address.is_v6() && to.address.IsLinkLocal()) from = lan_.config().gateway_link_local();
  if (!shard_->core().SendPacket(from, to.address, kProtocolUdp, 64, writer.written())) {
    device_->CountRxDrop("dns_no_buffers");
  }
}

// ---- events -------------------------------------------------------------------------------------

void Gateway::Start() {
  running_ = true;
  dns_->Resume(NowNs());
  const bool ipv6 = options_->ipv6 == Ipv6Mode::kOn ||
                    (options_->ipv6 == Ipv6Mode::kAuto && UplinkWatcher::HasIpv6());
  if (options_->ipv6 != Ipv6Mode::kOff && !ends_) lan_.SetIpv6(ipv6, NowNs());
}

void Gateway::TakeBack() {
  lan_.Shutdown(NowNs());
  ends_ = true;
}

void Gateway::OnOther(uint32_t token) {
  if (token == kDnsToken) return dns_->OnReady(NowNs());
  if (token != kUplinkToken || !uplink_.OnReady()) return;
  if (options_->ipv6 == Ipv6Mode::kAuto && !ends_) lan_.SetIpv6(UplinkWatcher::HasIpv6(), NowNs());
  if (options_->deny_host_addresses) rules_changed_();
}

// ---- state --------------------------------------------------------------------------------------

namespace {
constexpr uint32_t kLanSection = 1;
constexpr uint32_t kGuestSection = 2;
constexpr uint32_t kDnsSection = 3;
// Beside that of the flows.
constexpr uint32_t kDnsRole = 2;
constexpr size_t kGuestSize = 6 + 1 + 4 + 1 + 16;
}  // namespace

void Gateway::Save(sdk::StateWriter* state) const {
  const std::vector<uint8_t> lan = lan_.Save(NowNs());
  state->Add(kLanSection, lan.data(), lan.size());
  std::array<uint8_t, kGuestSize> guest{};
  Writer writer(guest);
  writer.Put(Mac().bytes);
  writer.U8(guest4_.has_value() ? 1 : 0);
  writer.Put(guest4_.value_or(Ipv4Address{}).bytes());
  writer.U8(guest6_.has_value() ? 1 : 0);
  writer.Put(guest6_.value_or(Ipv6Address{}).bytes());
  state->Add(kGuestSection, guest.data(), guest.size());
  std::vector<int> streams;
  const std::vector<uint8_t> dns = dns_->Save(&streams);
  state->Add(kDnsSection, dns.data(), dns.size());
  for (const int fd : streams) state->AddFd(kDnsRole, fd);
}

sdk::Status Gateway::Restore(sdk::StateReader* state) {
  const auto lan = state->Find(kLanSection);
  const auto guest = state->Find(kGuestSection);
  if (!lan.has_value() || !guest.has_value() || guest->size() < kGuestSize) {
    return sdk::InvalidArgument("the state has no link");
  }
  sdk::Status status = lan_.Restore(AsBytes(*lan), NowNs());
  if (!status.ok()) return status;
  Reader in(AsBytes(*guest));
  const MacAddress mac = ReadMac(&in);
  const bool has4 = in.U8() != 0;
  const IpAddress four = ReadIpv4(&in);
  const bool has6 = in.U8() != 0;
  const IpAddress six = ReadIpv6(&in);
  mac_->store(NumberOf(mac), std::memory_order_relaxed);
  if (has4 && options_->lan.InSubnet(four.v4())) guest4_ = four;
  if (has6 && six.v6().InPrefix(options_->lan.prefix6, 64)) guest6_ = six;
  // An older state has none.
  const auto dns = state->Find(kDnsSection);
  if (!dns.has_value()) return {};
  const std::vector<int> streams = state->TakeFds(kDnsRole);
  for (const int fd : streams) {
    const char* const why = WhyNotSocket(fd, kProtocolTcp, true, SocketRole::kService);
    if (why == nullptr) continue;
    for (const int each : streams) close(each);
    return sdk::InvalidArgument(std::string("a stream of the state's resolver: ") + why);
  }
  return dns_->Restore(AsBytes(*dns), streams, NowNs());
}

// ---- what it knows ------------------------------------------------------------------------------

MacAddress Gateway::Mac() const { return MacOf(mac_->load(std::memory_order_relaxed)); }

IpAddress Gateway::Address(bool v6) const {
  if (v6) return options_->lan.gateway6();
  return options_->lan.gateway;
}

std::optional<IpAddress> Gateway::GuestAddress(bool v6) const {
  if (!v6) return guest4_.value_or(options_->lan.guest);
  if (!lan_.ipv6_up()) return std::nullopt;
  return guest6_.value_or(Ipv6Address::EuiOf(options_->lan.prefix6, Mac()));
}

}  // namespace virtbay::proxy_net
