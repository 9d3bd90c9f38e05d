// Options of one virtio-net device beyond those of every network device.
// A value owned by the device; constant after Init.
#ifndef VIRTBAY_PLUGINS_VIRTIO_NET_OPTIONS_H_
#define VIRTBAY_PLUGINS_VIRTIO_NET_OPTIONS_H_

#include <array>
#include <cstdint>
#include <string>
#include <vector>

#include "virtbay/sdk/host.h"
#include "virtbay/sdk/net_device.h"
#include "virtbay/sdk/plugin.h"
#include "virtbay/sdk/result.h"

namespace virtbay::virtio_net {

enum class BackEnd : uint8_t {
  kTap,
  kNull,  // counts what the guest sends, and drops it
  kLoop,  // gives it back to the guest
};

inline constexpr auto kOptionList = sdk::NetOptions(std::array{
    sdk::MakeOption("backend", VIRTBAY_OPTION_TEXT),
    sdk::MakeOption("tap", VIRTBAY_OPTION_TEXT),
    // One number, or several with commas.
    sdk::MakeOption("tap-fd", VIRTBAY_OPTION_TEXT),
    // With a unit where wanted: 10M.
    sdk::MakeOption("tx-rate", VIRTBAY_OPTION_TEXT),
    sdk::MakeOption("tx-burst", VIRTBAY_OPTION_TEXT),
    sdk::MakeOption("rx-rate", VIRTBAY_OPTION_TEXT),
    sdk::MakeOption("rx-burst", VIRTBAY_OPTION_TEXT),
});

// Bytes per second, 0: unlimited; and how many may come at once.
struct Rate {
  uint64_t rate = 0;
  uint64_t burst = 0;
};

struct Options {
  BackEnd back_end = BackEnd::kTap;
  std::string tap;
  std::vector<int> tap_fds;
  Rate tx;  // from the guest
  Rate rx;
};

// [control] Reads and checks them; an error names the option.
sdk::Result<Options> ReadOptions(const sdk::Host& host);

// "1500", "64K", "10M", "2G" (powers of 1024).
sdk::Result<uint64_t> ParseBytes(const std::string& text);

}  // namespace virtbay::virtio_net

#endif  // VIRTBAY_PLUGINS_VIRTIO_NET_OPTIONS_H_
