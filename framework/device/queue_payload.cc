// Of Queue: what a request has beyond its views (slots, payload), and for how long.
#include <sys/uio.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <climits>
#include <new>
#include <utility>

#include "absl/strings/str_cat.h"
#include "framework/device/queue.h"
#include "framework/device/queue_thread.h"
#include "framework/memory/payload.h"

namespace virtbay {

int32_t Queue::Park(InFlightRequest* request) {
  if (request->state != RequestState::kHeld) {
    core_->log.Error(
        absl::StrCat("queue ", index_, ": request ", request->abi.head, " parked after its end"));
    return VIRTBAY_FAILED_PRECONDITION;
  }
  if (request->parked_descriptors != 0) return VIRTBAY_OK;
  InFlightTable* const table = request->table;
  const uint32_t descriptors = std::max(request->chain.ring_descriptors(), 1u);
  bool granted = !table->abandoned && table->parked_descriptors + descriptors <= table->size() / 2;
  if (granted && request->parked_out == nullptr) {
    request->parked_out.reset(new (std::nothrow) std::array<uint8_t, VIRTBAY_PARKED_OUT>);
    granted = request->parked_out != nullptr;
  }
  if (granted && core_->spec.dma_mode == DmaMode::kAperture) {
    const uint32_t slots = PoolSlots(*request);
    const uint64_t most = core_->spec.aperture.size / kSlotSize / 2;
    if (core_->parked_pool_slots.fetch_add(slots, std::memory_order_relaxed) + slots <= most) {
      request->parked_pool_slots = slots;
    } else {
      core_->parked_pool_slots.fetch_sub(slots, std::memory_order_relaxed);
      granted = false;
    }
  }
  if (!granted) {
    parks_refused_.Add();
    return VIRTBAY_RESOURCE_EXHAUSTED;
  }
  request->parked_descriptors = descriptors;
  table->parked_descriptors += descriptors;
  parked_.fetch_add(1, std::memory_order_relaxed);
  // It has been read, and what answers it is short: no slots of the arena for that.
  FreeExtra(request);
  if (request->view.data != nullptr) cache_->Free(request->view.data, request->view.count);
  request->view = SlotRun();
  request->out_in_guest = false;
  virtbay_request& abi = request->abi;
  abi.in = nullptr;
  abi.in_len = 0;
  abi.out = request->parked_out->data();
  abi.out_len = std::min(abi.out_total, VIRTBAY_PARKED_OUT);
  return VIRTBAY_OK;
}

uint32_t Queue::PoolSlots(const InFlightRequest& request) const {
  uint64_t slots = 0;
  size_t segments = 0;
  const auto count = [&](std::span<const iovec> chain) {
    for (const iovec& segment : chain) {
      const uint64_t begin = reinterpret_cast<uintptr_t>(segment.iov_base) / kSlotSize;
      const uint64_t end =
          (reinterpret_cast<uintptr_t>(segment.iov_base) + segment.iov_len + kSlotSize - 1) /
          kSlotSize;
      slots += end - begin;
      ++segments;
    }
  };
  count(request.chain.readable());
  count(request.chain.writable());
  // An indirect table is bounced as well.
  if (segments > request.chain.ring_descriptors()) slots += SlotsFor(segments * 16);
  return static_cast<uint32_t>(std::min<uint64_t>(slots, UINT32_MAX));
}

std::byte* Queue::AllocateExtra(InFlightRequest* request, uint32_t count) {
  std::byte* const slots = cache_->Allocate(count);
  if (slots != nullptr) {
    if (request->waits_since != 0) slot_waits_.End(std::exchange(request->waits_since, 0));
    request->extra.push_back({slots, count});
    Unpark(request);  // nothing that is parked keeps slots
  } else if (request->waits_since == 0) {
    request->waits_since = slot_waits_.Begin();
    request->extra.push_back({});
  }
  return slots;
}

int32_t Queue::Fetch(InFlightRequest* request, uint32_t offset, uint32_t len,
                     const uint8_t** data) {
  if (request->state != RequestState::kHeld) return VIRTBAY_FAILED_PRECONDITION;
  const uint32_t total = request->abi.in_total;
  if (len == 0 || len > kMappingMax || offset > total || total - offset < len) {
    return VIRTBAY_OUT_OF_RANGE;
  }
  if (core_->spec.dma_mode != DmaMode::kBounce) {
    iovec whole{};
    std::array<iovec, 1> one{};
    if (SliceSegments(request->chain.readable(), offset, len, one) == 1) whole = one[0];
    if (whole.iov_len == len) {
      *data = static_cast<const uint8_t*>(whole.iov_base);
      return VIRTBAY_OK;
    }
  }
  const uint32_t count = SlotsFor(len);
  std::byte* slots = AllocateExtra(request, count);
  if (slots == nullptr) return VIRTBAY_RESOURCE_EXHAUSTED;
  CopyFromSegments(request->chain.readable(), offset, slots, len);
  bytes_in_.Add(len);
  *data = reinterpret_cast<const uint8_t*>(slots);
  return VIRTBAY_OK;
}

int32_t Queue::Reserve(InFlightRequest* request, uint32_t len) {
  if (request->state != RequestState::kHeld) return VIRTBAY_FAILED_PRECONDITION;
  if (len > kMappingMax || len > request->abi.out_total) return VIRTBAY_OUT_OF_RANGE;
  if (len <= request->abi.out_len) return VIRTBAY_OK;
  if (core_->spec.dma_mode != DmaMode::kBounce) {
    std::array<iovec, 1> one{};
    if (SliceSegments(request->chain.writable(), 0, len, one) == 1 && one[0].iov_len == len) {
      request->abi.out = static_cast<uint8_t*>(one[0].iov_base);
      request->abi.out_len = len;
      request->out_in_guest = true;
      return VIRTBAY_OK;
    }
  }
  const uint32_t count = SlotsFor(len);
  std::byte* slots = AllocateExtra(request, count);
  if (slots == nullptr) return VIRTBAY_RESOURCE_EXHAUSTED;
  request->abi.out = reinterpret_cast<uint8_t*>(slots);
  request->abi.out_len = len;
  return VIRTBAY_OK;
}

int64_t Queue::Transfer(InFlightRequest* request, bool read, int fd, uint64_t file_offset,
                        uint32_t offset, uint32_t len, uint32_t rw_flags) {
  if (request->state != RequestState::kHeld) return -EINVAL;
  if (len == 0) return 0;
  if (read && len >= TransferHelper::kSmallest && file_offset != VIRTBAY_IO_STREAM &&
      queue_thread_->transfer_helper() != nullptr) {
    return TransferWithHelper(request, fd, file_offset, offset, len, rw_flags);
  }
  // Not initialised: only what is filled is touched.
  std::array<iovec, IOV_MAX> segments;
  const auto chain = read ? request->chain.writable() : request->chain.readable();
  const size_t count = SliceSegments(chain, offset, len, segments);
  if (count == 0) return -ERANGE;
  const auto position = static_cast<off_t>(file_offset);  // -1: the stream's own
  syscalls_.Add();
  const ssize_t n = read ? preadv2(fd, segments.data(), static_cast<int>(count), position,
                                   static_cast<int>(rw_flags))
                         : pwritev2(fd, segments.data(), static_cast<int>(count), position,
                                    static_cast<int>(rw_flags));
  if (n < 0) return -errno;
  bytes_direct_.Add(static_cast<uint64_t>(n));
  return n;
}

int64_t Queue::TransferWithHelper(InFlightRequest* request, int fd, uint64_t file_offset,
                                  uint32_t offset, uint32_t len, uint32_t rw_flags) {
  const uint32_t room = request->chain.writable_bytes();
  if (offset > room || room - offset < len) return -ERANGE;
  syscalls_.Add(TransferHelper::Pieces(len));
  const int64_t n = queue_thread_->transfer_helper()->Read(fd, request->chain.writable(), offset,
                                                           len, static_cast<off_t>(file_offset),
                                                           static_cast<int>(rw_flags));
  if (n > 0) bytes_direct_.Add(static_cast<uint64_t>(n));
  return n;
}

}  // namespace virtbay
