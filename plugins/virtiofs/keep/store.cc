#include "plugins/virtiofs/keep/store.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>

namespace virtbay::virtiofs::keep {
namespace {

constexpr uint64_t kMagic = 0x31766b2d73667662;  // "bvfs-kv1"
constexpr uint32_t kVersion = 1;
constexpr size_t kPage = 4096;

constexpr size_t Rounded(size_t bytes) { return (bytes + kPage - 1) & ~(kPage - 1); }

}  // namespace

sdk::Result<std::unique_ptr<Store>> Store::Open(const sdk::Host* host, const std::string& dir,
                                                const Shape& shape, bool serves) {
  std::unique_ptr<Store> store(new Store(host));
  const std::string path = dir + "/virtiofs.session";
  const size_t inodes_at = Rounded(sizeof(Header));
  const size_t handles_at = inodes_at + Rounded(sizeof(InodeRecord) * size_t{shape.inodes});
  const size_t journal_at = handles_at + Rounded(sizeof(HandleRecord) * size_t{shape.handles});
  store->size_ = journal_at + Rounded(sizeof(JournalEntry) * size_t{shape.queues} * kHeads);

  // What is there may be anything: O_NONBLOCK is for a FIFO.
  store->fd_ = ::open(path.c_str(), O_RDWR | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK);
  const int problem = store->fd_ >= 0 ? 0 : errno;
  if (problem != 0 && problem != ENOENT && problem != ELOOP && problem != EISDIR &&
      problem != ENXIO) {
    return sdk::Errno(problem, path);
  }
  const bool whole = problem == 0 && store->Fits(shape);
  if (!whole && serves) {
    host->Log(VIRTBAY_LOG_WARN,
              "%s is of another version or shape: the session is not kept any more, and ends with "
              "this process",
              path.c_str());
    return std::unique_ptr<Store>();
  }
  if (!whole) {
    if (problem != ENOENT) {
      host->Log(VIRTBAY_LOG_WARN,
                "%s is cut, or of another version or shape: the guest's session is not known",
                path.c_str());
    }
    if (::unlink(path.c_str()) != 0 && errno != ENOENT) return sdk::Errno(errno, path);
    if (store->fd_ >= 0) ::close(store->fd_);
    store->fd_ = ::open(path.c_str(), O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC | O_NOFOLLOW, 0600);
    if (store->fd_ < 0 || ::ftruncate(store->fd_, static_cast<off_t>(store->size_)) != 0) {
      const int error = errno;
      if (error != ENOSPC && error != EDQUOT) return sdk::Errno(error, path);
      store->NoRoom(error);
      return std::unique_ptr<Store>();
    }
  }
  void* const base = ::mmap(nullptr, store->size_, PROT_READ | PROT_WRITE,
                            MAP_SHARED | MAP_NORESERVE, store->fd_, 0);
  if (base == MAP_FAILED) return sdk::Errno(errno, path);
  store->base_ = static_cast<std::byte*>(base);
  store->header_ = static_cast<Header*>(base);
  store->inodes_ = reinterpret_cast<InodeRecord*>(store->base_ + inodes_at);
  store->handles_ = reinterpret_cast<HandleRecord*>(store->base_ + handles_at);
  store->journal_ = reinterpret_cast<JournalEntry*>(store->base_ + journal_at);
  store->pieces_ = std::vector<std::atomic<uint8_t>>(store->size_ / kPiece + 1);
  store->copies_.resize(shape.queues);
  if (!store->Allocate(0)) return std::unique_ptr<Store>();
  store->FindWritten();
  if (!whole) {
    Header header;
    header.version = kVersion;
    header.inodes = shape.inodes;
    header.handles = shape.handles;
    header.queues = shape.queues;
    *store->header_ = header;
    Set(store->header_->magic, kMagic);
  } else if (!serves) {
    // What it says may be more than there is.
    Header& header = *store->header_;
    Set(header.inodes_end, store->Written(store->inodes_, header.inodes_end));
    Set(header.handles_end, store->Written(store->handles_, header.handles_end));
  }
  return store;
}

bool Store::Fits(const Shape& shape) const {
  Header header;
  struct stat st {};
  return ::fstat(fd_, &st) == 0 && S_ISREG(st.st_mode) &&
         static_cast<size_t>(st.st_size) == size_ &&
         ::pread(fd_, &header, sizeof header, 0) == static_cast<ssize_t>(sizeof header) &&
         header.magic == kMagic && header.version == kVersion && header.inodes == shape.inodes &&
         header.handles == shape.handles && header.queues == shape.queues &&
         header.inodes_end <= shape.inodes && header.handles_end <= shape.handles;
}

Store::~Store() {
  if (base_ != nullptr) ::munmap(base_, size_);
  if (fd_ >= 0) ::close(fd_);
}

bool Store::Have(const void* at, size_t size) { return writes() && HasBlocks(at, size); }

bool Store::Allocate(size_t piece) {
  const std::lock_guard<std::mutex> lock(pieces_mu_);
  if (pieces_[piece].load(std::memory_order_relaxed) != 0) return true;
  const size_t begin = piece * kPiece;
  const int error = ::posix_fallocate(fd_, static_cast<off_t>(begin),
                                      static_cast<off_t>(std::min(kPiece, size_ - begin)));
  if (error == 0) {
    pieces_[piece].store(1, std::memory_order_release);
    return true;
  }
  NoRoom(error);
  writes_.store(false, std::memory_order_release);
  if (piece != 0) Set(header_->ready, uint32_t{0});
  return false;
}

void Store::NoRoom(int error) {
  if (broken_.exchange(true)) return;
  host_->Log(VIRTBAY_LOG_ERROR,
             "the state directory has no room (errno %d): the session is not kept any more, and "
             "ends with this process",
             error);
}

template <typename T, typename Visitor>
void Store::ForEachWritten(T* table, size_t count, Visitor&& visit) {
  const off_t start = reinterpret_cast<std::byte*>(table) - base_;
  const auto size = static_cast<off_t>(sizeof(T));
  const off_t end = start + static_cast<off_t>(count) * size;
  for (off_t at = start; at < end;) {
    const off_t data = ::lseek(fd_, at, SEEK_DATA);
    if (data < 0 || data >= end) return;
    const off_t hole = ::lseek(fd_, data, SEEK_HOLE);
    const off_t last = hole < 0 ? end : std::min(hole, end);
    // One whose beginning was never written was never begun.
    for (off_t i = (data - start + size - 1) / size; start + i * size < last; ++i) {
      if (HasBlocks(table + i, sizeof(T))) visit(table[i]);
    }
    at = last;
  }
}

void Store::FindWritten() {
  const auto end = static_cast<off_t>(size_);
  for (off_t at = 0; at < end;) {
    const off_t data = ::lseek(fd_, at, SEEK_DATA);
    if (data < 0) return;
    const off_t hole = ::lseek(fd_, data, SEEK_HOLE);
    at = hole < 0 ? end : hole;
    written_.push_back({static_cast<size_t>(data), static_cast<size_t>(at)});
  }
}

bool Store::WasWritten(const void* at) const {
  const auto offset = static_cast<size_t>(static_cast<const std::byte*>(at) - base_);
  const auto next = std::upper_bound(written_.begin(), written_.end(), offset,
                                     [](size_t value, const auto& one) { return value < one.end; });
  return next != written_.end() && offset >= next->begin;
}

template <typename T>
uint32_t Store::Written(const T* table, uint32_t count) const {
  const auto begin = static_cast<size_t>(reinterpret_cast<const std::byte*>(table) - base_);
  const size_t end = begin + count * sizeof(T);
  size_t last = begin;
  for (const auto& one : written_) {
    if (one.begin < end) last = std::max(last, std::min(one.end, end));
  }
  return static_cast<uint32_t>((last - begin + sizeof(T) - 1) / sizeof(T));
}

bool Store::HasBlocks(const void* at, size_t size) {
  const auto begin = static_cast<size_t>(static_cast<const std::byte*>(at) - base_);
  for (size_t piece = begin / kPiece; piece <= (begin + size - 1) / kPiece; ++piece) {
    if (pieces_[piece].load(std::memory_order_acquire) == 0 && !Allocate(piece)) return false;
  }
  return true;
}

std::vector<uint64_t> Store::TakeBackUnheard() {
  std::vector<uint64_t> handles;
  ForEachWritten(journal_, size_t{header_->queues} * kHeads, [&](JournalEntry& entry) {
    if (entry.progress != Progress::kBegun && entry.progress != Progress::kIntent) return;
    if (entry.fh != 0) handles.push_back(entry.fh);
    const uint64_t node = entry.entered;
    // First: known for too long is better than lost.
    Set(entry.entered, uint64_t{0});
    const uint64_t index = (node & UINT32_MAX) - 1;
    if (node == 0 || index >= header_->inodes_end || !WasWritten(&inodes_[index])) return;
    InodeRecord& record = inodes_[index];
    if (record.node == node && record.lookups != 0) Set(record.lookups, record.lookups - 1);
  });
  return handles;
}

void Store::Clear(const Root& root, bool alone) {
  Set(header_->ready, uint32_t{0});
  const size_t begin = Rounded(sizeof(Header));
  if (alone && ::fallocate(fd_, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE,
                           static_cast<off_t>(begin), static_cast<off_t>(size_ - begin)) == 0) {
    for (std::atomic<uint8_t>& piece : pieces_) piece.store(0, std::memory_order_release);
    Set(header_->inodes_end, uint32_t{0});
    Set(header_->handles_end, uint32_t{0});
    static_cast<void>(Allocate(0));
  } else {
    // Each by itself: another queue may write just now, and in a hole it might find no room.
    ForEachWritten(inodes_, header_->inodes_end,
                   [](InodeRecord& record) { Set(record.node, uint64_t{0}); });
    ForEachWritten(handles_, header_->handles_end,
                   [](HandleRecord& record) { Set(record.fh, uint64_t{0}); });
    ForEachWritten(journal_, size_t{header_->queues} * kHeads,
                   [](JournalEntry& entry) { Set(entry.progress, Progress::kNone); });
  }
  Set(header_->session_flags, uint64_t{0});
  header_->root = root;
}

void Store::SetSession(uint64_t flags) {
  if (!writes()) return;
  Set(header_->session_flags, flags);
  Set(header_->ready, uint32_t{1});
}

void Store::Raise(uint32_t* most, uint32_t value) {
  const std::atomic_ref<uint32_t> at(*most);
  uint32_t have = at.load(std::memory_order_relaxed);
  while (have < value && !at.compare_exchange_weak(have, value, std::memory_order_acq_rel)) {
  }
}

void Store::Born(const Inode& inode) {
  InodeRecord& record = inodes_[inode.index];
  if (!Have(&record, sizeof record)) return;
  Raise(&header_->inodes_end, inode.index + 1);
  record.lookups = 1;
  record.dev = inode.key.dev;
  record.ino = inode.key.ino;
  record.mount = inode.key.mnt_id;
  record.birth_ns = inode.btime;
  record.nlink = inode.nlink.load(std::memory_order_relaxed);
  record.type = inode.type;
  record.name = record.other = 0;
  record.losing = record.replaced = 0;
  Set(record.node, inode.nodeid());
}

void Store::AddLookups(const Inode& inode, int64_t change) {
  InodeRecord& record = inodes_[inode.index];
  if (!Have(&record, sizeof record)) return;
  std::atomic_ref<uint64_t>(record.lookups)
      .fetch_add(static_cast<uint64_t>(change), std::memory_order_acq_rel);
  Set(record.nlink, inode.nlink.load(std::memory_order_relaxed));
}

uint8_t Store::WriteName(InodeRecord* record, const Inode& parent, std::string_view name) {
  // The one that is valid stays so until the other one is whole.
  Set(record->other, uint8_t{0});
  const uint8_t which = record->name == 1 ? 2 : 1;
  Name& to = record->names[which - 1];
  to.parent = parent.index + 1;
  to.size = static_cast<uint16_t>(name.size());
  std::memcpy(to.text.data(), name.data(), name.size());
  return which;
}

void Store::Named(const Inode& inode, const Inode& parent, std::string_view name) {
  InodeRecord& record = inodes_[inode.index];
  if (name.size() >= record.names[0].text.size() || !Have(&record, sizeof record)) return;
  Set(record.name, WriteName(&record, parent, name));
  Set(record.losing, uint8_t{0});
}

void Store::MayBeNamed(const Inode& inode, const Inode& parent, std::string_view name) {
  InodeRecord& record = inodes_[inode.index];
  if (name.size() >= record.names[0].text.size() || !Have(&record, sizeof record)) return;
  Set(record.other, WriteName(&record, parent, name));
}

void Store::Unnamed(const Inode& inode) {
  InodeRecord& record = inodes_[inode.index];
  if (!Have(&record, sizeof record)) return;
  Set(record.name, uint8_t{0});
  Set(record.losing, uint8_t{0});
}

void Store::MayLose(const Inode& inode) {
  InodeRecord& record = inodes_[inode.index];
  if (Have(&record, sizeof record)) Set(record.losing, uint8_t{1});
}

void Store::Replaced(const Inode& inode) {
  InodeRecord& record = inodes_[inode.index];
  if (Have(&record, sizeof record)) Set(record.replaced, uint8_t{1});
}

void Store::Died(uint32_t index, uint32_t next_generation) {
  InodeRecord& record = inodes_[index];
  if (!Have(&record, sizeof record)) return;
  Raise(&header_->inode_generation, next_generation);
  Set(record.node, uint64_t{0});
}

void Store::Opened(uint32_t index, uint64_t fh, uint64_t node, int flags) {
  if (index >= header_->handles) return;
  HandleRecord& record = handles_[index];
  if (!Have(&record, sizeof record)) return;
  Raise(&header_->handles_end, index + 1);
  record.node = node;
  record.flags = static_cast<uint32_t>(flags);
  Set(record.fh, fh);
}

void Store::Closed(uint32_t index, uint32_t next_generation) {
  if (index >= header_->handles) return;
  HandleRecord& record = handles_[index];
  if (!Have(&record, sizeof record)) return;
  Raise(&header_->handle_generation, next_generation);
  Set(record.fh, uint64_t{0});
}

JournalEntry* Store::At(uint32_t queue, uint32_t head) {
  if (queue >= header_->queues || head >= kHeads) return nullptr;
  JournalEntry* const entry = Entry(queue, head);
  return Have(entry, sizeof *entry) ? entry : nullptr;
}

void Store::Begin(JournalEntry* entry, uint64_t unique, uint32_t opcode, uint64_t node) const {
  Set(entry->progress, Progress::kNone);
  entry->run = run();
  entry->unique = unique;
  entry->opcode = opcode;
  entry->node = node;
  entry->fh = 0;
  entry->entered = 0;
  Set(entry->progress, Progress::kBegun);
}

void Store::Intend(JournalEntry* entry, const Seen& first, const Seen& second, uint64_t size) {
  // One that is written over says as much as none: nothing of it was done.
  Set(entry->progress, Progress::kBegun);
  entry->first = first;
  entry->second = second;
  entry->size = size;
  // The clock by which file systems stamp.
  timespec now{};
  ::clock_gettime(CLOCK_REALTIME_COARSE, &now);
  entry->time_ns = int64_t{now.tv_sec} * 1'000'000'000 + now.tv_nsec;
  Set(entry->progress, Progress::kIntent);
}

void Store::Finish(JournalEntry* entry, int error, const std::byte* body, uint32_t size) {
  entry->error = error;
  entry->body_size = static_cast<uint32_t>(std::min<size_t>(size, entry->body.size()));
  if (entry->body_size != 0) std::memcpy(entry->body.data(), body, entry->body_size);
  Set(entry->progress, Progress::kDone);
}

}  // namespace virtbay::virtiofs::keep
