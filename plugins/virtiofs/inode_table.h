// InodeTable: nodeid -> Inode, (device, inode, mount) -> Inode and (parent, name) -> Inode.
// Owned by the device; every function is [any]. Sharded locks, none held over a system call.
// Lock order: key shard, then name shard, then FdBudget.
#ifndef VIRTBAY_PLUGINS_VIRTIOFS_INODE_TABLE_H_
#define VIRTBAY_PLUGINS_VIRTIOFS_INODE_TABLE_H_

#include <algorithm>
#include <array>
#include <atomic>
#include <cstdint>
#include <functional>
#include <mutex>
#include <string_view>
#include <vector>

#include "plugins/virtiofs/fd_budget.h"
#include "plugins/virtiofs/inode.h"
#include "plugins/virtiofs/lazy_array.h"

namespace virtbay::virtiofs {

namespace keep {
class Store;
}

class InodeTable {
 public:
  static constexpr uint64_t kRootId = 1;

  InodeTable() = default;
  ~InodeTable();
  InodeTable(const InodeTable&) = delete;
  InodeTable& operator=(const InodeTable&) = delete;

  // [control] Makes the root inode of the share, which stays until the end; its descriptor is the
  // share's and never evicted. Without a share a state will come, and SetRoot. False: no memory.
  bool Init(FdBudget* budget, uint32_t max_inodes, Share* share);
  // [control] What the root inode stands for.
  void SetRoot(Share& share);

  // The inode that the guest calls `nodeid`; empty when it does not know it (any more).
  InodeRef Find(uint64_t nodeid) {
    const uint64_t index = (nodeid & Inode::kRefMask) - 1;
    if (index >= slots_.load(std::memory_order_acquire)) return {};
    Inode* inode = Slot(static_cast<uint32_t>(index));
    if (inode == nullptr) return {};
    uint64_t w = inode->word.load(std::memory_order_acquire);
    do {
      if ((w >> 32) != (nodeid >> 32) || (w & Inode::kRefMask) == 0) return {};
    } while (!inode->word.compare_exchange_weak(w, w + 1, std::memory_order_acq_rel));
    InodeRef ref(this, inode);
    if (inode->nlookup.load(std::memory_order_acquire) == 0) return {};
    return ref;
  }

  // A further reference on an inode that somebody else may be about to drop; may be empty.
  InodeRef TryRef(Inode& inode) {
    uint64_t w = inode.word.load(std::memory_order_acquire);
    do {
      if ((w & Inode::kRefMask) == 0) return {};
    } while (!inode.word.compare_exchange_weak(w, w + 1, std::memory_order_acq_rel));
    return InodeRef(this, &inode);
  }
  // A further reference on an inode on which the caller holds one.
  InodeRef Ref(Inode& inode) {
    inode.word.fetch_add(1, std::memory_order_relaxed);
    return InodeRef(this, &inode);
  }

  // The inode of the share that `st` describes, made if it is new, with one lookup of the guest
  // added. Empty: the cap on inodes is reached or memory is out (ENOMEM).
  InodeRef Lookup(Share& share, const struct statx& st) { return Enter(share, st, -1); }
  // The same of the root directory of a share of an aggregate. As the table's own root it has no
  // name, and the share's descriptor.
  InodeRef LookupRoot(Share& share, const struct statx& st) {
    return Enter(share, st, share.root_fd);
  }
  // Takes n lookups of the guest back, never below none.
  void Forget(uint64_t nodeid, uint64_t n);
  void Forget(Inode& inode, uint64_t n);

  // (parent, name) leads to the inode from now on; replaces what it was called before.
  void SetName(Inode& inode, Inode& parent, std::string_view name);
  // A rename that is about to be done will give it that name. For the store alone.
  void ExpectName(Inode& inode, const Inode& parent, std::string_view name);
  // The inode has lost its name, if it is still (parent, name).
  void ClearName(Inode& inode, const Inode& parent, std::string_view name);
  // The inode that is remembered under that name; may be out of date.
  InodeRef FindByName(const Inode& parent, std::string_view name);
  // Copies the remembered name; an empty ref when there is none.
  InodeRef CopyName(Inode& inode, std::array<char, 256>* name);

  // Forgets what the guest knows of a share that was removed, except for what it has open.
  void DropShare(const Share& share);
  // Forgets everything but the root: the session is over. What operations still hold goes when
  // they end.
  void DropAll();

  // [control, no operation at work] Everything that is referenced, the root apart, in the order of
  // indices. Returns a generation that no free index is above.
  template <typename Visitor>
  uint32_t ForEach(Visitor&& visit) const {
    uint32_t last = first_generation_;
    const uint32_t slots = slots_.load(std::memory_order_acquire);
    for (uint32_t at = 0; at < slots; at += kChunk) {
      Inode* const chunk = chunks_[at / kChunk].load(std::memory_order_acquire);
      if (chunk == nullptr) continue;
      for (uint32_t i = at == 0 ? 1 : 0; i < kChunk; ++i) {
        const uint64_t w = chunk[i].word.load(std::memory_order_acquire);
        if ((w & Inode::kRefMask) != 0) {
          visit(chunk[i]);
        } else {
          last = std::max(last, static_cast<uint32_t>(w >> 32));
        }
      }
    }
    return last;
  }
  // [control, no operation at work] One of each circle of parents, of which there are some when the
  // host moves directories while the guest looks. `directories`: all that there are.
  std::vector<const Inode*> Circles(const std::vector<const Inode*>& directories) const;

  // An inode that another table knew.
  struct Known {
    uint64_t nodeid = 0;
    uint64_t lookups = 0;
    InodeKey key;
    uint64_t btime = 0;
    Share* share = nullptr;
    uint32_t nlink = 0;
    uint8_t type = 0;
    bool hashed = false;
    bool keep_fd = false;
  };
  // [control, before any other use, after Init] Takes inodes over, which begin nameless and without
  // a descriptor: StartRestore with how many there will be, the last nodeid, and the generation of
  // others, Restore for each (nullptr: the nodeid is none, is beyond what the table can have, is
  // there already, or memory is out), RestoreName, and FinishRestore, which says whether they go
  // together.
  void StartRestore(uint32_t count, uint64_t last, uint32_t generation);
  Inode* Restore(const Known& known);
  // False: it has a name, or the parent is none for it, or memory is out.
  bool RestoreName(Inode& inode, Inode& parent, std::string_view name);
  enum class Restored { kWhole, kUnreferenced, kCircle };
  Restored FinishRestore();
  // [control] What Restore made of that index, or the root; nullptr: nothing.
  Inode* At(uint32_t index) const;

  Inode& root() { return *root_; }
  uint32_t count() const { return count_.load(std::memory_order_relaxed); }
  void set_counter(uint64_t* cell) { counter_ = cell; }
  // [control] What becomes of inodes from now on is kept there as well; nullptr: nowhere.
  void set_keep(keep::Store* store) { keep_ = store; }
  // As many places as there can be.
  uint32_t max_slots() const { return max_slots_; }

 private:
  friend class InodeRef;
  static constexpr uint32_t kChunk = 64;  // the first one is there from the start
  // Memory for so many is made ready for a state that will come, as the guest waits by then.
  static constexpr size_t kExpected = (size_t{2} << 20) / sizeof(Inode) / kChunk * kChunk;
  static constexpr uint32_t kShards = 64;
  struct alignas(64) KeyShard {
    std::mutex mu;
    std::vector<uint32_t> buckets;  // index of the first inode, 0 = none (0 is the root)
    uint32_t count = 0;
    uint32_t free = 0;  // list through next_key, 0 = none
  };
  struct alignas(64) NameShard {
    std::mutex mu;
    std::vector<uint32_t> buckets;
    uint32_t count = 0;
  };

  Inode* Slot(uint32_t index) const {
    Inode* chunk = chunks_[index / kChunk].load(std::memory_order_acquire);
    return chunk == nullptr ? nullptr : &chunk[index % kChunk];
  }
  uint64_t HashKey(const InodeKey& key) const;
  uint64_t HashName(const Inode& parent, std::string_view name) const;
  // `own_fd`: the share's descriptor, for its root, or -1.
  InodeRef Enter(Share& share, const struct statx& st, int own_fd);
  void DropName(Inode& inode);
  Inode* NewSlot(KeyShard& shard);  // shard held
  Inode* NewChunk() const;          // nullptr: no memory
  void SetFirstGeneration(Inode* chunk) const;
  bool IsRestored(const Inode* chunk) const {
    return restored_size_ != 0 && std::greater_equal<>()(chunk, &restored_[0]) &&
           std::less<>()(chunk, &restored_[0] + restored_size_);
  }
  Inode* SlotOfHole(KeyShard& shard);  // shard held; nullptr: none left
  // The name's shard and the inode's shard held; `storage`: of a long name.
  void LinkName(NameShard& to, Inode& inode, Inode& parent, std::string_view name, uint64_t hash,
                char* storage);
  void LinkKey(KeyShard& shard, Inode& inode, uint64_t hash);  // shard held
  void GrowKeys(KeyShard& shard);                              // shard held
  void GrowNames(NameShard& shard);                            // shard held
  void UnlinkKey(KeyShard& shard, Inode& inode);               // shard held
  Inode* UnlinkName(NameShard& shard, Inode& inode);  // shard held; the parent to unreference
  void Unref(Inode* inode);
  Inode* Destroy(Inode* inode, uint32_t generation, uint64_t hash);
  // Locks the shard that the inode's name is in, and `other` as well (kShards: none).
  struct NameLock;

  FdBudget* budget_ = nullptr;
  uint32_t max_inodes_ = 0;
  uint64_t seed_ = 0;
  Inode* root_ = nullptr;
  // Changed through atomic_ref. From calloc, so that what is not used costs no memory.
  LazyArray<std::atomic<Inode*>> chunks_;
  uint32_t max_slots_ = 0;
  std::atomic<uint32_t> slots_{0};  // every index below has been given out once
  std::atomic<uint32_t> count_{0};
  uint64_t* counter_ = nullptr;
  keep::Store* keep_ = nullptr;
  LazyArray<Inode> restored_;  // the first chunks, of a table that took many inodes over
  size_t restored_size_ = 0;
  uint32_t first_generation_ = 0;  // of an index that is given out first
  // Chunks without memory below slots_: of a restored table, whose inodes have high indices.
  std::atomic<uint32_t> holes_left_{0};
  std::mutex holes_mu_;          // taken after a key shard
  std::vector<uint32_t> holes_;  // guarded by holes_mu_
  std::array<KeyShard, kShards> keys_;
  std::array<NameShard, kShards> names_;
};

inline void InodeRef::Reset() {
  if (inode_ != nullptr) table_->Unref(std::exchange(inode_, nullptr));
}

}  // namespace virtbay::virtiofs

#endif  // VIRTBAY_PLUGINS_VIRTIOFS_INODE_TABLE_H_
