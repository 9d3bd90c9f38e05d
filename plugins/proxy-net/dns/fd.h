// Fd: a descriptor that is closed with its owner. A move-only value.
#ifndef VIRTBAY_PLUGINS_PROXY_NET_DNS_FD_H_
#define VIRTBAY_PLUGINS_PROXY_NET_DNS_FD_H_

#include <unistd.h>

#include <utility>

namespace virtbay::proxy_net {

class Fd {
 public:
  Fd() = default;
  explicit Fd(int fd) : fd_(fd) {}
  Fd(Fd&& other) noexcept : fd_(std::exchange(other.fd_, -1)) {}
  Fd& operator=(Fd&& other) noexcept {
    std::swap(fd_, other.fd_);
    return *this;
  }
  ~Fd() { Close(); }

  int get() const { return fd_; }
  bool valid() const { return fd_ >= 0; }
  void Close() {
    if (fd_ >= 0) close(std::exchange(fd_, -1));
  }

 private:
  int fd_ = -1;
};

}  // namespace virtbay::proxy_net

#endif  // VIRTBAY_PLUGINS_PROXY_NET_DNS_FD_H_
