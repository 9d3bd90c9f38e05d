#include "hostif/vhost_user/memory_table.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>

#include <algorithm>
#include <cerrno>
#include <string>
#include <utility>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "framework/base/status.h"
#include "hostif/vhost_user/front_end_fd.h"

namespace virtbay::vhost_user {
namespace {

std::string Describe(const RegionDescription& region) {
  return absl::StrCat("region [guest 0x", absl::Hex(region.guest_address), ", user 0x",
                      absl::Hex(region.user_address), ", +0x", absl::Hex(region.size), ")");
}

}  // namespace

absl::StatusOr<MemoryTable::Entry> MemoryTable::Map(const RegionDescription& region,
                                                    const UniqueFd& fd) const {
  // Before its file system is asked anything: another one may never answer.
  VIRTBAY_RETURN_IF_ERROR(Annotate(CheckMemoryFd(fd.get()), Describe(region)));
  struct statx file {};
  if (statx(fd.get(), "", AT_EMPTY_PATH | AT_STATX_DONT_SYNC, STATX_INO, &file) != 0) {
    return ErrnoStatus(errno, Describe(region));
  }
  Entry entry{region,       makedev(file.stx_dev_major, file.stx_dev_minor),
              file.stx_ino, nullptr,
              nullptr,      SharedFd()};
  for (const Entry& old : entries_) {
    // The mapping keeps its file alive, so an equal inode number is the same file, not a reuse.
    if ((old.mapping == nullptr || !old.mapping->poisoned()) && old.device == entry.device &&
        old.inode == entry.inode && old.region.mmap_offset == region.mmap_offset &&
        old.region.size == region.size) {
      entry.mapping = old.mapping;
      entry.file = old.file;
      entry.fd = old.fd;
      return entry;
    }
  }
  if (keeps_fds_) {
    UniqueFd kept = fd.Duplicate();
    if (!kept) return ErrnoStatus(errno, Describe(region));
    entry.fd = std::move(kept);
  }
  if (as_files_) {
    UniqueFd own = fd.Duplicate();
    if (!own) return ErrnoStatus(errno, Describe(region));
    auto known = GuestFile::Create(std::move(own), region.mmap_offset, region.size);
    if (!known.ok()) return Annotate(known.status(), Describe(region));
    entry.file = *std::move(known);
    return entry;
  }
  auto mapping = GuestMapping::Create(fd.get(), region.mmap_offset, region.size);
  if (!mapping.ok()) return Annotate(mapping.status(), Describe(region));
  entry.mapping = *std::move(mapping);
  return entry;
}

absl::StatusOr<MemoryTable::Proposal> MemoryTable::Propose(std::vector<Entry> entries) const {
  std::sort(entries.begin(), entries.end(), [](const Entry& a, const Entry& b) {
    return a.region.guest_address < b.region.guest_address;
  });
  Proposal proposal;
  proposal.unchanged =
      map_ != nullptr && entries.size() == entries_.size() &&
      std::equal(entries.begin(), entries.end(), entries_.begin(),
                 [](const Entry& a, const Entry& b) {
                   return a.region == b.region && a.mapping == b.mapping && a.file == b.file;
                 });
  if (!proposal.unchanged) {
    std::vector<MemoryRegion> regions;
    regions.reserve(entries.size());
    for (const Entry& entry : entries) {
      regions.push_back({entry.region.guest_address, entry.region.user_address, entry.region.size,
                         entry.mapping, 0, entry.file});
    }
    VIRTBAY_ASSIGN_OR_RETURN(proposal.map, MemoryMap::Create(std::move(regions)));
  }
  proposal.entries = std::move(entries);
  return proposal;
}

absl::StatusOr<MemoryTable::Proposal> MemoryTable::Replace(
    std::span<const RegionDescription> regions, std::span<const UniqueFd> fds) const {
  std::vector<Entry> entries;
  entries.reserve(regions.size());
  for (size_t i = 0; i < regions.size(); ++i) {
    VIRTBAY_ASSIGN_OR_RETURN(Entry entry, Map(regions[i], fds[i]));
    entries.push_back(std::move(entry));
  }
  return Propose(std::move(entries));
}

absl::StatusOr<MemoryTable::Proposal> MemoryTable::Add(const RegionDescription& region,
                                                       const UniqueFd& fd) const {
  if (entries_.size() >= kMaxMemSlots) {
    return absl::ResourceExhaustedError(
        absl::StrCat("all ", kMaxMemSlots, " memory slots are in use"));
  }
  VIRTBAY_ASSIGN_OR_RETURN(Entry entry, Map(region, fd));
  std::vector<Entry> entries = entries_;
  entries.push_back(std::move(entry));
  return Propose(std::move(entries));
}

absl::StatusOr<MemoryTable::Proposal> MemoryTable::Remove(const RegionDescription& region) const {
  std::vector<Entry> entries = entries_;
  const auto found = std::find_if(entries.begin(), entries.end(), [&](const Entry& entry) {
    return entry.region.guest_address == region.guest_address &&
           entry.region.user_address == region.user_address && entry.region.size == region.size;
  });
  if (found == entries.end()) {
    return absl::NotFoundError(absl::StrCat(Describe(region), " is not in the table"));
  }
  entries.erase(found);
  return Propose(std::move(entries));
}

absl::Status MemoryTable::Export(std::vector<RegionDescription>* regions,
                                 std::vector<UniqueFd>* fds) const {
  for (const Entry& entry : entries_) {
    if (!entry.fd) {
      return absl::FailedPreconditionError("the descriptors of guest memory were not kept");
    }
    UniqueFd copy(fcntl(entry.fd.get(), F_DUPFD_CLOEXEC, 3));
    if (!copy) return ErrnoStatus(errno, Describe(entry.region));
    regions->push_back(entry.region);
    fds->push_back(std::move(copy));
  }
  return absl::OkStatus();
}

void MemoryTable::Commit(Proposal proposal) {
  if (proposal.unchanged) return;
  entries_ = std::move(proposal.entries);
  map_ = std::move(proposal.map);
}

}  // namespace virtbay::vhost_user
