// Channel: the conversation of two device hosts about a handover, over a Unix socket that keeps the
// bounds of its packets: messages of bytes and descriptors, in as many packets as that takes.
// Nothing waits beyond its deadline. Owned by whoever leads the conversation; one thread at a time.
// What the other end says is hostile.
#ifndef VIRTBAY_HOSTIF_HANDOVER_CHANNEL_H_
#define VIRTBAY_HOSTIF_HANDOVER_CHANNEL_H_

#include <sys/types.h>

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/time/time.h"
#include "framework/base/unique_fd.h"

namespace virtbay::handover {

// Of the messages and of what is in them. Both sides have to speak the same one.
inline constexpr uint16_t kVersion = 2;

enum class Kind : uint16_t {
  kHello = 1,    // new -> old: who asks
  kOffer = 2,    // old -> new: what there is
  kStaged = 3,   // new -> old: what is wanted; all of it is ready to be given its state
  kDevices = 4,  // old -> new: that, stopped where it is
  kTaken = 5,    // new -> old: it serves them from now on
  kRefuse = 6,   // either: why it comes to nothing; any version is understood
};

struct Message {
  Kind kind = Kind::kRefuse;
  std::string bytes;
  std::vector<UniqueFd> fds;
};

class Channel {
 public:
  // Takes a connected socket over.
  explicit Channel(UniqueFd socket) : socket_(std::move(socket)) {}

  // The socket of a process that serves, at `name` in the directory `dir`. NotFound when nobody
  // listens there.
  static absl::StatusOr<Channel> Connect(int dir, const std::string& name);

  // PermissionDenied unless the other end is a process of this user's. Its process number.
  absl::StatusOr<pid_t> CheckPeer() const;

  // The descriptors stay the caller's. DeadlineExceeded; Unavailable when the other end has gone.
  absl::Status Send(Kind kind, absl::string_view bytes, std::span<const int> fds,
                    absl::Time deadline);
  // The next message, which has to be of that kind. What the other side refuses with is
  // FailedPrecondition, with its words. InvalidArgument for what is no such message or of another
  // version, DeadlineExceeded, Unavailable when the other end has gone.
  absl::StatusOr<Message> Receive(Kind kind, absl::Time deadline);
  // Nothing can be received any more but what has come already: what the other side sends from now
  // on fails there.
  void Close();
  // [any] Both directions end, and whoever waits here for the other end.
  void HangUp();

  int fd() const { return socket_.get(); }

 private:
  // One packet of a message; a part of it.
  absl::Status ReceivePacket(Message* message, uint64_t* bytes, uint64_t* fds, bool* first,
                             absl::Time deadline);

  UniqueFd socket_;
};

// A listening socket at `name` in the directory `dir`, in place of any other one there.
absl::StatusOr<UniqueFd> Listen(int dir, const std::string& name);

}  // namespace virtbay::handover

#endif  // VIRTBAY_HOSTIF_HANDOVER_CHANNEL_H_
