#include "framework/device/message.h"

#include <fcntl.h>
#include <sys/socket.h>
#include <sys/uio.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <climits>
#include <cstddef>
#include <span>

#include "framework/device/in_flight.h"
#include "framework/device/queue.h"
#include "framework/memory/payload.h"

namespace virtbay {
namespace {

constexpr uint32_t kSendFlags = MSG_MORE | MSG_EOR | MSG_CONFIRM | MSG_NOSIGNAL | MSG_DONTWAIT;
constexpr uint32_t kReceiveFlags =
    MSG_PEEK | MSG_TRUNC | MSG_ERRQUEUE | MSG_CMSG_CLOEXEC | MSG_NOSIGNAL | MSG_DONTWAIT;

// Not initialised: only what is filled is touched.
using Pieces = std::array<iovec, IOV_MAX>;

// Puts the prefix and the slices into `pieces`; returns how many, or -errno.
int64_t Gather(const virtbay_message& message, bool receive, Pieces* pieces) {
  const bool socket = message.kind == 0;
  if (message.struct_size < sizeof(virtbay_message) || message.reserved != 0 ||
      message.kind > VIRTBAY_MESSAGE_FILE || message.slice_count > VIRTBAY_MESSAGE_SLICES_MAX ||
      message.prefix_len > VIRTBAY_MESSAGE_PREFIX_MAX ||
      message.control_len > VIRTBAY_MESSAGE_CONTROL_MAX ||
      (message.flags & ~(receive ? kReceiveFlags : kSendFlags)) != 0 ||
      (message.slice_count > 0 && message.slices == nullptr) ||
      (message.prefix_len > 0 && message.prefix == nullptr) ||
      (message.name_len > 0 && message.name == nullptr) ||
      (message.control_len > 0 && message.control == nullptr) ||
      (!socket && (message.flags | message.name_len | message.control_len) != 0)) {
    return -EINVAL;
  }
  size_t count = 0;
  if (message.prefix_len > 0) (*pieces)[count++] = iovec{message.prefix, message.prefix_len};
  for (const virtbay_slice& slice : std::span(message.slices, message.slice_count)) {
    if (slice.request == nullptr) return -EINVAL;
    const InFlightRequest* request = InFlightRequest::From(slice.request);
    if (!request->queue->OnOwnThread() || request->state != RequestState::kHeld) return -EINVAL;
    const uint32_t total = receive ? request->abi.out_total : request->abi.in_total;
    if (slice.offset > total || total - slice.offset < slice.len) return -ERANGE;
    if (slice.len == 0) continue;
    if (count == pieces->size()) return -EMSGSIZE;
    const auto chain = receive ? request->chain.writable() : request->chain.readable();
    const std::span<iovec> room = std::span(*pieces).subspan(count);
    const size_t used = SliceSegments(chain, slice.offset, slice.len, room);
    if (used == 0) return -ERANGE;
    if (used == room.size()) {
      // Whether that was all of the slice: a datagram that is cut is lost.
      size_t bytes = 0;
      for (const iovec& piece : room) bytes += piece.iov_len;
      if (bytes != slice.len) return -EMSGSIZE;
    }
    count += used;
  }
  return static_cast<int64_t>(count);
}

// A file that knows no RWF_NOWAIT does the same when it is open with O_NONBLOCK (TAP interfaces and
// pipes of older kernels).
template <typename Call>
ssize_t WithoutWaiting(int fd, Call call) {
  ssize_t n = call(RWF_NOWAIT);
  if (n >= 0 || errno != EOPNOTSUPP) return n;
  const int flags = fcntl(fd, F_GETFL);
  if (flags < 0) return -1;
  if ((flags & O_NONBLOCK) == 0) {
    errno = EOPNOTSUPP;
    return -1;
  }
  return call(0);
}

int64_t Count(Queue* queue, ssize_t n, uint32_t prefix_len) {
  queue->CountSyscall();
  if (n < 0) return -errno;
  if (n > prefix_len) queue->CountDirect(static_cast<uint64_t>(n) - prefix_len);
  return n;
}

}  // namespace

int64_t SendMessage(Queue* queue, const virtbay_message& message) {
  Pieces pieces;
  const int64_t count = Gather(message, /*receive=*/false, &pieces);
  if (count < 0) return count;
  ssize_t n = 0;
  if (message.kind == VIRTBAY_MESSAGE_FILE) {
    n = WithoutWaiting(message.fd, [&](int flags) {
      return pwritev2(message.fd, pieces.data(), static_cast<int>(count), -1, flags);
    });
  } else {
    msghdr header{};
    header.msg_name = message.name;
    header.msg_namelen = message.name_len;
    header.msg_iov = pieces.data();
    header.msg_iovlen = static_cast<size_t>(count);
    header.msg_control = message.control;
    header.msg_controllen = message.control_len;
    n = sendmsg(message.fd, &header, static_cast<int>(message.flags | MSG_DONTWAIT | MSG_NOSIGNAL));
  }
  return Count(queue, n, message.prefix_len);
}

int64_t ReceiveMessage(Queue* queue, virtbay_message* message) {
  Pieces pieces;
  const int64_t count = Gather(*message, /*receive=*/true, &pieces);
  if (count < 0) return count;
  if (message->kind == VIRTBAY_MESSAGE_FILE) {
    const ssize_t n = WithoutWaiting(message->fd, [&](int flags) {
      return preadv2(message->fd, pieces.data(), static_cast<int>(count), -1, flags);
    });
    return Count(queue, n, message->prefix_len);
  }
  msghdr header{};
  header.msg_name = message->name;
  header.msg_namelen = message->name_len;
  header.msg_iov = pieces.data();
  header.msg_iovlen = static_cast<size_t>(count);
  header.msg_control = message->control;
  header.msg_controllen = message->control_len;
  const ssize_t n = recvmsg(message->fd, &header, static_cast<int>(message->flags | MSG_DONTWAIT));
  const int64_t result = Count(queue, n, message->prefix_len);
  if (result >= 0) {
    // The kernel tells the address's own length, also of one that it has cut.
    message->name_len = std::min(message->name_len, header.msg_namelen);
    message->control_len = static_cast<uint32_t>(header.msg_controllen);
    message->result_flags = static_cast<uint32_t>(header.msg_flags);
  }
  return result;
}

}  // namespace virtbay
