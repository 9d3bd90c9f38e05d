// Values of options that the SDK does not read: addresses, names and lists, with an error that
// names the option and the value. Stateless functions, [control].
#ifndef VIRTBAY_PLUGINS_PROXY_NET_OPTION_VALUES_H_
#define VIRTBAY_PLUGINS_PROXY_NET_OPTION_VALUES_H_

#include <cstdint>
#include <functional>
#include <string_view>

#include "plugins/proxy-net/packet/address.h"
#include "plugins/proxy-net/packet/domain_name.h"
#include "virtbay/sdk/option.h"
#include "virtbay/sdk/result.h"

namespace virtbay::proxy_net {

using sdk::BadValue;
using sdk::ParseBool;
using sdk::ParseNumber;

// [control] `option KEY: TEXT`, of an error that says the rest itself.
sdk::Error OptionError(std::string_view key, const sdk::Error& error);

// [control] One address of that kind, or of either.
sdk::Status ParseIpv4(std::string_view key, std::string_view value, Ipv4Address* out);
sdk::Status ParseIpv6(std::string_view key, std::string_view value, Ipv6Address* out);
sdk::Status ParseMac(std::string_view key, std::string_view value, MacAddress* out);
sdk::Status ParseName(std::string_view key, std::string_view value, DomainName* out);
// [control] "ADDRESS", "IPV4:PORT" or "[IPV6]:PORT"; `port` where none is given.
sdk::Status ParseEndpoint(std::string_view key, std::string_view value, uint16_t port,
                          Endpoint* out);
// [control] Calls `one` with each piece of a list with commas, blanks around them cut off.
sdk::Status ForEach(std::string_view list, const std::function<sdk::Status(std::string_view)>& one);

}  // namespace virtbay::proxy_net

#endif  // VIRTBAY_PLUGINS_PROXY_NET_OPTION_VALUES_H_
