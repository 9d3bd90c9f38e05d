// UniqueFd: a file descriptor that is closed with its owner. Move-only.
// Owned by value; one thread at a time.
#ifndef VIRTBAY_SDK_UNIQUE_FD_H_
#define VIRTBAY_SDK_UNIQUE_FD_H_

#include <unistd.h>

#include <utility>

namespace virtbay::sdk {

/// A descriptor, or none.
class UniqueFd {
 public:
  UniqueFd() = default;
  /// Takes it over; a negative one is none.
  explicit UniqueFd(int fd) : fd_(fd) {}
  /// The other one has none afterwards.
  UniqueFd(UniqueFd&& other) noexcept : fd_(std::exchange(other.fd_, -1)) {}
  /// What was held before is closed.
  UniqueFd& operator=(UniqueFd&& other) noexcept {
    if (this != &other) Reset(std::exchange(other.fd_, -1));
    return *this;
  }
  ~UniqueFd() { Reset(); }

  /// Whether there is one.
  explicit operator bool() const { return fd_ >= 0; }
  /// Negative: none.
  int get() const { return fd_; }
  /// Closes it and takes over another one.
  void Reset(int fd = -1) {
    if (fd_ >= 0) close(fd_);
    fd_ = fd;
  }

 private:
  int fd_ = -1;
};

}  // namespace virtbay::sdk

#endif  // VIRTBAY_SDK_UNIQUE_FD_H_
