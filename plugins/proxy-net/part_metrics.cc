#include "plugins/proxy-net/part_metrics.h"

namespace virtbay::proxy_net {
namespace {

template <typename Counters>
struct Metric {
  const char* name;
  const char* help;
  uint64_t Counters::*from;
};

using L = Lan::Counters;
constexpr std::array kLanMetrics = {
    Metric<L>{"arp_replies", "ARP requests that the gateway answered", &L::arp_replies},
    Metric<L>{"gateway_echo_replies", "echoes that the gateway answered", &L::echo_replies},
    Metric<L>{"neighbor_advertisements", "neighbor advertisements sent",
              &L::neighbor_advertisements},
    Metric<L>{"router_advertisements", "router advertisements sent", &L::router_advertisements},
    Metric<L>{"dhcp4_replies", "DHCPv4 messages sent", &L::dhcp4_replies},
    Metric<L>{"dhcp6_replies", "DHCPv6 messages sent", &L::dhcp6_replies},
    Metric<L>{"drops_gateway_malformed", "frames for the gateway that broke their protocol's rules",
              &L::dropped},
};

using R = Resolver::Counters;
constexpr std::array kDnsMetrics = {
    Metric<R>{"dns_queries", "queries of the guest's", &R::queries},
    Metric<R>{"dns_answers", "answers of servers passed on", &R::answers},
    Metric<R>{"dns_static_answers", "queries answered from static records", &R::static_answers},
    Metric<R>{"dns_refused_full", "queries refused, too many were in flight", &R::refused_full},
    Metric<R>{"dns_refused_malformed", "queries refused, they were malformed",
              &R::refused_malformed},
    Metric<R>{"dns_duplicates", "queries that came again while in flight", &R::duplicates},
    Metric<R>{"dns_attempts", "queries sent to servers", &R::attempts},
    Metric<R>{"dns_attempts_tcp", "of those, over TCP", &R::over_tcp},
    Metric<R>{"dns_mismatched", "responses of servers that were none to the query", &R::mismatched},
    Metric<R>{"dns_failed", "queries that no server answered", &R::failed},
};

}  // namespace

void PartMetrics::Bind(const sdk::Host& host) {
  static_assert(kLanMetrics.size() == kLan && kDnsMetrics.size() == kDns);
  for (size_t i = 0; i < kLan; ++i) {
    lan_[i].metric = host.Counter(kLanMetrics[i].name, kLanMetrics[i].help);
  }
  for (size_t i = 0; i < kDns; ++i) {
    dns_[i].metric = host.Counter(kDnsMetrics[i].name, kDnsMetrics[i].help);
  }
}

void PartMetrics::Update(const Lan::Counters& lan, const Resolver::Counters& dns) {
  for (size_t i = 0; i < kLan; ++i) lan_[i].Set(lan.*kLanMetrics[i].from);
  for (size_t i = 0; i < kDns; ++i) dns_[i].Set(dns.*kDnsMetrics[i].from);
}

void PartMetrics::Cell::Set(uint64_t now) {
  if (now == told) return;
  sdk::Host::Add(metric, now - told);
  told = now;
}

}  // namespace virtbay::proxy_net
