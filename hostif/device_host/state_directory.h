// StateDirectory: where the devices of a process keep what another process goes on with after this
// one was killed or told to stop (--state-dir). Only one process has it at a time.
// Owned by RunService's caller frame; [control].
#ifndef VIRTBAY_HOSTIF_DEVICE_HOST_STATE_DIRECTORY_H_
#define VIRTBAY_HOSTIF_DEVICE_HOST_STATE_DIRECTORY_H_

#include <filesystem>
#include <string>
#include <utility>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/time/time.h"
#include "framework/base/unique_fd.h"

namespace virtbay::device_host {

class StateDirectory {
 public:
  // Makes the directory (0700) where it is not there, and waits up to `patience` for the process
  // that has it to end. FailedPrecondition when others may read it or it is somebody else's,
  // Unavailable when it is still another process's. A symbolic link is not followed.
  static absl::StatusOr<StateDirectory> Open(std::filesystem::path dir,
                                             absl::Duration patience = absl::Seconds(10));

  // The same, in steps: without the lock, which belongs to whoever serves.
  static absl::StatusOr<StateDirectory> OpenUnlocked(std::filesystem::path dir);
  // False: it is another process's.
  absl::StatusOr<bool> TryLock();
  absl::Status Lock(absl::Duration patience);
  // The lock of the process before, which has it until it lets go of its own descriptor. Hostile:
  // FailedPrecondition when it is not this directory's, or not held by it.
  absl::Status TakeLock(UniqueFd lock);
  int fd() const { return dir_.get(); }
  int lock() const { return lock_.get(); }

  // The directory of the device of that name, a valid one, made where it is not there. Errors as of
  // Open.
  absl::StatusOr<std::filesystem::path> ForDevice(absl::string_view name) const;

 private:
  StateDirectory(std::filesystem::path path, UniqueFd dir, UniqueFd lock)
      : path_(std::move(path)), dir_(std::move(dir)), lock_(std::move(lock)) {}

  std::filesystem::path path_;
  UniqueFd dir_;
  UniqueFd lock_;
};

}  // namespace virtbay::device_host

#endif  // VIRTBAY_HOSTIF_DEVICE_HOST_STATE_DIRECTORY_H_
