// HandleTable: fh -> Handle, the files and directories that the guest has open.
// Owned by the device; every function is [any] unless marked. Slots are type-stable, so a stale fh
// can be tested safely; the last reference closes the descriptor.
#ifndef VIRTBAY_PLUGINS_VIRTIOFS_HANDLE_TABLE_H_
#define VIRTBAY_PLUGINS_VIRTIOFS_HANDLE_TABLE_H_

#include <array>
#include <atomic>
#include <cstdint>
#include <memory>
#include <mutex>
#include <utility>
#include <vector>

#include "plugins/virtiofs/inode.h"
#include "plugins/virtiofs/lazy_array.h"

namespace virtbay::virtiofs {

struct DirStream;
class HandleTable;

struct Handle {
  // generation << 32 | references: one of the table until RELEASE, one per operation at work.
  std::atomic<uint64_t> word{0};
  std::atomic<bool> released{false};
  uint32_t index = 0;

  // Constant while referenced.
  Inode* inode = nullptr;  // referenced
  Share* share = nullptr;  // the inode's
  uint64_t nodeid = 0;
  int fd = -1;
  bool is_dir = false;
  bool writable = false;
  bool readable = false;
  bool direct = false;  // O_DIRECT on the host

  // O_NONBLOCK is still set: io_uring would not wait on file systems without RWF_NOWAIT.
  std::atomic<bool> flocked{false};       // flock(2) was taken at some time
  std::atomic<bool> no_nowait{false};     // writes with RWF_NOWAIT are of no use here
  std::atomic<uint32_t> slow_writes{0};   // inline writes in a row that took long
  std::atomic<uint64_t> submit_until{0};  // CLOCK_MONOTONIC, ns: writes go to the ring until then

  std::mutex dir_mu;               // one READDIR at a time; held over getdents64
  std::unique_ptr<DirStream> dir;  // guarded by dir_mu

  uint32_t next = 0, previous = 0;  // handles of the inode, guarded by the table's stripe

  uint32_t generation() const {
    return static_cast<uint32_t>(word.load(std::memory_order_acquire) >> 32);
  }
  uint64_t fh() const { return (static_cast<uint64_t>(generation()) << 32) | (index + 1); }
};

// A counted reference on a Handle.
class HandleRef {
 public:
  HandleRef() = default;
  HandleRef(HandleTable* table, Handle* handle) : table_(table), handle_(handle) {}
  HandleRef(HandleRef&& other) noexcept
      : table_(other.table_), handle_(std::exchange(other.handle_, nullptr)) {}
  HandleRef& operator=(HandleRef&& other) noexcept {
    if (this != &other) {
      Reset();
      table_ = other.table_;
      handle_ = std::exchange(other.handle_, nullptr);
    }
    return *this;
  }
  ~HandleRef() { Reset(); }
  explicit operator bool() const { return handle_ != nullptr; }
  Handle* get() const { return handle_; }
  Handle& operator*() const { return *handle_; }
  Handle* operator->() const { return handle_; }
  void Reset();

 private:
  HandleTable* table_ = nullptr;
  Handle* handle_ = nullptr;
};

// How a handle was opened.
struct HandleTraits {
  int fd = -1;
  bool readable = false;
  bool writable = false;
  bool direct = false;
  bool no_nowait = false;
  bool flocked = false;
};

class HandleTable {
 public:
  // What happens to the descriptor and the inode reference of a handle whose last reference went.
  class Closer {
   public:
    virtual ~Closer() = default;
    // `last`: the inode has no other open handle. The handle is in no list any more.
    virtual void CloseHandle(Handle& handle, bool last) = 0;
    // The session is over: gives up the locks, also if an operation still holds the handle.
    virtual void Unlock(Handle& handle) = 0;
  };

  HandleTable() = default;
  ~HandleTable();
  HandleTable(const HandleTable&) = delete;
  HandleTable& operator=(const HandleTable&) = delete;

  // [control] False: no memory.
  bool Init(Closer* closer, uint32_t max_handles);

  // A new handle with one reference of the caller's beside the table's; `inode` is taken over on
  // success. Empty: the cap is reached or memory is out.
  HandleRef Open(InodeRef* inode, const HandleTraits& traits);
  // The handle that the guest calls `fh` of inode `nodeid`; empty when there is none (EBADF).
  HandleRef Find(uint64_t fh, uint64_t nodeid);
  // The same of whatever inode it is. [control]
  HandleRef Find(uint64_t fh);
  // Any open handle of the inode; may be empty.
  HandleRef AnyOf(const Inode& inode);
  // The guest has closed it: takes back the table's reference, once.
  bool Release(Handle& handle);
  // Releases all: the session is over.
  void DropAll();

  // [control, no operation at work] All that are open.
  template <typename Visitor>
  void ForEach(Visitor&& visit) const {
    const uint32_t slots = slots_.load(std::memory_order_acquire);
    for (uint32_t i = 0; i < slots; ++i) {
      Handle* const handle = Slot(i);
      if (handle != nullptr && handle->inode != nullptr) visit(*handle);
    }
  }
  // [control, no operation at work] No free index has a generation above this one.
  uint32_t LastGeneration() const;
  // [control, before any other use, after Init] Takes over what another table had open:
  // StartRestore with the generation of all other indices, Restore for each, FinishRestore.
  // nullptr: the fh is none, is there already, is beyond what the table can have, or memory is out.
  void StartRestore(uint32_t generation) { first_generation_ = generation; }
  Handle* Restore(uint64_t fh, InodeRef* inode, const HandleTraits& traits);
  void FinishRestore();

  void set_counter(uint64_t* cell) { counter_ = cell; }

 private:
  friend class HandleRef;
  static constexpr uint32_t kChunk = 64;
  static constexpr uint32_t kStripes = 64;
  struct alignas(64) Stripe {
    std::mutex mu;
  };

  Handle* Slot(uint32_t index) const {
    Handle* chunk = chunks_[index / kChunk].load(std::memory_order_acquire);
    return chunk == nullptr ? nullptr : &chunk[index % kChunk];
  }
  HandleRef TryRef(Handle* handle, uint64_t generation, bool any_generation);
  Handle* NewChunk() const;  // nullptr: no memory
  Handle* TakeSlot();        // mu_ held; nullptr: no memory, or as many as there may be
  void Fill(Handle* handle, InodeRef* inode, const HandleTraits& traits);
  Stripe& StripeOf(const Inode& inode) { return stripes_[inode.index % kStripes]; }
  void Unref(Handle* handle);

  Closer* closer_ = nullptr;
  uint32_t max_ = 0;
  LazyArray<std::atomic<Handle*>> chunks_;
  std::atomic<uint32_t> slots_{0};
  std::mutex mu_;                  // free list
  uint32_t free_ = 0;              // index + 1, through next; guarded by mu_
  uint32_t first_generation_ = 0;  // of an index that is given out first
  std::vector<uint32_t> holes_;    // chunks without memory below slots_; guarded by mu_
  uint64_t* counter_ = nullptr;
  std::array<Stripe, kStripes> stripes_;
};

inline void HandleRef::Reset() {
  if (handle_ != nullptr) table_->Unref(std::exchange(handle_, nullptr));
}

}  // namespace virtbay::virtiofs

#endif  // VIRTBAY_PLUGINS_VIRTIOFS_HANDLE_TABLE_H_
