// Fs: what all opcodes of one virtiofs device share: options, tables, descriptors, counters, and
// how an inode becomes a descriptor or attributes.
// Owned by the device; functions are [any] unless marked.
#ifndef VIRTBAY_PLUGINS_VIRTIOFS_FS_H_
#define VIRTBAY_PLUGINS_VIRTIOFS_FS_H_

#include <sys/stat.h>

#include <atomic>
#include <cerrno>
#include <cstdint>
#include <memory>

#include "plugins/virtiofs/aggregate.h"
#include "plugins/virtiofs/fd_budget.h"
#include "plugins/virtiofs/handle_table.h"
#include "plugins/virtiofs/inode_table.h"
#include "plugins/virtiofs/keep/store.h"
#include "plugins/virtiofs/lock_waiters.h"
#include "plugins/virtiofs/locks.h"
#include "plugins/virtiofs/options.h"
#include "plugins/virtiofs/share.h"
#include "virtbay/sdk/host.h"

namespace virtbay::virtiofs {

struct Counters {
  uint64_t* lookups = nullptr;
  uint64_t* metadata = nullptr;
  uint64_t* data = nullptr;
  uint64_t* forgets = nullptr;
  uint64_t* errors = nullptr;
  uint64_t* malformed = nullptr;
  uint64_t* bytes_read = nullptr;
  uint64_t* bytes_written = nullptr;
  uint64_t* inline_reads = nullptr;
  uint64_t* submitted_io = nullptr;
  uint64_t* slow_writes = nullptr;
  uint64_t* parked_locks = nullptr;
  uint64_t* lock_deadlocks = nullptr;
  uint64_t* stale = nullptr;
};

// A descriptor that refers to an inode, from wherever it was cheapest.
struct FdUse {
  PathFd path;
  HandleRef handle;
  int fd() const { return path ? path.fd() : (handle ? handle->fd : -1); }
};

class Fs : public HandleTable::Closer {
 public:
  Fs() = default;
  ~Fs() override;
  Fs(const Fs&) = delete;
  Fs& operator=(const Fs&) = delete;

  // [control] Opens the shared directory and checks what the kernel offers. A device that will be
  // restored opens none: it comes with the state.
  sdk::Status Init(const sdk::Host* host);

  // [control] What is open may be another generation's too, from which this one takes over, or
  // which goes on with it: it may be closed, but its locks are not given up. For good measure also
  // when nothing is at work any more, since closing is enough then.
  void ShareWithAnother() {
    shared_with_another_.store(true, std::memory_order_relaxed);
    if (keep != nullptr) keep->Suspend();
  }
  // [queue] The guest's requests come here: there is no other generation that would serve it.
  void TakeOver() {
    if (!shared_with_another()) return;
    shared_with_another_.store(false, std::memory_order_relaxed);
    if (keep != nullptr && ready.load(std::memory_order_relaxed)) keep->Resume();
  }
  bool shared_with_another() const { return shared_with_another_.load(std::memory_order_relaxed); }

  // [control] and [queue] (INIT, DESTROY): forgets what the guest knows, closes what it has open.
  void DropSession();
  // [queue] The same, and nothing of it is kept for another process.
  void EndSession();

  // The inode's O_PATH descriptor, opened if it has none: by name, by file handle, or from an open
  // handle, each time verified. Empty with *error = ESTALE, ENFILE ... when there is no way.
  PathFd PathOf(Inode& inode, int* error) {
    if (inode.share->removed.load(std::memory_order_relaxed)) {
      *error = ESTALE;
      return {};
    }
    PathFd fd = FdBudget::Acquire(inode);
    if (fd) return fd;
    return OpenPath(inode, error);
  }
  // Any descriptor of the inode: 0 or errno.
  int AnyFd(Inode& inode, FdUse* use);
  // Attributes of the inode: 0 or errno (ESTALE when it cannot be found any more).
  int Stat(Inode& inode, struct statx* st, uint32_t extra_mask = 0, int sync_flags = 0);
  // Opens a regular file or directory for I/O; the inode's type is checked first and the file
  // that was opened afterwards. `use_nonblock` tells whether O_NONBLOCK is set on the result.
  // A descriptor counted in the budget, or -errno. *st is filled when `have_stat` comes back true.
  int OpenForIo(Inode& inode, int flags);
  // Makes sure that an inode that may live on without its last known name can still be reached.
  // *use is what it is reached by; to be kept until the name has been cleared.
  void PinBeforeLoss(Inode& inode, FdUse* use);

  // Runs an open (fd or -errno) within the budget, closing cold descriptors when the process has
  // too many. The descriptor is counted; -ENFILE when the guest holds too many itself.
  template <typename OpenFunction>
  int OpenCounted(FdKind kind, OpenFunction&& open) {
    if (!budget.Reserve(kind)) return -ENFILE;
    int fd = open();
    for (int tries = 0; (fd == -EMFILE || fd == -ENFILE) && tries < 4; ++tries) {
      if (!budget.MakeRoom()) break;
      fd = open();
    }
    if (fd < 0) budget.Unreserve(kind == FdKind::kPath);
    return fd == -EMFILE ? -ENFILE : fd;
  }

  void CloseHandle(Handle& handle, bool last) override;
  void Unlock(Handle& handle) override;

  bool has(uint64_t init_flag) const {
    return (session_flags.load(std::memory_order_relaxed) & init_flag) != 0;
  }
  // Logs the first time only.
  void WarnOnce(std::atomic<bool>* said, const char* text) const {
    if (!said->exchange(true)) host->Log(VIRTBAY_LOG_WARN, "%s", text);
  }

  const sdk::Host* host = nullptr;
  Options options;
  // Before the tables, which write to it; none without the option host.state-dir.
  std::unique_ptr<keep::Store> keep;
  // Before the tables, whose inodes refer to it: the only share, or the root of an aggregate.
  Share share;
  std::unique_ptr<InoSpace> inos;  // of an aggregate
  FdBudget budget;
  InodeTable inodes;
  HandleTable handles;
  LockOwners lock_owners;
  LockWaiters lock_waiters;
  Counters counters;
  std::unique_ptr<Aggregate> aggregate;  // or none

  int proc_fd = -1;  // /proc/self/fd

  bool restores = false;                   // a state follows Init
  std::atomic<bool> ready{false};          // INIT was answered
  std::atomic<uint64_t> session_flags{0};  // FUSE_* of INIT that both sides have
  mutable std::atomic<bool> said_no_switch{false};
  mutable std::atomic<bool> said_inodes{false};
  mutable std::atomic<bool> said_files{false};
  mutable std::atomic<bool> said_endian{false};

 private:
  std::atomic<bool> shared_with_another_{false};

  sdk::Status OpenKeep();
  PathFd OpenPath(Inode& inode, int* error);
  PathFd OpenPathStep(Inode& inode, Inode* parent, int* error);
  int OpenByName(Inode& inode, int flags, struct statx* st, int* error);
};

}  // namespace virtbay::virtiofs

#endif  // VIRTBAY_PLUGINS_VIRTIOFS_FS_H_
