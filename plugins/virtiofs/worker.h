// Worker: what one queue thread has to itself: its identity, the operations it has under way, the
// SETLKW requests that wait.
// Owned by the device; used on the queue's thread only (and [control] before Start, after Stop).
#ifndef VIRTBAY_PLUGINS_VIRTIOFS_WORKER_H_
#define VIRTBAY_PLUGINS_VIRTIOFS_WORKER_H_

#include <array>
#include <cstdint>
#include <memory>
#include <new>
#include <vector>

#include "plugins/virtiofs/credentials.h"
#include "plugins/virtiofs/handle_table.h"
#include "plugins/virtiofs/lock_waiters.h"
#include "virtbay/sdk/abi.h"

namespace virtbay::virtiofs {

class Aggregate;
class Fs;

// An operation that ends later, in OnIo or OnOffload.
struct AsyncOp {
  enum class Kind : uint8_t { kNone, kRead, kWrite, kFsync, kFallocate, kCopy, kSyncfs };
  Kind kind = Kind::kNone;
  uint32_t index = 0;
  uint32_t next_free = 0;
  uint64_t unique = 0;
  HandleRef handle;
  HandleRef second;                    // COPY_FILE_RANGE: where to
  virtbay_request* request = nullptr;  // offloaded work only
  uint64_t offset = 0;
  uint64_t offset_out = 0;
  uint64_t length = 0;
  uint32_t payload = 0;  // offset of the data in the request
  uint32_t size = 0;
  uint32_t done = 0;
  uint32_t retries = 0;
  uint32_t rw_flags = 0;
  bool wide = false;               // COPY_FILE_RANGE_64
  const Aggregate* all = nullptr;  // SYNCFS of all shares
  int fd = -1;
  int64_t result = 0;
};

// AsyncOps by cookie. Grows to the ring's size at most and keeps what it has.
class AsyncPool {
 public:
  // nullptr: no memory.
  AsyncOp* Take() {
    if (free_ == 0 && !Grow()) return nullptr;
    AsyncOp* op = &At(free_ - 1);
    free_ = op->next_free;
    return op;
  }
  void Give(AsyncOp* op) {
    op->kind = AsyncOp::Kind::kNone;
    op->handle.Reset();
    op->second.Reset();
    op->request = nullptr;
    op->next_free = free_;
    free_ = op->index + 1;
  }
  // nullptr: no such operation under way.
  AsyncOp* Find(uint64_t cookie) {
    if (cookie >= chunks_.size() * kChunk) return nullptr;
    AsyncOp* op = &At(static_cast<uint32_t>(cookie));
    return op->kind == AsyncOp::Kind::kNone ? nullptr : op;
  }

 private:
  static constexpr uint32_t kChunk = 64;
  AsyncOp& At(uint32_t index) { return chunks_[index / kChunk][index % kChunk]; }
  bool Grow() {
    std::unique_ptr<AsyncOp[]> chunk(new (std::nothrow) AsyncOp[kChunk]);
    if (chunk == nullptr) return false;
    const uint32_t base = static_cast<uint32_t>(chunks_.size()) * kChunk;
    for (uint32_t i = kChunk; i-- > 0;) {
      chunk[i].index = base + i;
      chunk[i].next_free = free_;
      free_ = base + i + 1;
    }
    chunks_.push_back(std::move(chunk));
    return true;
  }
  std::vector<std::unique_ptr<AsyncOp[]>> chunks_;
  uint32_t free_ = 0;
};

struct Worker {
  uint32_t queue = 0;
  ThreadIdentity identity;
  AsyncPool pool;
  std::vector<std::unique_ptr<LockWaiter>> parked;  // in order of arrival
  bool retry_parked = false;                        // a lock was given up in this burst
  bool poll_armed = false;                          // the wake-up descriptor is being polled
  bool condemned = false;
};

// Cookies that are not AsyncOp indices.
inline constexpr uint64_t kLockPollCookie = UINT64_MAX;
inline constexpr uint64_t kLockTimerCookie = 1;

}  // namespace virtbay::virtiofs

#endif  // VIRTBAY_PLUGINS_VIRTIOFS_WORKER_H_
