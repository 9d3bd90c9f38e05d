// Where the guest's reports are listened for: the `guest-channel` of a configuration.
// Stateless; [control].
#ifndef VIRTBAY_HOSTIF_DEVICE_HOST_GUEST_ADDRESS_H_
#define VIRTBAY_HOSTIF_DEVICE_HOST_GUEST_ADDRESS_H_

#include <cstdint>
#include <optional>
#include <string>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "framework/base/unique_fd.h"
#include "hostif/vhost_user/socket.h"

namespace virtbay::device_host {

struct GuestAddress {
  enum class Kind { kUnix, kVsock, kTcp };
  Kind kind = Kind::kUnix;
  std::string name;             // path; numeric loopback address
  uint32_t port = 0;            // 0 with kTcp: one that is free
  std::optional<uint32_t> cid;  // kVsock: the guest that may connect; none: any
};

// [any] `unix:PATH`, `vsock:PORT`, `vsock:CID:PORT` (only that guest), `tcp:ADDRESS:PORT` (of this
// machine's loopback). InvalidArgument with the reason.
absl::StatusOr<GuestAddress> ParseGuestAddress(absl::string_view text);

struct GuestListener {
  vhost_user::ListeningSocket socket;
  std::string address;  // as ParseGuestAddress takes it, with the port that was given
};

// [control] Listens there. The error of the system call, naming the address.
absl::StatusOr<GuestListener> ListenForGuest(const GuestAddress& address);

// [any] Whether a connection that was accepted there may report: its peer is the guest named.
bool MayReport(const GuestAddress& address, const UniqueFd& connection);

}  // namespace virtbay::device_host

#endif  // VIRTBAY_HOSTIF_DEVICE_HOST_GUEST_ADDRESS_H_
