// Share: one directory of the host that the device serves, and what its file system can do.
// Every inode and every open handle refers to the share that it belongs to, and an inode keeps it.
// Constant once opened, the hints apart; functions are [any] unless marked.
#ifndef VIRTBAY_PLUGINS_VIRTIOFS_SHARE_H_
#define VIRTBAY_PLUGINS_VIRTIOFS_SHARE_H_

#include <sys/stat.h>

#include <atomic>
#include <cstdint>
#include <memory>
#include <string>
#include <utility>

#include "plugins/virtiofs/fold.h"
#include "plugins/virtiofs/ino_space.h"
#include "plugins/virtiofs/share_options.h"
#include "virtbay/sdk/result.h"

namespace virtbay::virtiofs {

class Aggregate;
class FdBudget;

// The device's only share (or the root of its shares) is a member of Fs. Shares of an aggregate are
// counted: by the aggregate until they are removed, and by every inode.
struct Share {
  Share() = default;
  ~Share();
  Share(const Share&) = delete;
  Share& operator=(const Share&) = delete;

  // [control] Opens the directory and looks at its file system. An Error begins with `what`.
  sdk::Status Open(const std::string& dir, const std::string& what, ShareOptions how = {});

  // [control] The same with the open directory, which is the share's from here on.
  sdk::Status Adopt(int dir_fd, const std::string& dir, const std::string& what, ShareOptions how);

  // [control] Files get inode numbers of that space.
  void UseNumbers(InoSpace* space);
  // The number of a file of device `dev` (as in InodeKey) that has number `ino` there.
  uint64_t Number(uint64_t dev, uint64_t ino) const {
    if (inos == nullptr) return ino;
    const bool own = dev == number_dev && (ino & ~InoSpace::kLowMask) == number_high;
    return (own ? number_prefix : inos->Prefix(id, dev, ino)) | (ino & InoSpace::kLowMask);
  }

  bool counted() const { return id != 0; }
  void Ref() { refs.fetch_add(1, std::memory_order_relaxed); }
  void Unref() {
    if (refs.fetch_sub(1, std::memory_order_acq_rel) == 1) delete this;
  }

  ShareOptions options;
  bool plain = true;   // what the guest is shown is what the host says: view.h has no part in it
  bool looks = false;  // what the guest is shown is not in the host's attributes alone
  std::unique_ptr<CaseFolder> folder;  // case=off

  // Of a share of an aggregate. The root itself has `aggregate`.
  uint32_t id = 0;
  uint64_t cookie = 0;  // its place in a listing
  std::string name, path;
  Aggregate* aggregate = nullptr;
  FdBudget* budget = nullptr;  // has counted root_fd
  InoSpace* inos = nullptr;
  uint64_t number_dev = 0, number_high = 0, number_prefix = 0;
  std::atomic<uint32_t> refs{1};
  // Its names and what is not open are gone for the guest.
  std::atomic<bool> removed{false};

  int root_fd = -1;           // for reading, so that it serves for file handles and syncfs as well
  struct statx root_stat {};  // as it was when the share was opened
  uint64_t root_mnt_id = 0;
  bool memory_fs = false;     // it is in memory: reads never wait
  bool remote_fs = false;     // it is behind a network or a process (NFS, FUSE ...)
  bool check_birth = true;    // birth times are part of an inode's identity
  bool keep_handles = false;  // file handles are remembered for inodes without a descriptor

  std::atomic<bool> no_nowait_writes{false};  // hint: RWF_NOWAIT writes were refused
  std::atomic<bool> no_nowait_reads{false};
  mutable std::atomic<bool> garbled{false};  // metadata that is not of the right form was met
  mutable std::atomic<bool> said_garbled{false};
};

// A counted reference on a share of an aggregate.
class ShareRef {
 public:
  ShareRef() = default;
  static ShareRef Of(Share* share) {
    share->Ref();
    return ShareRef(share);
  }
  // Takes over a reference.
  static ShareRef Adopt(Share* share) { return ShareRef(share); }
  ShareRef(ShareRef&& other) noexcept : share_(std::exchange(other.share_, nullptr)) {}
  ShareRef& operator=(ShareRef&& other) noexcept {
    std::swap(share_, other.share_);
    return *this;
  }
  ~ShareRef() {
    if (share_ != nullptr) share_->Unref();
  }
  explicit operator bool() const { return share_ != nullptr; }
  Share& operator*() const { return *share_; }
  Share* operator->() const { return share_; }
  // Gives the reference to the caller.
  Share* Release() { return std::exchange(share_, nullptr); }

 private:
  explicit ShareRef(Share* share) : share_(share) {}
  Share* share_ = nullptr;
};

}  // namespace virtbay::virtiofs

#endif  // VIRTBAY_PLUGINS_VIRTIOFS_SHARE_H_
