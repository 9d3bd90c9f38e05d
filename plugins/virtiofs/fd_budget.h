// FdBudget: how many descriptors the device holds, and which cold O_PATH ones are closed for new
// ones (a clock over the inodes that own one).
// Owned by the device; every function is [any]. Its lock is never held over a system call.
#ifndef VIRTBAY_PLUGINS_VIRTIOFS_FD_BUDGET_H_
#define VIRTBAY_PLUGINS_VIRTIOFS_FD_BUDGET_H_

#include <atomic>
#include <cstdint>
#include <mutex>
#include <vector>

#include "plugins/virtiofs/inode.h"

namespace virtbay::virtiofs {

// The O_PATH descriptor of an inode, held open for as long as this lives.
class PathFd {
 public:
  PathFd() = default;
  PathFd(Inode* inode, int fd) : inode_(inode), fd_(fd) {}
  PathFd(PathFd&& other) noexcept
      : inode_(std::exchange(other.inode_, nullptr)), fd_(std::exchange(other.fd_, -1)) {}
  PathFd& operator=(PathFd&& other) noexcept {
    if (this != &other) {
      Reset();
      inode_ = std::exchange(other.inode_, nullptr);
      fd_ = std::exchange(other.fd_, -1);
    }
    return *this;
  }
  ~PathFd() { Reset(); }
  explicit operator bool() const { return fd_ >= 0; }
  int fd() const { return fd_; }

 private:
  void Reset() {
    if (inode_ != nullptr) inode_->fd_word.fetch_sub(1, std::memory_order_release);
    inode_ = nullptr;
    fd_ = -1;
  }
  Inode* inode_ = nullptr;
  int fd_ = -1;
};

class FdBudget {
 public:
  // `paths`: most O_PATH descriptors of inodes; `total`: most descriptors of any kind.
  void Configure(InodeTable* table, uint32_t paths, uint32_t total);
  void set_evicted_counter(uint64_t* cell) { evicted_ = cell; }

  // The inode's descriptor if it has one.
  static PathFd Acquire(Inode& inode) {
    uint64_t w = inode.fd_word.load(std::memory_order_acquire);
    while ((w >> 32) != 0) {
      if (inode.fd_word.compare_exchange_weak(w, w + 1, std::memory_order_acq_rel)) {
        if (!inode.fd_used.load(std::memory_order_relaxed)) {
          inode.fd_used.store(true, std::memory_order_relaxed);
        }
        return PathFd(&inode, static_cast<int>(w >> 32) - 1);
      }
    }
    return {};
  }

  // Gives the inode the descriptor and takes it in use; when another thread was first, closes fd
  // and uses the other's. The descriptor must have been counted with Reserve.
  PathFd Install(Inode& inode, int fd);
  // Takes the descriptor away from an inode that nobody references; the caller closes it.
  int Remove(Inode& inode);

  // Counts one descriptor that the caller is about to open, closing cold ones if need be. False:
  // the guest itself holds too many (ENFILE).
  bool Reserve(bool path);
  void Unreserve(bool path);
  // A descriptor is closed: close(2) and Unreserve.
  void Close(int fd, bool path);

  // Closes up to n cold descriptors and returns how many: for when open(2) said EMFILE.
  uint32_t Evict(uint32_t n);

  uint32_t open() const { return total_.load(std::memory_order_relaxed); }

 private:
  void RemoveFromRing(Inode& inode);  // mu_ held
  // Remembers the file handle of an inode on its share's mount; of use with CAP_DAC_READ_SEARCH.
  static void KeepHandle(Inode& inode, int fd);

  InodeTable* table_ = nullptr;
  uint32_t max_paths_ = 64;
  uint32_t max_total_ = 256;
  uint64_t* evicted_ = nullptr;
  std::atomic<uint32_t> paths_{0};
  std::atomic<uint32_t> total_{0};
  std::mutex mu_;
  std::vector<Inode*> ring_;  // guarded by mu_
  size_t hand_ = 0;           // guarded by mu_
};

}  // namespace virtbay::virtiofs

#endif  // VIRTBAY_PLUGINS_VIRTIOFS_FD_BUDGET_H_
