#include "plugins/virtiofs/handle_table.h"

#include <algorithm>
#include <new>

#include "plugins/virtiofs/dir.h"

namespace virtbay::virtiofs {
namespace {

constexpr uint64_t kRefMask = 0xffffffffu;

}  // namespace

bool HandleTable::Init(Closer* closer, uint32_t max_handles) {
  closer_ = closer;
  max_ = max_handles / kChunk * kChunk + kChunk;
  return chunks_.Init(max_ / kChunk);
}

HandleTable::~HandleTable() {
  if (!chunks_) return;
  DropAll();
  for (uint32_t i = 0; i < max_ / kChunk; ++i) delete[] chunks_[i].load();
}

Handle* HandleTable::NewChunk() const {
  Handle* const chunk = new (std::nothrow) Handle[kChunk];
  if (chunk == nullptr) return nullptr;
  for (uint32_t i = 0; i < kChunk; ++i) {
    chunk[i].word.store(static_cast<uint64_t>(first_generation_) << 32, std::memory_order_relaxed);
  }
  return chunk;
}

Handle* HandleTable::TakeSlot() {
  if (free_ == 0 && !holes_.empty()) {
    const uint32_t at = holes_.back();
    Handle* const chunk = NewChunk();
    if (chunk == nullptr) return nullptr;
    holes_.pop_back();
    for (uint32_t i = kChunk; i-- > 0;) {
      chunk[i].index = at * kChunk + i;
      chunk[i].next = free_;
      free_ = chunk[i].index + 1;
    }
    chunks_[at].store(chunk, std::memory_order_release);
  }
  if (free_ != 0) {
    Handle* const handle = Slot(free_ - 1);
    free_ = handle->next;
    return handle;
  }
  const uint32_t index = slots_.load(std::memory_order_relaxed);
  if (index >= max_) return nullptr;
  std::atomic<Handle*>& chunk = chunks_[index / kChunk];
  if (chunk.load(std::memory_order_relaxed) == nullptr) {
    Handle* fresh = NewChunk();
    if (fresh == nullptr) return nullptr;
    chunk.store(fresh, std::memory_order_release);
  }
  Handle* const handle = Slot(index);
  handle->index = index;
  slots_.store(index + 1, std::memory_order_release);
  return handle;
}

HandleRef HandleTable::Open(InodeRef* inode, const HandleTraits& traits) {
  Handle* handle = nullptr;
  {
    const std::lock_guard<std::mutex> lock(mu_);
    handle = TakeSlot();
  }
  if (handle == nullptr) return {};
  handle->word.fetch_add(1, std::memory_order_relaxed);  // the caller's
  Fill(handle, inode, traits);
  return HandleRef(this, handle);
}

// With the table's reference.
void HandleTable::Fill(Handle* handle, InodeRef* inode, const HandleTraits& traits) {
  Inode* owner = inode->Release();
  handle->inode = owner;
  handle->share = owner->share;
  handle->nodeid = owner->nodeid();
  handle->fd = traits.fd;
  handle->is_dir = owner->is_dir();
  handle->readable = traits.readable;
  handle->writable = traits.writable;
  handle->direct = traits.direct;
  handle->flocked.store(traits.flocked, std::memory_order_relaxed);
  handle->no_nowait.store(traits.no_nowait, std::memory_order_relaxed);
  handle->slow_writes.store(0, std::memory_order_relaxed);
  handle->submit_until.store(0, std::memory_order_relaxed);
  handle->released.store(false, std::memory_order_relaxed);
  handle->word.fetch_add(1, std::memory_order_acq_rel);
  {
    const std::lock_guard<std::mutex> lock(StripeOf(*owner).mu);
    handle->previous = 0;
    handle->next = owner->open_handle.load(std::memory_order_relaxed);
    if (handle->next != 0) Slot(handle->next - 1)->previous = handle->index + 1;
    owner->open_handle.store(handle->index + 1, std::memory_order_relaxed);
  }
  if (counter_ != nullptr) __atomic_fetch_add(counter_, 1, __ATOMIC_RELAXED);
}

uint32_t HandleTable::LastGeneration() const {
  uint32_t last = first_generation_;
  const uint32_t slots = slots_.load(std::memory_order_acquire);
  for (uint32_t i = 0; i < slots; ++i) {
    const Handle* const handle = Slot(i);
    if (handle != nullptr && handle->inode == nullptr) last = std::max(last, handle->generation());
  }
  return last;
}

Handle* HandleTable::Restore(uint64_t fh, InodeRef* inode, const HandleTraits& traits) {
  const uint64_t place = fh & kRefMask;
  if (place == 0 || place > max_) return nullptr;
  const auto index = static_cast<uint32_t>(place - 1);
  std::atomic<Handle*>& chunk = chunks_[index / kChunk];
  if (chunk.load(std::memory_order_relaxed) == nullptr) {
    Handle* fresh = NewChunk();
    if (fresh == nullptr) return nullptr;
    chunk.store(fresh, std::memory_order_release);
  }
  Handle* const handle = Slot(index);
  if (handle->inode != nullptr) return nullptr;
  if (index >= slots_.load(std::memory_order_relaxed)) slots_.store(index + 1);
  handle->index = index;
  handle->word.store(fh & ~kRefMask, std::memory_order_relaxed);
  Fill(handle, inode, traits);
  return handle;
}

void HandleTable::FinishRestore() {
  const std::lock_guard<std::mutex> lock(mu_);
  const uint32_t slots = slots_.load(std::memory_order_relaxed);
  for (uint32_t at = 0; at < slots; at += kChunk) {
    Handle* const chunk = chunks_[at / kChunk].load(std::memory_order_relaxed);
    if (chunk == nullptr) {
      holes_.push_back(at / kChunk);
      continue;
    }
    for (uint32_t i = at; i < std::min(at + kChunk, slots); ++i) {
      Handle& handle = chunk[i - at];
      if (handle.inode != nullptr) continue;
      handle.index = i;
      handle.next = free_;
      free_ = i + 1;
    }
  }
}

HandleRef HandleTable::TryRef(Handle* handle, uint64_t generation, bool any_generation) {
  if (handle == nullptr) return {};  // of a hole
  uint64_t w = handle->word.load(std::memory_order_acquire);
  do {
    if ((w & kRefMask) == 0 || (!any_generation && (w >> 32) != generation)) return {};
  } while (!handle->word.compare_exchange_weak(w, w + 1, std::memory_order_acq_rel));
  return HandleRef(this, handle);
}

HandleRef HandleTable::Find(uint64_t fh) {
  const uint64_t index = (fh & kRefMask) - 1;
  if (index >= slots_.load(std::memory_order_acquire)) return {};
  HandleRef ref = TryRef(Slot(static_cast<uint32_t>(index)), fh >> 32, false);
  if (!ref || ref->released.load(std::memory_order_acquire)) return {};
  return ref;
}

HandleRef HandleTable::Find(uint64_t fh, uint64_t nodeid) {
  HandleRef ref = Find(fh);
  if (!ref || ref->nodeid != nodeid) return {};
  return ref;
}

HandleRef HandleTable::AnyOf(const Inode& inode) {
  if (inode.open_handle.load(std::memory_order_relaxed) == 0) return {};
  const std::lock_guard<std::mutex> lock(StripeOf(inode).mu);
  for (uint32_t at = inode.open_handle.load(std::memory_order_relaxed); at != 0;) {
    Handle* handle = Slot(at - 1);
    HandleRef ref = TryRef(handle, 0, true);
    if (ref) return ref;
    at = handle->next;
  }
  return {};
}

bool HandleTable::Release(Handle& handle) {
  if (handle.released.exchange(true, std::memory_order_acq_rel)) return false;
  Unref(&handle);
  return true;
}

void HandleTable::DropAll() {
  const uint32_t slots = slots_.load(std::memory_order_acquire);
  for (uint32_t i = 0; i < slots; ++i) {
    const HandleRef ref = TryRef(Slot(i), 0, true);
    if (!ref) continue;
    closer_->Unlock(*ref);
    Release(*ref);
  }
}

void HandleTable::Unref(Handle* handle) {
  const uint64_t w = handle->word.fetch_sub(1, std::memory_order_acq_rel);
  if ((w & kRefMask) != 1) return;
  // A handle is never revived: only the thread that took the last reference comes here.
  bool last = false;
  Inode& inode = *handle->inode;
  {
    const std::lock_guard<std::mutex> lock(StripeOf(inode).mu);
    if (handle->next != 0) Slot(handle->next - 1)->previous = handle->previous;
    if (handle->previous != 0) {
      Slot(handle->previous - 1)->next = handle->next;
    } else {
      inode.open_handle.store(handle->next, std::memory_order_relaxed);
    }
    last = inode.open_handle.load(std::memory_order_relaxed) == 0;
  }
  closer_->CloseHandle(*handle, last);
  handle->dir.reset();
  handle->inode = nullptr;
  handle->fd = -1;
  handle->word.store(((w >> 32) + 1) << 32, std::memory_order_release);
  if (counter_ != nullptr) __atomic_fetch_sub(counter_, 1, __ATOMIC_RELAXED);
  const std::lock_guard<std::mutex> lock(mu_);
  handle->next = free_;
  free_ = handle->index + 1;
}

}  // namespace virtbay::virtiofs
