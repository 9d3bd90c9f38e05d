#include "tree.h"

#include <linux/openat2.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cerrno>

namespace p9 {
namespace {

constexpr uint64_t kResolve =
    RESOLVE_BENEATH | RESOLVE_NO_MAGICLINKS | RESOLVE_NO_SYMLINKS | RESOLVE_NO_XDEV;

int OpenBeneath(int directory, const char* name, int flags, uint32_t mode) {
  open_how how = {};
  how.flags = static_cast<uint64_t>(static_cast<uint32_t>(flags | O_CLOEXEC | O_NOFOLLOW));
  how.mode = mode;
  how.resolve = kResolve;
  const int64_t fd = syscall(SYS_openat2, directory, name, &how, sizeof(how));
  return fd < 0 ? -errno : static_cast<int>(fd);
}

// 9P2000.L numbers open flags as x86 does; other machines have other numbers.
int HostFlags(uint32_t flags) {
  static constexpr struct {
    uint32_t wire;
    int host;
  } kMap[] = {{000000200, O_EXCL},  {000001000, O_TRUNC},     {000002000, O_APPEND},
              {000010000, O_DSYNC}, {000200000, O_DIRECTORY}, {004000000, O_SYNC}};
  // A lease that somebody has must not hold the queue's thread up.
  int host = static_cast<int>(flags & 3) | O_NONBLOCK | O_NOCTTY;
  for (const auto& [wire, flag] : kMap) {
    if ((flags & wire) == wire) host |= flag;
  }
  return host;
}

// A descriptor that was opened so as not to wait, for I/O that may: where a file system cannot do
// without waiting, io_uring would fail it.
int Waiting(int fd) {
  if (fd >= 0) fcntl(fd, F_SETFL, fcntl(fd, F_GETFL) & ~O_NONBLOCK);
  return fd;
}

}  // namespace

int CheckName(std::string_view name) {
  if (name.size() > kMaxName) return ENAMETOOLONG;
  if (name.empty() || name == "." || name == "..") return EINVAL;
  return name.find('/') != name.npos || name.find('\0') != name.npos ? EINVAL : 0;
}

int Tree::Open(const std::string& directory) {
  root_.Reset(open(directory.c_str(), O_PATH | O_DIRECTORY | O_CLOEXEC));
  return root_ ? 0 : errno;
}

int Tree::Walk(const File& directory, std::string_view name) const {
  if (const int error = CheckName(name)) return -error;
  return OpenBeneath(directory.path.get(), std::string(name).c_str(), O_PATH, 0);
}

std::string Tree::ProcName(const File& file) {
  return "/proc/self/fd/" + std::to_string(file.path.get());
}

int Tree::Reopen(const File& file, uint32_t flags) const {
  struct stat st;
  if (fstat(file.path.get(), &st) != 0) return -errno;
  if (S_ISLNK(st.st_mode)) return -ELOOP;
  if (!S_ISREG(st.st_mode) && !S_ISDIR(st.st_mode)) return -EACCES;
  const int fd = open(ProcName(file).c_str(), (HostFlags(flags) & ~O_EXCL) | O_CLOEXEC);
  return fd < 0 ? -errno : Waiting(fd);
}

int Tree::Create(const File& directory, std::string_view name, uint32_t flags,
                 uint32_t mode) const {
  if (const int error = CheckName(name)) return -error;
  const std::string text(name);
  const int fd = OpenBeneath(directory.path.get(), text.c_str(),
                             HostFlags(flags) | O_CREAT | O_EXCL, mode & 07777);
  if (fd != -EEXIST || (HostFlags(flags) & O_EXCL) != 0) return Waiting(fd);
  // It is there already: then it is opened as any other.
  File there;
  there.path.Reset(Walk(directory, name));
  if (!there.path) return there.path.get();
  return Reopen(there, flags);
}

void Tree::Settle(const File& made, uint32_t mode, uint32_t uid, uint32_t gid) {
  struct stat st;
  if (fstat(made.path.get(), &st) != 0) return;
  // In this order: a new owner takes the set-ID bits away.
  const bool owned = geteuid() != 0 || fchownat(made.path.get(), "", uid, gid, AT_EMPTY_PATH) == 0;
  if (owned && !S_ISLNK(st.st_mode)) chmod(ProcName(made).c_str(), mode & 07777);
}

Qid Tree::QidOf(const struct stat& st) {
  Qid qid;
  if (S_ISDIR(st.st_mode)) qid.type = 0x80;
  if (S_ISLNK(st.st_mode)) qid.type = 0x02;
  qid.version = static_cast<uint32_t>(st.st_mtim.tv_nsec) ^
                static_cast<uint32_t>(st.st_mtim.tv_sec << 10) ^ static_cast<uint32_t>(st.st_size);
  qid.path = st.st_ino;
  return qid;
}

}  // namespace p9
