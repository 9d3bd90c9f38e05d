// The proxy-net device (virtio 1.3 5.1): a guest's network that ends in user space.
#include <poll.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <chrono>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "plugins/proxy-net/dns/dns_service.h"
#include "plugins/proxy-net/flow/forward.h"
#include "plugins/proxy-net/flow/shard.h"
#include "plugins/proxy-net/flow_options.h"
#include "plugins/proxy-net/lan/lan.h"
#include "plugins/proxy-net/lan/uplink_watcher.h"
#include "plugins/proxy-net/mailbox.h"
#include "plugins/proxy-net/options.h"
#include "plugins/proxy-net/packet/build.h"
#include "plugins/proxy-net/packet/parse.h"
#include "plugins/proxy-net/part_metrics.h"
#include "plugins/proxy-net/policy/policy_store.h"
#include "virtbay/sdk/net_device.h"
#include "virtbay/sdk/plugin.h"

namespace virtbay::proxy_net {
namespace {

using sdk::NetConfig;
using sdk::NetDevice;
using sdk::Status;
using sdk::TxFrame;

constexpr uint16_t kDnsPort = 53;
// The parts' own, but for those that every network device has.
constexpr auto kOwnOptions = [] {
  std::array<virtbay_option, kOptionList.size() + kFlowOptionList.size()> all{};
  std::copy(kOptionList.begin(), kOptionList.end(), all.begin());
  std::copy(kFlowOptionList.begin(), kFlowOptionList.end(), all.begin() + kOptionList.size());
  return all;
}();
constexpr auto kAllOptions = sdk::NetOptions(kOwnOptions);

constexpr uint32_t kShownFlows = 10'000;
constexpr uint64_t kNoAlarm = UINT64_MAX;

Bytes AsBytes(std::span<const std::byte> bytes) {
  return {reinterpret_cast<const uint8_t*>(bytes.data()), bytes.size()};
}

Protocol ProtocolOf(uint8_t protocol) {
  if (protocol == kProtocolTcp) return Protocol::kTcp;
  return protocol == kProtocolUdp ? Protocol::kUdp : Protocol::kIcmp;
}

// As metrics are named.
const char* DropName(Refusal refusal) {
  switch (refusal) {
    case Refusal::kTruncated:
      return "truncated";
    case Refusal::kLength:
      return "length";
    case Refusal::kVersion:
      return "version";
    case Refusal::kHeaderLength:
      return "header_length";
    case Refusal::kExtensionHeader:
      return "extension_header";
    case Refusal::kChecksum:
      return "ip_checksum";
    case Refusal::kUnsupported:
    case Refusal::kNone:
      break;
  }
  return "unsupported";
}

class ProxyNet final : public NetDevice, public FlowHost {
 public:
  static constexpr auto& kOptions = kAllOptions;

  ~ProxyNet() override = default;

  // ---- NetDevice ------------------------------------------------------------------------------

  Status Configure(NetConfig* config) override {
    if (Status read = ReadOptions(config); !read.ok()) return read;
    lan_ = std::make_unique<Lan>(options_.lan, [this](Bytes bytes) {
      if (!running_) return;
      UpdateMetrics();
      SendFrame(0, std::as_bytes(bytes));
    });
    store_.Change([&](Policy* policy) {
      policy->SetRules(options_.rules);
      policy->SetHostAlias(options_.host);
      if (options_.deny_host_addresses) {
        policy->SetDeniedHostAddresses(UplinkWatcher::HostAddresses());
      }
    });
    store_.Refresh(&policy_);

    DnsService::Callbacks callbacks;
    callbacks.answer = [this](const DnsClient& to, Bytes answer, DnsTransport) {
      SendDnsAnswer(to.endpoint, answer);
    };
    callbacks.search = [this](const std::vector<DomainName>& search) {
      if (!options_.search.has_value()) lan_->SetNames(options_.lan.dns, search, NowNs());
    };
    options_.dns.resolver.descriptors = {[this] { return TakeDescriptor(); },
                                         [this] { GiveDescriptor(); }};
    auto dns = DnsService::Create(options_.dns, std::move(callbacks));
    if (!dns.ok()) return dns.error();
    dns_ = std::move(dns.value());

    shard_ =
        std::make_unique<Shard>(this, 0, this, &counters_, flow_options_.limits, SipKey::Random());
    if (!shard_->ok() || mailbox_.fd() < 0) {
      return sdk::Error{VIRTBAY_RESOURCE_EXHAUSTED, 0,
                        "proxy-net: no descriptor or no address space for its flows"};
    }
    shard_->SetMacs(mac_, options_.lan.gateway_mac);
    for (size_t i = 0; i < kEvents; ++i) {
      counters_.Bind(static_cast<Event>(i),
                     host().Counter(kEventNames[i].name, kEventNames[i].help));
    }
    metrics_.Bind(host());
    bool watched = shard_->WatchOther(mailbox_.fd(), EPOLLIN, kMailboxToken) &&
                   shard_->WatchOther(dns_->fd(), EPOLLIN, kDnsToken);
    if (options_.ipv6 == Ipv6Mode::kAuto || options_.deny_host_addresses) {
      auto uplink = UplinkWatcher::Open();
      if (!uplink.ok()) return uplink.error();
      uplink_ = std::move(uplink.value());
      watched = watched && shard_->WatchOther(uplink_.fd(), EPOLLIN, kUplinkToken);
    }
    if (!watched) return sdk::Errno(errno, "proxy-net: epoll");
    for (Forward& forward : flow_options_.forwards) {
      const Status added = AddForward(&forward);
      if (!added.ok()) {
        return sdk::Error{added.error().code, added.error().sys_errno,
                          absl::StrCat("option forward: ", added.error().text)};
      }
    }
    return {};
  }

  void OnDeactivate() override {
    mailbox_.Run([this] { shard_->DropFlows(); });
  }

  void OnMac(const sdk::MacAddress& mac) override {
    mac_ = MacAddress{mac};
    shard_->SetMacs(mac_, options_.lan.gateway_mac);
  }

  void OnPairStart(uint32_t) override {
    armed_.fill(kNoAlarm);
    running_ = true;
    mailbox_.SetServing(true);
    Watch(0, shard_->epoll_fd(), POLLIN);
    const bool ipv6 = options_.ipv6 == Ipv6Mode::kOn ||
                      (options_.ipv6 == Ipv6Mode::kAuto && UplinkWatcher::HasIpv6());
    if (options_.ipv6 != Ipv6Mode::kOff) lan_->SetIpv6(ipv6, NowNs());
    shard_->OnTimer();
    Arm();
  }

  void OnPairStop(uint32_t) override {
    mailbox_.SetServing(false);
    running_ = false;
  }

  void OnFrames(uint32_t, std::span<TxFrame> frames) override {
    shard_->BeginBurst();
    for (const TxFrame& frame : frames) OnFrame(frame);
    shard_->EndBurst();
    Arm();
  }

  void OnRxBuffers(uint32_t) override {
    shard_->OnRxBuffers();
    Arm();
  }

  void OnReady(uint32_t, int32_t) override {
    shard_->OnReady();
    Watch(0, shard_->epoll_fd(), POLLIN);
    Arm();
  }

  void OnAlarm(uint32_t, uint64_t cookie) override {
    armed_[cookie] = kNoAlarm;
    switch (cookie) {
      case kFlowAlarm:
        shard_->OnTimer();
        break;
      case kContinueAlarm:
        shard_->Continue();
        break;
      case kLanAlarm:
        lan_->OnTime(NowNs());
        break;
      case kDnsAlarm:
        dns_->OnTime(NowNs());
        break;
      default:
        break;
    }
    Arm();
  }

  sdk::Result<std::string> OnControl(std::string_view command, std::string_view text) override {
    if (command == "forward-add") return ForwardAdd(text);
    if (command == "forward-remove") return ForwardRemove(text);
    if (command == "forward-list") return ForwardList();
    if (command == "rule-add") return RuleAdd(text);
    if (command == "rule-remove") return RuleRemove(text);
    if (command == "rule-list") return RuleList();
    if (command == "flows") return Flows();
    return sdk::Error{VIRTBAY_UNIMPLEMENTED, 0,
                      absl::StrCat("no command '", std::string(command),
                                   "'; there are link, announce, show, flows, forward-add, "
                                   "forward-remove, forward-list, rule-add, rule-remove and "
                                   "rule-list")};
  }

  std::string OnShow() override {
    std::string text;
    const Status done = OnQueue([&] {
      const Shard::Totals t = shard_->totals();
      text = absl::StrCat("\"guest_address\": \"", GuestAddress(false)->ToString(),
                          "\", \"gateway\": \"", GatewayAddress(false).ToString(),
                          "\", \"ipv6\": ", lan_->ipv6_up() ? "true" : "false",
                          ", \"tcp_flows\": ", t.tcp, ", \"datagram_flows\": ", t.datagram,
                          ", \"half_open\": ", t.half_open, ", \"time_wait\": ", t.time_wait,
                          ", \"listeners\": ", t.listeners,
                          ", \"buffered_bytes\": ", uint64_t{t.spill_chunks} * ChunkPool::kSize,
                          ", \"dns_in_flight\": ", dns_->resolver().in_flight());
    });
    return done.ok() ? text : std::string();
  }

 private:
  static constexpr uint32_t kMailboxToken = 0;
  static constexpr uint32_t kDnsToken = 1;
  static constexpr uint32_t kUplinkToken = 2;

  enum Alarm : uint64_t { kFlowAlarm, kContinueAlarm, kLanAlarm, kDnsAlarm, kAlarms };

  Status ReadOptions(NetConfig* config) {
    if (config->queue_pairs != 1) {
      return sdk::InvalidArgument("option queue-pairs: proxy-net serves one");
    }
    const auto is_in = [](const auto& list, std::string_view key) {
      return std::any_of(list.begin(), list.end(),
                         [&](const virtbay_option& option) { return key == option.name; });
    };
    std::vector<Options::KeyValue> link;
    for (uint32_t i = 0; const char* name = host().OptionName(i); ++i) {
      const std::string_view key(name);
      const std::string value = host().Option(name).value_or("");
      bool known = false;
      if (Status status = flow_options_.Parse(key, value, &known); !status.ok()) return status;
      // Every network device's are its own business, but for the two that the link has to know.
      if (known || (is_in(sdk::kNetOptions, key) && key != "mac" && key != "mtu")) continue;
      link.emplace_back(key, value);
    }
    sdk::Result<Options> options = Options::Parse(link);
    if (!options.ok()) return options.error();
    options_ = std::move(options.value());
    if (!options_.lan.guest_mac.has_value()) {
      const uint64_t random = SipKey::Random().k0;
      options_.lan.guest_mac =
          MacAddress{{0x52, 0x54, 0x00, static_cast<uint8_t>(random),
                      static_cast<uint8_t>(random >> 8), static_cast<uint8_t>(random >> 16)}};
    }
    options_.lan.seed = SipKey::Random().k0;
    mac_ = *options_.lan.guest_mac;
    config->mac = mac_.bytes;
    config->mtu = options_.lan.mtu;
    return {};
  }

  // ---- frames ---------------------------------------------------------------------------------

  void OnFrame(const TxFrame& frame) {
    const Bytes headers = AsBytes(frame.headers());
    const Parsed<Frame> parsed =
        ParseFrame(headers, frame.size(), frame.offload().gso != sdk::Gso::kNone);
    if (!parsed.ok()) return CountTxDrop(DropName(parsed.refusal()));
    if (!lan_->ForGateway(*parsed)) return CountTxDrop("not_for_gateway");
    NoteGuest(*parsed, headers);
    if (lan_->Wants(*parsed)) {
      if (frame.size() > Lan::kMaxFrame) return CountTxDrop("lan_too_long");
      std::array<std::byte, Lan::kMaxFrame> copy;
      const std::span<std::byte> bytes = std::span(copy).first(frame.size());
      if (!frame.Copy(0, bytes)) return CountTxDrop("copy");
      lan_->OnFrame(*parsed, AsBytes(bytes), !frame.offload().needs_csum, NowNs());
      return;
    }
    if (!parsed->ip.has_value()) return CountTxDrop("other_ethertype");
    const IpHeader& ip = *parsed->ip;
    const UdpHeader* udp = parsed->udp();
    if (udp != nullptr && udp->destination_port == kDnsPort && lan_->IsGateway(ip.destination)) {
      return OnDnsQuery(frame, *parsed, *udp);
    }
    shard_->OnPacket(frame, *parsed);
  }

  // Which addresses the guest has, and its hardware address.
  void NoteGuest(const Frame& frame, Bytes headers) {
    const MacAddress& mac = frame.ethernet.source;
    if (mac != mac_ && !mac.IsMulticast() && !mac.IsZero()) {
      mac_ = mac;
      shard_->SetMacs(mac_, options_.lan.gateway_mac);
    }
    if (!frame.ip.has_value()) return;
    const IpAddress& source = frame.ip->source;
    if (source.is_v4()) {
      if (source != guest4_ && !source.IsUnspecified() && options_.lan.InSubnet(source.v4())) {
        guest4_ = source;
        lan_->Learn(frame, NowNs());
      }
      return;
    }
    IpAddress mine = source;
    const IcmpHeader* icmp = frame.icmp();
    if (source.IsUnspecified() && icmp != nullptr &&
        icmp->type == IcmpHeader::kV6NeighborSolicitation) {
      // It asks whether an address is free, to take it (RFC 4862 5.4.2).
      Reader in(headers.subspan(std::min(headers.size(), frame.transport_offset + kIcmpSize)));
      mine = ReadIpv6(&in);
      if (!in.ok()) return;
    }
    if (mine == guest6_ || mine.IsUnspecified() || mine.IsLinkLocal() ||
        !mine.v6().InPrefix(options_.lan.prefix6, 64)) {
      return;
    }
    guest6_ = mine;
    if (mine == source) lan_->Learn(frame, NowNs());
  }

  void OnDnsQuery(const TxFrame& frame, const Frame& parsed, const UdpHeader& udp) {
    std::array<std::byte, 4096> copy;
    if (parsed.payload_length > copy.size()) return CountTxDrop("dns_too_long");
    const std::span<std::byte> query = std::span(copy).first(parsed.payload_length);
    if (!frame.Copy(static_cast<uint32_t>(parsed.payload_offset), query)) {
      return CountTxDrop("copy");
    }
    dns_->Query({{parsed.ip->source, udp.source_port}, 0}, AsBytes(query), DnsTransport::kDatagram,
                NowNs());
  }

  void SendDnsAnswer(const Endpoint& to, Bytes answer) {
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
    IpAddress from = GatewayAddress(to.address.is_v6());
    if (to.address.is_v6() && to.address.IsLinkLocal()) from = lan_->config().gateway_link_local();
    if (!shard_->core().SendPacket(from, to.address, kProtocolUdp, 64, writer.written())) {
      CountRxDrop("dns_no_buffers");
    }
  }

  // ---- FlowHost -------------------------------------------------------------------------------

  uint64_t NowNs() const override { return host().NowNs(); }
  bool TakeDescriptor() override { return host().TakeDescriptor(0); }
  void GiveDescriptor() override { host().GiveDescriptor(); }

  Route RouteOf(uint8_t protocol, const Endpoint& to) override {
    if (lan_->IsGateway(to.address)) {
      if (protocol != kProtocolTcp || to.port != kDnsPort) return {};
      const int service = OpenDnsStream();
      return {service >= 0, to, service};
    }
    const Decision decision = policy_.Judge(to.address, to.port, ProtocolOf(protocol));
    return {decision.allowed(), {decision.target, to.port}, -1};
  }

  bool StillAllowed(uint8_t protocol, const Endpoint& to) override {
    return lan_->IsGateway(to.address) ||
           policy_.Judge(to.address, to.port, ProtocolOf(protocol)).allowed();
  }

  std::optional<IpAddress> GuestAddress(bool v6) const override {
    if (!v6) return guest4_.value_or(options_.lan.guest);
    if (!lan_->ipv6_up()) return std::nullopt;
    return guest6_.value_or(Ipv6Address::EuiOf(options_.lan.prefix6, mac_));
  }
  IpAddress GatewayAddress(bool v6) const override {
    if (v6) return options_.lan.gateway6();
    return options_.lan.gateway;
  }
  void ContinueSoon() override { SetAlarm(kContinueAlarm, 0); }
  void Note(const char* text) override { host().Log(VIRTBAY_LOG_WARN, "%s", text); }

  void OnOther(uint32_t token) override {
    switch (token) {
      case kMailboxToken:
        mailbox_.OnReady();
        break;
      case kDnsToken:
        dns_->OnReady(NowNs());
        break;
      case kUplinkToken:
        if (uplink_.OnReady()) OnUplink();
        break;
      default:
        break;
    }
  }

  void OnUplink() {
    if (options_.ipv6 == Ipv6Mode::kAuto) lan_->SetIpv6(UplinkWatcher::HasIpv6(), NowNs());
    if (!options_.deny_host_addresses) return;
    store_.Change(
        [](Policy* policy) { policy->SetDeniedHostAddresses(UplinkWatcher::HostAddresses()); });
    if (store_.Refresh(&policy_)) shard_->Recheck();
  }

  // One end of a pair whose other end the resolver serves; -1: there was no room, and the guest's
  // connection is refused.
  int OpenDnsStream() {
    if (!TakeDescriptor()) return -1;
    int pair[2];
    if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0, pair) != 0) {
      GiveDescriptor();
      return -1;
    }
    if (dns_->AddStream(pair[1], NowNs())) return pair[0];
    close(pair[0]);
    GiveDescriptor();
    return -1;
  }

  void UpdateMetrics() { metrics_.Update(lan_->counters(), dns_->resolver().counters()); }

  // ---- alarms ---------------------------------------------------------------------------------

  void SetAlarm(Alarm alarm, uint64_t deadline_ns) {
    if (!running_ || deadline_ns >= armed_[alarm]) return;
    armed_[alarm] = deadline_ns;
    const uint64_t now = NowNs();
    NetDevice::SetAlarm(0, std::chrono::nanoseconds(deadline_ns > now ? deadline_ns - now : 0),
                        alarm);
  }
  // After every event.
  void Arm() {
    UpdateMetrics();
    SetAlarm(kFlowAlarm, shard_->NextTimer());
    SetAlarm(kLanAlarm, lan_->NextDeadline());
    SetAlarm(kDnsAlarm, dns_->NextDeadline());
  }

  // ---- commands [control] ---------------------------------------------------------------------

  // When it fails, `work` will not be done any more: it may refer to what is the caller's.
  template <typename F>
  Status OnQueue(F&& work) {
    if (mailbox_.Run([&] {
          work();
          if (running_) Arm();
        })) {
      return {};
    }
    return sdk::Error{VIRTBAY_DEADLINE_EXCEEDED, 0, "the device's thread did not answer"};
  }

  Status AddForward(Forward* forward) {
    forward->number = ++last_forward_;
    sdk::Result<BoundForward> bound = Bind(forward, this);
    if (!bound.ok()) return bound.error();
    BoundForward& sockets = bound.value();
    bool all = true;
    const Status done = OnQueue([&] {
      for (size_t i = 0; i < sockets.fds.size(); ++i) {
        all = shard_->AddListener(sockets.specs[i], sockets.fds[i]) && all;
      }
      if (!all) shard_->RemoveListener(sockets.specs[0].forward);
    });
    if (!done.ok()) {
      Unbind(&sockets, this);
      return done;
    }
    if (!all) {
      return sdk::Error{VIRTBAY_RESOURCE_EXHAUSTED, 0,
                        absl::StrCat("forward ", forward->ToString(), ": too many ports")};
    }
    forwards_.push_back(*forward);
    host().Log(VIRTBAY_LOG_INFO, "forward %s", forward->ToString().c_str());
    return {};
  }

  sdk::Result<std::string> ForwardAdd(std::string_view text) {
    sdk::Result<Forward> forward = Forward::Parse(text);
    if (!forward.ok()) return forward.error();
    const Status added = AddForward(&forward.value());
    if (!added.ok()) return added.error();
    return forward.value().ToString();
  }

  sdk::Result<std::string> ForwardRemove(std::string_view text) {
    sdk::Result<Forward> given = Forward::Parse(text);
    if (!given.ok()) return given.error();
    const std::string name = given.value().ToString();
    const auto at = std::find_if(forwards_.begin(), forwards_.end(),
                                 [&](const Forward& f) { return f.ToString() == name; });
    if (at == forwards_.end()) {
      return sdk::Error{VIRTBAY_NOT_FOUND, 0, absl::StrCat("no forward ", name)};
    }
    const Status done = OnQueue([this, number = at->number] { shard_->RemoveListener(number); });
    if (!done.ok()) return done.error();
    forwards_.erase(at);
    return name;
  }

  sdk::Result<std::string> ForwardList() {
    std::string text;
    for (const Forward& forward : forwards_) absl::StrAppend(&text, forward.ToString(), "\n");
    return text;
  }

  // Flows that the new rules forbid end before the command does.
  Status ApplyRules(std::vector<Rule> rules) {
    store_.Change([&](Policy* policy) { policy->SetRules(std::move(rules)); });
    return OnQueue([this] {
      if (store_.Refresh(&policy_)) shard_->Recheck();
    });
  }

  // "RULE", at the end, or "N RULE", as the N-th of them, from 1.
  sdk::Result<std::string> RuleAdd(std::string_view text) {
    std::vector<Rule> rules = store_.Get().rules();
    size_t at = rules.size();
    if (!text.empty() && text[0] >= '0' && text[0] <= '9') {
      const size_t space = text.find(' ');
      const std::string number(text.substr(0, space));
      uint32_t place = 0;
      if (!absl::SimpleAtoi(number, &place) || space == std::string_view::npos || place < 1 ||
          place > rules.size() + 1) {
        return sdk::InvalidArgument(
            absl::StrCat("'", number, "' is no place in a list of ", rules.size()));
      }
      at = place - 1;
      text = text.substr(space + 1);
    }
    sdk::Result<Rule> rule = Rule::Parse(text);
    if (!rule.ok()) return rule.error();
    if (rules.size() >= Policy::kMaxRules) {
      return sdk::Error{VIRTBAY_RESOURCE_EXHAUSTED, 0, "there are too many rules"};
    }
    const Rule added = rule.value();
    rules.insert(rules.begin() + static_cast<std::ptrdiff_t>(at), added);
    const Status done = ApplyRules(std::move(rules));
    if (!done.ok()) return done.error();
    return added.ToString();
  }

  sdk::Result<std::string> RuleRemove(std::string_view text) {
    sdk::Result<Rule> rule = Rule::Parse(text);
    if (!rule.ok()) return rule.error();
    std::vector<Rule> rules = store_.Get().rules();
    const auto at = std::find(rules.begin(), rules.end(), rule.value());
    if (at == rules.end()) {
      return sdk::Error{VIRTBAY_NOT_FOUND, 0,
                        absl::StrCat("no rule '", rule.value().ToString(), "'")};
    }
    rules.erase(at);
    const Status done = ApplyRules(std::move(rules));
    if (!done.ok()) return done.error();
    return rule.value().ToString();
  }

  sdk::Result<std::string> RuleList() {
    std::string text;
    const Policy policy = store_.Get();
    for (const Rule& rule : policy.rules()) absl::StrAppend(&text, rule.ToString(), "\n");
    return text;
  }

  sdk::Result<std::string> Flows() {
    std::string text;
    const Status done = OnQueue([&] { text = shard_->Describe(kShownFlows); });
    if (!done.ok()) return done.error();
    return text;
  }

  Options options_;
  FlowOptions flow_options_;
  EventCounters counters_;
  PartMetrics metrics_;
  PolicyStore store_;
  Policy policy_;  // the queue thread's
  Mailbox mailbox_;
  UplinkWatcher uplink_;
  std::unique_ptr<Lan> lan_;
  std::unique_ptr<Shard> shard_;
  std::unique_ptr<DnsService> dns_;
  MacAddress mac_;
  std::optional<IpAddress> guest4_;
  std::optional<IpAddress> guest6_;
  std::vector<Forward> forwards_;
  uint32_t last_forward_ = 0;
  std::array<uint64_t, kAlarms> armed_{};
  bool running_ = false;
  std::array<uint8_t, 65536> transport_{};
};

}  // namespace
}  // namespace virtbay::proxy_net

VIRTBAY_PLUGIN(virtbay::proxy_net::ProxyNet, "proxy-net", virtbay::sdk::kVirtioNetId, 0);
