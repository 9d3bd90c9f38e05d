// DriverState: what the guest's driver has set by the control queue (virtio 1.3 5.1.6.5), as a
// section of a NetDevice's saved state, for a device that takes the place of another one under a
// running driver. A value; [control].
#ifndef VIRTBAY_SDK_NET_DRIVER_STATE_H_
#define VIRTBAY_SDK_NET_DRIVER_STATE_H_

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <vector>

#include "sdk/net/rx_filter.h"

namespace virtbay::sdk::net {

struct DriverState {
  static constexpr uint32_t kVersion = 1;

  uint64_t features = 0;     // all that the driver acknowledged
  uint32_t queue_pairs = 1;  // that it was offered
  uint32_t active_pairs = 1;
  bool pairs_set = false;  // by the control queue; else as its buffers showed
  bool announce = false;   // asked for, and not answered yet
  uint64_t guest_bits = 0;
  RxFilter::Settings filter;

  std::vector<std::byte> Serialize() const;
  // Nothing: no such section, or one that says what no driver can have set.
  static std::optional<DriverState> Parse(std::span<const std::byte> section);
};

}  // namespace virtbay::sdk::net

#endif  // VIRTBAY_SDK_NET_DRIVER_STATE_H_
