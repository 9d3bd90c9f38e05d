#include "plugins/virtio-net/tap.h"

#include <fcntl.h>
#include <linux/ethtool.h>
#include <linux/if_tun.h>
#include <linux/sockios.h>
#include <net/if.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/utsname.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <cstring>
#include <string_view>
#include <utility>

#include "absl/strings/str_cat.h"

namespace virtbay::virtio_net {
namespace {

using sdk::Error;
using sdk::Status;

// Of headers newer than what this is built with.
constexpr unsigned kUso4 = 0x20;
constexpr unsigned kUso6 = 0x40;
constexpr int kVnetHeader = 12;

ifreq Request(const std::string& name, int flags) {
  ifreq request{};
  std::memcpy(request.ifr_name, name.data(), std::min<size_t>(name.size(), IFNAMSIZ - 1));
  request.ifr_flags = static_cast<short>(flags);
  return request;
}

class Socket {
 public:
  Socket() : fd_(socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0)) {}
  ~Socket() {
    if (fd_ >= 0) close(fd_);
  }
  Socket(const Socket&) = delete;
  Socket& operator=(const Socket&) = delete;
  int get() const { return fd_; }

 private:
  const int fd_;
};

// What an interface that TUNSETIFF did not take is; "" where it is a TAP interface, or none.
std::string OtherKind(const std::string& name) {
  const Socket look;
  ifreq request = Request(name, 0);
  if (look.get() < 0 || ioctl(look.get(), SIOCGIFINDEX, &request) != 0) return "";
  ethtool_drvinfo info{};
  info.cmd = ETHTOOL_GDRVINFO;
  request = Request(name, 0);
  request.ifr_data = reinterpret_cast<char*>(&info);
  // An interface without a driver of its own says nothing of it.
  const bool tun = ioctl(look.get(), SIOCETHTOOL, &request) == 0 &&
                   std::string_view(info.driver, strnlen(info.driver, sizeof info.driver)) == "tun";
  if (!tun) return " is no TAP interface";
  const std::string_view kind(info.bus_info, strnlen(info.bus_info, sizeof info.bus_info));
  return kind == "tun" ? " is a TUN interface, not TAP" : "";
}

}  // namespace

Tap::~Tap() {
  for (const int fd : fds_) close(fd);
}

Status Tap::Open(const std::string& name, uint32_t pairs) {
  name_ = name;
  by_name_ = true;
  const auto flags =
      static_cast<uint16_t>(IFF_TAP | IFF_NO_PI | IFF_VNET_HDR | (pairs > 1 ? IFF_MULTI_QUEUE : 0));
  for (uint32_t i = 0; i < pairs; ++i) {
    Status status = OpenQueue(flags);
    if (!status.ok()) return status;
  }
  return {};
}

Status Tap::OpenQueue(uint16_t flags) {
  const int fd = open("/dev/net/tun", O_RDWR | O_NONBLOCK | O_CLOEXEC);
  if (fd < 0) {
    const int error = errno;
    std::string why = absl::StrCat("option tap: cannot open /dev/net/tun");
    if (error == ENOENT || error == ENODEV || error == ENXIO) {
      absl::StrAppend(&why, " (the kernel has no TUN/TAP driver, or it is not loaded: module tun)");
    }
    return sdk::Errno(error, why);
  }
  fds_.push_back(fd);
  ifreq request = Request(name_, flags);
  int error = ioctl(fd, TUNSETIFF, &request) == 0 ? 0 : errno;
  if (error == EINVAL && (flags & IFF_MULTI_QUEUE) == 0) {
    // One that was made for several queues can only be opened as such.
    request = Request(name_, flags | IFF_MULTI_QUEUE);
    if (ioctl(fd, TUNSETIFF, &request) == 0) error = 0;
  }
  if (error == EINVAL) {
    if (const std::string kind = OtherKind(name_); !kind.empty()) {
      return sdk::Errno(error, absl::StrCat("option tap: interface ", name_, kind));
    }
  }
  if (error != 0) {
    const char* why = "";
    switch (error) {
      case EPERM:
        why =
            " (needs CAP_NET_ADMIN, or an interface that was made for this user: ip tuntap add "
            "dev NAME mode tap user USER vnet_hdr)";
        break;
      case EBUSY:
        why = " (another process uses it)";
        break;
      case EINVAL:
        why = (flags & IFF_MULTI_QUEUE) != 0 ? " (it was made without multi_queue)" : "";
        break;
      case E2BIG:
        why = " (it has no more queues)";
        break;
      default:
        break;
    }
    Error failed = sdk::Errno(error, absl::StrCat("option tap: interface ", name_, why));
    if (error == EBUSY) failed.code = VIRTBAY_ALREADY_EXISTS;
    return failed;
  }
  return Prepare(fd);
}

Status Tap::Adopt(const std::vector<int>& fds) {
  for (const int inherited : fds) {
    const std::string what = absl::StrCat("option tap-fd: descriptor ", inherited);
    // The number is right, but not what was passed with it.
    const auto wrong = [&what](const std::string& why) {
      return sdk::Error{VIRTBAY_FAILED_PRECONDITION, 0, what + why};
    };
    const int fd = fcntl(inherited, F_DUPFD_CLOEXEC, 3);
    if (fd < 0) return sdk::Errno(errno, what);
    fds_.push_back(fd);
    ifreq request{};
    if (ioctl(fd, TUNGETIFF, &request) != 0) {
      return wrong(" is no TAP interface");
    }
    if ((request.ifr_flags & IFF_TAP) == 0) {
      return wrong(" is a TUN interface, not TAP");
    }
    if ((request.ifr_flags & IFF_VNET_HDR) == 0 || (request.ifr_flags & IFF_NO_PI) == 0) {
      return wrong(" was not opened with IFF_VNET_HDR and IFF_NO_PI");
    }
    if (fds.size() > 1 && (request.ifr_flags & IFF_MULTI_QUEUE) == 0) {
      return wrong(" was not opened with IFF_MULTI_QUEUE");
    }
    const std::string name(request.ifr_name, strnlen(request.ifr_name, IFNAMSIZ));
    if (!name_.empty() && name != name_) {
      return wrong(absl::StrCat(" is of interface ", name, ", not ", name_));
    }
    name_ = name;
    const int flags = fcntl(fd, F_GETFL);
    if (flags < 0 || fcntl(fd, F_SETFL, flags | O_NONBLOCK) != 0) return sdk::Errno(errno, what);
    Status status = Prepare(fd);
    if (!status.ok()) return status;
  }
  return {};
}

Status Tap::Prepare(int fd) {
  const int size = kVnetHeader;
  if (ioctl(fd, TUNSETVNETHDRSZ, &size) != 0) return sdk::Errno(errno, "TUNSETVNETHDRSZ");
  attached_[fds_.size() - 1].store(true, std::memory_order_release);
  if (fds_.size() == 1) {
    has_uso_ = ioctl(fd, TUNSETOFFLOAD, TUN_F_CSUM | kUso4 | kUso6) == 0;
    if (ioctl(fd, TUNSETOFFLOAD, 0) != 0) return sdk::Errno(errno, "TUNSETOFFLOAD");
  }
  return {};
}

Status Tap::SetOffloads(const sdk::GuestOffloads& offloads) {
  unsigned flags = 0;
  const auto add = [&flags](bool on, unsigned bit) {
    if (on) flags |= bit;
  };
  add(offloads.csum, TUN_F_CSUM);
  add(offloads.tso4, TUN_F_TSO4);
  add(offloads.tso6, TUN_F_TSO6);
  add(offloads.ecn, TUN_F_TSO_ECN);
  // The kernel takes both or none.
  add(offloads.uso4 && offloads.uso6 && has_uso_, kUso4 | kUso6);
  if (ioctl(fds_[0], TUNSETOFFLOAD, flags) != 0) {
    return sdk::Errno(errno, absl::StrCat("interface ", name_, ": TUNSETOFFLOAD"));
  }
  return {};
}

Status Tap::SetPairs(uint32_t pairs) {
  for (uint32_t i = 0; i < fds_.size() && fds_.size() > 1; ++i) {
    const bool wanted = i < pairs;
    if (wanted == attached(i)) continue;
    ifreq request = Request("", wanted ? IFF_ATTACH_QUEUE : IFF_DETACH_QUEUE);
    if (ioctl(fds_[i], TUNSETQUEUE, &request) != 0) {
      return sdk::Errno(errno, absl::StrCat("interface ", name_, ": TUNSETQUEUE"));
    }
    attached_[i].store(wanted, std::memory_order_release);
  }
  return {};
}

sdk::Status Tap::Restore(const std::string& name, const std::vector<int>& fds, uint32_t pairs) {
  fds_ = fds;
  name_ = name;
  by_name_ = true;
  if (fds.size() != pairs || fds.size() > attached_.size()) {
    return sdk::InvalidArgument(
        absl::StrCat("the state has ", fds.size(), " queues of the interface, not ", pairs));
  }
  for (size_t i = 0; i < fds.size(); ++i) {
    ifreq request{};
    if (ioctl(fds[i], TUNGETIFF, &request) != 0 || (request.ifr_flags & IFF_TAP) == 0) {
      return sdk::InvalidArgument("a descriptor of the state is no TAP interface");
    }
    // Those that the guest did not use are detached.
    attached_[i].store((request.ifr_flags & IFF_DETACH_QUEUE) == 0, std::memory_order_release);
  }
  has_uso_ = ioctl(fds[0], TUNSETOFFLOAD, TUN_F_CSUM | kUso4 | kUso6) == 0;
  if (ioctl(fds[0], TUNSETOFFLOAD, 0) != 0) return sdk::Errno(errno, "TUNSETOFFLOAD");
  return {};
}

bool Tap::KernelHasUso() {
  utsname kernel{};
  int major = 0;
  int minor = 0;
  if (uname(&kernel) != 0 || std::sscanf(kernel.release, "%d.%d", &major, &minor) != 2)
    return false;
  return major > 6 || (major == 6 && minor >= 2);
}

uint32_t Tap::Mtu() const { return by_name_ ? MtuOf(name_) : 0; }

uint32_t Tap::MtuOf(const std::string& name) {
  const Socket look;
  ifreq request = Request(name, 0);
  if (look.get() < 0 || ioctl(look.get(), SIOCGIFMTU, &request) != 0) return 0;
  return static_cast<uint32_t>(request.ifr_mtu);
}

bool Tap::SetMtu(uint32_t mtu) const {
  const Socket change;
  ifreq request = Request(name_, 0);
  request.ifr_mtu = static_cast<int>(mtu);
  return change.get() >= 0 && ioctl(change.get(), SIOCSIFMTU, &request) == 0;
}

}  // namespace virtbay::virtio_net
