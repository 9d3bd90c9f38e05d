// FdBudget: how many descriptors the device holds of what the host's devices share, which cold
// O_PATH ones are closed for new ones (a clock over the inodes that own one), and a few that are
// counted but never opened, which the guest's open files cannot take. Owned by the device; every
// function is [any] unless marked. Its lock is never held over a system call.
#ifndef VIRTBAY_PLUGINS_VIRTIOFS_FD_BUDGET_H_
#define VIRTBAY_PLUGINS_VIRTIOFS_FD_BUDGET_H_

#include <atomic>
#include <cstdint>
#include <mutex>
#include <vector>

#include "plugins/virtiofs/inode.h"
#include "virtbay/sdk/host.h"

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

// What a descriptor is for, which decides what may be done for it when there are no more.
enum class FdKind : uint8_t {
  kPath,   // O_PATH of an inode: nothing is found without; kept until it is cold
  kShort,  // a directory, which is listed and closed; what is closed by the operation that opens it
  kFile,   // an open file or a lock: the guest holds it as long as it likes
  kRoot,   // the directory of a share: stays as long as the share
};

class FdBudget {
 public:
  // Fewer spare ones than that, and a device is of no use.
  static constexpr uint32_t kLeastSpares = 4;
  // So many files may take spare ones, too: what is the device's own may shrink
  // when others join, and a guest that can list files and open none is not helped.
  static constexpr uint32_t kFewFiles = 4;
  // So many where there are shares to be added: these may take all that there is, but what these
  // files need is set aside with the first of them.
  static constexpr uint32_t kFilesOfShares = 8;

  // [control] `paths`: most O_PATH descriptors of inodes; `total`: most descriptors of any kind.
  void Configure(InodeTable* table, uint32_t paths, uint32_t total);
  // [control] After Configure: counts with the host, and keeps room for so many descriptors aside,
  // or for as many as there are: for those without which directories could not be listed or files
  // found; the last `for_paths` for the latter alone, because a guest may have many directories
  // open. False: there are not even kLeastSpares. `host` has to live as long.
  // `later`: with fewer than that, or none, the rest comes out of descriptors that are closed.
  bool KeepSpares(const sdk::Host* host, uint32_t count, uint32_t for_paths, bool later = false);
  void set_evicted_counter(uint64_t* cell) { evicted_ = cell; }
  void set_open_gauge(uint64_t* cell) { gauge_ = cell; }

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
  bool Reserve(FdKind kind);
  // The same for the directory of a share; kFilesOfShares stay for the guest's files, however many
  // shares there are. [control]
  bool ReserveRoot();
  // Counts one that is open already, which another generation of the device had: also when there is
  // no room. It is owed then, and settled before anything is opened.
  void Adopt(bool path);
  // The same for the directory of a share.
  void AdoptRoot() {
    Adopt(false);
    roots_.fetch_add(1, std::memory_order_relaxed);
  }
  // The same for one that may as well be closed. False: there is no room.
  bool AdoptCached();
  // Counts what is owed with the host, as far as there is room by now.
  void Settle();
  void Unreserve(bool path);
  void UnreserveRoot();
  // A descriptor is closed: close(2) and Unreserve.
  void Close(int fd, bool path);
  // open(2) said EMFILE, since others in the process have opened more than they were given: closes
  // what can be closed. False: nothing.
  bool MakeRoom();

  // Closes up to n cold descriptors and returns how many. `nameless`: also those by which alone an
  // inode is reached, so that it is lost to the guest.
  uint32_t Evict(uint32_t n, bool nameless = false);

  uint32_t open() const { return open_.load(std::memory_order_relaxed); }
  uint32_t owed() const { return owed_.load(std::memory_order_relaxed); }
  uint32_t spares() const { return spares_.load(std::memory_order_relaxed); }

 private:
  void RemoveFromRing(Inode& inode);  // mu_ held
  // Remembers the file handle of an inode on its share's mount; of use with CAP_DAC_READ_SEARCH.
  static void KeepHandle(Inode& inode, int fd);
  bool TakeUnit(uint32_t flags);  // VIRTBAY_DESCRIPTOR_*
  void GiveUnit();
  void Keep(int32_t change) {
    if (host_ != nullptr) host_->KeepDescriptors(change);
  }
  bool CountUnit(uint32_t flags);
  void CountOpen();
  bool PayOff();  // one that is owed was closed
  bool TakeFor(FdKind kind);
  // Sets aside what kFilesOfShares need beside paths and directories. False: there are fewer.
  bool KeepForFiles();
  bool UseSpare(FdKind kind);
  bool AddSpare();

  // Spare ones that are not for that kind.
  uint32_t KeptFrom(FdKind kind) const { return kind == FdKind::kPath ? 0 : spares_for_paths_; }

  InodeTable* table_ = nullptr;
  uint32_t max_paths_ = 64;
  uint32_t max_total_ = 256;
  uint64_t* evicted_ = nullptr;
  uint64_t* gauge_ = nullptr;
  const sdk::Host* host_ = nullptr;
  std::atomic<uint32_t> spares_wanted_{0};  // changed on [control]
  uint32_t spares_for_paths_ = 0;
  std::atomic<uint32_t> spares_for_files_{0};  // of shares; changed on [control]
  std::atomic<uint32_t> paths_{0};
  std::atomic<uint32_t> open_{0};   // counted for an open
  std::atomic<uint32_t> roots_{0};  // of them those of shares
  std::atomic<uint32_t> units_{0};  // the same and the spare ones: what the host has given
  std::atomic<uint32_t> owed_{0};   // open, and not among units_
  std::atomic<uint32_t> spares_{0};
  std::mutex mu_;
  std::vector<Inode*> ring_;  // guarded by mu_
  size_t hand_ = 0;           // guarded by mu_
};

}  // namespace virtbay::virtiofs

#endif  // VIRTBAY_PLUGINS_VIRTIOFS_FD_BUDGET_H_
