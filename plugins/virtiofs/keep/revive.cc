#include "plugins/virtiofs/keep/revive.h"

#include <fcntl.h>

#include <algorithm>
#include <array>
#include <cstring>
#include <memory>
#include <string>
#include <unordered_map>
#include <utility>
#include <vector>

#include "plugins/virtiofs/dir.h"
#include "plugins/virtiofs/keep/store.h"
#include "plugins/virtiofs/ops.h"
#include "plugins/virtiofs/path.h"

namespace virtbay::virtiofs::keep {
namespace {

// More than any guest has, and far from where counting wraps.
constexpr uint64_t kMostLookups = uint64_t{1} << 62;

bool IsKind(uint8_t type) {
  const uint32_t mode = uint32_t{type} << 12;
  return S_ISREG(mode) || S_ISDIR(mode) || S_ISLNK(mode) || S_ISCHR(mode) || S_ISBLK(mode) ||
         S_ISFIFO(mode) || S_ISSOCK(mode);
}

bool IsName(std::string_view text) {
  return !text.empty() && text != "." && text != ".." &&
         std::memchr(text.data(), '/', text.size()) == nullptr &&
         std::memchr(text.data(), 0, text.size()) == nullptr;
}

// Of the inode at that index; nullptr where there is none.
const Name* NameOf(const InodeRecord& record, uint8_t which) {
  if (which != 1 && which != 2) return nullptr;
  const Name& name = record.names[which - 1];
  return name.size < name.text.size() && IsName({name.text.data(), name.size}) ? &name : nullptr;
}

// ---- names that may not be right ----------------------------------------------------------------

// Whether the name that the inode has leads to it.
bool IsFound(Fs& fs, Inode& inode) {
  std::array<char, 256> name;
  const InodeRef parent = fs.inodes.CopyName(inode, &name);
  if (!parent) return false;
  int error = 0;
  const PathFd dir = fs.PathOf(*parent, &error);
  struct statx st;
  return dir && StatAt(dir.fd(), name.data(), &st) == 0 && inode.Matches(st);
}

// Whether the one does that a rename was about to give it, which it then has.
bool TakeOther(Fs& fs, Inode& inode) {
  const InodeRecord& record = fs.keep->inode(inode.index);
  const Name* const name = NameOf(record, record.other);
  Inode* const known =
      name == nullptr || name->parent == 0 ? nullptr : fs.inodes.At(name->parent - 1);
  const InodeRef parent = known == nullptr ? InodeRef() : fs.inodes.TryRef(*known);
  if (!parent || !parent->is_dir()) return false;
  // By value: the record changes with the name.
  const std::string text(name->text.data(), name->size);
  int error = 0;
  const PathFd dir = fs.PathOf(*parent, &error);
  struct statx st;
  if (!dir || StatAt(dir.fd(), text.c_str(), &st) != 0 || !inode.Matches(st)) return false;
  fs.inodes.SetName(inode, *parent, text);
  return true;
}

// Inodes that may have no name, or another one than the store says, since the process ended in the
// middle of a rename or a removal, or they have lost one of several names.
class Doubtful {
 public:
  explicit Doubtful(Fs& fs) : fs_(fs) {}

  void Add(Inode& inode) {
    InodeRef ref = fs_.inodes.TryRef(inode);
    if (ref) lost_.push_back(std::move(ref));
  }
  // Keeps only those that neither of their two names leads to.
  void TryNames() {
    // What leads to others first; a parent may be among them.
    for (const bool directories : {true, false}) {
      for (bool changed = true; changed;) {
        const size_t count = lost_.size();
        std::erase_if(lost_, [&](const InodeRef& inode) {
          return inode->is_dir() == directories && (IsFound(fs_, *inode) || TakeOther(fs_, *inode));
        });
        changed = lost_.size() != count;
      }
    }
  }
  // Looks for them in all directories that the guest knows. What is not found has no name.
  void Search() {
    if (lost_.empty()) return;
    // An inode that has several open files comes with each.
    std::sort(lost_.begin(), lost_.end(),
              [](const InodeRef& a, const InodeRef& b) { return a.get() < b.get(); });
    lost_.erase(
        std::unique(lost_.begin(), lost_.end(),
                    [](const InodeRef& a, const InodeRef& b) { return a.get() == b.get(); }),
        lost_.end());
    std::unordered_multimap<uint64_t, Inode*> wanted;
    for (const InodeRef& inode : lost_) wanted.emplace(inode->key.ino, inode.get());
    uint32_t entries = 0;
    for (uint32_t i = 0; i < fs_.keep->header().inodes_end && !wanted.empty(); ++i) {
      Inode* const known = fs_.inodes.At(i);
      const InodeRef dir = known == nullptr ? InodeRef() : fs_.inodes.TryRef(*known);
      if (dir && dir->is_dir()) SearchIn(*dir, &wanted, &entries);
      if (entries >= kMostEntries) break;
    }
    for (const auto& [ino, inode] : wanted) {
      std::array<char, 256> name;
      const InodeRef parent = fs_.inodes.CopyName(*inode, &name);
      if (parent) fs_.inodes.ClearName(*inode, *parent, name.data());
    }
    lost_.clear();
  }

 private:
  static constexpr uint32_t kMostEntries = 1u << 20;

  void SearchIn(Inode& dir, std::unordered_multimap<uint64_t, Inode*>* wanted, uint32_t* entries) {
    const int fd = fs_.OpenForIo(dir, O_RDONLY | O_DIRECTORY);
    if (fd < 0) return;
    const auto stream = std::make_unique<DirStream>();
    DirEntry entry;
    if (stream->Seek(fd, 0) == 0) {
      for (; *entries < kMostEntries && stream->Peek(fd, &entry) == 1; stream->Skip(entry)) {
        ++*entries;
        auto [at, end] = wanted->equal_range(entry.ino);
        if (at == end || entry.name == "." || entry.name == "..") continue;
        struct statx st;
        if (StatAt(fd, entry.name.data(), &st) != 0) continue;
        while (at != end && !at->second->Matches(st)) ++at;
        if (at == end) continue;
        fs_.inodes.SetName(*at->second, dir, entry.name);
        wanted->erase(at);
      }
    }
    fs_.budget.Close(fd, false);
  }

  Fs& fs_;
  std::vector<InodeRef> lost_;
};

uint32_t ReviveInodes(Fs& fs, const Root& now, Doubtful* doubtful) {
  Store& store = *fs.keep;
  const Header& header = store.header();
  uint32_t count = 0;
  uint64_t last = 0;
  for (uint32_t i = 1; i < header.inodes_end; ++i) {
    const InodeRecord& record = store.inode(i);
    if (record.node == 0) continue;
    ++count;
    last = record.node;
  }
  fs.inodes.StartRestore(count, last, header.inode_generation + 1);
  std::vector<Inode*> made(header.inodes_end, nullptr);
  if (!made.empty()) made[0] = &fs.inodes.root();
  for (uint32_t i = 1; i < header.inodes_end; ++i) {
    const InodeRecord& record = store.inode(i);
    if (record.node == 0) continue;
    if ((record.node & Inode::kRefMask) != uint64_t{i} + 1 || !IsKind(record.type)) {
      store.Died(i, static_cast<uint32_t>(record.node >> 32) + 1);
      continue;
    }
    InodeTable::Known known;
    known.nodeid = record.node;
    known.lookups = std::min(record.lookups, kMostLookups);
    // The same mount has another number for a process that came by its own namespace.
    known.key = {record.dev, record.ino,
                 record.mount == header.root.mount ? now.mount : record.mount};
    known.btime = record.birth_ns;
    known.share = &fs.share;
    known.nlink = record.nlink;
    known.type = record.type;
    known.hashed = record.replaced == 0;
    known.keep_fd = NameOf(record, record.name) == nullptr;
    made[i] = fs.inodes.Restore(known);
    if (made[i] == nullptr) store.Died(i, static_cast<uint32_t>(record.node >> 32) + 1);
  }
  for (uint32_t i = 1; i < header.inodes_end; ++i) {
    const InodeRecord& record = store.inode(i);
    const Name* const name = made[i] == nullptr ? nullptr : NameOf(record, record.name);
    if (name == nullptr || name->parent == 0 || name->parent > made.size()) continue;
    Inode* const parent = made[name->parent - 1];
    if (parent == nullptr) continue;
    static_cast<void>(fs.inodes.RestoreName(*made[i], *parent, {name->text.data(), name->size}));
  }
  // An inode that nobody refers to was about to be forgotten.
  static_cast<void>(fs.inodes.FinishRestore());
  for (uint32_t i = 1; i < header.inodes_end; ++i) {
    const InodeRecord& record = store.inode(i);
    const bool nameless = NameOf(record, record.name) == nullptr && record.nlink > 1;
    if (record.node == 0 || !(record.other != 0 || record.losing != 0 || nameless)) continue;
    Inode* const inode = fs.inodes.At(i);
    if (inode != nullptr && inode->nodeid() == record.node) doubtful->Add(*inode);
  }
  doubtful->TryNames();
  return count;
}

// ---- open files ---------------------------------------------------------------------------------

InodeRef InodeOf(Fs& fs, const HandleRecord& record) {
  // The guest may have forgotten it and have it open still.
  Inode* const known = fs.inodes.At(static_cast<uint32_t>((record.node & UINT32_MAX) - 1));
  if (known == nullptr || known->nodeid() != record.node) return {};
  return fs.inodes.TryRef(*known);
}

bool ReviveHandle(Fs& fs, const HandleRecord& record) {
  InodeRef inode = InodeOf(fs, record);
  // Not what makes or empties a file.
  const int flags = static_cast<int>(record.flags) &
                    (O_ACCMODE | O_APPEND | O_SYNC | O_DSYNC | O_NOATIME | O_DIRECT);
  if (!inode || (flags & O_ACCMODE) == O_ACCMODE) return false;
  const int fd = fs.OpenForIo(*inode, inode->is_dir() ? O_RDONLY | O_DIRECTORY : flags);
  if (fd < 0) return false;
  HandleTraits traits;
  traits.fd = fd;
  traits.readable = (flags & O_ACCMODE) != O_WRONLY;
  traits.writable = (flags & O_ACCMODE) != O_RDONLY;
  traits.direct = (flags & O_DIRECT) != 0 && !inode->is_dir();
  if (fs.handles.Restore(record.fh, &inode, traits) != nullptr) return true;
  fs.budget.Close(fd, false);
  return false;
}

struct Reopened {
  uint32_t open = 0;
  uint32_t lost = 0;
};

Reopened ReviveHandles(Fs& fs, std::vector<uint64_t> unheard, Doubtful* doubtful) {
  Store& store = *fs.keep;
  const Header& header = store.header();
  std::sort(unheard.begin(), unheard.end());
  fs.handles.StartRestore(header.handle_generation + 1);
  Reopened result;
  const auto drop = [&](uint32_t i) {
    store.Closed(i, static_cast<uint32_t>(store.handle(i).fh >> 32) + 1);
  };
  std::vector<uint32_t> failed;
  for (uint32_t i = 0; i < header.handles_end; ++i) {
    const HandleRecord record = store.handle(i);
    if (record.fh == 0) continue;
    if ((record.fh & UINT32_MAX) != uint64_t{i} + 1 ||
        std::binary_search(unheard.begin(), unheard.end(), record.fh)) {
      drop(i);
    } else if (ReviveHandle(fs, record)) {
      ++result.open;
    } else {
      failed.push_back(i);
      const InodeRef inode = InodeOf(fs, record);
      if (inode) doubtful->Add(*inode);
    }
  }
  doubtful->Search();
  for (const uint32_t i : failed) {
    if (ReviveHandle(fs, store.handle(i))) {
      ++result.open;
    } else {
      ++result.lost;
      drop(i);
    }
  }
  fs.handles.FinishRestore();
  return result;
}

}  // namespace

Root RootOf(const Share& share) {
  const InodeKey key = KeyOf(share.root_stat);
  return {key.dev, key.ino, BirthOf(share.root_stat), key.mnt_id};
}

void Revive(Fs& fs) {
  Store& store = *fs.keep;
  const Header& header = store.header();
  const Root now = RootOf(fs.share);
  const bool same = header.root.dev == now.dev && header.root.ino == now.ino &&
                    header.root.birth_ns == now.birth_ns;
  if (header.ready == 0 || !same || (header.session_flags & ~KnownInitFlags()) != 0) {
    store.BeginRun();
    store.Clear(now, /*alone=*/true);
    store.Resume();
    return;
  }
  store.BeginRun();
  store.Resume();
  std::vector<uint64_t> unheard = store.TakeBackUnheard();
  Doubtful doubtful(fs);
  const uint32_t inodes = ReviveInodes(fs, now, &doubtful);
  const Reopened files = ReviveHandles(fs, std::move(unheard), &doubtful);
  fs.session_flags.store(header.session_flags, std::memory_order_relaxed);
  fs.ready.store(true, std::memory_order_release);
  fs.host->Log(VIRTBAY_LOG_INFO,
               "goes on with the guest's session of before: %u inodes, %u open files", inodes,
               files.open);
  if (files.lost != 0) {
    fs.host->Log(VIRTBAY_LOG_WARN,
                 "%u open files of the guest cannot be opened again and are lost to it",
                 files.lost);
  }
}

}  // namespace virtbay::virtiofs::keep
