// Forwards: what port forwards there are, by number, as the control thread sees them: their text
// forms, the sockets that they need, and the real ports of those that asked for any.
// Owned by the device; [control].
#ifndef VIRTBAY_PLUGINS_PROXY_NET_FLOW_FORWARD_H_
#define VIRTBAY_PLUGINS_PROXY_NET_FLOW_FORWARD_H_

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "plugins/proxy-net/flow/listener.h"
#include "virtbay/sdk/result.h"

namespace virtbay::proxy_net {

// FORWARD  := ("tcp" | "udp") ":" [ADDRESS ":"] PORTS ":" PORTS
// ADDRESS  := IPV4 | "[" IPV6 "]"; 127.0.0.1 when there is none
// PORTS    := PORT | PORT "-" PORT; both ranges are equally long; port 0 of the host: any
struct Forward {
  uint32_t number = 0;
  uint8_t protocol = 0;
  IpAddress address;
  uint16_t host_first = 0;
  uint16_t guest_first = 0;
  uint32_t count = 1;

  // [any] An Error quotes the text and says what is wrong.
  static sdk::Result<Forward> Parse(std::string_view text);
  // [any] In the same grammar, with the real port once it is bound.
  std::string ToString() const;
};

// [any] Several with commas; empty pieces are none.
sdk::Result<std::vector<Forward>> ParseForwards(std::string_view text);

// The sockets of one forward, on their way to the shard.
struct BoundForward {
  std::vector<ForwardSpec> specs;
  std::vector<int> fds;  // as many
};

// [control] Opens every socket of the forward, or none; sets its real port where it asked for any.
// Each is counted with `host`.
sdk::Result<BoundForward> Bind(Forward* forward, FlowHost* host);
// [control] Closes what was bound and not handed over.
void Unbind(BoundForward* bound, FlowHost* host);

}  // namespace virtbay::proxy_net

#endif  // VIRTBAY_PLUGINS_PROXY_NET_FLOW_FORWARD_H_
