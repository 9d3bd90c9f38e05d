#include "hostif/device_host/state_directory.h"

#include <fcntl.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "framework/base/status.h"

namespace virtbay::device_host {
namespace {

// Opens the directory, made where it is not there.
absl::StatusOr<UniqueFd> OpenOwn(int parent, const std::string& path, const std::string& what) {
  if (::mkdirat(parent, path.c_str(), 0700) != 0 && errno != EEXIST) {
    return ErrnoStatus(errno, what);
  }
  UniqueFd dir(::openat(parent, path.c_str(), O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC));
  struct stat st {};
  if (!dir || ::fstat(dir.get(), &st) != 0) return ErrnoStatus(errno, what);
  // What is in it is trusted, and gives whoever reads it the names of the guest's files.
  if (st.st_uid != ::geteuid() || (st.st_mode & 077) != 0) {
    return absl::FailedPreconditionError(
        absl::StrCat(what, ": must be this user's own, with mode 0700"));
  }
  return dir;
}

}  // namespace

absl::StatusOr<StateDirectory> StateDirectory::Open(std::filesystem::path dir,
                                                    absl::Duration patience) {
  const std::string what = absl::StrCat("state-dir ", dir.string());
  VIRTBAY_ASSIGN_OR_RETURN(UniqueFd opened, OpenOwn(AT_FDCWD, dir.string(), what));
  UniqueFd lock(
      ::openat(opened.get(), "lock", O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK, 0600));
  if (!lock) return ErrnoStatus(errno, absl::StrCat(what, "/lock"));
  // The process before may be about to end; one that was killed has the lock until the kernel has
  // ended its last operation.
  const absl::Time deadline = absl::Now() + patience;
  while (::flock(lock.get(), LOCK_EX | LOCK_NB) != 0) {
    if (errno == EINTR) continue;
    if (errno != EWOULDBLOCK) return ErrnoStatus(errno, absl::StrCat(what, "/lock"));
    if (absl::Now() >= deadline) {
      return absl::UnavailableError(absl::StrCat(what, ": another process has it"));
    }
    absl::SleepFor(absl::Milliseconds(5));
  }
  return StateDirectory(std::filesystem::absolute(dir), std::move(opened), std::move(lock));
}

absl::StatusOr<std::filesystem::path> StateDirectory::ForDevice(absl::string_view name) const {
  const std::string entry = absl::StrCat("device.", name);
  const std::filesystem::path path = path_ / entry;
  VIRTBAY_RETURN_IF_ERROR(
      OpenOwn(dir_.get(), entry, absl::StrCat("state-dir ", path.string())).status());
  return path;
}

}  // namespace virtbay::device_host
