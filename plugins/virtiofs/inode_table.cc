#include "plugins/virtiofs/inode_table.h"

#include <sys/random.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>
#include <new>

#include "plugins/virtiofs/file_handle.h"
#include "plugins/virtiofs/keep/store.h"

namespace virtbay::virtiofs {
namespace {

__extension__ typedef unsigned __int128 Wide;

constexpr uint64_t kMul = 0x9e3779b97f4a7c15u;

uint64_t Mix(uint64_t a, uint64_t b) {
  const Wide product = static_cast<Wide>(a ^ b) * kMul;
  return static_cast<uint64_t>(product) ^ static_cast<uint64_t>(product >> 64);
}

}  // namespace

// Locks the name shard of an inode (whichever that is by the time the lock is held) and a second
// one, in index order.
struct InodeTable::NameLock {
  NameLock(InodeTable* table, const Inode& inode, uint32_t other) {
    for (;;) {
      const uint32_t mine = inode.name_shard.load(std::memory_order_acquire);
      const uint32_t low = std::min(mine, other);
      const uint32_t high = std::max(mine, other);
      first = std::unique_lock<std::mutex>(table->names_[low].mu);
      if (high != low && high < kShards) {
        second = std::unique_lock<std::mutex>(table->names_[high].mu);
      }
      if (inode.name_shard.load(std::memory_order_acquire) == mine) {
        shard = &table->names_[mine];
        return;
      }
      if (second.owns_lock()) second.unlock();
      first.unlock();
    }
  }
  std::unique_lock<std::mutex> first, second;
  NameShard* shard;
};

bool InodeTable::Init(FdBudget* budget, uint32_t max_inodes, Share* share) {
  budget_ = budget;
  max_inodes_ = max_inodes;
  // Free slots stay with their shard, so leave room for shards that are not evenly filled.
  max_slots_ = (max_inodes + max_inodes / 2) / kChunk * kChunk + kChunk * 64;
  if (!chunks_.Init(max_slots_ / kChunk)) return false;
  if (::getrandom(&seed_, sizeof(seed_), GRND_NONBLOCK) != sizeof(seed_)) {
    seed_ = reinterpret_cast<uintptr_t>(&chunks_[0]) * kMul;
  }
  Inode* chunk = new (std::nothrow) Inode[kChunk];
  if (chunk == nullptr) return false;
  chunks_[0] = chunk;
  slots_.store(1, std::memory_order_release);
  root_ = chunk;
  root_->type = S_IFDIR >> 12;
  root_->keep_fd.store(true);
  root_->nlookup.store(1);
  root_->word.store(1);
  if (share != nullptr) {
    SetRoot(*share);
  } else if (restored_.Init(kExpected, /*soon=*/kExpected)) {
    restored_size_ = kExpected;
  }
  return true;
}

void InodeTable::SetRoot(Share& share) {
  root_->key = KeyOf(share.root_stat);
  root_->btime = BirthOf(share.root_stat);
  root_->share = &share;
  root_->fd_word.store((static_cast<uint64_t>(share.root_fd) + 1) << 32);
}

InodeTable::~InodeTable() {
  if (!chunks_) return;
  DropAll();
  const uint32_t slots = slots_.load();
  for (uint32_t i = 0; i * kChunk < slots; ++i) {
    if (Inode* const chunk = chunks_[i].load(); !IsRestored(chunk)) delete[] chunk;
  }
}

uint64_t InodeTable::HashKey(const InodeKey& key) const {
  return Mix(Mix(key.ino, seed_), key.dev ^ (key.mnt_id << 40));
}

uint64_t InodeTable::HashName(const Inode& parent, std::string_view name) const {
  uint64_t hash = Mix(parent.index, seed_ ^ name.size());
  const char* at = name.data();
  size_t left = name.size();
  for (; left >= 8; at += 8, left -= 8) {
    uint64_t word;
    std::memcpy(&word, at, 8);
    hash = Mix(hash, word);
  }
  uint64_t tail = 0;
  std::memcpy(&tail, at, left);
  return Mix(hash, tail + kMul);
}

Inode* InodeTable::NewSlot(KeyShard& shard) {
  if (count_.load(std::memory_order_relaxed) >= max_inodes_) return nullptr;
  if (shard.free != 0) {
    Inode* inode = Slot(shard.free);
    shard.free = inode->next_key;
    return inode;
  }
  if (holes_left_.load(std::memory_order_relaxed) != 0) {
    if (Inode* inode = SlotOfHole(shard)) return inode;
  }
  uint32_t index = slots_.load(std::memory_order_relaxed);
  do {
    if (index >= max_slots_) return nullptr;
    // The chunk first, so that an index below slots_ has one, unless it is of a hole.
    std::atomic<Inode*>& chunk = chunks_[index / kChunk];
    if (chunk.load(std::memory_order_acquire) == nullptr) {
      Inode* fresh = NewChunk();
      if (fresh == nullptr) return nullptr;
      Inode* none = nullptr;
      if (!chunk.compare_exchange_strong(none, fresh, std::memory_order_acq_rel)) delete[] fresh;
    }
  } while (!slots_.compare_exchange_weak(index, index + 1, std::memory_order_acq_rel));
  Inode* inode = Slot(index);
  inode->index = index;
  return inode;
}

Inode* InodeTable::NewChunk() const {
  Inode* const chunk = new (std::nothrow) Inode[kChunk];
  if (chunk != nullptr) SetFirstGeneration(chunk);
  return chunk;
}

void InodeTable::SetFirstGeneration(Inode* chunk) const {
  if (first_generation_ == 0) return;
  for (uint32_t i = 0; i < kChunk; ++i) {
    chunk[i].word.store(static_cast<uint64_t>(first_generation_) << 32, std::memory_order_relaxed);
  }
}

Inode* InodeTable::SlotOfHole(KeyShard& shard) {
  const std::lock_guard<std::mutex> lock(holes_mu_);
  if (holes_.empty()) return nullptr;
  Inode* const chunk = NewChunk();
  if (chunk == nullptr) return nullptr;
  const uint32_t at = holes_.back();
  holes_.pop_back();
  holes_left_.store(static_cast<uint32_t>(holes_.size()), std::memory_order_relaxed);
  for (uint32_t i = kChunk; i-- > 0;) {
    chunk[i].index = at * kChunk + i;
    if (i == 0) break;
    chunk[i].next_key = shard.free;
    shard.free = chunk[i].index;
  }
  chunks_[at].store(chunk, std::memory_order_release);
  return chunk;
}

void InodeTable::GrowKeys(KeyShard& shard) {
  if (shard.count < shard.buckets.size()) return;
  std::vector<uint32_t> grown(std::max<size_t>(16, shard.buckets.size() * 2), 0);
  for (uint32_t head : shard.buckets) {
    while (head != 0) {
      Inode* inode = Slot(head);
      const uint32_t next = inode->next_key;
      uint32_t& bucket = grown[(HashKey(inode->key) >> 6) & (grown.size() - 1)];
      inode->next_key = bucket;
      bucket = head;
      head = next;
    }
  }
  shard.buckets.swap(grown);
}

void InodeTable::GrowNames(NameShard& shard) {
  if (shard.count < shard.buckets.size()) return;
  std::vector<uint32_t> grown(std::max<size_t>(16, shard.buckets.size() * 2), 0);
  for (uint32_t head : shard.buckets) {
    while (head != 0) {
      Inode* inode = Slot(head);
      const uint32_t next = inode->next_name;
      uint32_t& bucket = grown[inode->name_hash & (grown.size() - 1)];
      inode->next_name = bucket;
      bucket = head;
      head = next;
    }
  }
  shard.buckets.swap(grown);
}

void InodeTable::UnlinkKey(KeyShard& shard, Inode& inode) {
  if (!inode.hashed) return;
  uint32_t* at = &shard.buckets[(HashKey(inode.key) >> 6) & (shard.buckets.size() - 1)];
  while (*at != inode.index) at = &Slot(*at)->next_key;
  *at = inode.next_key;
  --shard.count;
  inode.hashed = false;
}

Inode* InodeTable::UnlinkName(NameShard& shard, Inode& inode) {
  if (!inode.named) return nullptr;
  uint32_t* at = &shard.buckets[inode.name_hash & (shard.buckets.size() - 1)];
  while (*at != inode.index) at = &Slot(*at)->next_name;
  *at = inode.next_name;
  --shard.count;
  if (inode.name_len > Inode::kInlineName) delete[] inode.long_name;
  inode.named = false;
  inode.name_len = 0;
  return std::exchange(inode.parent, nullptr);
}

void InodeTable::LinkKey(KeyShard& shard, Inode& inode, uint64_t hash) {
  uint32_t& bucket = shard.buckets[(hash >> 6) & (shard.buckets.size() - 1)];
  inode.next_key = bucket;
  bucket = inode.index;
  inode.hashed = true;
  ++shard.count;
}

void InodeTable::LinkName(NameShard& to, Inode& inode, Inode& parent, std::string_view name,
                          uint64_t hash, char* storage) {
  parent.word.fetch_add(1, std::memory_order_relaxed);
  inode.parent = &parent;
  inode.name_len = static_cast<uint16_t>(name.size());
  if (storage != nullptr) {
    inode.long_name = storage;
    std::memcpy(storage, name.data(), name.size());
  } else {
    std::memcpy(inode.inline_name.data(), name.data(), name.size());
  }
  inode.name_hash = static_cast<uint32_t>(hash >> 6);
  uint32_t& bucket = to.buckets[inode.name_hash & (to.buckets.size() - 1)];
  inode.next_name = bucket;
  bucket = inode.index;
  ++to.count;
  inode.named = true;
  inode.name_shard.store(static_cast<uint8_t>(hash % kShards), std::memory_order_release);
}

InodeRef InodeTable::Enter(Share& share, const struct statx& st, int own_fd) {
  const InodeKey key = KeyOf(st);
  const uint64_t hash = HashKey(key);
  KeyShard& shard = keys_[hash % kShards];
  const std::lock_guard<std::mutex> lock(shard.mu);
  Inode* inode = nullptr;
  if (!shard.buckets.empty()) {
    uint32_t index = shard.buckets[(hash >> 6) & (shard.buckets.size() - 1)];
    for (; index != 0; index = inode->next_key) {
      inode = Slot(index);
      if (inode->key == key && inode->share == &share) break;
    }
    if (index == 0) inode = nullptr;
  }
  if (inode != nullptr && !inode->Matches(st)) {
    // The host has given the number to another file: the one the guest knows lives on only in
    // descriptors.
    UnlinkKey(shard, *inode);
    if (keep_ != nullptr) keep_->Replaced(*inode);
    inode = nullptr;
  }
  if (inode != nullptr) {
    // One reference for the caller, one for the guest if this is its first lookup. From 0 this
    // revives an inode whose destroyer is waiting for the shard.
    inode->word.fetch_add(2, std::memory_order_acq_rel);
    if (inode->nlookup.fetch_add(1, std::memory_order_acq_rel) != 0) {
      inode->word.fetch_sub(1, std::memory_order_acq_rel);
    }
    inode->nlink.store(st.stx_nlink, std::memory_order_relaxed);
    if (keep_ != nullptr) keep_->AddLookups(*inode, 1);
    return InodeRef(this, inode);
  }
  GrowKeys(shard);
  inode = NewSlot(shard);
  if (inode == nullptr) return {};
  inode->key = key;
  inode->btime = BirthOf(st);
  inode->share = &share;
  inode->type = static_cast<uint8_t>(st.stx_mode >> 12);
  inode->nlink.store(st.stx_nlink, std::memory_order_relaxed);
  inode->fd_used.store(false, std::memory_order_relaxed);
  inode->keep_fd.store(own_fd >= 0, std::memory_order_relaxed);
  if (own_fd >= 0) inode->fd_word.store((static_cast<uint64_t>(own_fd) + 1) << 32);
  if (share.counted()) share.Ref();
  LinkKey(shard, *inode, hash);
  count_.fetch_add(1, std::memory_order_relaxed);
  if (counter_ != nullptr) __atomic_fetch_add(counter_, 1, __ATOMIC_RELAXED);
  inode->nlookup.store(1, std::memory_order_release);
  inode->word.fetch_add(2, std::memory_order_acq_rel);
  if (keep_ != nullptr) keep_->Born(*inode);
  return InodeRef(this, inode);
}

void InodeTable::Forget(uint64_t nodeid, uint64_t n) {
  if (nodeid == kRootId) return;
  const InodeRef inode = Find(nodeid);
  if (inode) Forget(*inode, n);
}

void InodeTable::Forget(Inode& inode, uint64_t n) {
  if (&inode == root_ || n == 0) return;
  uint64_t have = inode.nlookup.load(std::memory_order_acquire);
  uint64_t left;
  do {
    if (have == 0) return;
    left = have > n ? have - n : 0;
  } while (!inode.nlookup.compare_exchange_weak(have, left, std::memory_order_acq_rel));
  if (keep_ != nullptr) keep_->AddLookups(inode, static_cast<int64_t>(left - have));
  if (left == 0) Unref(&inode);
}

void InodeTable::SetName(Inode& inode, Inode& parent, std::string_view name) {
  if (&inode == root_ || &inode == &parent || name.size() > 255) return;
  const uint64_t hash = HashName(parent, name);
  const uint32_t target = static_cast<uint32_t>(hash % kShards);
  Inode* old_parent = nullptr;
  {
    NameLock lock(this, inode, target);
    if (inode.named && inode.parent == &parent && inode.name() == name) return;
    char* storage = nullptr;
    if (name.size() > Inode::kInlineName) {
      storage = new (std::nothrow) char[name.size()];
      if (storage == nullptr) return;
    }
    NameShard& to = names_[target];
    GrowNames(to);
    old_parent = UnlinkName(*lock.shard, inode);
    LinkName(to, inode, parent, name, hash, storage);
    if (keep_ != nullptr) keep_->Named(inode, parent, name);
    inode.keep_fd.store(false, std::memory_order_relaxed);
  }
  if (old_parent != nullptr) Unref(old_parent);
}

void InodeTable::ExpectName(Inode& inode, const Inode& parent, std::string_view name) {
  if (keep_ == nullptr || &inode == root_) return;
  NameLock lock(this, inode, kShards);
  keep_->MayBeNamed(inode, parent, name);
}

void InodeTable::ClearName(Inode& inode, const Inode& parent, std::string_view name) {
  Inode* old_parent = nullptr;
  {
    NameLock lock(this, inode, kShards);
    if (!inode.named || inode.parent != &parent || inode.name() != name) return;
    inode.keep_fd.store(true, std::memory_order_relaxed);
    if (keep_ != nullptr) keep_->Unnamed(inode);
    old_parent = UnlinkName(*lock.shard, inode);
  }
  if (old_parent != nullptr) Unref(old_parent);
}

InodeRef InodeTable::FindByName(const Inode& parent, std::string_view name) {
  const uint64_t hash = HashName(parent, name);
  const uint32_t name_hash = static_cast<uint32_t>(hash >> 6);
  NameShard& shard = names_[hash % kShards];
  const std::lock_guard<std::mutex> lock(shard.mu);
  if (shard.buckets.empty()) return {};
  uint32_t index = shard.buckets[name_hash & (shard.buckets.size() - 1)];
  for (Inode* inode; index != 0; index = inode->next_name) {
    inode = Slot(index);
    if (inode->name_hash == name_hash && inode->parent == &parent && inode->name() == name) {
      // A failing TryRef is an inode that is being destroyed; an older one of the name may follow.
      InodeRef ref = TryRef(*inode);
      if (ref) return ref;
    }
  }
  return {};
}

InodeRef InodeTable::CopyName(Inode& inode, std::array<char, 256>* name) {
  NameLock lock(this, inode, kShards);
  if (!inode.named) return {};
  std::memcpy(name->data(), inode.name().data(), inode.name_len);
  (*name)[inode.name_len] = '\0';
  return Ref(*inode.parent);
}

void InodeTable::Unref(Inode* inode) {
  // Each step may release the last reference on the parent: a loop, not a recursion as deep as the
  // tree.
  while (inode != nullptr) {
    const uint32_t generation = inode->generation();
    const uint64_t hash = HashKey(inode->key);
    if ((inode->word.fetch_sub(1, std::memory_order_acq_rel) & Inode::kRefMask) != 1) return;
    inode = Destroy(inode, generation, hash);
  }
}

Inode* InodeTable::Destroy(Inode* inode, uint32_t generation, uint64_t hash) {
  KeyShard& shard = keys_[hash % kShards];
  Inode* parent = nullptr;
  int fd = -1;
  FileHandle* handle = nullptr;
  Share* share = nullptr;
  {
    const std::lock_guard<std::mutex> lock(shard.mu);
    // A lookup may have revived it, and somebody else destroyed it again.
    if (inode->word.load(std::memory_order_acquire) != (static_cast<uint64_t>(generation) << 32)) {
      return nullptr;
    }
    UnlinkKey(shard, *inode);
    {
      NameLock names(this, *inode, kShards);
      parent = UnlinkName(*names.shard, *inode);
    }
    if ((inode->fd_word.load(std::memory_order_acquire) >> 32) != 0 || inode->ring_at != 0) {
      fd = budget_->Remove(*inode);
    }
    if (keep_ != nullptr) keep_->Died(inode->index, generation + 1);
    handle = inode->file_handle.exchange(nullptr, std::memory_order_acq_rel);
    share = inode->share;
    inode->word.store(static_cast<uint64_t>(generation + 1) << 32, std::memory_order_release);
    inode->next_key = shard.free;
    shard.free = inode->index;
    count_.fetch_sub(1, std::memory_order_relaxed);
    if (counter_ != nullptr) __atomic_fetch_sub(counter_, 1, __ATOMIC_RELAXED);
  }
  if (fd >= 0 && fd != share->root_fd) budget_->Close(fd, true);
  if (share->counted()) share->Unref();
  if (handle != nullptr) FileHandle::Free(handle);
  return parent;
}

void InodeTable::DropAll() {
  const uint32_t slots = slots_.load(std::memory_order_acquire);
  for (uint32_t i = 1; i < slots; ++i) {
    Inode* inode = Slot(i);
    const InodeRef ref = inode == nullptr ? InodeRef() : TryRef(*inode);
    if (!ref) continue;
    // Names go too: they are references on parents, in a circle if the host moved directories
    // while the guest looked.
    DropName(*inode);
    Forget(*inode, UINT64_MAX);
  }
}

void InodeTable::DropName(Inode& inode) {
  Inode* parent = nullptr;
  {
    NameLock lock(this, inode, kShards);
    parent = UnlinkName(*lock.shard, inode);
  }
  if (parent != nullptr) Unref(parent);
}

void InodeTable::DropShare(const Share& share) {
  const uint32_t slots = slots_.load(std::memory_order_acquire);
  for (uint32_t i = 1; i < slots; ++i) {
    Inode* inode = Slot(i);
    const InodeRef ref = inode == nullptr ? InodeRef() : TryRef(*inode);
    if (!ref || inode->share != &share) continue;
    if (inode->open_handle.load(std::memory_order_seq_cst) != 0) continue;
    DropName(*inode);
    Forget(*inode, UINT64_MAX);
  }
}

}  // namespace virtbay::virtiofs
