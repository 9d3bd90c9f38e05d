// SharedFd: a file descriptor that several hold and none owns alone; the last one closes it.
// Held by value; each holder's copy is its own, the descriptor may be used by all at a time.
#ifndef VIRTBAY_FRAMEWORK_BASE_SHARED_FD_H_
#define VIRTBAY_FRAMEWORK_BASE_SHARED_FD_H_

#include <memory>
#include <utility>

#include "framework/base/unique_fd.h"

namespace virtbay {

class SharedFd {
 public:
  SharedFd() = default;
  // Whoever owns one alone can give it to be shared.
  SharedFd(UniqueFd fd)  // NOLINT(google-explicit-constructor)
      : fd_(fd.valid() ? std::make_shared<const UniqueFd>(std::move(fd)) : nullptr) {}

  int get() const { return fd_ == nullptr ? -1 : fd_->get(); }
  bool valid() const { return fd_ != nullptr; }
  explicit operator bool() const { return valid(); }
  // Lets go of it, and takes over `fd`.
  void reset(int fd = -1) { *this = SharedFd(UniqueFd(fd)); }

 private:
  std::shared_ptr<const UniqueFd> fd_;
};

}  // namespace virtbay

#endif  // VIRTBAY_FRAMEWORK_BASE_SHARED_FD_H_
