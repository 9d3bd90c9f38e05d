// What an InodeTable gives to the one that goes on with it, and takes from the one before.
#include <algorithm>
#include <bit>
#include <memory>
#include <new>

#include "plugins/virtiofs/inode_table.h"

namespace virtbay::virtiofs {

std::vector<const Inode*> InodeTable::Circles(const std::vector<const Inode*>& directories) const {
  std::vector<const Inode*> circles;
  // By index: the walk that came by first; walks are numbered from 1.
  std::vector<uint32_t> seen(slots_.load(std::memory_order_acquire), 0);
  uint32_t walk = 0;
  for (const Inode* const directory : directories) {
    if (seen[directory->index] != 0) continue;
    ++walk;
    const Inode* at = directory;
    for (; at->named && seen[at->index] == 0; at = at->parent) seen[at->index] = walk;
    if (at->named && seen[at->index] == walk) circles.push_back(at);
  }
  return circles;
}

void InodeTable::StartRestore(uint32_t count, uint64_t last, uint32_t generation) {
  first_generation_ = generation;
  // All at once, unless they are few among many that are gone.
  const uint64_t places = last & Inode::kRefMask;
  size_t size = 0;
  if (places <= max_slots_ && places <= uint64_t{4} * count + kChunk) {
    size = (static_cast<size_t>(places) + kChunk - 1) / kChunk * kChunk;
  }
  // Not for a few, which it would have for ever.
  if (size > restored_size_ || size < restored_size_ / 4) {
    restored_.Reset();
    restored_size_ = size > kChunk && restored_.Init(size, /*soon=*/size) ? size : 0;
  }
  // The hashes spread well enough for this to be the only allocation.
  const size_t each = std::bit_ceil(size_t{count} / kShards * 5 / 4 + 16);
  for (KeyShard& shard : keys_) shard.buckets.assign(each, 0);
  for (NameShard& shard : names_) shard.buckets.assign(each, 0);
  for (uint32_t i = 1; i < kChunk; ++i) {
    root_[i].word.store(static_cast<uint64_t>(generation) << 32, std::memory_order_relaxed);
  }
}

Inode* InodeTable::At(uint32_t index) const {
  if (index >= slots_.load(std::memory_order_relaxed)) return nullptr;
  Inode* const inode = Slot(index);
  // No kind of file is 0.
  return inode == nullptr || inode->type == 0 ? nullptr : inode;
}

Inode* InodeTable::Restore(const Known& known) {
  const uint64_t place = known.nodeid & Inode::kRefMask;
  if (place < 2 || place > max_slots_ || known.type == 0) return nullptr;
  const auto index = static_cast<uint32_t>(place - 1);
  std::atomic<Inode*>& chunk = chunks_[index / kChunk];
  Inode* first = chunk.load(std::memory_order_relaxed);
  if (first == nullptr) {
    const size_t at = index / kChunk * size_t{kChunk};
    if (at < restored_size_) {
      first = &restored_[at];
      std::uninitialized_default_construct_n(first, kChunk);
      SetFirstGeneration(first);
    } else {
      first = NewChunk();
    }
    if (first == nullptr) return nullptr;
    chunk.store(first, std::memory_order_release);
  }
  Inode& inode = first[index % kChunk];
  if (inode.type != 0) return nullptr;
  // Nobody else looks yet.
  if (index >= slots_.load(std::memory_order_relaxed)) {
    slots_.store(index + 1, std::memory_order_relaxed);
  }
  inode.index = index;
  inode.key = known.key;
  inode.btime = known.btime;
  inode.share = known.share;
  inode.type = known.type;
  inode.nlink.store(known.nlink, std::memory_order_relaxed);
  inode.keep_fd.store(known.keep_fd, std::memory_order_relaxed);
  if (known.share->counted()) known.share->Ref();
  if (known.hashed) {
    const uint64_t hash = HashKey(known.key);
    KeyShard& shard = keys_[hash % kShards];
    GrowKeys(shard);
    LinkKey(shard, inode, hash);
  }
  inode.nlookup.store(known.lookups, std::memory_order_relaxed);
  // A reference of the restoring beside the guest's, so that it is not taken for a free one.
  inode.word.store((known.nodeid & ~Inode::kRefMask) | (known.lookups != 0 ? 2 : 1),
                   std::memory_order_release);
  return &inode;
}

bool InodeTable::RestoreName(Inode& inode, Inode& parent, std::string_view name) {
  if (&inode == root_ || &inode == &parent || inode.named || name.empty() || name.size() > 255 ||
      !parent.is_dir() || parent.share != inode.share) {
    return false;
  }
  char* storage = nullptr;
  if (name.size() > Inode::kInlineName) {
    storage = new (std::nothrow) char[name.size()];
    if (storage == nullptr) return false;
  }
  const uint64_t hash = HashName(parent, name);
  NameShard& shard = names_[hash % kShards];
  GrowNames(shard);
  LinkName(shard, inode, parent, name, hash, storage);
  return true;
}

InodeTable::Restored InodeTable::FinishRestore() {
  std::vector<const Inode*> directories;
  std::vector<Inode*> unreferenced;
  uint32_t count = 0;
  const uint32_t slots = slots_.load(std::memory_order_relaxed);
  for (uint32_t at = 0; at < slots; at += kChunk) {
    Inode* const chunk = chunks_[at / kChunk].load(std::memory_order_relaxed);
    if (chunk == nullptr) {
      holes_.push_back(at / kChunk);
      continue;
    }
    for (uint32_t i = at == 0 ? 1 : 0; i < kChunk; ++i) {
      Inode& inode = chunk[i];
      if (inode.type != 0) {
        ++count;
        const uint64_t w = inode.word.load(std::memory_order_relaxed);
        if ((w & Inode::kRefMask) > 1) {
          inode.word.store(w - 1, std::memory_order_relaxed);
        } else {
          unreferenced.push_back(&inode);
        }
        if (inode.is_dir()) directories.push_back(&inode);
      } else if (at + i < slots) {
        KeyShard& shard = keys_[(at + i) % kShards];
        inode.index = at + i;
        inode.next_key = shard.free;
        shard.free = inode.index;
      }
    }
  }
  holes_left_.store(static_cast<uint32_t>(holes_.size()));
  count_.store(count, std::memory_order_relaxed);
  if (counter_ != nullptr) __atomic_fetch_add(counter_, count, __ATOMIC_RELAXED);
  const bool circle = !Circles(directories).empty();
  for (Inode* const inode : unreferenced) Unref(inode);
  if (!unreferenced.empty()) return Restored::kUnreferenced;
  return circle ? Restored::kCircle : Restored::kWhole;
}

}  // namespace virtbay::virtiofs
