#include "plugins/proxy-net/flow_options.h"

#include <utility>

#include "plugins/proxy-net/option_values.h"

namespace virtbay::proxy_net {
namespace {

constexpr uint32_t kMostFlows = 1u << 20;
constexpr uint32_t kMostMib = 511;  // what a pool can number
constexpr uint32_t kDay = 86400;

}  // namespace

sdk::Status FlowOptions::Parse(std::string_view key, const std::string& value, bool* known) {
  *known = true;
  if (key == "forward") {
    sdk::Result<std::vector<Forward>> parsed = ParseForwards(value);
    if (!parsed.ok()) return OptionError(key, parsed.error());
    forwards = std::move(parsed.value());
    return {};
  }
  if (key == "max-tcp-flows") return ParseNumber(key, value, 1, kMostFlows, &limits.tcp_flows);
  if (key == "max-udp-flows") return ParseNumber(key, value, 1, kMostFlows, &limits.datagram_flows);
  if (key == "max-half-open") return ParseNumber(key, value, 1, kMostFlows, &limits.half_open);
  if (key == "max-new-flows") {
    return ParseNumber(key, value, 1, 10'000'000, &limits.new_flows_per_second);
  }
  if (key == "max-buffer-mib") {
    uint32_t mib = 0;
    sdk::Status status = ParseNumber(key, value, 1, kMostMib, &mib);
    if (status.ok()) limits.buffer_bytes = uint64_t{mib} << 20;
    return status;
  }
  if (key == "tcp-idle") return ParseNumber(key, value, 10, 30 * kDay, &limits.tcp_idle_s);
  if (key == "udp-idle") return ParseNumber(key, value, 10, kDay, &limits.udp_idle_s);
  *known = false;
  return {};
}

}  // namespace virtbay::proxy_net
