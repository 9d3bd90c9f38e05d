// GuestReport: what virtbay-guest sends to the host, one line of JSON. It comes from the guest, so
// every line is hostile input: bounded, checked, made printable.
// Stateless; [any].
#ifndef VIRTBAY_HOSTIF_SWIOTLB_GUEST_REPORT_H_
#define VIRTBAY_HOSTIF_SWIOTLB_GUEST_REPORT_H_

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "hostif/swiotlb/guest_pool.h"
#include "virtbay/host.h"

namespace virtbay::swiotlb {

inline constexpr size_t kMaxReportLine = 64 << 10;  // bytes, without the newline

// A restricted-dma-pool of the guest's device tree, and the nodes that bounce into it.
struct RestrictedPool {
  std::string node;
  std::optional<Aperture> pool;  // none: the guest could not tell where it is
  std::vector<std::string> devices;
};

struct GuestReport {
  GuestCapabilities capabilities;
  std::string reason;  // why there is no pool of hv_pci devices, when there is none
  std::vector<RestrictedPool> restricted;
  std::optional<uint64_t> global_slots;  // of 2 KiB, of the kernel's one pool for everybody
  std::optional<uint64_t> global_slots_used;
};

// [any] InvalidArgument, naming the key, for a line that is not a report: too long, not JSON, a key
// that is missing or of the wrong type, a pool that is not one or above 4 GiB in size, too many
// restricted pools. Keys that are not known are left to later versions. Texts are cut to 256 bytes
// and hold printable ASCII only.
absl::StatusOr<GuestReport> ParseGuestReport(absl::string_view line) noexcept;

}  // namespace virtbay::swiotlb

#endif  // VIRTBAY_HOSTIF_SWIOTLB_GUEST_REPORT_H_
