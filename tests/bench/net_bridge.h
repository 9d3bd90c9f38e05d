// A guest without a guest: a TAP interface, whose network namespace's kernel is the guest's, and
// what stands for its virtio driver: frames go between the interface and a vhost-user device, or a
// socket that carries frames with their length in front (what passt and QEMU's stream back-end
// take), both without a copy of their own.
// Functions of the benchmark; a bridge has the calling thread until the other end has gone.
#ifndef VIRTBAY_TESTS_BENCH_NET_BRIDGE_H_
#define VIRTBAY_TESTS_BENCH_NET_BRIDGE_H_

#include <cstdint>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "framework/base/unique_fd.h"

namespace virtbay::bench {

// Makes the interface in the calling thread's namespace, down; with `offloads` frames have a virtio
// header of 12 bytes, and checksums and segmentation are left to who reads them. The errno of what
// is not allowed. [control]
absl::StatusOr<UniqueFd> MakeTap(const std::string& name, bool offloads);

struct RingBridgeOptions {
  std::string socket;
  uint16_t ring = 256;
  uint32_t buffer = 4096;  // bytes of a receive buffer
  bool packed = false;
};

// `tap` with offloads. Prints a line when the device is there. [queue]
absl::Status BridgeRings(const UniqueFd& tap, const RingBridgeOptions& options);

// `tap` without. Prints a line when connected. [queue]
absl::Status BridgeStream(const UniqueFd& tap, const std::string& socket);

}  // namespace virtbay::bench

#endif  // VIRTBAY_TESTS_BENCH_NET_BRIDGE_H_
