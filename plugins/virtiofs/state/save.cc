// Writes a state, see format.h.
#include <algorithm>
#include <cerrno>
#include <cstddef>
#include <cstring>
#include <map>
#include <span>
#include <string>
#include <string_view>
#include <tuple>
#include <type_traits>
#include <unordered_map>
#include <utility>
#include <vector>

#include "plugins/virtiofs/dir.h"
#include "plugins/virtiofs/file_handle.h"
#include "plugins/virtiofs/lazy_array.h"
#include "plugins/virtiofs/state/format.h"
#include "plugins/virtiofs/state/state.h"

namespace virtbay::virtiofs {
namespace {

using sdk::StateWriter;

// Descriptors of directories that could be opened again by name. Not by a name that the host has
// changed meanwhile, and then everything below is lost to the guest: worth some, while they are
// few.
constexpr uint32_t kCachedFds = 256;
// Of all that was read ahead in directories. Those beyond are read again from the guest's offset,
// which is exact where the host's file system has offsets that stay when entries go.
constexpr size_t kReadAhead = size_t{8} << 20;

// Of what is not inodes, mostly.
constexpr size_t kSmallSections = 65536;
// Name and file handle of an inode.
constexpr size_t kTextMax = 255 + sizeof(int32_t) + 128, kTextLikely = 16;
// Address space for what has no limit by itself.
constexpr size_t kSharesMax = size_t{1} << 28, kStreamsMax = size_t{1} << 28;

template <typename T>
void AddRecords(StateWriter* out, uint32_t tag, const std::vector<T>& records) {
  out->Add(tag, std::as_bytes(std::span(records)));
}

// Bytes that grow, into memory that is there from the start and costs nothing until it is used.
class Bytes {
 public:
  // Once; `likely` of them will be there. False: no memory.
  bool Reserve(size_t most, size_t likely) {
    most_ = most;
    return bytes_.Init(std::max<size_t>(most, 1), likely);
  }
  void Clear() { size_ = 0; }
  // What there is no room for is left out, see whole().
  void Put(const void* data, size_t size) {
    if (size > most_ - size_) {
      whole_ = false;
    } else if (size != 0) {
      std::memcpy(&bytes_[size_], data, size);
      size_ += size;
    }
  }
  template <typename T>
  void PutRecord(const T& record) {
    static_assert(std::is_trivially_copyable_v<T>);
    Put(&record, sizeof(record));
  }
  void PutText(std::string_view text) { Put(text.data(), text.size()); }
  size_t size() const { return size_; }
  bool whole() const { return whole_; }
  std::span<const std::byte> all() const { return {&bytes_[0], size_}; }

 private:
  LazyArray<std::byte> bytes_;
  size_t size_ = 0;
  size_t most_ = 0;
  bool whole_ = true;
};

class Saver {
 public:
  Saver(Fs& fs, StateWriter* out) : fs_(fs), out_(out) {}

  sdk::Status Save() {
    const size_t inodes = fs_.inodes.count();
    const size_t records = inodes * sizeof(state::Inode);
    if (!inodes_.Reserve(records, records) ||
        !texts_.Reserve(inodes * kTextMax, inodes * kTextLikely) ||
        !shares_.Reserve(kSharesMax, 0) || !streams_.Reserve(kStreamsMax, 0)) {
      return sdk::Errno(ENOMEM, "the state");
    }
    if (fs_.aggregate != nullptr) listed_ = fs_.aggregate->Shares();
    AddShare(fs_.share);
    for (const ShareRef& share : listed_) AddShare(*share);
    // May come to shares that were removed.
    if (const auto circles = SaveInodes({}); !circles.empty()) SaveInodes(circles);
    WriteInodes();
    SaveSession();
    SaveHandles();
    SaveLocks();
    out_->Add(state::kShares, shares_.all());
    std::vector<state::Number> numbers;
    if (fs_.inos != nullptr) {
      for (const InoSpace::Entry& entry : fs_.inos->Entries()) {
        numbers.push_back({entry.dev, entry.high, entry.share, entry.prefix});
      }
    }
    AddRecords(out_, state::kNumbers, numbers);
    std::vector<state::HandedBack> handed_back;
    for (const LockWaiters::Absent& absent : fs_.lock_waiters.handed_back()) {
      handed_back.push_back({absent.unique, absent.interrupted ? 1u : 0u});
    }
    AddRecords(out_, state::kHandedBack, handed_back);
    if (inodes_.whole() && texts_.whole() && shares_.whole() && streams_.whole()) return {};
    return sdk::Error{VIRTBAY_RESOURCE_EXHAUSTED, 0, "the state is larger than any should be"};
  }

 private:
  using PlaceKey = std::tuple<const Share*, uint64_t, uint64_t>;

  void SaveSession() {
    state::Session session = {};
    session.init_flags = fs_.session_flags.load(std::memory_order_relaxed);
    if (fs_.ready.load(std::memory_order_acquire)) session.flags |= state::kReady;
    session.inode_generation = inode_generation_;
    session.handle_generation = fs_.handles.LastGeneration();
    if (fs_.aggregate != nullptr) {
      const Aggregate::Progress progress = fs_.aggregate->progress();
      session.flags |= state::kAggregate;
      session.next_share = progress.next_id;
      session.next_cookie = progress.next_cookie;
      session.changed_ns = progress.changed_ns;
      session.next_number = fs_.inos->next();
    }
    out_->Add(state::kSession, &session, sizeof(session));
  }

  uint32_t AddShare(const Share& share) {
    const auto [at, fresh] = share_index_.try_emplace(&share, share_index_.size());
    if (!fresh) return at->second;
    state::Share record = {};
    record.cookie = share.cookie;
    record.id = share.id;
    if (share.removed.load(std::memory_order_relaxed)) record.flags |= state::kShareRemoved;
    if (share.no_nowait_writes.load(std::memory_order_relaxed)) {
      record.flags |= state::kShareNoNowaitWrites;
    }
    if (share.no_nowait_reads.load(std::memory_order_relaxed)) {
      record.flags |= state::kShareNoNowaitReads;
    }
    std::string options;
    // The device's own are those of its options.
    if (share.counted()) {
      for (const auto& [key, value] : share.options.List()) {
        options.append(key).append(1, '\0').append(value).append(1, '\0');
      }
    }
    record.name_size = static_cast<uint32_t>(share.name.size());
    record.path_size = static_cast<uint32_t>(share.path.size());
    record.options_size = static_cast<uint32_t>(options.size());
    shares_.PutRecord(record);
    shares_.PutText(share.name);
    shares_.PutText(share.path);
    shares_.PutText(options);
    out_->AddFd(state::kShareFd, share.root_fd);
    return at->second;
  }

  uint32_t PlaceOf(const Inode& inode) {
    const PlaceKey key{inode.share, inode.key.dev, inode.key.mnt_id};
    if (key == last_place_) return last_place_index_;
    const auto [at, fresh] = place_index_.try_emplace(key, place_index_.size());
    if (fresh) places_.push_back({inode.key.dev, inode.key.mnt_id, AddShare(*inode.share), 0});
    last_place_ = key;
    return last_place_index_ = at->second;
  }

  // Those of `circles` without their names. Returns the circles that there are.
  std::vector<const Inode*> SaveInodes(const std::vector<const Inode*>& circles) {
    inodes_.Clear();
    texts_.Clear();
    inode_fds_.clear();
    std::vector<const Inode*> directories;
    uint32_t cached = 0;
    inode_generation_ = fs_.inodes.ForEach([&](const Inode& inode) {
      state::Inode record = {};
      record.node = inode.nodeid();
      record.lookups = inode.nlookup.load(std::memory_order_relaxed);
      record.ino = inode.key.ino;
      record.btime_ns = inode.btime;
      record.place = PlaceOf(inode);
      record.nlink = inode.nlink.load(std::memory_order_relaxed);
      record.type = inode.type;
      bool keeps_fd = inode.keep_fd.load(std::memory_order_relaxed);
      if (inode.is_dir()) directories.push_back(&inode);
      if (inode.hashed) record.flags |= state::kInodeHashed;
      if (inode.named &&
          (circles.empty() || std::find(circles.begin(), circles.end(), &inode) == circles.end())) {
        record.parent = inode.parent->index + 1;
        record.name_size = static_cast<uint8_t>(inode.name_len);
        texts_.PutText(inode.name());
      } else {
        keeps_fd = true;
      }
      if (const FileHandle* handle = inode.file_handle.load(std::memory_order_acquire)) {
        const int32_t type = handle->type();
        record.handle_size = static_cast<uint16_t>(sizeof(type) + handle->bytes().size());
        texts_.PutRecord(type);
        texts_.Put(handle->bytes().data(), handle->bytes().size());
      }
      if (keeps_fd) record.flags |= state::kInodeKeepsFd;
      const int fd = static_cast<int>(inode.fd_word.load(std::memory_order_acquire) >> 32) - 1;
      if (fd >= 0 && fd == inode.share->root_fd) {
        record.flags |= state::kInodeShareRoot;
      } else if (fd >= 0 && (keeps_fd || (inode.is_dir() && cached++ < kCachedFds))) {
        record.flags |= state::kInodeHasFd;
        inode_fds_.push_back(fd);
      }
      inodes_.PutRecord(record);
    });
    return fs_.inodes.Circles(directories);
  }

  void WriteInodes() {
    for (const int fd : inode_fds_) out_->AddFd(state::kInodeFd, fd);
    out_->Reserve(inodes_.size() + texts_.size() + kSmallSections);
    AddRecords(out_, state::kPlaces, places_);
    out_->Add(state::kInodes, inodes_.all());
    out_->Add(state::kTexts, texts_.all());
  }

  void SaveHandles() {
    std::vector<state::Handle> records;
    fs_.handles.ForEach([&](Handle& handle) {
      state::Handle record = {};
      record.fh = handle.fh();
      record.inode = handle.inode->index + 1;
      if (handle.readable) record.flags |= state::kHandleReadable;
      if (handle.writable) record.flags |= state::kHandleWritable;
      if (handle.direct) record.flags |= state::kHandleDirect;
      if (handle.no_nowait.load(std::memory_order_relaxed)) {
        record.flags |= state::kHandleNoNowait;
      }
      if (handle.flocked.load(std::memory_order_relaxed)) record.flags |= state::kHandleFlocked;
      records.push_back(record);
      out_->AddFd(state::kHandleFd, handle.fd);
      const std::lock_guard<std::mutex> lock(handle.dir_mu);
      if (handle.dir != nullptr) PutStream(handle, &streams_);
      if (handle.inode->lock_owners.load(std::memory_order_acquire) != nullptr) {
        locked_.push_back(handle.inode);
      }
    });
    AddRecords(out_, state::kHandles, records);
    out_->Add(state::kStreams, streams_.all());
  }

  static void PutStream(const Handle& handle, Bytes* streams) {
    const DirStream::Place place = handle.dir->place();
    state::Stream record = {};
    record.fh = handle.fh();
    record.offset = place.offset;
    if (place.fresh) record.flags |= state::kStreamFresh;
    size_t size = place.ahead.size();
    if (streams->size() + size > kReadAhead) {
      record.flags |= state::kStreamRestart;
      size = 0;
    } else {
      record.at = static_cast<uint32_t>(place.at);
    }
    record.size = static_cast<uint32_t>(size);
    streams->PutRecord(record);
    streams->Put(place.ahead.data(), size);
    constexpr char kPadding[8] = {};
    streams->Put(kPadding, (8 - size % 8) % 8);
  }

  // A lock owner is made for an open handle, and goes with it at the latest.
  void SaveLocks() {
    std::sort(locked_.begin(), locked_.end(),
              [](const Inode* a, const Inode* b) { return a->index < b->index; });
    locked_.erase(std::unique(locked_.begin(), locked_.end()), locked_.end());
    std::vector<state::LockOwner> records;
    std::vector<state::LockRange> ranges;
    for (const Inode* inode : locked_) {
      std::vector<const LockOwner*> owners;
      for (const LockOwner* at = inode->lock_owners.load(std::memory_order_acquire); at != nullptr;
           at = at->next) {
        owners.push_back(at);
      }
      std::sort(owners.begin(), owners.end(),
                [](const LockOwner* a, const LockOwner* b) { return a->owner < b->owner; });
      for (const LockOwner* owner : owners) {
        state::LockOwner record = {};
        record.owner = owner->owner;
        // A lock that was under way while the guest released the handle has outlived it.
        if (fs_.handles.Find(owner->fh, inode->nodeid())) record.fh = owner->fh;
        record.shared_fh = owner->description.shared_fh;
        record.inode = inode->index + 1;
        record.pid = owner->pid.load(std::memory_order_relaxed);
        if (owner->description.readable) record.flags |= state::kLockReadable;
        if (owner->description.writable) record.flags |= state::kLockWritable;
        record.ranges = static_cast<uint32_t>(owner->ranges.size());
        records.push_back(record);
        for (const LockRange& range : owner->ranges.all()) {
          ranges.push_back({range.start, range.end, range.write ? 1u : 0u});
        }
        out_->AddFd(state::kLockFd, owner->description.fd);
      }
    }
    AddRecords(out_, state::kLockOwners, records);
    AddRecords(out_, state::kLockRanges, ranges);
  }

  Fs& fs_;
  StateWriter* const out_;
  std::vector<ShareRef> listed_;
  std::unordered_map<const Share*, uint32_t> share_index_;
  Bytes shares_, streams_;
  std::map<PlaceKey, uint32_t> place_index_;
  PlaceKey last_place_{nullptr, 0, 0};
  uint32_t last_place_index_ = 0;
  std::vector<state::Place> places_;
  Bytes inodes_, texts_;
  std::vector<int> inode_fds_;
  uint32_t inode_generation_ = 0;
  std::vector<const Inode*> locked_;
};

}  // namespace

sdk::Status SaveState(Fs& fs, sdk::StateWriter* out) { return Saver(fs, out).Save(); }

}  // namespace virtbay::virtiofs
