#include "plugins/proxy-net/flow/chunk_pool.h"

#include <sys/mman.h>

#include <algorithm>

namespace virtbay::proxy_net {

ChunkPool::ChunkPool(uint64_t bytes, Budget* budget) : budget_(budget) {
  const auto count = static_cast<uint32_t>(std::min<uint64_t>(bytes >> kShift, UINT16_MAX));
  if (count == 0) return;
  void* memory = mmap(nullptr, size_t{count} << kShift, PROT_READ | PROT_WRITE,
                      MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (memory == MAP_FAILED) return;
  base_ = static_cast<uint8_t*>(memory);
  count_ = count;
  free_.reserve(count);
}

ChunkPool::~ChunkPool() {
  if (base_ != nullptr) munmap(base_, size_t{count_} << kShift);
}

uint16_t ChunkPool::Take() {
  ++used_;
  if (free_.empty()) return static_cast<uint16_t>(fresh_++);
  const uint16_t chunk = free_.back();
  free_.pop_back();
  return chunk;
}

void ChunkPool::Give(uint16_t chunk) {
  --used_;
  // Some stay warm for the next burst; a flood that is over leaves no memory behind.
  constexpr size_t kWarm = 256;
  if (free_.size() >= kWarm) madvise(base_ + (size_t{chunk} << kShift), kSize, MADV_DONTNEED);
  free_.push_back(chunk);
}

}  // namespace virtbay::proxy_net
