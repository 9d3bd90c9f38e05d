#include "framework/memory/slot_allocator.h"

#include <algorithm>
#include <bit>
#include <cassert>

namespace virtbay {
namespace {

// A segment's 128 bits as one number; standard C++ has no name for it.
__extension__ using Bits = unsigned __int128;

Bits Join(const uint64_t (&words)[2]) { return (Bits{words[1]} << 64) | words[0]; }

void Split(Bits bits, uint64_t (&words)[2]) {
  words[0] = static_cast<uint64_t>(bits);
  words[1] = static_cast<uint64_t>(bits >> 64);
}

Bits Run(uint32_t first, uint32_t count) {
  const Bits ones = count == kSlotsPerSegment ? ~Bits{0} : (Bits{1} << count) - 1;
  return ones << first;
}

// The first of `count` zero bits in a row, or kSlotsPerSegment.
uint32_t FindRun(Bits used, uint32_t count) {
  // After each step bit i of `starts` says that a run of `have` free slots starts at i; the run
  // doubles, so 128 slots take seven steps. Bits shifted in are 0: a run never leaves the segment.
  Bits starts = ~used;
  for (uint32_t have = 1; have < count && starts != 0;) {
    const uint32_t step = std::min(have, count - have);
    starts &= starts >> step;
    have += step;
  }
  if (const uint64_t low = static_cast<uint64_t>(starts); low != 0) {
    return static_cast<uint32_t>(std::countr_zero(low));
  }
  return 64 + static_cast<uint32_t>(std::countr_zero(static_cast<uint64_t>(starts >> 64)));
}

}  // namespace

SlotAllocator::SlotAllocator(const Arena& arena)
    : base_(arena.data()), slots_(arena.slots()), segments_(arena.slots() / kSlotsPerSegment) {}

void SlotAllocator::ClearBits(const std::byte* data, uint32_t count) {
  const uint64_t offset = static_cast<uint64_t>(data - base_);
  const uint64_t slot = offset / kSlotSize;
  assert(offset % kSlotSize == 0 && slot + count <= slots_);
  const size_t index = slot / kSlotsPerSegment;
  Segment& segment = segments_[index];
  const Bits run = Run(static_cast<uint32_t>(slot % kSlotsPerSegment), count);
  assert((Join(segment.bits) & run) == run);
  Split(Join(segment.bits) & ~run, segment.bits);
  hint_ = index;
}

std::byte* SlotAllocator::Allocate(uint32_t count, SlotAccount* account) {
  if (count == 0 || count > kSlotsPerSegment) return nullptr;
  absl::MutexLock lock(&mutex_);
  if (slots_ - account_.used() < count) return nullptr;
  for (size_t i = 0, index = hint_; i < segments_.size(); ++i) {
    Segment& segment = segments_[index];
    const uint32_t first = FindRun(Join(segment.bits), count);
    if (first < kSlotsPerSegment) {
      Split(Join(segment.bits) | Run(first, count), segment.bits);
      account_.Take(count);
      if (account != nullptr) account->Take(count);
      hint_ = index;
      return base_ + (index * kSlotsPerSegment + first) * kSlotSize;
    }
    if (++index == segments_.size()) index = 0;
  }
  return nullptr;
}

void SlotAllocator::Free(std::byte* data, uint32_t count, SlotAccount* account) {
  if (data == nullptr || count == 0) return;
  absl::MutexLock lock(&mutex_);
  ClearBits(data, count);
  account_.Give(count);
  if (account != nullptr) account->Give(count);
}

size_t SlotAllocator::AllocateSingles(std::span<std::byte*> to, SlotAccount* account) {
  absl::MutexLock lock(&mutex_);
  size_t found = 0;
  for (size_t i = 0, index = hint_; i < segments_.size() && found < to.size(); ++i) {
    Segment& segment = segments_[index];
    for (uint32_t word = 0; word < 2; ++word) {
      while (segment.bits[word] != UINT64_MAX && found < to.size()) {
        const uint32_t bit = static_cast<uint32_t>(std::countr_one(segment.bits[word]));
        segment.bits[word] |= uint64_t{1} << bit;
        to[found++] = base_ + (index * kSlotsPerSegment + size_t{word} * 64 + bit) * kSlotSize;
      }
    }
    hint_ = index;
    if (++index == segments_.size()) index = 0;
  }
  const auto count = static_cast<uint32_t>(found);
  account_.Take(count);
  if (account != nullptr) account->Take(count);
  return found;
}

void SlotAllocator::FreeSingles(std::span<std::byte* const> slots, SlotAccount* account) {
  absl::MutexLock lock(&mutex_);
  for (const std::byte* slot : slots) ClearBits(slot, 1);
  const auto count = static_cast<uint32_t>(slots.size());
  account_.Give(count);
  if (account != nullptr) account->Give(count);
}

SlotCache::SlotCache(SlotAllocator* allocator)
    : allocator_(allocator), account_(nullptr), limit_(kStock) {}

SlotCache::SlotCache(SlotAllocator* allocator, SlotAccount* account)
    : allocator_(allocator), account_(account), limit_(0) {}

SlotCache::~SlotCache() { Trim(); }

std::byte* SlotCache::AllocateMore(uint32_t count) {
  if (count == 1) {  // and none is in stock
    const size_t refill = limit_ == 0 ? 1 : kRefill;
    const size_t taken = allocator_->AllocateSingles({stock_, refill}, account_);
    if (taken == 0) return nullptr;
    stocked_.store(static_cast<uint32_t>(taken - 1), std::memory_order_relaxed);
    return stock_[taken - 1];
  }
  std::byte* data = allocator_->Allocate(count, account_);
  if (data == nullptr && stocked() != 0) {
    // The stock may be what breaks up the last run.
    Trim();
    data = allocator_->Allocate(count, account_);
  }
  return data;
}

void SlotCache::FreeMore(std::byte* data, uint32_t count) {
  if (data == nullptr) return;
  if (count != 1) {
    allocator_->Free(data, count, account_);
  } else if (limit_ == 0) {
    allocator_->FreeSingles({&data, 1}, account_);
  } else {
    // The stock is full. The older half goes back in one lock; the newer is warm.
    constexpr uint32_t kHalf = kStock / 2;
    allocator_->FreeSingles({stock_, kHalf}, account_);
    std::copy(stock_ + kHalf, stock_ + kStock, stock_);
    stock_[kHalf] = data;
    stocked_.store(kHalf + 1, std::memory_order_relaxed);
  }
}

void SlotCache::Trim() {
  const uint32_t stocked = this->stocked();
  if (stocked == 0) return;
  allocator_->FreeSingles({stock_, stocked}, account_);
  stocked_.store(0, std::memory_order_relaxed);
}

}  // namespace virtbay
