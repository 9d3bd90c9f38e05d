#include "tests/bench/net_bridge.h"

#include <arpa/inet.h>
#include <fcntl.h>
#include <linux/if_tun.h>
#include <net/if.h>
#include <poll.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <sys/un.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstring>
#include <iostream>
#include <memory>
#include <span>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "framework/base/status.h"
#include "hostif/guest/driver.h"
#include "hostif/guest/net_client.h"
#include "hostif/guest/vhost_user_transport.h"

namespace virtbay::bench {
namespace {

constexpr uint32_t kMaxFrame = 65536 + 64;

class RingBridge {
 public:
  static absl::StatusOr<std::unique_ptr<RingBridge>> Create(int tap,
                                                            const RingBridgeOptions& options) {
    constexpr uint64_t kBits[] = {guest::kNetCsum,      guest::kNetGuestCsum, guest::kNetMac,
                                  guest::kNetGuestTso4, guest::kNetGuestTso6, guest::kNetGuestEcn,
                                  guest::kNetHostTso4,  guest::kNetHostTso6,  guest::kNetHostEcn,
                                  guest::kNetMrgRxbuf,  guest::kNetStatus};
    guest::DriverOptions driver;
    for (const uint64_t bit : kBits) driver.device_features |= uint64_t{1} << bit;
    driver.queue_count = 2;
    driver.queue_size = options.ring;
    driver.packed = options.packed;
    const uint64_t slots = uint64_t{options.ring} * (kSlot + options.buffer);
    VIRTBAY_ASSIGN_OR_RETURN(auto memory,
                             guest::GuestMemory::Create((slots + (8 << 20)) & ~4095ull));
    VIRTBAY_ASSIGN_OR_RETURN(auto transport, guest::VhostUserTransport::Connect(options.socket));
    std::unique_ptr<RingBridge> bridge(new RingBridge(tap, options));
    VIRTBAY_ASSIGN_OR_RETURN(
        bridge->driver_, guest::Driver::Create(std::move(transport), std::move(memory), driver));
    VIRTBAY_RETURN_IF_ERROR(bridge->Fill());
    return bridge;
  }

  absl::Status Run() {
    for (;;) {
      bool moved = false;
      for (int i = 0; i < 64 && FromTap(); ++i) moved = true;
      VIRTBAY_ASSIGN_OR_RETURN(const bool received, ToTap());
      if (moved || received) continue;
      VIRTBAY_ASSIGN_OR_RETURN(const bool there, Sleep());
      if (!there) return absl::OkStatus();
    }
  }

 private:
  static constexpr uint32_t kSlot = 68 * 1024;  // a frame with its header

  RingBridge(int tap, const RingBridgeOptions& options) : tap_(tap), options_(options) {}

  guest::DriverQueue& rx() { return driver_->queue(0); }
  guest::DriverQueue& tx() { return driver_->queue(1); }
  std::byte* Slot(uint64_t token) { return slots_.host + token * kSlot; }
  std::byte* Buffer(uint64_t token) { return buffers_.host + token * options_.buffer; }

  absl::Status Fill() {
    VIRTBAY_ASSIGN_OR_RETURN(slots_,
                             driver_->memory().Allocate(uint64_t{options_.ring} * kSlot, 4096));
    VIRTBAY_ASSIGN_OR_RETURN(
        buffers_, driver_->memory().Allocate(uint64_t{options_.ring} * options_.buffer, 4096));
    // The pages of a guest that has been up for a while.
    std::memset(slots_.host, 0, slots_.size);
    std::memset(buffers_.host, 0, buffers_.size);
    for (uint32_t i = 0; i < tx().ring().size(); ++i) free_.push_back(i);
    for (uint32_t i = 0; i < rx().ring().size(); ++i) VIRTBAY_RETURN_IF_ERROR(Post(i));
    rx().Publish();
    used_.reserve(2 * options_.ring);
    return absl::OkStatus();
  }

  absl::Status Post(uint64_t token) {
    const guest::Segment room = {buffers_.address + token * options_.buffer, options_.buffer};
    if (!rx().Add({}, {&room, 1}, token)) return absl::InternalError("no descriptor left");
    return absl::OkStatus();
  }

  void Reclaim() {
    std::array<guest::UsedBuffer, 64> used;
    for (size_t n = 0; (n = tx().TakeUsed(used)) > 0;) {
      for (size_t i = 0; i < n; ++i) free_.push_back(used[i].token);
    }
  }

  bool FromTap() {
    if (free_.empty()) Reclaim();
    if (free_.empty()) return false;
    const uint64_t token = free_.back();
    const ssize_t n = ::read(tap_, Slot(token), kSlot);
    if (n <= static_cast<ssize_t>(sizeof(guest::NetHeader))) return false;
    const guest::Segment frame = {slots_.address + token * kSlot, static_cast<uint32_t>(n)};
    if (!tx().Add({&frame, 1}, {}, token)) return false;
    free_.pop_back();
    tx().Publish();
    return true;
  }

  absl::StatusOr<bool> ToTap() {
    std::array<guest::UsedBuffer, 64> used;
    for (size_t n = 0; used_.size() < options_.ring && (n = rx().TakeUsed(used)) > 0;) {
      used_.insert(used_.end(), used.begin(), used.begin() + static_cast<std::ptrdiff_t>(n));
    }
    size_t done = 0;
    while (done < used_.size()) {
      guest::NetHeader header;
      std::memcpy(&header, Buffer(used_[done].token), sizeof(header));
      const size_t count = std::max<size_t>(1, header.num_buffers);
      if (count > kMaxBuffers) return absl::DataLossError("a frame of too many buffers");
      if (count > used_.size() - done) break;  // the rest is in the next look
      std::array<iovec, kMaxBuffers> pieces;
      for (size_t i = 0; i < count; ++i) {
        const guest::UsedBuffer& buffer = used_[done + i];
        pieces[i] = {Buffer(buffer.token), std::min(buffer.written, options_.buffer)};
      }
      // An interface that is down takes none, as a guest's would.
      [[maybe_unused]] const ssize_t n = ::writev(tap_, pieces.data(), static_cast<int>(count));
      for (size_t i = 0; i < count; ++i) VIRTBAY_RETURN_IF_ERROR(Post(used_[done + i].token));
      rx().Publish();
      done += count;
    }
    used_.erase(used_.begin(), used_.begin() + static_cast<std::ptrdiff_t>(done));
    return done > 0;
  }

  // False: the device has gone.
  absl::StatusOr<bool> Sleep() {
    const bool full = free_.empty();
    if (!rx().ring().ArmCalls() || (full && !tx().ring().ArmCalls())) return true;
    pollfd fds[] = {{rx().call_fd(), POLLIN, 0},
                    {driver_->transport().hangup_fd(), POLLIN, 0},
                    {full ? tx().call_fd() : tap_, POLLIN, 0}};
    if (::poll(fds, std::size(fds), -1) < 0 && errno != EINTR) return ErrnoStatus(errno, "poll");
    rx().ring().DisarmCalls();
    if (fds[0].revents != 0) rx().CountCalls();
    if (full) {
      tx().ring().DisarmCalls();
      tx().CountCalls();
    }
    return fds[1].revents == 0;
  }

  static constexpr size_t kMaxBuffers = 64;

  const int tap_;
  const RingBridgeOptions options_;
  std::unique_ptr<guest::Driver> driver_;
  guest::GuestRange slots_;
  guest::GuestRange buffers_;
  std::vector<uint64_t> free_;
  std::vector<guest::UsedBuffer> used_;  // taken off the ring, not yet passed on
};

class StreamBridge {
 public:
  StreamBridge(int tap, int socket) : tap_(tap), socket_(socket) {}

  absl::Status Run() {
    for (;;) {
      FromTap();
      VIRTBAY_ASSIGN_OR_RETURN(const bool sent, Send());
      VIRTBAY_ASSIGN_OR_RETURN(const bool received, ToTap());
      if (ended_) return absl::OkStatus();
      if (sent || received) continue;
      const bool blocked = out_begin_ < out_end_;
      pollfd fds[] = {{socket_, static_cast<short>(POLLIN | (blocked ? POLLOUT : 0)), 0},
                      {blocked ? -1 : tap_, POLLIN, 0}};
      if (::poll(fds, std::size(fds), -1) < 0 && errno != EINTR) return ErrnoStatus(errno, "poll");
    }
  }

 private:
  static constexpr size_t kBuffer = 1 << 20;

  // As many frames as there are, into one buffer for one system call.
  void FromTap() {
    if (out_begin_ < out_end_) return;
    out_begin_ = out_end_ = 0;
    while (out_.size() - out_end_ > kMaxFrame + 4) {
      const ssize_t n = ::read(tap_, out_.data() + out_end_ + 4, kMaxFrame);
      if (n <= 0) return;
      const uint32_t length = htonl(static_cast<uint32_t>(n));
      std::memcpy(out_.data() + out_end_, &length, 4);
      out_end_ += 4 + static_cast<size_t>(n);
    }
  }

  absl::StatusOr<bool> Send() {
    if (out_begin_ == out_end_) return false;
    const ssize_t n = ::send(socket_, out_.data() + out_begin_, out_end_ - out_begin_,
                             MSG_DONTWAIT | MSG_NOSIGNAL);
    if (n < 0 && errno == EPIPE) ended_ = true;
    if (n < 0 && errno != EAGAIN && errno != EPIPE) return ErrnoStatus(errno, "send");
    if (n > 0) out_begin_ += static_cast<size_t>(n);
    return n > 0;
  }

  absl::StatusOr<bool> ToTap() {
    const ssize_t n = ::recv(socket_, in_.data() + in_end_, in_.size() - in_end_, MSG_DONTWAIT);
    if (n == 0 || (n < 0 && errno == ECONNRESET)) ended_ = true;
    if (n < 0 && errno != EAGAIN && errno != ECONNRESET) return ErrnoStatus(errno, "recv");
    if (n <= 0) return false;
    in_end_ += static_cast<size_t>(n);
    size_t at = 0;
    while (in_end_ - at >= 4) {
      uint32_t length = 0;
      std::memcpy(&length, in_.data() + at, 4);
      length = ntohl(length);
      if (length > kMaxFrame) return absl::DataLossError("a frame that is too long");
      if (in_end_ - at < 4 + length) break;
      [[maybe_unused]] const ssize_t written = ::write(tap_, in_.data() + at + 4, length);
      at += 4 + length;
    }
    std::memmove(in_.data(), in_.data() + at, in_end_ - at);
    in_end_ -= at;
    return true;
  }

  const int tap_;
  const int socket_;
  bool ended_ = false;
  std::vector<char> out_ = std::vector<char>(kBuffer);
  size_t out_begin_ = 0;
  size_t out_end_ = 0;
  std::vector<char> in_ = std::vector<char>(kBuffer);
  size_t in_end_ = 0;
};

}  // namespace

absl::StatusOr<UniqueFd> MakeTap(const std::string& name, bool offloads) {
  UniqueFd tap(::open("/dev/net/tun", O_RDWR | O_CLOEXEC | O_NONBLOCK));
  if (!tap.valid()) return ErrnoStatus(errno, "/dev/net/tun");
  ifreq request = {};
  if (name.size() >= sizeof(request.ifr_name)) return absl::InvalidArgumentError(name);
  std::memcpy(request.ifr_name, name.c_str(), name.size());
  request.ifr_flags = static_cast<short>(IFF_TAP | IFF_NO_PI | (offloads ? IFF_VNET_HDR : 0));
  if (::ioctl(tap.get(), TUNSETIFF, &request) != 0) return ErrnoStatus(errno, name);
  if (!offloads) return tap;
  int header = sizeof(guest::NetHeader);
  if (::ioctl(tap.get(), TUNSETVNETHDRSZ, &header) != 0 ||
      ::ioctl(tap.get(), TUNSETOFFLOAD, TUN_F_CSUM | TUN_F_TSO4 | TUN_F_TSO6 | TUN_F_TSO_ECN) !=
          0) {
    return ErrnoStatus(errno, absl::StrCat("offloads of ", name));
  }
  return tap;
}

absl::Status BridgeRings(const UniqueFd& tap, const RingBridgeOptions& options) {
  VIRTBAY_ASSIGN_OR_RETURN(const auto bridge, RingBridge::Create(tap.get(), options));
  std::cout << "ready" << std::endl;
  return bridge->Run();
}

absl::Status BridgeStream(const UniqueFd& tap, const std::string& path) {
  const UniqueFd socket(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0));
  sockaddr_un address = {};
  address.sun_family = AF_UNIX;
  if (path.size() >= sizeof(address.sun_path)) return absl::InvalidArgumentError(path);
  std::memcpy(address.sun_path, path.c_str(), path.size());
  if (!socket.valid() ||
      ::connect(socket.get(), reinterpret_cast<const sockaddr*>(&address), sizeof(address)) != 0) {
    return ErrnoStatus(errno, path);
  }
  std::cout << "ready" << std::endl;
  return StreamBridge(tap.get(), socket.get()).Run();
}

}  // namespace virtbay::bench
