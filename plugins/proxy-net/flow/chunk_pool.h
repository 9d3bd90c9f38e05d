// ChunkPool: the memory of all spills of a shard, in chunks of 8 KiB. What a flow may come to need
// is reserved before the guest is told of the window, so that Take() after Reserve() never fails.
// Pages are touched when they are used, and go back to the kernel when many lie idle.
// Owned by a shard; [queue].
#ifndef VIRTBAY_PLUGINS_PROXY_NET_FLOW_CHUNK_POOL_H_
#define VIRTBAY_PLUGINS_PROXY_NET_FLOW_CHUNK_POOL_H_

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "plugins/proxy-net/flow/shared_flows.h"

namespace virtbay::proxy_net {

class ChunkPool {
 public:
  static constexpr uint32_t kShift = 13;
  static constexpr uint32_t kSize = 1u << kShift;

  // [control] At most `bytes`, rounded down to chunks, at most 65535 of them, and in all pools of
  // that budget together what it allows. ok() tells whether the address space was there.
  ChunkPool(uint64_t bytes, Budget* budget);
  ~ChunkPool();
  ChunkPool(const ChunkPool&) = delete;
  ChunkPool& operator=(const ChunkPool&) = delete;
  bool ok() const { return base_ != nullptr; }

  // [queue] Sets n chunks aside; false when there are not that many.
  bool Reserve(uint32_t n) {
    if (n > count_ - reserved_ || !budget_->Take(n)) return false;
    reserved_ += n;
    return true;
  }
  // [queue] The opposite of Reserve.
  void Unreserve(uint32_t n) {
    reserved_ -= n;
    budget_->Give(n);
  }
  // [queue] Chunks of the budget that nobody has reserved.
  uint64_t left() const { return budget_->limit() - budget_->used(); }
  // [queue] One chunk of those reserved. Its contents are what the last user left.
  uint16_t Take();
  // [queue] Gives a chunk back.
  void Give(uint16_t chunk);
  // [queue] The bytes of a chunk.
  std::span<uint8_t> At(uint16_t chunk) { return {base_ + (size_t{chunk} << kShift), kSize}; }

  uint32_t count() const { return count_; }
  uint32_t reserved() const { return reserved_; }
  uint32_t used() const { return used_; }

 private:
  Budget* const budget_;
  uint8_t* base_ = nullptr;
  uint32_t count_ = 0;
  uint32_t reserved_ = 0;
  uint32_t used_ = 0;
  uint32_t fresh_ = 0;          // chunks from here on were never used
  std::vector<uint16_t> free_;  // room for all from the start
};

}  // namespace virtbay::proxy_net

#endif  // VIRTBAY_PLUGINS_PROXY_NET_FLOW_CHUNK_POOL_H_
