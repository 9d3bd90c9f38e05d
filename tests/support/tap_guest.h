// TapGuest: a guest's kernel without a guest: a network namespace whose TAP interface is pumped to
// a virtio-net device through the user-space driver, offloads included. Real TCP against a device,
// in one process.
// Owned by a test. Enter() moves the calling thread into the namespace for good.
#ifndef VIRTBAY_TESTS_SUPPORT_TAP_GUEST_H_
#define VIRTBAY_TESTS_SUPPORT_TAP_GUEST_H_

#include <fcntl.h>
#include <linux/if_tun.h>
#include <net/if.h>
#include <poll.h>
#include <sched.h>
#include <sys/eventfd.h>
#include <sys/ioctl.h>
#include <sys/uio.h>
#include <unistd.h>

#include <atomic>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/str_cat.h"
#include "framework/base/status.h"
#include "framework/base/unique_fd.h"
#include "hostif/guest/net_client.h"

namespace virtbay::testing {

class TapGuest {
 public:
  // Moves this thread into a namespace of its own, with a TAP interface "tap0" of that MTU there.
  // `offloads`: its kernel leaves checksums and segmentation to the device, whose driver then has
  // to have negotiated them. Unimplemented, with the reason, where that is not allowed.
  static absl::StatusOr<std::unique_ptr<TapGuest>> Enter(uint32_t mtu, bool offloads = true) {
    auto guest = std::make_unique<TapGuest>();
    if (unshare(CLONE_NEWNET) != 0) {
      return absl::UnimplementedError(absl::StrCat("no network namespace: ", strerror(errno)));
    }
    guest->tap_.reset(open("/dev/net/tun", O_RDWR | O_CLOEXEC | O_NONBLOCK));
    if (!guest->tap_.valid()) {
      return absl::UnimplementedError(absl::StrCat("/dev/net/tun: ", strerror(errno)));
    }
    ifreq request = {};
    std::strcpy(request.ifr_name, "tap0");
    request.ifr_flags = IFF_TAP | IFF_NO_PI | IFF_VNET_HDR;
    int header = sizeof(guest::NetHeader);
    if (ioctl(guest->tap_.get(), TUNSETIFF, &request) != 0 ||
        ioctl(guest->tap_.get(), TUNSETVNETHDRSZ, &header) != 0) {
      return absl::UnimplementedError(absl::StrCat("TAP: ", strerror(errno)));
    }
    constexpr unsigned kUso = 0x20 | 0x40;  // TUN_F_USO4 and 6, newer than the header may be
    const unsigned flags = offloads ? TUN_F_CSUM | TUN_F_TSO4 | TUN_F_TSO6 | TUN_F_TSO_ECN : 0;
    if ((!offloads || ioctl(guest->tap_.get(), TUNSETOFFLOAD, flags | kUso) != 0) &&
        ioctl(guest->tap_.get(), TUNSETOFFLOAD, flags) != 0) {
      return ErrnoStatus(errno, "TUNSETOFFLOAD");
    }
    if (!Run(absl::StrCat("ip link set lo up && ip link set tap0 mtu ", mtu,
                          " address 52:54:00:00:00:01 up"))) {
      return absl::UnimplementedError("ip(8) cannot set the interface up");
    }
    return guest;
  }

  ~TapGuest() { Stop(); }

  // Runs a shell command in the calling thread's namespace.
  static bool Run(const std::string& command) { return std::system(command.c_str()) == 0; }

  // Pumps frames between the interface and the device until Stop.
  void Start(std::unique_ptr<guest::NetClient> client) {
    client_ = std::move(client);
    stop_fd_.reset(eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK));
    pump_ = std::thread([this] { Pump(); });
  }
  void Stop() {
    if (!pump_.joinable()) return;
    stop_ = true;
    eventfd_write(stop_fd_.get(), 1);
    pump_.join();
    client_.reset();
  }
  // Frames that found no room on their way.
  uint64_t lost() const { return lost_; }

 private:
  bool FromTap() {
    if (client_->Unsent(0) > 200) return false;
    iovec vectors[2] = {{&header_, sizeof(header_)}, {buffer_.data(), buffer_.size()}};
    const ssize_t n = readv(tap_.get(), vectors, 2);
    if (n <= static_cast<ssize_t>(sizeof(header_))) return false;
    const size_t size = static_cast<size_t>(n) - sizeof(header_);
    if (!client_->Send(0, header_, absl::string_view(buffer_.data(), size)).ok()) ++lost_;
    return true;
  }
  bool ToTap() {
    if (!client_->HasFrame(0)) return false;
    auto frame = client_->Receive(0, absl::Milliseconds(100));
    if (!frame.ok()) return false;
    frame->header.num_buffers = 0;
    iovec vectors[2] = {{&frame->header, sizeof(frame->header)},
                        {frame->data.data(), frame->data.size()}};
    if (writev(tap_.get(), vectors, 2) < 0) ++lost_;
    return true;
  }
  void Pump() {
    while (!stop_) {
      bool moved = false;
      for (int i = 0; i < 64 && FromTap(); ++i) moved = true;
      for (int i = 0; i < 64 && ToTap(); ++i) moved = true;
      if (moved || !client_->rx(0).ring().ArmCalls()) continue;
      pollfd fds[3] = {{tap_.get(), POLLIN, 0},
                       {client_->rx(0).call_fd(), POLLIN, 0},
                       {stop_fd_.get(), POLLIN, 0}};
      // A full transmit queue is looked at again: the device gives it back without a call.
      const bool full = client_->Unsent(0) > 200;
      poll(full ? fds + 1 : fds, full ? 2 : 3, full ? 1 : -1);
      client_->rx(0).CountCalls();
    }
  }

  UniqueFd tap_;
  UniqueFd stop_fd_;
  std::unique_ptr<guest::NetClient> client_;
  std::thread pump_;
  std::atomic<bool> stop_{false};
  std::atomic<uint64_t> lost_{0};
  guest::NetHeader header_;
  std::vector<char> buffer_ = std::vector<char>(65536 + 64);
};

}  // namespace virtbay::testing

#endif  // VIRTBAY_TESTS_SUPPORT_TAP_GUEST_H_
