// Wire: whole messages from, and replies to, one stream socket, without ever blocking.
// Owned by a Connection; used on its server's thread.
#ifndef VIRTBAY_HOSTIF_VHOST_USER_WIRE_H_
#define VIRTBAY_HOSTIF_VHOST_USER_WIRE_H_

#include <sys/socket.h>

#include <array>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "framework/base/unique_fd.h"
#include "hostif/vhost_user/fd_closer.h"
#include "hostif/vhost_user/fd_list.h"
#include "hostif/vhost_user/messages.h"

namespace virtbay::vhost_user {

// One message of a front-end: header, header.size bytes of payload, and the fds that came along.
struct Message {
  Header header{};
  std::array<std::byte, kMaxPayload> payload{};
  FdList fds;

  std::span<const std::byte> bytes() const { return {payload.data(), header.size}; }
  // The T at the payload's byte `offset`; the caller has checked the size.
  template <typename T>
  T Get(size_t offset = 0) const {
    T value{};
    std::memcpy(&value, payload.data() + offset, sizeof value);
    return value;
  }
};

class MessageReader {
 public:
  enum class Progress { kMessage, kIncomplete, kEnd };

  // `closer` gets the fds that nobody took out of a message, and must outlive this.
  explicit MessageReader(FdCloser* closer) : closer_(closer) {}
  ~MessageReader();
  MessageReader(const MessageReader&) = delete;
  MessageReader& operator=(const MessageReader&) = delete;

  // Reads on from the non-blocking `socket`. kMessage: message() is whole and stays until the next
  // call. kIncomplete: nothing more for now. kEnd: the front-end closed between two messages.
  // An error is the end of the connection: bad version, a reply in place of a request, an
  // oversized payload, too many or misplaced fds, the end inside a message, a socket error.
  absl::StatusOr<Progress> Read(int socket);
  Message& message() { return message_; }
  // What has been read of a message that is not whole yet, with descriptors of the caller's own;
  // and that as what was read so far: InvalidArgument when it is no beginning of a message.
  absl::Status Export(std::vector<std::byte>* bytes, FdList* fds) const;
  absl::Status Import(std::span<const std::byte> bytes, FdList fds);
  // Closes the message's fds.
  void DropFds();

 private:
  absl::StatusOr<size_t> Receive(int socket, std::span<std::byte> into, bool with_fds);
  absl::Status CheckHeader() const;

  FdCloser* const closer_;
  Message message_;
  size_t received_ = 0;  // bytes of header and payload together
  bool whole_ = false;
};

// Sends replies; what the socket does not take at once waits in a buffer of one reply.
class ReplyWriter {
 public:
  // Sends header (flags exactly 0x5) and payload. Only when !pending(): the server reads no
  // further message before the last reply is gone, so that a front-end that never reads costs one
  // buffer.
  absl::Status Send(int socket, uint32_t request, std::span<const std::byte> payload,
                    UniqueFd fd = UniqueFd());
  // Sends the rest when the socket is writable again.
  absl::Status Flush(int socket);
  bool pending() const { return sent_ < size_; }
  // What waits, with a descriptor of the caller's own; and that as what waits: InvalidArgument when
  // it is more than a reply.
  absl::Status Export(std::vector<std::byte>* bytes, UniqueFd* fd) const;
  absl::Status Import(std::span<const std::byte> bytes, UniqueFd fd);

 private:
  std::array<std::byte, sizeof(Header) + sizeof(ConfigHeader) + kMaxConfigSize> buffer_;
  size_t size_ = 0;
  size_t sent_ = 0;
  UniqueFd fd_;  // goes with the first byte
};

}  // namespace virtbay::vhost_user

#endif  // VIRTBAY_HOSTIF_VHOST_USER_WIRE_H_
