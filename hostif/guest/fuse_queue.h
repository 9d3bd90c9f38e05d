// FuseQueue and FuseSlot: FUSE requests over one virtqueue, asynchronous, up to `depth` at a time.
// Slots are preallocated in guest memory and laid out as the Linux driver does it: descriptors of
// their own for the header, the arguments, the reply header, and each page of data.
// Owned by a FuseSession; one thread uses a queue and its slots. No allocation per request.
#ifndef VIRTBAY_HOSTIF_GUEST_FUSE_QUEUE_H_
#define VIRTBAY_HOSTIF_GUEST_FUSE_QUEUE_H_

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <functional>
#include <memory>
#include <span>
#include <string_view>
#include <type_traits>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "hostif/guest/driver.h"
#include "hostif/guest/fuse_protocol.h"

namespace virtbay::guest {

// As whom a request is made. Groups are sent as the CREATE_SUPP_GROUP extension by the requests
// that create something.
struct FuseCaller {
  uint32_t uid = 0;
  uint32_t gid = 0;
  uint32_t pid = 1;
  std::vector<uint32_t> groups;
};

struct FuseQueueOptions {
  uint32_t depth = 32;           // slots
  uint32_t max_data = 1u << 20;  // bytes of data of a request or a reply
  uint32_t page_size = 4096;     // data bytes per descriptor
  WaitMode wait = WaitMode::kSleep;
  absl::Duration timeout = absl::Seconds(30);  // of one wait
  // When the back-end has gone: makes the driver go on with another (Driver::Reconnect), after
  // which it is waited for again. None: the requests' end.
  std::function<absl::Status()> reconnect = nullptr;
};

class FuseQueue;

// One request. Filled through the builder functions after FuseQueue::Acquire, read after it was
// reaped, and given back with Release.
class FuseSlot {
 public:
  static constexpr uint32_t kArgsSize = 8192;  // bytes of arguments, each way

  // Starts a request: opcode, inode, caller. Everything of the last one is forgotten.
  FuseSlot& Begin(uint32_t opcode, uint64_t nodeid);
  // Appends argument bytes; more than kArgsSize in all makes Submit fail.
  FuseSlot& PutBytes(std::span<const std::byte> bytes);
  template <typename T>
  FuseSlot& Put(const T& value) {
    static_assert(std::is_trivially_copyable_v<T>);
    return PutBytes(std::as_bytes(std::span<const T, 1>(&value, 1)));
  }
  // Appends a name with its NUL.
  FuseSlot& PutName(std::string_view name);
  // Appends the caller's groups, if there are any, as an extension.
  FuseSlot& PutGroups();
  // Sends the first `len` bytes of data() as pages.
  FuseSlot& SendData(uint32_t len) {
    send_data_ = len;
    return *this;
  }
  // Room for `args` bytes of reply arguments, then `data` bytes of pages.
  FuseSlot& Expect(uint32_t args, uint32_t data = 0) {
    reply_args_ = args;
    reply_data_ = data;
    return *this;
  }
  // The request has no reply (FORGET, BATCH_FORGET).
  FuseSlot& NoReply() {
    no_reply_ = true;
    return *this;
  }
  FuseSlot& SetCaller(const FuseCaller* caller) {
    caller_ = caller;
    return *this;
  }

  // The data area in guest memory: what SendData sends and where reply data arrives.
  std::span<std::byte> data() const { return {data_.host, data_.size}; }
  // Guest address of the data area, for raw chains.
  const GuestRange& data_range() const { return data_; }

  // After it was reaped: 0, the server's errno (positive), or -EPROTO for a malformed reply.
  int error() const { return error_; }
  // Bytes that the device reported as written.
  uint32_t written() const { return written_; }
  uint64_t unique() const { return unique_; }
  // Reply bytes behind the header: first the arguments, the rest in data().
  uint32_t reply_size() const { return reply_size_; }
  // Reply data in data(): what went beyond the arguments.
  std::span<const std::byte> reply_data() const;
  // The reply's arguments as a T; false when the reply is shorter.
  template <typename T>
  bool Get(T* value) const {
    static_assert(std::is_trivially_copyable_v<T>);
    if (reply_size_ < sizeof(T) || reply_args_ < sizeof(T)) return false;
    std::memcpy(value, out_args_, sizeof(T));
    return true;
  }

  // The caller's own: a benchmark's start time, a state.
  uint64_t user = 0;

 private:
  friend class FuseQueue;

  uint32_t index_ = 0;
  fuse_in_header* header_ = nullptr;
  std::byte* args_ = nullptr;
  fuse_out_header* out_header_ = nullptr;
  std::byte* out_args_ = nullptr;
  GuestRange small_;  // header, arguments, reply header, reply arguments
  GuestRange data_;
  // [0] and [1] hold header and arguments (or the header in [1] when there are none), so that the
  // pages can follow without being moved.
  std::vector<Segment> readable_;
  std::vector<Segment> writable_;
  const FuseCaller* caller_ = nullptr;
  uint32_t args_size_ = 0;
  uint32_t send_data_ = 0;
  uint32_t reply_args_ = 0;
  uint32_t reply_data_ = 0;
  uint16_t extension_size_ = 0;
  bool no_reply_ = false;
  bool too_long_ = false;
  bool raw_ = false;
  bool in_flight_ = false;
  bool done_ = false;
  bool given_up_ = false;  // released while in flight
  uint64_t unique_ = 0;
  int error_ = 0;
  uint32_t written_ = 0;
  uint32_t reply_size_ = 0;
};

class FuseQueue {
 public:
  // Preallocates the slots. InvalidArgument when a request of max_data cannot fit the ring.
  static absl::StatusOr<std::unique_ptr<FuseQueue>> Create(Driver* driver, uint32_t queue,
                                                           const FuseQueueOptions& options);
  ~FuseQueue();

  // A free slot, or nullptr when `depth` are out.
  FuseSlot* Acquire();
  // Gives it back; a slot in flight (after a timeout) is free once the device has returned it.
  void Release(FuseSlot* slot);

  // Puts the request on the ring; the device sees it at Flush. InvalidArgument when it is too
  // long, ResourceExhausted when the ring is full (reap first).
  absl::Status Submit(FuseSlot* slot);
  // The same for a chain of the caller's own making. The reply is not looked at: error() is 0.
  absl::Status SubmitRaw(FuseSlot* slot, std::span<const Segment> readable,
                         std::span<const Segment> writable);
  // Shows everything submitted to the device with at most one kick.
  void Flush() { queue_->Publish(); }
  // Finished requests, at most slots.size(); never waits.
  size_t Reap(std::span<FuseSlot*> slots);
  // Waits until Reap has something; DeadlineExceeded after the options' timeout, Unavailable when
  // the back-end has gone, FailedPrecondition when nothing is in flight.
  absl::Status Wait();
  // Submit, Flush, and wait for this request alone; others that finish stay for Reap. Returns the
  // transport's trouble, not the server's error (that is slot->error()).
  absl::Status Call(FuseSlot* slot);
  // Waits for one request that was submitted before, as Call does.
  absl::Status Await(FuseSlot* slot);

  // Forgets requests in flight, after the device was reset or has gone.
  void Abandon();

  void set_wait(WaitMode wait) { options_.wait = wait; }
  void set_timeout(absl::Duration timeout) { options_.timeout = timeout; }
  void set_reconnect(std::function<absl::Status()> reconnect) {
    options_.reconnect = std::move(reconnect);
  }
  void set_caller(FuseCaller caller) { caller_ = std::move(caller); }
  const FuseCaller& caller() const { return caller_; }
  uint32_t in_flight() const { return queue_->ring().in_flight(); }
  const FuseQueueOptions& options() const { return options_; }
  DriverQueue& driver_queue() { return *queue_; }

 private:
  FuseQueue(Driver* driver, uint32_t queue, const FuseQueueOptions& options)
      : driver_(driver), queue_(&driver->queue(queue)), queue_index_(queue), options_(options) {}
  absl::Status MakeSlot(uint32_t index);
  absl::Status WaitForUsed();
  void Collect();
  static void Finish(FuseSlot* slot, uint32_t written);

  Driver* driver_;
  DriverQueue* queue_;
  uint32_t queue_index_;
  FuseQueueOptions options_;
  FuseCaller caller_;
  std::vector<std::unique_ptr<FuseSlot>> slots_;
  std::vector<FuseSlot*> free_;
  std::vector<FuseSlot*> done_;  // finished, not reaped yet
  uint64_t next_unique_ = 0;
};

}  // namespace virtbay::guest

#endif  // VIRTBAY_HOSTIF_GUEST_FUSE_QUEUE_H_
