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

absl::StatusOr<StateDirectory> StateDirectory::OpenUnlocked(std::filesystem::path dir) {
  const std::string what = absl::StrCat("state-dir ", dir.string());
  VIRTBAY_ASSIGN_OR_RETURN(UniqueFd opened, OpenOwn(AT_FDCWD, dir.string(), what));
  UniqueFd lock(
      ::openat(opened.get(), "lock", O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK, 0600));
  if (!lock) return ErrnoStatus(errno, absl::StrCat(what, "/lock"));
  return StateDirectory(std::filesystem::absolute(dir), std::move(opened), std::move(lock));
}

absl::StatusOr<StateDirectory> StateDirectory::Open(std::filesystem::path dir,
                                                    absl::Duration patience) {
  VIRTBAY_ASSIGN_OR_RETURN(StateDirectory state, OpenUnlocked(std::move(dir)));
  VIRTBAY_RETURN_IF_ERROR(state.Lock(patience));
  return state;
}

absl::StatusOr<bool> StateDirectory::TryLock() {
  while (::flock(lock_.get(), LOCK_EX | LOCK_NB) != 0) {
    if (errno == EWOULDBLOCK) return false;
    if (errno != EINTR) {
      return ErrnoStatus(errno, absl::StrCat("state-dir ", path_.string(), "/lock"));
    }
  }
  return true;
}

absl::Status StateDirectory::Lock(absl::Duration patience) {
  // The process before may be about to end; one that was killed has the lock until the kernel has
  // ended its last operation.
  const absl::Time deadline = absl::Now() + patience;
  for (;;) {
    VIRTBAY_ASSIGN_OR_RETURN(const bool locked, TryLock());
    if (locked) return absl::OkStatus();
    if (absl::Now() >= deadline) {
      return absl::UnavailableError(
          absl::StrCat("state-dir ", path_.string(), ": another process has it"));
    }
    absl::SleepFor(absl::Milliseconds(5));
  }
}

absl::Status StateDirectory::TakeLock(UniqueFd lock) {
  struct stat given {};
  struct stat own {};
  if (!lock || ::fstat(lock.get(), &given) != 0 || ::fstat(lock_.get(), &own) != 0 ||
      given.st_dev != own.st_dev || given.st_ino != own.st_ino) {
    return absl::FailedPreconditionError(
        absl::StrCat("state-dir ", path_.string(), ": the lock that came is not its own"));
  }
  UniqueFd before = std::exchange(lock_, std::move(lock));
  absl::StatusOr<bool> locked = TryLock();
  if (locked.ok() && *locked) return absl::OkStatus();
  lock_ = std::move(before);
  return absl::FailedPreconditionError(
      absl::StrCat("state-dir ", path_.string(), ": the lock that came is not held"));
}

absl::StatusOr<std::filesystem::path> StateDirectory::ForDevice(absl::string_view name) const {
  const std::string entry = absl::StrCat("device.", name);
  const std::filesystem::path path = path_ / entry;
  VIRTBAY_RETURN_IF_ERROR(
      OpenOwn(dir_.get(), entry, absl::StrCat("state-dir ", path.string())).status());
  return path;
}

}  // namespace virtbay::device_host
