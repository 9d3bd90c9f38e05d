// Request: a move-only hold on one virtbay_request. It ends in exactly one of Complete, Fail or
// Requeue; a Request that is destroyed unended fails itself and says so in the log.
// Lent by the framework; every function is [queue], on the request's own queue thread.
#ifndef VIRTBAY_SDK_REQUEST_H_
#define VIRTBAY_SDK_REQUEST_H_

#include <cstddef>
#include <cstring>
#include <span>
#include <type_traits>
#include <utility>

#include "virtbay/sdk/abi.h"
#include "virtbay/sdk/host.h"

namespace virtbay::sdk {

/// One request, from its presentation to its end.
class Request {
 public:
  Request() = default;
  /// Takes up a request that the host presented; the host must outlive it.
  Request(const Host* host, virtbay_request* raw) : host_(host), raw_(raw) {}
  /// The other one holds nothing afterwards.
  Request(Request&& other) noexcept
      : host_(other.host_), raw_(std::exchange(other.raw_, nullptr)) {}
  /// What was held before fails, unended.
  Request& operator=(Request&& other) noexcept {
    if (this != &other) {
      Drop();
      host_ = other.host_;
      raw_ = std::exchange(other.raw_, nullptr);
    }
    return *this;
  }
  ~Request() { Drop(); }

  /// Whether it still holds a request; every other function needs that.
  explicit operator bool() const { return raw_ != nullptr; }
  /// Index of the virtqueue.
  uint16_t queue() const { return raw_->queue; }
  /// Unique among the in-flight requests of the queue.
  uint16_t head() const { return raw_->head; }

  /// The first bytes of the readable part (at most the queue's in_view).
  std::span<const std::byte> in() const {
    return {reinterpret_cast<const std::byte*>(raw_->in), raw_->in_len};
  }
  /// Arena space for the head of the reply.
  std::span<std::byte> out() const {
    return {reinterpret_cast<std::byte*>(raw_->out), raw_->out_len};
  }
  /// Device-readable bytes of the chain.
  uint32_t in_total() const { return raw_->in_total; }
  /// Device-writable bytes of the chain.
  uint32_t out_total() const { return raw_->out_total; }

  /// Copies a T from offset of the in view; false when the view is too short.
  template <typename T>
  bool Read(size_t offset, T* value) const {
    static_assert(std::is_trivially_copyable_v<T>);
    if (offset > raw_->in_len || raw_->in_len - offset < sizeof(T)) return false;
    std::memcpy(value, raw_->in + offset, sizeof(T));
    return true;
  }
  /// Puts a T at offset of the out view; false when the view is too short.
  template <typename T>
  bool Write(size_t offset, const T& value) {
    static_assert(std::is_trivially_copyable_v<T>);
    if (offset > raw_->out_len || raw_->out_len - offset < sizeof(T)) return false;
    std::memcpy(raw_->out + offset, &value, sizeof(T));
    return true;
  }

  /// Readable bytes [offset, offset + len), copied into the arena; empty on error (or len 0).
  std::span<const std::byte> Fetch(uint32_t offset, uint32_t len) {
    const uint8_t* data = nullptr;
    if (host_->memory_service().fetch(raw_, offset, len, &data) != VIRTBAY_OK) return {};
    return {reinterpret_cast<const std::byte*>(data), len};
  }
  /// Makes out() at least len bytes; its contents are lost. False: too long, or no slots.
  bool Reserve(uint32_t len) { return host_->memory_service().reserve(raw_, len) == VIRTBAY_OK; }

  /// Payload I/O now: bytes or -errno (see virtbay_io_service).
  int64_t ReadNow(int fd, uint64_t file_offset, uint32_t at, uint32_t len, uint32_t rw_flags = 0) {
    return host_->io_service().read_now(raw_, fd, file_offset, at, len, rw_flags);
  }
  /// See ReadNow.
  int64_t WriteNow(int fd, uint64_t file_offset, uint32_t at, uint32_t len, uint32_t rw_flags = 0) {
    return host_->io_service().write_now(raw_, fd, file_offset, at, len, rw_flags);
  }
  /// As ReadNow, and may block: for what is known to be short.
  int64_t ReadBlocking(int fd, uint64_t file_offset, uint32_t at, uint32_t len,
                       uint32_t rw_flags = 0) {
    return host_->io_service().read_blocking(raw_, fd, file_offset, at, len, rw_flags);
  }
  /// See ReadBlocking.
  int64_t WriteBlocking(int fd, uint64_t file_offset, uint32_t at, uint32_t len,
                        uint32_t rw_flags = 0) {
    return host_->io_service().write_blocking(raw_, fd, file_offset, at, len, rw_flags);
  }

  /// Ends it: out_bytes of out() go to the guest, `written` is reported (out_bytes <= written).
  void Complete(uint32_t out_bytes, uint32_t written) {
    host_->queue_service().complete(std::exchange(raw_, nullptr), out_bytes, written);
  }
  /// Ends it with out_bytes of out() and nothing else written.
  void Complete(uint32_t out_bytes) { Complete(out_bytes, out_bytes); }
  /// Ends it with nothing written.
  void Fail() { host_->queue_service().fail(std::exchange(raw_, nullptr)); }
  /// Hands the chain back, to be presented again after the next start.
  void Requeue() { host_->queue_service().requeue(std::exchange(raw_, nullptr)); }

  /// Asks to keep it for a time that has no bound; false: end it, with an error. Granted, in() is
  /// empty, out() has at most VIRTBAY_PARKED_OUT bytes, and what Fetch and Reserve gave is gone.
  /// A host from before ABI 1.2 takes nothing away and refuses nothing, see Host::BoundsParked.
  bool Park() { return !host_->BoundsParked() || host_->queue_service().park(raw_) == VIRTBAY_OK; }

  /// Gives up the hold without ending the request: for virtbay_io::request and tables of the
  /// plugin's own. Request(host, raw) takes it up again.
  virtbay_request* Release() { return std::exchange(raw_, nullptr); }
  /// The C request; still held.
  virtbay_request* get() const { return raw_; }

 private:
  void Drop() {
    if (raw_ == nullptr) return;
    host_->Log(VIRTBAY_LOG_ERROR, "queue %u: request %u was dropped without an answer", raw_->queue,
               raw_->head);
    host_->queue_service().fail(std::exchange(raw_, nullptr));
  }

  const Host* host_ = nullptr;
  virtbay_request* raw_ = nullptr;
};

}  // namespace virtbay::sdk

#endif  // VIRTBAY_SDK_REQUEST_H_
