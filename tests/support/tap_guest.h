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

#include <array>
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
  void Start(std::unique_ptr<guest::NetClient> client, uint32_t pairs = 1) {
    client_ = std::move(client);
    pairs_ = pairs;
    stop_ = false;
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

  // How the guest chooses the pair that it sends a frame on, of those that Start was told of:
  // always the same one, by its ports, or another one after so many frames.
  enum class Choice { kFixed, kByPorts, kInTurn };
  void Choose(Choice choice, uint32_t parameter = 0) {
    parameter_ = parameter;
    choice_ = choice;
  }
  // Has the driver use so many pairs (virtio 1.3 5.1.6.5.6); the device's answer.
  int SetPairs(uint16_t pairs) {
    answer_ = -1;
    wanted_pairs_ = pairs;
    eventfd_write(stop_fd_.get(), 1);
    answer_.wait(-1);
    return answer_;
  }
  // Frames that came on a pair.
  uint64_t received(uint32_t pair) const { return received_[pair]; }

 private:
  // A full transmit queue is looked at again: the device gives it back without a call.
  bool IsFull() {
    for (uint32_t pair = 0; pair < pairs_; ++pair) {
      if (client_->Unsent(pair) > 200) return true;
    }
    return false;
  }
  uint32_t PairOf(absl::string_view frame) {
    switch (choice_.load()) {
      case Choice::kFixed:
        return parameter_;
      case Choice::kInTurn:
        return static_cast<uint32_t>(sent_++ / parameter_ % pairs_);
      case Choice::kByPorts:
        break;
    }
    // The kernel's own ports are all even, or all odd.
    const size_t at = frame.size() > 12 && frame[12] == '\x08' ? 34 : 54;
    return frame.size() < at + 4 ? 0 : static_cast<uint8_t>(frame[at + 1]) / 2 % pairs_;
  }
  bool FromTap() {
    if (IsFull()) return false;
    iovec vectors[2] = {{&header_, sizeof(header_)}, {buffer_.data(), buffer_.size()}};
    const ssize_t n = readv(tap_.get(), vectors, 2);
    if (n <= static_cast<ssize_t>(sizeof(header_))) return false;
    const absl::string_view frame(buffer_.data(), static_cast<size_t>(n) - sizeof(header_));
    if (!client_->Send(PairOf(frame), header_, frame).ok()) ++lost_;
    return true;
  }
  bool ToTap(uint32_t pair) {
    if (!client_->HasFrame(pair)) return false;
    auto frame = client_->Receive(pair, absl::Milliseconds(100));
    if (!frame.ok()) return false;
    ++received_[pair];
    frame->header.num_buffers = 0;
    iovec vectors[2] = {{&frame->header, sizeof(frame->header)},
                        {frame->data.data(), frame->data.size()}};
    if (writev(tap_.get(), vectors, 2) < 0) ++lost_;
    return true;
  }
  void Pump() {
    while (!stop_) {
      if (const uint16_t pairs = wanted_pairs_.exchange(0); pairs != 0) {
        const auto ack = client_->Command(4, 0, std::string{static_cast<char>(pairs), 0});
        answer_ = ack.ok() ? *ack : 255;
        answer_.notify_all();
      }
      bool moved = false;
      for (int i = 0; i < 64 && FromTap(); ++i) moved = true;
      bool armed = true;
      for (uint32_t pair = 0; pair < pairs_; ++pair) {
        for (int i = 0; i < 64 && ToTap(pair); ++i) moved = true;
        armed = (moved || client_->rx(pair).ring().ArmCalls()) && armed;
      }
      if (moved || !armed) continue;
      const bool full = IsFull();
      std::vector<pollfd> fds = {{stop_fd_.get(), POLLIN, 0}, {full ? -1 : tap_.get(), POLLIN, 0}};
      for (uint32_t pair = 0; pair < pairs_; ++pair) {
        fds.push_back({client_->rx(pair).call_fd(), POLLIN, 0});
      }
      poll(fds.data(), fds.size(), full ? 1 : -1);
      for (uint32_t pair = 0; pair < pairs_; ++pair) client_->rx(pair).CountCalls();
      eventfd_t count = 0;
      if (!stop_) eventfd_read(stop_fd_.get(), &count);
    }
  }

  UniqueFd tap_;
  UniqueFd stop_fd_;
  std::unique_ptr<guest::NetClient> client_;
  std::thread pump_;
  std::atomic<bool> stop_{false};
  std::atomic<uint64_t> lost_{0};
  uint32_t pairs_ = 1;
  std::atomic<Choice> choice_{Choice::kFixed};
  std::atomic<uint32_t> parameter_{0};
  uint64_t sent_ = 0;
  std::atomic<uint16_t> wanted_pairs_{0};
  std::atomic<int> answer_{-1};
  std::array<std::atomic<uint64_t>, 16> received_{};
  guest::NetHeader header_;
  std::vector<char> buffer_ = std::vector<char>(65536 + 64);
};

}  // namespace virtbay::testing

#endif  // VIRTBAY_TESTS_SUPPORT_TAP_GUEST_H_
