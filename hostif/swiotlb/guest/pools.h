// What a guest's kernel says of its bounce pools: the one of hv_pci devices (sysfs), those that the
// device tree gives to single devices, and the global one (debugfs).
// Values and stateless functions; part of virtbay-guest: the C++ standard library only.
#ifndef VIRTBAY_HOSTIF_SWIOTLB_GUEST_POOLS_H_
#define VIRTBAY_HOSTIF_SWIOTLB_GUEST_POOLS_H_

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace virtbay::guest_tool {

// A pool of [base, +size) bytes of guest addresses; both 0, with the reason, when there is none
// that could be used.
struct Pool {
  uint64_t base = 0;
  uint64_t size = 0;
  std::string reason;
};

// A restricted-dma-pool of the device tree.
struct RestrictedPool {
  std::string node;  // "/reserved-memory/dmapool@5c000000"
  Pool pool;
  std::vector<std::string> devices;    // nodes whose memory-region it is
  std::string note;                    // what may be wrong with a pool that can be used
  std::optional<uint64_t> slots_used;  // of 2 KiB, where debugfs tells
  std::string slots_used_reason;       // why what debugfs says of them is not believed
};

struct GlobalPool {
  std::optional<uint64_t> slots;  // of 2 KiB
  std::optional<uint64_t> slots_used;
  std::string reason;  // why what debugfs says of either is not believed
};

struct Report {
  Pool hv_pci;
  std::vector<RestrictedPool> restricted;
  std::optional<GlobalPool> global;
  bool truncated = false;  // there was more than a report holds
};

// [any] The pool of hv_pci devices, from <root>/sys/bus/vmbus/drivers/hv_pci/swiotlb_{base,size}.
Pool ReadHvPciPool(const std::string& root);

// [any] The restricted pools of the device tree under `tree`, with the devices that use each.
// Sets `truncated` when the tree or the list is larger than a report takes.
std::vector<RestrictedPool> ReadRestrictedPools(const std::string& tree, bool* truncated);

// [any] All of it, for a file system at `root` ("" is the running guest's own).
Report ReadReport(const std::string& root);

// [any] The pool as a device's option, "swiotlb=0xBASE,SIZE"; empty for none.
std::string FormatOption(const Pool& pool);

// [any] One line of JSON without the newline, at most kMaxLine bytes: what a guest channel takes.
inline constexpr size_t kMaxLine = 60 << 10;
std::string FormatJson(Report report);

// [any] The same pool from the two files' texts: base in hexadecimal with 0x, size in decimal or
// hexadecimal, each with at most one newline after it.
Pool ParsePool(std::string_view base, std::string_view size);

}  // namespace virtbay::guest_tool

#endif  // VIRTBAY_HOSTIF_SWIOTLB_GUEST_POOLS_H_
