#include "plugins/virtiofs/share.h"

#include <fcntl.h>
#include <linux/capability.h>
#include <linux/magic.h>
#include <sys/statfs.h>
#include <sys/syscall.h>
#include <sys/xattr.h>
#include <unistd.h>

#include <cerrno>
#include <utility>

#include "plugins/virtiofs/fd_budget.h"
#include "plugins/virtiofs/inode.h"
#include "plugins/virtiofs/metadata.h"
#include "plugins/virtiofs/path.h"

namespace virtbay::virtiofs {
namespace {

using sdk::Errno;
using sdk::Error;
using sdk::Status;

bool HasCapability(int cap) {
  __user_cap_header_struct header = {_LINUX_CAPABILITY_VERSION_3, 0};
  __user_cap_data_struct data[2] = {};
  if (::syscall(SYS_capget, &header, data) != 0) return false;
  return (data[cap / 32].effective & (1u << (cap % 32))) != 0;
}

bool InMemory(int64_t type) {
  return type == TMPFS_MAGIC || type == RAMFS_MAGIC || type == HUGETLBFS_MAGIC;
}

// File systems behind a network or a process: close(2) writes back and reports errors, and a read
// waits even where it is asked not to.
bool IsRemote(int64_t type) {
  constexpr int64_t kFuse = 0x65735546, kCifs = 0xff534d42, kSmb2 = 0xfe534d42, kCeph = 0x00c36400,
                    k9p = 0x01021997;
  return type == NFS_SUPER_MAGIC || type == AFS_FS_MAGIC || type == AFS_SUPER_MAGIC ||
         type == SMB_SUPER_MAGIC || type == kFuse || type == kCifs || type == kSmb2 ||
         type == kCeph || type == k9p || type == CODA_SUPER_MAGIC;
}

}  // namespace

Share::~Share() {
  if (root_fd >= 0) ::close(root_fd);
  if (budget != nullptr) budget->UnreserveRoot();
  if (inos != nullptr) inos->Release(id);
}

void Share::UseNumbers(InoSpace* space) {
  const InodeKey key = KeyOf(root_stat);
  inos = space;
  number_dev = key.dev;
  number_high = key.ino & ~InoSpace::kLowMask;
  number_prefix = space->Prefix(id, key.dev, key.ino);
  plain = false;
}

Status Share::Open(const std::string& dir, const std::string& what, ShareOptions how) {
  const int fd = ::open(dir.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  if (fd < 0) return Errno(errno, what);
  return Adopt(fd, dir, what, std::move(how));
}

Status Share::Adopt(int dir_fd, const std::string& dir, const std::string& what, ShareOptions how) {
  root_fd = dir_fd;
  options = std::move(how);
  path = dir;
  plain = options.plain();
  looks = options.metadata || !options.symlink_root.empty();
  if (options.fold_case) folder = std::make_unique<CaseFolder>();
  const int probe = OpenBeneath(root_fd, ".", O_PATH | O_DIRECTORY);
  if (probe < 0) return Errno(-probe, what + ": openat2 with RESOLVE_BENEATH");
  ::close(probe);
  if (const int error = StatFd(root_fd, &root_stat); error != 0) return Errno(error, what);
  struct statfs info = {};
  if (::fstatfs(root_fd, &info) != 0) return Errno(errno, what);
  const int64_t type = static_cast<int64_t>(static_cast<uint32_t>(info.f_type));
  memory_fs = InMemory(type);
  remote_fs = IsRemote(type);
  root_mnt_id = KeyOf(root_stat).mnt_id;
  // On overlayfs a file gets a new birth time when it is first written to.
  check_birth = type != OVERLAYFS_SUPER_MAGIC;
  keep_handles = HasCapability(CAP_DAC_READ_SEARCH);
  if (options.metadata && ::fgetxattr(root_fd, kMetadataName, nullptr, 0) < 0 &&
      errno == EOPNOTSUPP) {
    return Error{VIRTBAY_FAILED_PRECONDITION, EOPNOTSUPP,
                 what + ": the option metadata needs a file system with user.* attributes"};
  }
  return {};
}

}  // namespace virtbay::virtiofs
