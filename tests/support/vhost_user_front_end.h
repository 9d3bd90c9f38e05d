// FrontEnd: a vhost-user front-end that can say anything, right or wrong, message by message.
// Owned by the test; one thread. What it does not hear within half a minute counts as not said.
#ifndef VIRTBAY_TESTS_SUPPORT_VHOST_USER_FRONT_END_H_
#define VIRTBAY_TESTS_SUPPORT_VHOST_USER_FRONT_END_H_

#include <dirent.h>
#include <poll.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <initializer_list>
#include <optional>
#include <span>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#include "framework/base/unique_fd.h"
#include "hostif/vhost_user/messages.h"

namespace virtbay::testing {

// Open descriptors of this process.
inline int CountFds() {
  int count = 0;
  DIR* const directory = opendir("/proc/self/fd");
  while (readdir(directory) != nullptr) ++count;
  closedir(directory);
  return count;
}

inline UniqueFd MakeEventFd() { return UniqueFd(eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)); }

// A memory file of `size` bytes.
inline UniqueFd MakeMemory(uint64_t size) {
  UniqueFd fd(memfd_create("guest", MFD_CLOEXEC));
  if (ftruncate(fd.get(), static_cast<off_t>(size)) != 0) fd.reset();
  return fd;
}

// A connection to the server that listens at `path`; invalid when refused.
inline UniqueFd ConnectTo(const std::string& path) {
  UniqueFd fd(socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0));
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  std::memcpy(address.sun_path, path.c_str(), std::min(path.size(), sizeof address.sun_path - 1));
  if (connect(fd.get(), reinterpret_cast<sockaddr*>(&address), sizeof address) != 0) fd.reset();
  return fd;
}

class FrontEnd {
 public:
  using Request = vhost_user::Request;
  struct Reply {
    vhost_user::Header header{};
    std::vector<std::byte> payload;
    template <typename T>
    T As() const {
      T value{};
      std::memcpy(&value, payload.data(), std::min(sizeof value, payload.size()));
      return value;
    }
  };

  FrontEnd() = default;
  explicit FrontEnd(UniqueFd socket) : socket_(std::move(socket)) {}

  // Bytes as they are, with these fds on the first of them.
  bool SendRaw(std::span<const std::byte> bytes, std::initializer_list<int> fds = {}) const {
    return SendRaw(bytes, std::vector<int>(fds));
  }
  bool SendRaw(std::span<const std::byte> bytes, const std::vector<int>& fds) const {
    iovec part{const_cast<std::byte*>(bytes.data()), bytes.size()};
    std::vector<char> control(CMSG_SPACE(fds.size() * sizeof(int)));
    msghdr message{};
    message.msg_iov = &part;
    message.msg_iovlen = 1;
    if (!fds.empty()) {
      message.msg_control = control.data();
      message.msg_controllen = control.size();
      cmsghdr* const rights = CMSG_FIRSTHDR(&message);
      rights->cmsg_level = SOL_SOCKET;
      rights->cmsg_type = SCM_RIGHTS;
      rights->cmsg_len = CMSG_LEN(fds.size() * sizeof(int));
      std::memcpy(CMSG_DATA(rights), fds.data(), fds.size() * sizeof(int));
    }
    return sendmsg(socket_.get(), &message, MSG_NOSIGNAL) == static_cast<ssize_t>(bytes.size());
  }

  bool SendBytes(Request request, std::span<const std::byte> payload,
                 const std::vector<int>& fds = {}, bool need_reply = false) const {
    const vhost_user::Header header{
        static_cast<uint32_t>(request),
        vhost_user::kVersion | (need_reply ? vhost_user::kFlagNeedReply : 0),
        static_cast<uint32_t>(payload.size())};
    std::vector<std::byte> all(sizeof header + payload.size());
    std::memcpy(all.data(), &header, sizeof header);
    if (!payload.empty()) std::memcpy(all.data() + sizeof header, payload.data(), payload.size());
    return SendRaw(all, fds);
  }
  template <typename T>
  bool Send(Request request, const T& payload, const std::vector<int>& fds = {},
            bool need_reply = false) const {
    static_assert(std::is_trivially_copyable_v<T>);
    return SendBytes(request, std::as_bytes(std::span(&payload, 1)), fds, need_reply);
  }
  bool Send(Request request) const { return SendBytes(request, {}); }

  // The next reply; nothing when the server has closed the connection.
  std::optional<Reply> Receive() const {
    Reply reply;
    if (!ReadAll(&reply.header, sizeof reply.header)) return std::nullopt;
    reply.payload.resize(reply.header.size);
    if (!ReadAll(reply.payload.data(), reply.payload.size())) return std::nullopt;
    return reply;
  }

  // Sends with NEED_REPLY: 0 or another number from the acknowledgement, -1 for a wrong reply or
  // none at all.
  int64_t AckBytes(Request request, std::span<const std::byte> payload,
                   const std::vector<int>& fds = {}) const {
    if (!SendBytes(request, payload, fds, true)) return -1;
    const auto reply = Receive();
    if (!reply || reply->header.request != static_cast<uint32_t>(request) ||
        reply->header.flags != 0x5 || reply->payload.size() != sizeof(uint64_t)) {
      return -1;
    }
    return static_cast<int64_t>(reply->As<uint64_t>());
  }
  template <typename T>
  int64_t Ack(Request request, const T& payload, const std::vector<int>& fds = {}) const {
    return AckBytes(request, std::as_bytes(std::span(&payload, 1)), fds);
  }
  int64_t Ack(Request request) const { return AckBytes(request, {}); }

  // A request that is answered with a u64.
  std::optional<uint64_t> Get(Request request) const {
    if (!Send(request)) return std::nullopt;
    const auto reply = Receive();
    if (!reply || reply->header.request != static_cast<uint32_t>(request) ||
        reply->header.flags != 0x5 || reply->payload.size() != sizeof(uint64_t)) {
      return std::nullopt;
    }
    return reply->As<uint64_t>();
  }
  // Everything sent before has been handled once this is true.
  bool Alive() const { return Get(Request::kGetFeatures).has_value(); }
  // The server has closed the connection; what it sent before is dropped.
  bool Closed() const {
    char dropped[256];
    for (;;) {
      pollfd entry{socket_.get(), POLLIN, 0};
      if (poll(&entry, 1, kPatienceMs) != 1) return false;
      const ssize_t got = recv(socket_.get(), dropped, sizeof dropped, 0);
      if (got <= 0) return true;
    }
  }

  int fd() const { return socket_.get(); }
  void Disconnect() { socket_.reset(); }

 private:
  static constexpr int kPatienceMs = 30'000;

  bool ReadAll(void* into, size_t size) const {
    size_t done = 0;
    while (done < size) {
      pollfd entry{socket_.get(), POLLIN, 0};
      if (poll(&entry, 1, kPatienceMs) != 1) return false;
      const ssize_t got = recv(socket_.get(), static_cast<char*>(into) + done, size - done, 0);
      if (got <= 0) return false;
      done += static_cast<size_t>(got);
    }
    return true;
  }

  UniqueFd socket_;
};

}  // namespace virtbay::testing

#endif  // VIRTBAY_TESTS_SUPPORT_VHOST_USER_FRONT_END_H_
