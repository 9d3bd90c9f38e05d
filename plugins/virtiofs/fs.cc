#include "plugins/virtiofs/fs.h"

#include <fcntl.h>
#include <sys/file.h>
#include <sys/resource.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <charconv>
#include <utility>
#include <vector>

#include "plugins/virtiofs/file_handle.h"
#include "plugins/virtiofs/keep/revive.h"
#include "plugins/virtiofs/path.h"

namespace virtbay::virtiofs {
namespace {

using sdk::Errno;
using sdk::Status;

constexpr uint32_t kFdReserve = 64;
constexpr uint32_t kSparesPerQueue = 4;
constexpr uint32_t kSpareDirectories = 8;
// SETLKW requests that may wait. With a host that does not see to it that they leave room in their
// ring, few.
constexpr uint32_t kLockWaiters = 1024;
constexpr uint32_t kLockWaitersUnbounded = 32;
constexpr uint32_t kDefaultPathFds = 16384;
// Longest chain of parents that is opened anew; a longer one is a circle made by the host moving
// directories.
constexpr size_t kMaxDepth = 16384;

// Of a descriptor by which the guest has it open.
FdKind KindOf(const Inode& inode) { return inode.is_dir() ? FdKind::kShort : FdKind::kFile; }

}  // namespace

Fs::~Fs() {
  ShareWithAnother();
  DropSession();
  if (proc_fd >= 0) ::close(proc_fd);
}

Status Fs::Init(const sdk::Host* the_host) {
  host = the_host;
  std::vector<Options::KeyValue> given;
  for (uint32_t i = 0; const char* key = host->OptionName(i); ++i) {
    given.emplace_back(key, host->Option(key).value_or(""));
  }
  sdk::Result<Options> parsed = Options::Parse(given);
  if (!parsed.ok()) return parsed.error();
  options = std::move(*parsed);
  if (const auto most = host->Option(VIRTBAY_OPTION_MAX_MAPPING)) {
    // A stock kernel cannot map a larger request, and its queue never recovers from that.
    uint32_t bytes = 0;
    std::from_chars(most->data(), most->data() + most->size(), bytes);
    if (bytes >= 4096) options.max_write = std::min(options.max_write, bytes & ~4095u);
  }

  proc_fd = ::open("/proc/self/fd", O_PATH | O_DIRECTORY | O_CLOEXEC);
  if (proc_fd < 0) return Errno(errno, "/proc/self/fd (needed to open files again)");
  if (options.aggregate) {
    inos = std::make_unique<InoSpace>();
    aggregate = std::make_unique<Aggregate>(this);
  }
  restores = host->Option(VIRTBAY_OPTION_RESTORES) == "true";
  if (!restores) {
    Status opened = options.aggregate
                        ? aggregate->OpenRoot(&share)
                        : share.Open(options.shared_dir, "option shared-dir: " + options.shared_dir,
                                     options.share);
    if (!opened.ok()) return opened;
  }

  struct rlimit limit = {1024, 1024};
  ::getrlimit(RLIMIT_NOFILE, &limit);
  uint32_t total = static_cast<uint32_t>(std::min<rlim_t>(limit.rlim_cur, 1u << 24));
  if (!host->CountsDescriptors()) total = total > 2 * kFdReserve ? total - kFdReserve : total / 2;
  if (options.max_open_files != 0) total = std::min(total, options.max_open_files);
  // An eighth: a cold inode is only a few microseconds away.
  uint32_t paths = std::min(std::max(total / 8, 16u), kDefaultPathFds);
  if (options.max_open_inodes != 0) paths = options.max_open_inodes;
  budget.Configure(&inodes, std::min(paths, total / 2), total);
  // Each request queue may be in a RENAME: two directories, each with the step that leads to it.
  const uint32_t for_paths = kSparesPerQueue * options.request_queues;
  if (!budget.KeepSpares(host, std::min(for_paths + kSpareDirectories, total / 5), for_paths,
                         /*later=*/restores)) {
    return sdk::Error{VIRTBAY_RESOURCE_EXHAUSTED, EMFILE,
                      "the limit on open files leaves none for this share"};
  }
  lock_waiters.Configure(options.max_lock_waiters.value_or(
      host->BoundsParked() ? kLockWaiters : kLockWaitersUnbounded));
  if (!inodes.Init(&budget, options.max_inodes, restores ? nullptr : &share) ||
      !handles.Init(this, total)) {
    return sdk::Error{VIRTBAY_RESOURCE_EXHAUSTED, ENOMEM, "no memory for the inode table"};
  }

  auto counter = [&](const char* name, const char* help) { return host->Counter(name, help); };
  counters.lookups = counter("lookups", "names looked up, READDIRPLUS entries included");
  counters.metadata = counter("metadata_requests", "requests other than READ, WRITE and FORGET");
  counters.data = counter("data_requests", "READ and WRITE requests");
  counters.forgets = counter("forget_requests", "FORGET and BATCH_FORGET requests");
  counters.errors = counter("error_replies", "requests answered with an error");
  counters.malformed = counter("malformed_requests", "requests that no guest kernel would send");
  counters.bytes_read = counter("bytes_read", "file data moved to the guest without a copy");
  counters.bytes_written = counter("bytes_written", "file data moved to the host without a copy");
  counters.inline_reads = counter("inline_reads", "READ requests answered from the page cache");
  counters.submitted_io = counter("submitted_io", "operations that went through the ring");
  counters.slow_writes = counter("slow_writes", "inline writes that took more than 2 ms");
  counters.parked_locks = counter("parked_locks", "SETLKW requests that had to wait");
  counters.lock_deadlocks = counter("lock_deadlocks", "SETLKW requests that would wait for ever");
  counters.stale = counter("stale_inodes", "inodes that the host had renamed or replaced");
  inodes.set_counter(host->Gauge("inodes", "inodes that the guest knows"));
  handles.set_counter(host->Gauge("open_handles", "files and directories that the guest has open"));
  budget.set_open_gauge(
      host->Gauge("descriptors", "files of the host that are open for the guest"));
  budget.set_evicted_counter(counter("fds_evicted", "cold inode descriptors closed"));
  return OpenKeep();
}

Status Fs::OpenKeep() {
  const auto dir = host->Option(VIRTBAY_OPTION_STATE_DIR);
  if (!dir.has_value()) return {};
  if (aggregate != nullptr) {
    host->Log(VIRTBAY_LOG_WARN, "the session of an aggregate of shares is not kept for a restart");
    return {};
  }
  // A device that is restored has the directories of one that was asked.
  if (!restores && LiesBelow(dir->c_str(), share.root_fd)) {
    return sdk::Error{VIRTBAY_INVALID_ARGUMENT, 0,
                      "the state directory " + *dir + " lies in the shared directory " +
                          options.shared_dir + ", where the guest could change it"};
  }
  auto opened = keep::Store::Open(
      host, *dir, {inodes.max_slots(), keep::Store::kHandles, 1 + options.request_queues},
      restores);
  if (!opened.ok()) return opened.error();
  keep = std::move(*opened);
  if (keep == nullptr) return {};
  inodes.set_keep(keep.get());
  // Of a device that is restored, the one before has written what is there.
  if (!restores) keep::Revive(*this);
  return {};
}

void Fs::EndSession() {
  if (keep != nullptr) keep->Suspend();
  DropSession();
  if (keep == nullptr) return;
  keep->Clear(keep::RootOf(share));
  keep->Resume();
}

void Fs::DropSession() {
  ready.store(false, std::memory_order_release);
  session_flags.store(0, std::memory_order_relaxed);
  lock_waiters.InterruptAll(LockWaiters::kNoQueue);
  // Inodes first: a handle that closes would else keep a descriptor for its nameless inode.
  inodes.DropAll();
  handles.DropAll();
}

// ---- from an inode to a descriptor --------------------------------------------------------------

PathFd Fs::OpenPathStep(Inode& inode, Inode* parent, int* error) {
  *error = ESTALE;
  if (parent != nullptr) {
    std::array<char, 256> name;
    const InodeRef still = inodes.CopyName(inode, &name);
    PathFd parent_fd = FdBudget::Acquire(*parent);
    if (still.get() == parent && parent_fd) {
      const int fd = OpenCounted(FdKind::kPath,
                                 [&] { return OpenBeneath(parent_fd.fd(), name.data(), O_PATH); });
      if (fd >= 0) {
        struct statx st;
        if (StatFd(fd, &st) == 0 && inode.Matches(st)) return budget.Install(inode, fd);
        budget.Close(fd, true);
      } else if (fd != -ENOENT && fd != -ENOTDIR && fd != -ELOOP && fd != -EXDEV) {
        *error = -fd;
        if (fd == -ENFILE) return {};
      }
    }
  }
  const HandleRef open = handles.AnyOf(inode);
  int fd = -ESTALE;
  if (open) {
    fd = OpenCounted(FdKind::kPath, [&] { return Reopen(proc_fd, open->fd, O_PATH); });
  } else if (FileHandle* handle = inode.file_handle.load(std::memory_order_acquire)) {
    fd = OpenCounted(FdKind::kPath,
                     [&] { return handle->Open(inode.share->root_fd, O_PATH | O_CLOEXEC); });
  }
  if (fd >= 0) {
    struct statx st;
    if (StatFd(fd, &st) == 0 && inode.Matches(st)) return budget.Install(inode, fd);
    budget.Close(fd, true);
  }
  sdk::Host::Add(counters.stale);
  return {};
}

PathFd Fs::OpenPath(Inode& inode, int* error) {
  // Up to the first ancestor that has a descriptor (the root always has), then down again.
  std::vector<InodeRef> chain;
  chain.push_back(inodes.Ref(inode));
  InodeRef base;
  PathFd base_fd;  // kept from being closed as cold until it was used
  while (chain.size() < kMaxDepth) {
    std::array<char, 256> name;
    InodeRef parent = inodes.CopyName(*chain.back(), &name);
    if (!parent) break;
    base_fd = FdBudget::Acquire(*parent);
    if (base_fd) {
      base = std::move(parent);
      break;
    }
    chain.push_back(std::move(parent));
  }
  PathFd fd;
  for (size_t i = chain.size(); i-- > 0;) {
    Inode* parent = i + 1 < chain.size() ? chain[i + 1].get() : base.get();
    // The previous step's descriptor stays in use while the next one is opened from it.
    fd = OpenPathStep(*chain[i], parent, error);
    if (!fd && *error == ENFILE) return {};
  }
  return fd;
}

int Fs::AnyFd(Inode& inode, FdUse* use) {
  use->path = FdBudget::Acquire(inode);
  if (use->path) return 0;
  use->handle = handles.AnyOf(inode);
  if (use->handle) return 0;
  int error = ESTALE;
  use->path = OpenPath(inode, &error);
  return use->path ? 0 : error;
}

int Fs::Stat(Inode& inode, struct statx* st, uint32_t extra_mask, int sync_flags) {
  const uint32_t mask = kStatMask | extra_mask;
  {
    const PathFd fd = FdBudget::Acquire(inode);
    if (fd) return StatFd(fd.fd(), st, mask, sync_flags);
    const HandleRef handle = handles.AnyOf(inode);
    if (handle) return StatFd(handle->fd, st, mask, sync_flags);
  }
  std::array<char, 256> name;
  const InodeRef parent = inodes.CopyName(inode, &name);
  if (parent) {
    int error = ESTALE;
    const PathFd parent_fd = PathOf(*parent, &error);
    if (parent_fd) {
      error = StatAt(parent_fd.fd(), name.data(), st, mask, sync_flags);
      if (error == 0 && inode.Matches(*st)) return 0;
      if (error != 0 && error != ENOENT && error != ENOTDIR) return error;
    } else if (error == ENFILE) {
      return error;
    }
  }
  if (inode.file_handle.load(std::memory_order_acquire) == nullptr) {
    sdk::Host::Add(counters.stale);
    return ESTALE;
  }
  int error = ESTALE;
  const PathFd fd = OpenPath(inode, &error);
  return fd ? StatFd(fd.fd(), st, mask, sync_flags) : error;
}

int Fs::OpenByName(Inode& inode, int flags, struct statx* st, int* error) {
  *error = ESTALE;
  std::array<char, 256> name;
  const InodeRef parent = inodes.CopyName(inode, &name);
  if (!parent) return -1;
  const PathFd parent_fd = PathOf(*parent, error);
  if (!parent_fd) return -1;
  const int fd =
      OpenCounted(KindOf(inode), [&] { return OpenBeneath(parent_fd.fd(), name.data(), flags); });
  if (fd < 0) {
    *error = fd == -ENOENT || fd == -ENOTDIR || fd == -ELOOP || fd == -ENXIO ? ESTALE : -fd;
    return -1;
  }
  if (StatFd(fd, st) == 0 && inode.Matches(*st)) return fd;
  budget.Close(fd, false);
  *error = ESTALE;
  return -1;
}

int Fs::OpenForIo(Inode& inode, int flags) {
  if (!inode.is_regular() && !inode.is_dir()) return -ELOOP;
  if (inode.is_dir() != ((flags & O_DIRECTORY) != 0)) return inode.is_dir() ? -EISDIR : -ENOTDIR;
  if (inode.share->removed.load(std::memory_order_relaxed)) return -ESTALE;
  if (inode.share->aggregate != nullptr) flags &= ~O_DIRECTORY;  // its descriptor is none
  PathFd path = FdBudget::Acquire(inode);
  if (!path && inode.is_dir()) {
    struct statx st;
    int error = 0;
    const int fd = OpenByName(inode, flags, &st, &error);
    if (fd >= 0) return fd;
    if (error != ESTALE) return -error;
  }
  // A file is found first, looked at, and opened then: by now a FIFO or a device may stand where it
  // stood, and opening one of those is an act by itself.
  HandleRef open;
  if (!path) {
    open = handles.AnyOf(inode);
    int error = 0;
    if (!open) path = OpenPath(inode, &error);
    if (!open && !path) return -error;
  }
  const int from = path ? path.fd() : open->fd;
  return OpenCounted(KindOf(inode), [&] { return Reopen(proc_fd, from, flags); });
}

void Fs::PinBeforeLoss(Inode& inode, FdUse* use) {
  if (inode.nlookup.load(std::memory_order_acquire) == 0) return;
  use->path = FdBudget::Acquire(inode);
  if (use->path) return;
  use->handle = handles.AnyOf(inode);
  if (use->handle) return;  // pins it itself when it is closed, see CloseHandle
  const bool links = inode.nlink.load(std::memory_order_relaxed) > 1;
  // A guest that holds writes back sets the times of a file once more when it has removed it. What
  // is neither file, directory nor link is opened by the guest without a word to us.
  const bool plain = inode.is_symlink() || (inode.is_regular() && !has(FUSE_WRITEBACK_CACHE));
  if (plain && !links) return;
  int error = 0;
  use->path = OpenPath(inode, &error);
}

void Fs::Unlock(Handle& handle) {
  if (shared_with_another()) return;
  if (handle.flocked.load(std::memory_order_relaxed)) ::flock(handle.fd, LOCK_UN);
  lock_owners.DropAll(*this, *handle.inode);
}

void Fs::CloseHandle(Handle& handle, bool last) {
  Inode& inode = *handle.inode;
  bool unlocked = handle.flocked.load(std::memory_order_relaxed);
  if (last) {
    // Nobody has the file open, so nobody can hold a lock; a guest that died leaves some.
    unlocked |= lock_owners.DropAll(*this, inode);
    if (inode.keep_fd.load(std::memory_order_relaxed) &&
        inode.nlookup.load(std::memory_order_acquire) > 0 && !FdBudget::Acquire(inode)) {
      const int fd = OpenCounted(FdKind::kPath, [&] { return Reopen(proc_fd, handle.fd, O_PATH); });
      if (fd >= 0) budget.Install(inode, fd);
    }
  }
  budget.Close(handle.fd, false);
  if (keep != nullptr) keep->Closed(handle.index, handle.generation() + 1);
  // Nothing else had kept it.
  if (last && inode.share->removed.load(std::memory_order_seq_cst)) {
    inodes.Forget(inode, UINT64_MAX);
  }
  if (unlocked) lock_waiters.Poke(inode, LockWaiters::kNoQueue);
  InodeRef(&inodes, &inode).Reset();
}

}  // namespace virtbay::virtiofs
