// What is said in a handover: the devices of a process as bytes and descriptors.
// Plain values and functions; [any]. What is unpacked is hostile: InvalidArgument for what is cut,
// too long, or lacks a descriptor; what the values mean is checked by who uses them.
#ifndef VIRTBAY_HOSTIF_HANDOVER_FORMAT_H_
#define VIRTBAY_HOSTIF_HANDOVER_FORMAT_H_

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "framework/base/unique_fd.h"
#include "hostif/vhost_user/snapshot.h"
#include "virtbay/host.h"

namespace virtbay::handover {

// A device that could be handed over.
struct OfferedDevice {
  std::string name;
  DeviceShape shape;    // if it can be
  Aperture aperture;    // that it has of guest memory; size 0: none
  std::string refusal;  // why it cannot be; empty: it can
};

// All that a process serves.
struct Offer {
  std::vector<OfferedDevice> devices;
  // The guest's own pool of bounce memory as it has reported it; 0: it has not.
  uint64_t pool_base = 0;
  uint64_t pool_size = 0;
};

// One that was stopped where it is, with its front-end.
struct HandedDevice {
  std::string name;
  LeftDevice left;
  vhost_user::ServerSnapshot server;
  // By CLOCK_MONOTONIC, which both processes have: when it began to stop, and how long that took.
  uint64_t stopped_at_ns = 0;
  uint64_t stop_ns = 0;
};

struct Packed {
  std::string bytes;
  std::vector<int> fds;  // of what was packed, which outlives this
};

Packed PackOffer(const Offer& offer);
absl::StatusOr<Offer> UnpackOffer(absl::string_view bytes);

std::string PackNames(const std::vector<std::string>& names);
absl::StatusOr<std::vector<std::string>> UnpackNames(absl::string_view bytes);

// With what keeps others from the state directory, and Devices::withdrawn.
Packed PackDevices(const std::vector<HandedDevice>& devices, int lock, int withdrawn);
struct Devices {
  std::vector<HandedDevice> devices;
  UniqueFd lock;
  // An eventfd that is readable once the devices are served on by whoever handed them over: what
  // came is worth nothing then, also when that process is not there any more.
  UniqueFd withdrawn;
};
absl::StatusOr<Devices> UnpackDevices(absl::string_view bytes, std::vector<UniqueFd> fds);

}  // namespace virtbay::handover

#endif  // VIRTBAY_HOSTIF_HANDOVER_FORMAT_H_
