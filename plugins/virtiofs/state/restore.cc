// Goes on with a state, see format.h. Nothing of it is believed: bytes may have come by way of a
// file, and what they say of a descriptor is looked at.
#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <memory>
#include <new>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "plugins/virtiofs/dir.h"
#include "plugins/virtiofs/file_handle.h"
#include "plugins/virtiofs/ops.h"
#include "plugins/virtiofs/path.h"
#include "plugins/virtiofs/state/format.h"
#include "plugins/virtiofs/state/reading.h"
#include "plugins/virtiofs/state/state.h"

namespace virtbay::virtiofs {
namespace {

using sdk::Error;
using sdk::StateReader;
using sdk::Status;

Error Wrong(const char* what) {
  return Error{VIRTBAY_INVALID_ARGUMENT, 0, std::string("the state ").append(what)};
}

bool IsKind(uint8_t type) {
  switch (static_cast<uint32_t>(type) << 12) {
    case S_IFREG:
    case S_IFDIR:
    case S_IFLNK:
    case S_IFCHR:
    case S_IFBLK:
    case S_IFIFO:
    case S_IFSOCK:
      return true;
    default:
      return false;
  }
}

// Whether the descriptor is one of that inode's file.
bool IsOf(int fd, const Inode& inode) {
  struct statx st;
  if (StatFd(fd, &st, kStatMask, AT_STATX_DONT_SYNC) != 0) return false;
  // What stands for the root of an aggregate is no directory on the host.
  if (inode.share->aggregate != nullptr) return KeyOf(st) == inode.key;
  return inode.Matches(st);
}

// Whether it was opened in that way, and not with O_PATH.
bool IsOpenFor(int fd, bool readable, bool writable) {
  const int flags = ::fcntl(fd, F_GETFL);
  if (flags < 0 || (flags & O_PATH) != 0) return false;
  const int mode = flags & O_ACCMODE;
  return readable == (mode != O_WRONLY) && writable == (mode != O_RDONLY);
}

class Restorer {
 public:
  Restorer(Fs& fs, StateReader* in)
      : fs_(fs),
        in_(in),
        share_fds_(in, state::kShareFd),
        inode_fds_(in, state::kInodeFd),
        handle_fds_(in, state::kHandleFd),
        lock_fds_(in, state::kLockFd) {}

  Status Restore() {
    for (Status (Restorer::*step)() :
         {&Restorer::RestoreSession, &Restorer::RestoreShares, &Restorer::RestoreInodes,
          &Restorer::RestoreHandles, &Restorer::RestoreStreams, &Restorer::RestoreLocks,
          &Restorer::RestoreHandedBack}) {
      if (Status status = (this->*step)(); !status.ok()) return status;
    }
    if (share_fds_.left() + inode_fds_.left() + handle_fds_.left() + lock_fds_.left() != 0) {
      return Wrong("has more descriptors than it says");
    }
    fs_.session_flags.store(session_.init_flags, std::memory_order_relaxed);
    fs_.ready.store((session_.flags & state::kReady) != 0, std::memory_order_release);
    return {};
  }

 private:
  Status RestoreSession() {
    const Records<state::Session> sessions(*in_, state::kSession);
    if (!sessions.ok() || sessions.size() != 1) return Wrong("has no session");
    session_ = sessions[0];
    if (((session_.flags & state::kAggregate) != 0) != (fs_.aggregate != nullptr)) {
      return Error{VIRTBAY_FAILED_PRECONDITION, 0,
                   "option aggregate: the state is of a device where it is another one"};
    }
    if ((session_.init_flags & ~KnownInitFlags()) != 0) {
      return Error{VIRTBAY_FAILED_PRECONDITION, 0,
                   "the guest's session uses what this version of the device does not know"};
    }
    return {};
  }

  // ---- shares

  Status RestoreShares() {
    const auto bytes = in_->Find(state::kShares);
    const Records<state::Number> numbers(*in_, state::kNumbers);
    if (!bytes.has_value() || !numbers.ok()) return Wrong("has no shares");
    if (fs_.inos != nullptr) {
      std::vector<InoSpace::Entry> entries;
      for (uint32_t i = 0; i < numbers.size(); ++i) {
        const state::Number number = numbers[i];
        entries.push_back({number.share, number.prefix, number.dev, number.high});
      }
      if (!fs_.inos->Restore(entries, session_.next_number)) {
        return Wrong("has inode numbers that do not go together");
      }
    } else if (numbers.size() != 0) {
      return Wrong("has inode numbers that are nobody's");
    }
    Cursor in(*bytes);
    if (Status status = RestoreFirstShare(&in); !status.ok()) return status;
    while (!in.empty()) {
      if (fs_.aggregate == nullptr) return Wrong("has a second share");
      if (Status status = RestoreShare(&in); !status.ok()) return status;
    }
    if (fs_.aggregate == nullptr) return {};
    std::vector<uint32_t> ids;
    for (const ShareRef& share : counted_) ids.push_back(share->id);
    std::sort(ids.begin(), ids.end());
    if (std::adjacent_find(ids.begin(), ids.end()) != ids.end()) {
      return Wrong("has a share twice");
    }
    return fs_.aggregate->Restore({session_.next_share, session_.next_cookie, session_.changed_ns},
                                  counted_);
  }

  struct ShareTexts {
    state::Share record;
    std::string name, path, options;
  };
  bool TakeShare(Cursor* in, ShareTexts* out) {
    return in->Take(&out->record) && in->Take(out->record.name_size, &out->name) &&
           in->Take(out->record.path_size, &out->path) &&
           in->Take(out->record.options_size, &out->options) && share_fds_.Peek() >= 0;
  }

  Status RestoreFirstShare(Cursor* in) {
    ShareTexts texts;
    if (!TakeShare(in, &texts) || texts.record.id != 0) return Wrong("has no root");
    const int fd = share_fds_.Peek();
    // For an aggregate it is a file in memory.
    if (!IsOpenFor(fd, true, fs_.aggregate != nullptr)) {
      return Wrong("has a directory that is not open for reading");
    }
    Status status;
    if (fs_.aggregate != nullptr) {
      status = fs_.aggregate->AdoptRoot(&fs_.share, share_fds_.Taken());
      if (status.ok() && !S_ISREG(fs_.share.root_stat.stx_mode)) {
        return Wrong("has another root than an aggregate's");
      }
    } else {
      const std::string& dir = fs_.options.shared_dir;
      if (texts.path != dir && !SameDirectory(fd, dir)) {
        return Error{VIRTBAY_FAILED_PRECONDITION, 0,
                     "option shared-dir: the state is of another directory, " + texts.path};
      }
      status = fs_.share.Adopt(share_fds_.Taken(), dir, "the state's directory, " + dir,
                               fs_.options.share);
    }
    if (!status.ok()) return status;
    ApplyHints(texts.record, &fs_.share);
    fs_.inodes.SetRoot(fs_.share);
    shares_.push_back(&fs_.share);
    return {};
  }

  static bool SameDirectory(int fd, const std::string& dir) {
    const int other = ::open(dir.c_str(), O_PATH | O_DIRECTORY | O_CLOEXEC);
    if (other < 0) return false;
    struct statx a, b;
    const bool same = StatFd(fd, &a) == 0 && StatFd(other, &b) == 0 && KeyOf(a) == KeyOf(b) &&
                      BirthOf(a) == BirthOf(b);
    ::close(other);
    return same;
  }

  static void ApplyHints(const state::Share& record, Share* share) {
    share->removed.store((record.flags & state::kShareRemoved) != 0);
    share->no_nowait_writes.store((record.flags & state::kShareNoNowaitWrites) != 0);
    share->no_nowait_reads.store((record.flags & state::kShareNoNowaitReads) != 0);
  }

  Status RestoreShare(Cursor* in) {
    ShareTexts texts;
    if (!TakeShare(in, &texts) || texts.record.id == 0) return Wrong("has a share that is cut");
    if (!IsOpenFor(share_fds_.Peek(), true, false)) {
      return Wrong("has a directory that is not open for reading");
    }
    ShareOptions options;
    std::string_view rest = texts.options;
    while (!rest.empty()) {
      const size_t key = rest.find('\0');
      const size_t end = key == std::string_view::npos ? key : rest.find('\0', key + 1);
      if (end == std::string_view::npos) return Wrong("has options that are cut");
      Status status =
          options.Set(rest.substr(0, key), std::string(rest.substr(key + 1, end - key - 1)));
      if (!status.ok()) return status;
      rest = rest.substr(end + 1);
    }
    ShareRef made = ShareRef::Adopt(new Share);
    Share& share = *made;
    share.id = texts.record.id;
    share.cookie = texts.record.cookie;
    share.name = texts.name;
    share.budget = &fs_.budget;
    fs_.budget.AdoptRoot();
    Status status = share.Adopt(share_fds_.Taken(), texts.path, "the state's share " + texts.path,
                                std::move(options));
    if (!status.ok()) return status;
    if (!S_ISDIR(share.root_stat.stx_mode)) return Wrong("has a share that is no directory");
    share.UseNumbers(fs_.inos.get());
    ApplyHints(texts.record, &share);
    shares_.push_back(&share);
    counted_.push_back(std::move(made));
    return {};
  }

  // ---- inodes

  Status RestoreInodes() {
    const Records<state::Place> places(*in_, state::kPlaces);
    const Records<state::Inode> records(*in_, state::kInodes);
    const auto texts = in_->Find(state::kTexts);
    if (!places.ok() || !records.ok() || !texts.has_value()) return Wrong("has no inodes");
    for (uint32_t i = 0; i < places.size(); ++i) {
      // Of the root of an aggregate there is the root inode only.
      if (places[i].share >= shares_.size() || shares_[places[i].share]->aggregate != nullptr) {
        return Wrong("has an inode of no share");
      }
    }
    const uint64_t last = records.size() == 0 ? 0 : records[records.size() - 1].node;
    fs_.inodes.StartRestore(records.size(), last, session_.inode_generation);
    Status status = RestoreRecords(places, records, *texts);
    // In any case, since it is what makes them inodes that can be dropped.
    const InodeTable::Restored restored = fs_.inodes.FinishRestore();
    if (!status.ok()) return status;
    if (restored == InodeTable::Restored::kUnreferenced) {
      return Wrong("has an inode that nobody refers to");
    }
    if (restored == InodeTable::Restored::kCircle) {
      return Wrong("has directories that are below themselves");
    }
    return {};
  }

  // A name whose parent comes later.
  struct Late {
    Inode* inode;
    uint32_t parent;
    std::string_view name;
  };

  Status RestoreRecords(const Records<state::Place>& places, const Records<state::Inode>& records,
                        std::span<const std::byte> bytes) {
    Cursor texts(bytes);
    std::vector<Late> late;
    uint64_t last = 1;  // the root's
    for (uint32_t i = 0; i < records.size(); ++i) {
      const state::Inode record = records[i];
      const uint64_t index = record.node & UINT32_MAX;
      if (index <= last || record.place >= places.size() || !IsKind(record.type)) {
        return Wrong("has an inode twice, or one that is none");
      }
      last = index;
      Inode* inode = nullptr;
      if (Status status = RestoreInode(record, places[record.place], &inode); !status.ok()) {
        return status;
      }
      std::span<const std::byte> name, handle;
      if (!texts.Take(record.name_size, &name) || !texts.Take(record.handle_size, &handle) ||
          (record.parent != 0) != (record.name_size != 0)) {
        return Wrong("has a name that is cut");
      }
      if (!handle.empty() && !RestoreFileHandle(*inode, handle)) {
        return Wrong("has a file handle that is none");
      }
      if (record.parent == 0) continue;
      const std::string_view text(reinterpret_cast<const char*>(name.data()), name.size());
      if (!IsName(text)) return Wrong("has a name that is none");
      if (record.parent > index) {
        late.push_back({inode, record.parent, text});
      } else if (!RestoreName({inode, record.parent, text})) {
        return Wrong("has a parent that is none");
      }
    }
    if (!texts.empty()) return Wrong("has more names than inodes");
    for (const Late& one : late) {
      if (!RestoreName(one)) return Wrong("has a parent that is none");
    }
    return {};
  }

  bool RestoreName(const Late& one) {
    Inode* const parent = fs_.inodes.At(one.parent - 1);
    return parent != nullptr && fs_.inodes.RestoreName(*one.inode, *parent, one.name);
  }

  Status RestoreInode(const state::Inode& record, const state::Place& place, Inode** out) {
    InodeTable::Known known;
    known.nodeid = record.node;
    known.lookups = record.lookups;
    known.key = {place.dev, record.ino, place.mount};
    known.btime = record.btime_ns;
    known.share = shares_[place.share];
    known.nlink = record.nlink;
    known.type = record.type;
    known.hashed = (record.flags & state::kInodeHashed) != 0;
    known.keep_fd = (record.flags & state::kInodeKeepsFd) != 0;
    Inode* const inode = *out = fs_.inodes.Restore(known);
    if (inode == nullptr) {
      return Error{VIRTBAY_RESOURCE_EXHAUSTED, ENOMEM,
                   "the guest knows more inodes than max-inodes or the memory allow"};
    }
    if ((record.flags & state::kInodeShareRoot) != 0) {
      const Share& share = *known.share;
      if (!share.counted() || known.key != KeyOf(share.root_stat) || !inode->is_dir() ||
          (record.flags & state::kInodeHasFd) != 0) {
        return Wrong("has another root for a share");
      }
      inode->fd_word.store((static_cast<uint64_t>(share.root_fd) + 1) << 32);
    }
    if ((record.flags & state::kInodeHasFd) != 0 && !RestorePathFd(*inode, known.keep_fd)) {
      return Wrong("has a descriptor that is not its inode's");
    }
    return {};
  }

  bool RestorePathFd(Inode& inode, bool needed) {
    const int fd = inode_fds_.Peek();
    if (fd < 0) return false;
    const int flags = ::fcntl(fd, F_GETFL);
    if (flags < 0 || (flags & O_PATH) == 0 || !IsOf(fd, inode)) return false;
    inode_fds_.Taken();
    if (needed) {
      fs_.budget.Adopt(true);
    } else if (!fs_.budget.AdoptCached()) {
      ::close(fd);
      return true;
    }
    const PathFd installed = fs_.budget.Install(inode, fd);
    return true;
  }

  static bool IsName(std::string_view text) {
    return text != "." && text != ".." && std::memchr(text.data(), '/', text.size()) == nullptr &&
           std::memchr(text.data(), 0, text.size()) == nullptr;
  }

  // It is opened on the share's own mount, and what it opens is looked at then.
  static bool RestoreFileHandle(Inode& inode, std::span<const std::byte> bytes) {
    int32_t type = 0;
    if (bytes.size() <= sizeof(type)) return false;
    std::memcpy(&type, bytes.data(), sizeof(type));
    if (!inode.share->keep_handles || inode.key.mnt_id != inode.share->root_mnt_id) return true;
    FileHandle* const handle = FileHandle::From(type, bytes.subspan(sizeof(type)));
    inode.file_handle.store(handle, std::memory_order_release);
    return handle != nullptr;
  }

  // ---- what is open

  Inode* InodeOf(uint32_t place) { return place == 0 ? nullptr : fs_.inodes.At(place - 1); }

  Status RestoreHandles() {
    const Records<state::Handle> records(*in_, state::kHandles);
    if (!records.ok()) return Wrong("has no open files");
    fs_.handles.StartRestore(session_.handle_generation);
    Status status;
    for (uint32_t i = 0; i < records.size() && status.ok(); ++i) status = RestoreHandle(records[i]);
    fs_.handles.FinishRestore();
    return status;
  }

  Status RestoreHandle(const state::Handle& record) {
    Inode* const inode = InodeOf(record.inode);
    if (inode == nullptr) return Wrong("has an open file of an inode that it does not have");
    HandleTraits traits;
    traits.fd = handle_fds_.Peek();
    traits.readable = (record.flags & state::kHandleReadable) != 0;
    traits.writable = (record.flags & state::kHandleWritable) != 0;
    traits.direct = (record.flags & state::kHandleDirect) != 0;
    traits.no_nowait = (record.flags & state::kHandleNoNowait) != 0;
    traits.flocked = (record.flags & state::kHandleFlocked) != 0;
    if (traits.fd < 0 || !(inode->is_dir() || inode->is_regular()) ||
        !IsOpenFor(traits.fd, traits.readable, traits.writable) || !IsOf(traits.fd, *inode)) {
      return Wrong("has a descriptor that is not its open file's");
    }
    InodeRef ref = fs_.inodes.Ref(*inode);
    if (fs_.handles.Restore(record.fh, &ref, traits) == nullptr) {
      return Error{VIRTBAY_RESOURCE_EXHAUSTED, EMFILE,
                   "the state has an open file twice, or more than this device may have"};
    }
    handle_fds_.Taken();
    fs_.budget.Adopt(false);
    return {};
  }

  HandleRef HandleOf(uint64_t fh, const Inode* inode) {
    if (inode != nullptr) return fs_.handles.Find(fh, inode->nodeid());
    return fs_.handles.Find(fh);
  }

  Status RestoreStreams() {
    const auto bytes = in_->Find(state::kStreams);
    if (!bytes.has_value()) return Wrong("has no directories");
    Cursor in(*bytes);
    while (!in.empty()) {
      state::Stream record;
      std::span<const std::byte> ahead, padding;
      if (!in.Take(&record) || record.size > DirStream::kBuffer || !in.Take(record.size, &ahead) ||
          !in.Take((8 - record.size % 8) % 8, &padding)) {
        return Wrong("has a directory that is cut");
      }
      const HandleRef handle = HandleOf(record.fh, nullptr);
      if (!handle || !handle->is_dir || handle->dir != nullptr) {
        return Wrong("has a directory that is not open");
      }
      std::unique_ptr<DirStream> stream(new (std::nothrow) DirStream);
      if (stream == nullptr) return Error{VIRTBAY_RESOURCE_EXHAUSTED, ENOMEM, "out of memory"};
      if ((record.flags & state::kStreamRestart) != 0) {
        stream->Restart();
      } else if (!stream->Restore({{reinterpret_cast<const char*>(ahead.data()), ahead.size()},
                                   record.at,
                                   record.offset,
                                   (record.flags & state::kStreamFresh) != 0})) {
        return Wrong("has entries of a directory that are none");
      }
      handle->dir = std::move(stream);
    }
    return {};
  }

  // ---- locks

  Status RestoreLocks() {
    const Records<state::LockOwner> records(*in_, state::kLockOwners);
    const Records<state::LockRange> ranges(*in_, state::kLockRanges);
    if (!records.ok() || !ranges.ok()) return Wrong("has no locks");
    uint32_t next_range = 0;
    std::optional<std::pair<uint32_t, uint64_t>> last;
    for (uint32_t i = 0; i < records.size(); ++i) {
      const state::LockOwner record = records[i];
      const std::pair<uint32_t, uint64_t> at(record.inode, record.owner);
      if (last.has_value() && at <= *last) return Wrong("has an owner of locks twice");
      last = at;
      if (record.ranges > ranges.size() - next_range) return Wrong("has fewer locks than it says");
      LockRanges held;
      for (uint32_t r = 0; r < record.ranges; ++r) {
        const state::LockRange range = ranges[next_range++];
        const bool after = held.empty() || range.start > held.all().back().end;
        if (!after || range.start > range.end || range.end > INT64_MAX) {
          return Wrong("has a lock of no bytes, or one twice");
        }
        held.Set({range.start, range.end, range.write != 0});
      }
      if (Status status = RestoreOwner(record, std::move(held)); !status.ok()) return status;
    }
    if (next_range != ranges.size()) return Wrong("has more locks than it says");
    return {};
  }

  Status RestoreOwner(const state::LockOwner& record, LockRanges held) {
    Inode* const inode = InodeOf(record.inode);
    // Who has nothing open can hold nothing.
    if (inode == nullptr || inode->open_handle.load(std::memory_order_relaxed) == 0 ||
        (record.fh != 0 && !HandleOf(record.fh, inode))) {
      return Wrong("has locks of a file that is not open");
    }
    LockDescription description;
    description.fd = lock_fds_.Peek();
    description.readable = (record.flags & state::kLockReadable) != 0;
    description.writable = (record.flags & state::kLockWritable) != 0;
    description.shared_fh = record.shared_fh;
    if (description.fd < 0 ||
        !IsOpenFor(description.fd, description.readable, description.writable) ||
        !IsOf(description.fd, *inode)) {
      return Wrong("has a descriptor that is not its lock's");
    }
    if (!fs_.lock_owners.Restore(*inode, record.owner, record.fh, record.pid, description,
                                 std::move(held))) {
      return Error{VIRTBAY_RESOURCE_EXHAUSTED, ENOLCK,
                   "the state has more locks than there may be"};
    }
    lock_fds_.Taken();
    fs_.budget.Adopt(false);
    return {};
  }

  Status RestoreHandedBack() {
    const Records<state::HandedBack> records(*in_, state::kHandedBack);
    if (!records.ok()) return Wrong("has no requests");
    std::vector<LockWaiters::Absent> absent;
    for (uint32_t i = 0; i < records.size(); ++i) {
      absent.push_back({records[i].unique, records[i].interrupted != 0});
    }
    fs_.lock_waiters.Restore(std::move(absent));
    return {};
  }

  Fs& fs_;
  StateReader* const in_;
  Fds share_fds_, inode_fds_, handle_fds_, lock_fds_;
  state::Session session_ = {};
  std::vector<Share*> shares_;  // by their index in the state
  std::vector<ShareRef> counted_;
};

}  // namespace

sdk::Status RestoreState(Fs& fs, sdk::StateReader* in) {
  fs.ShareWithAnother();
  return Restorer(fs, in).Restore();
}

}  // namespace virtbay::virtiofs
