// What the driver sends a device and what it gets back, request by request, for as long as a
// DeviceRecord is kept: the shape of each chain and as many of its bytes as were asked for. Enough
// to feed it to a plugin again (hostif/testkit).
// Made by DeviceHandle::StartRecord and owned by the caller; its functions are [control].
#ifndef VIRTBAY_RECORD_H_
#define VIRTBAY_RECORD_H_

#include <cstdint>
#include <string>
#include <vector>

#include "framework/base/export.h"

namespace virtbay {

enum class RecordKind : uint8_t {
  kRequest = 1,   // the device has taken a chain
  kComplete = 2,  // it has ended
  kStop = 3,      // the queue stops, and what the device holds ends, or comes to it again
  kReset = 4,     // the session has ended: requests before it do not end any more
};

struct RequestRecord {
  uint64_t ns = 0;  // CLOCK_MONOTONIC
  uint64_t id = 0;  // of the request, unique in its queue; 0: taken before the recording, or of none
  uint32_t queue = 0;
  uint32_t written = 0;  // kComplete: bytes
  RecordKind kind = RecordKind::kRequest;
  std::vector<uint32_t> readable;  // kRequest: bytes of each piece of the chain
  std::vector<uint32_t> writable;
  // The first of its readable bytes, or of those that were written; not more than asked for.
  std::string bytes;
};

struct RecordOptions {
  // Most bytes kept of a request, and of its answer.
  uint32_t bytes = 4096;
  // Between two calls of Take, for each queue; what does not fit is dropped.
  uint64_t room = uint64_t{16} << 20;
};

class VIRTBAY_EXPORT DeviceRecord {
 public:
  // Queues record until this.
  virtual ~DeviceRecord() = default;
  // Appends what came since the last call, by queue and there in its order.
  virtual void Take(std::vector<RequestRecord>* out) = 0;
  // Records that there was no room for, since the start.
  virtual uint64_t dropped() const = 0;
  // Ends the recording; what was recorded can still be taken. Threads notice at the end of their
  // burst.
  virtual void Stop() = 0;
};

}  // namespace virtbay

#endif  // VIRTBAY_RECORD_H_
