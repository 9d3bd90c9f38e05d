// What the executable does to its own process: signals, limits, inherited sockets, plugin places.
// Used by main and the commands alone: a library never does any of this.
#ifndef VIRTBAY_HOSTIF_DEVICE_HOST_PROCESS_H_
#define VIRTBAY_HOSTIF_DEVICE_HOST_PROCESS_H_

#include <sys/types.h>

#include <cstdint>
#include <filesystem>
#include <optional>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "framework/base/unique_fd.h"
#include "hostif/vhost_user/socket.h"

namespace virtbay::device_host {

// Takes SIGINT and SIGTERM through a descriptor and ignores SIGPIPE and SIGXFSZ. To be made before
// the first thread, so that every thread inherits the mask. [control]
class StopSignals {
 public:
  static absl::StatusOr<StopSignals> Create();
  // [control] Waits for the first signal and returns its number, or 0 when `fd` becomes readable
  // before (-1: no such fd).
  int Wait(int fd);
  // [control] The number of a signal that has come, which Wait returns then; 0: none has.
  int Look();
  // [any] Readable while there is a signal that nobody has looked at.
  int fd() const { return fd_.get(); }
  // [control] A signal that comes from now on ends the process at once, by the calling thread.
  static void Unblock();
  // [control] From now on a signal ends the process at once: whoever asks a second time does not
  // want to wait for requests in flight. Those that have come already do not.
  void LetThrough();

 private:
  explicit StopSignals(UniqueFd fd) : fd_(std::move(fd)) {}
  UniqueFd fd_;
  int seen_ = 0;
};

inline constexpr uint64_t kLeastFileLimit = 32;
inline constexpr uint64_t kMostFileLimit = 1'000'000'000;

// [control] Raises RLIMIT_NOFILE: none = as far as allowed, at most 1,000,000; 0 = leave it. An
// explicit number that is not allowed is PermissionDenied.
// InvalidArgument below or above what makes sense.
absl::Status RaiseFileLimit(std::optional<uint64_t> wanted);

// [control] Has the kernel make room for the descriptors of thousands of open files at once, as far
// as the limit allows. To be called before the first thread: with one, each time that the table
// grows costs whoever opens a file then some milliseconds.
void GrowDescriptorTable();

// [control] The sockets that systemd passed to this process (LISTEN_FDS, LISTEN_FDNAMES): made
// close-on-exec, and the variables are removed, so that no child takes them for its own.
// InvalidArgument when the variables lie.
absl::StatusOr<std::vector<vhost_user::ActivationSocket>> TakeActivationSockets();

// [control] Says that front-ends can connect: a newline to `ready_fd` (closed then; -1: none) and
// READY=1 to the service manager's NOTIFY_SOCKET, if there is one. `replaces`: the process that it
// has watched until now, which may take it for the end of the service.
absl::Status AnnounceReady(int ready_fd, bool replaces);

// [control] Says to the service manager that the service is that process from now on, before this
// one ends.
absl::Status AnnounceSuccessor(pid_t successor);

// [control] Places beside the executable where plugins may be: installed, then a build tree.
std::vector<std::filesystem::path> PluginPlaces();

// [control] The file that a command line calls a plugin: a path, or a name that is looked up.
// NotFound with the places that were looked at.
absl::StatusOr<std::filesystem::path> PluginFile(const std::filesystem::path& given);

}  // namespace virtbay::device_host

#endif  // VIRTBAY_HOSTIF_DEVICE_HOST_PROCESS_H_
