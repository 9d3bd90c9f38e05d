// The other end of the control socket: sends one request and waits for its answer.
// Stateless; [control], blocking.
#ifndef VIRTBAY_HOSTIF_DEVICE_HOST_CONTROL_CLIENT_H_
#define VIRTBAY_HOSTIF_DEVICE_HOST_CONTROL_CLIENT_H_

#include <nlohmann/json.hpp>
#include <string>

#include "absl/status/statusor.h"

namespace virtbay::device_host {

// [control] The answer's `result`, or its error under its code. Unavailable names the socket.
absl::StatusOr<nlohmann::json> CallControl(const std::string& socket,
                                           const nlohmann::json& request);

// [control] The socket to use when none is named: VIRTBAY_CONTROL_SOCKET, else virtbay.sock in
// XDG_RUNTIME_DIR, else /run/virtbay.sock.
std::string DefaultControlSocket();

}  // namespace virtbay::device_host

#endif  // VIRTBAY_HOSTIF_DEVICE_HOST_CONTROL_CLIENT_H_
