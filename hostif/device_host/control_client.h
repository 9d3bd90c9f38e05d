// The other end of the control socket: sends one request and waits for its answer.
// Stateless; [control], blocking.
#ifndef VIRTBAY_HOSTIF_DEVICE_HOST_CONTROL_CLIENT_H_
#define VIRTBAY_HOSTIF_DEVICE_HOST_CONTROL_CLIENT_H_

#include <nlohmann/json.hpp>
#include <string>
#include <utility>

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "framework/base/unique_fd.h"

namespace virtbay::device_host {

// A connection for several requests: what one has begun to record ends with it.
class ControlConnection {
 public:
  // [control] The error of connecting, which names the socket.
  static absl::StatusOr<ControlConnection> Open(const std::string& socket);
  // [control] The answer's `result`, or its error under its code. Unavailable names the socket.
  absl::StatusOr<nlohmann::json> Call(const nlohmann::json& request);
  // [control] Waits for so long, or until the other end has closed it.
  void Wait(absl::Duration duration) const;

 private:
  ControlConnection(std::string socket, UniqueFd fd)
      : socket_(std::move(socket)), fd_(std::move(fd)) {}

  std::string socket_;
  UniqueFd fd_;
};

// [control] One request on a connection of its own.
absl::StatusOr<nlohmann::json> CallControl(const std::string& socket,
                                           const nlohmann::json& request);

// [control] The socket to use when none is named: VIRTBAY_CONTROL_SOCKET, else virtbay.sock in
// XDG_RUNTIME_DIR, else /run/virtbay.sock.
std::string DefaultControlSocket();

}  // namespace virtbay::device_host

#endif  // VIRTBAY_HOSTIF_DEVICE_HOST_CONTROL_CLIENT_H_
