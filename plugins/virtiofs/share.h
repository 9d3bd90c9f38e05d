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

#include "plugins/virtiofs/fold.h"
#include "plugins/virtiofs/share_options.h"
#include "virtbay/sdk/result.h"

namespace virtbay::virtiofs {

struct Share {
  Share() = default;
  ~Share();
  Share(const Share&) = delete;
  Share& operator=(const Share&) = delete;

  // [control] Opens the directory and looks at its file system. An Error begins with `what`.
  sdk::Status Open(const std::string& dir, const std::string& what, ShareOptions how = {});

  ShareOptions options;
  bool plain = true;  // what the guest is shown is what the host says: view.h has no part in it
  std::unique_ptr<CaseFolder> folder;  // case=off

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

}  // namespace virtbay::virtiofs

#endif  // VIRTBAY_PLUGINS_VIRTIOFS_SHARE_H_
