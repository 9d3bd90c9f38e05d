// Options of proxy-net's flows: port forwards, budgets and times. Beside options.h, whose are those
// of the link, the resolver and the policy. A value owned by the device; constant after Configure.
#ifndef VIRTBAY_PLUGINS_PROXY_NET_FLOW_OPTIONS_H_
#define VIRTBAY_PLUGINS_PROXY_NET_FLOW_OPTIONS_H_

#include <array>
#include <string>
#include <string_view>
#include <vector>

#include "plugins/proxy-net/flow/flow.h"
#include "plugins/proxy-net/flow/forward.h"
#include "virtbay/sdk/plugin.h"
#include "virtbay/sdk/result.h"

namespace virtbay::proxy_net {

inline constexpr std::array kFlowOptionList = {
    sdk::MakeOption("forward", VIRTBAY_OPTION_TEXT),
    sdk::MakeOption("max-tcp-flows", VIRTBAY_OPTION_INTEGER),
    sdk::MakeOption("max-udp-flows", VIRTBAY_OPTION_INTEGER),
    sdk::MakeOption("max-half-open", VIRTBAY_OPTION_INTEGER),
    sdk::MakeOption("max-new-flows", VIRTBAY_OPTION_INTEGER),
    sdk::MakeOption("max-buffer-mib", VIRTBAY_OPTION_INTEGER),
    sdk::MakeOption("tcp-idle", VIRTBAY_OPTION_INTEGER),
    sdk::MakeOption("udp-idle", VIRTBAY_OPTION_INTEGER),
};

struct FlowOptions {
  std::vector<Forward> forwards;
  FlowLimits limits;

  // [control] Takes one option. `known`: whether it is one of the list. An Error names it.
  sdk::Status Parse(std::string_view key, const std::string& value, bool* known);
};

}  // namespace virtbay::proxy_net

#endif  // VIRTBAY_PLUGINS_PROXY_NET_FLOW_OPTIONS_H_
