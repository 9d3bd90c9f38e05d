// WslConfig: the part of a .wslconfig file that says what a device host serves, and what follows
// from it for the guest's kernel.
// A value; [any]. The text is hostile input.
#ifndef VIRTBAY_HOSTIF_WSL_WSLCONFIG_H_
#define VIRTBAY_HOSTIF_WSL_WSLCONFIG_H_

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

namespace virtbay::wsl {

struct WslConfig {
  bool virtio = true;              // wsl2.virtio: false turns every virtio device off
  bool virtiofs = false;           // wsl2.virtiofs
  std::optional<uint64_t> memory;  // wsl2.memory, bytes
  bool proxy_network = false;      // wsl2.networkingMode is consomme, or virtioproxy
  uint64_t swiotlb = 0;            // experimental.swiotlb, bytes; 0: what the rule says
  bool aggregate_shares = true;    // experimental.virtioFsAggregateShares
  std::vector<std::string> warnings;

  // [any] Whether there is a share to serve.
  bool serves_shares() const { return virtio && virtiofs; }
  bool serves_network() const { return virtio && proxy_network; }
};

// [any] Reads the file's text; `name` stands for it in errors. Keys and sections are
// case-insensitive, of a key that is given twice the first counts (with a warning), and keys that
// are not known are left to others. InvalidArgument as "NAME:LINE: section.key: reason".
absl::StatusOr<WslConfig> ParseWslConfig(absl::string_view text, absl::string_view name);

// [any] "64M", "4096K", "8GB" or a number of bytes: units B, K, KB, M, MB, G, GB, T, TB, powers of
// 1024, in either case. Nothing for any other text, and for what 64 bits do not hold.
std::optional<uint64_t> ParseMemory(absl::string_view text);

// [any] The guest's memory in bytes: what is set, but at least 256 MiB and at most the host's; half
// of the host's when nothing is.
uint64_t GuestMemory(const WslConfig& config, uint64_t host_memory);

// [any] The bounce pool that the guest's kernel is to set aside, bytes: the size that is set, else
// by swiotlb::DefaultPoolSize for a guest that has virtio devices; 0 without any.
uint64_t PoolSize(const WslConfig& config, uint64_t host_memory);

}  // namespace virtbay::wsl

#endif  // VIRTBAY_HOSTIF_WSL_WSLCONFIG_H_
