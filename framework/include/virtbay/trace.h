// What happens on the queues of a device, event by event, for as long as a DeviceTrace is kept:
// kicks, batches, calls into the plugin, I/O, completions, notifications.
// Made by DeviceHandle::StartTrace and owned by the caller; its functions are [control].
#ifndef VIRTBAY_TRACE_H_
#define VIRTBAY_TRACE_H_

#include <cstdint>
#include <vector>

#include "framework/base/export.h"

namespace virtbay {

enum class TraceKind : uint8_t {
  kKick,       // the thread saw the driver's kick
  kPop,        // value: requests taken; id: 0. Their kRequest follow
  kRequest,    // id: the request; head: its head or buffer id; value: its readable bytes
  kCallBegin,  // call: what of the plugin is called; value: requests, results, or 1
  kCallEnd,    // of the last kCallBegin of the queue
  kIoBegin,    // id: the operation; request: whose; value: 1 for VIRTBAY_IO_READ, and so on
  kIoEnd,      // id: the operation; value: its result
  kComplete,   // id: the request, 0: taken before the trace; head; value: bytes written
  kNotify,     // the call descriptor was written; value: 0
};

enum class TraceCall : uint8_t { kOnRequests, kOnIo, kOnTimer, kOnOffload };

struct TraceEvent {
  uint64_t ns = 0;       // CLOCK_MONOTONIC; never less than that of the event before
  uint64_t id = 0;       // unique in its queue, never 0 for what has one
  uint64_t request = 0;  // kIoBegin: id of the request, 0: of none, or taken before the trace
  int64_t value = 0;
  uint16_t head = 0;
  TraceKind kind = TraceKind::kKick;
  TraceCall call = TraceCall::kOnRequests;
};

struct QueueTrace {
  uint32_t queue = 0;
  std::vector<TraceEvent> events;
  uint64_t dropped = 0;  // since the start: events for which there was no room
};

class VIRTBAY_EXPORT DeviceTrace {
 public:
  // Queues record until this; memory of theirs that still holds events goes with it.
  virtual ~DeviceTrace() = default;
  // Events since the last call, by queue. To be called often enough that StartTrace's `events`
  // hold what comes between.
  virtual std::vector<QueueTrace> Take() = 0;
  // Ends the recording; what was recorded can still be taken. Threads notice at the end of their
  // burst.
  virtual void Stop() = 0;
};

}  // namespace virtbay

#endif  // VIRTBAY_TRACE_H_
