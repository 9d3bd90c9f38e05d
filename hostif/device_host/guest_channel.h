// GuestChannel: listens for what the guest's virtbay-guest reports, a line each, and applies it. A
// connection stays until its other end goes: a virtio port is one for the machine's whole life, and
// what was sent before a close may never reach the guest. One thread moves the bytes of all
// connections and waits for none of them; applying a report never blocks.
// Owned by the executable; Create and the destructor are [control].
#ifndef VIRTBAY_HOSTIF_DEVICE_HOST_GUEST_CHANNEL_H_
#define VIRTBAY_HOSTIF_DEVICE_HOST_GUEST_CHANNEL_H_

#include <cstddef>
#include <cstdint>
#include <list>
#include <memory>
#include <string>
#include <thread>
#include <utility>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "framework/base/unique_fd.h"
#include "hostif/device_host/control_target.h"
#include "hostif/device_host/guest_address.h"

namespace virtbay::device_host {

class GuestChannel {
 public:
  // One guest needs one; the rest is for those that went away without saying so.
  static constexpr size_t kMaxConnections = 16;

  // [control] Listens at `address`; `target` outlives the channel. Errors name the address.
  static absl::StatusOr<std::unique_ptr<GuestChannel>> Create(const GuestAddress& address,
                                                              ControlTarget* target);
  // [control] Drops the connections and removes the socket's path.
  ~GuestChannel();
  // [control] Removes the path at once; the destructor does the rest.
  void RemoveSocket() { listener_.socket.file.Remove(); }
  // [any] Where it listens, with the port that was given: "tcp:127.0.0.1:40123".
  const std::string& address() const { return listener_.address; }
  GuestChannel(const GuestChannel&) = delete;
  GuestChannel& operator=(const GuestChannel&) = delete;

 private:
  struct Connection {
    UniqueFd fd;
    std::string in;
    std::string out;  // an answer; nothing is read before it is sent
    size_t sent = 0;
    bool closing = false;  // no more is read; it ends when everything is answered
  };

  GuestChannel(GuestAddress where, GuestListener listener, UniqueFd wake, ControlTarget* target);

  void Loop();
  bool Accept();
  // False when the connection is over.
  bool Receive(Connection* connection);
  bool Next(Connection* connection);
  bool SendSome(Connection* connection);
  // The answer's line to one report.
  std::string Report(absl::string_view line);
  void Refused(const absl::Status& status);

  const GuestAddress where_;
  GuestListener listener_;
  const UniqueFd wake_;  // readable when the loop shall end
  ControlTarget* const target_;

  // The loop's own.
  std::list<Connection> connections_;  // oldest first
  bool told_ = false;                  // a report's restricted pools are in the log
  uint32_t refused_ = 0;

  std::thread loop_;
};

}  // namespace virtbay::device_host

#endif  // VIRTBAY_HOSTIF_DEVICE_HOST_GUEST_CHANNEL_H_
