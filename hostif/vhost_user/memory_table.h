// MemoryTable: the guest memory that a front-end has named, and the map made of it.
// A change is proposed first and committed once the device has taken the map, so that a refused
// table leaves the old one in force. Owned by a Session; used on its server's thread.
#ifndef VIRTBAY_HOSTIF_VHOST_USER_MEMORY_TABLE_H_
#define VIRTBAY_HOSTIF_VHOST_USER_MEMORY_TABLE_H_

#include <sys/types.h>

#include <memory>
#include <span>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "framework/base/shared_fd.h"
#include "framework/base/unique_fd.h"
#include "framework/memory/memory_map.h"
#include "hostif/vhost_user/messages.h"

namespace virtbay::vhost_user {

class MemoryTable {
 public:
  // `as_files`: regions are not mapped here; the device maps what it may reach.
  // `keeps_fds`: each region's descriptor is kept, for Export.
  MemoryTable(bool as_files, bool keeps_fds) : as_files_(as_files), keeps_fds_(keeps_fds) {}

  struct Entry {
    RegionDescription region{};
    // Which file: the same offset of the same file is the same memory, and is not mapped twice.
    dev_t device = 0;
    ino_t inode = 0;
    std::shared_ptr<const GuestMapping> mapping;  // or
    std::shared_ptr<const GuestFile> file;
    SharedFd fd;  // if they are kept
  };
  struct Proposal {
    std::vector<Entry> entries;  // by guest address
    MemoryMapRef map;
    bool unchanged = false;  // the same regions of the same memory: nothing to do
  };

  // A table of just these regions (SET_MEM_TABLE); one fd per region. InvalidArgument when a
  // region is empty, wraps, overlaps another, or its file does not reach as far.
  absl::StatusOr<Proposal> Replace(std::span<const RegionDescription> regions,
                                   std::span<const UniqueFd> fds) const;
  // The table and one more region (ADD_MEM_REG). ResourceExhausted beyond 509.
  absl::StatusOr<Proposal> Add(const RegionDescription& region, const UniqueFd& fd) const;
  // The table without the region of this guest address, user address and size (REM_MEM_REG).
  absl::StatusOr<Proposal> Remove(const RegionDescription& region) const;

  void Commit(Proposal proposal);
  // The table as Replace takes it, with descriptors of the caller's own. FailedPrecondition when
  // they are not kept.
  absl::Status Export(std::vector<RegionDescription>* regions, std::vector<UniqueFd>* fds) const;

  // Never null; empty before the first table.
  const MemoryMapRef& map() const { return map_; }
  bool empty() const { return entries_.empty(); }

 private:
  absl::StatusOr<Entry> Map(const RegionDescription& region, const UniqueFd& fd) const;
  absl::StatusOr<Proposal> Propose(std::vector<Entry> entries) const;

  const bool as_files_;
  const bool keeps_fds_;
  std::vector<Entry> entries_;
  MemoryMapRef map_;
};

}  // namespace virtbay::vhost_user

#endif  // VIRTBAY_HOSTIF_VHOST_USER_MEMORY_TABLE_H_
