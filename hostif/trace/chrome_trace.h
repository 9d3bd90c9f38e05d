// ChromeTrace: events of DeviceTraces as Chrome trace JSON, which Perfetto opens: each device is a
// process there, each of its queues a thread, requests and I/O are asynchronous spans.
// Owned by whoever writes the file; one thread at a time.
#ifndef VIRTBAY_HOSTIF_TRACE_CHROME_TRACE_H_
#define VIRTBAY_HOSTIF_TRACE_CHROME_TRACE_H_

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "absl/strings/string_view.h"
#include "framework/base/export.h"
#include "virtbay/trace.h"

namespace virtbay::trace {

class VIRTBAY_EXPORT ChromeTrace {
 public:
  // Appends to `out`, whose content the owner may take away between two calls.
  explicit ChromeTrace(std::string* out);
  ChromeTrace(const ChromeTrace&) = delete;
  ChromeTrace& operator=(const ChromeTrace&) = delete;

  // A device with so many queues; its number for Add.
  uint32_t AddDevice(absl::string_view name, absl::string_view type, uint32_t queues);
  // What DeviceTrace::Take returned of that device. Whatever is missing in it, spans that begin
  // end.
  void Add(uint32_t device, const std::vector<QueueTrace>& queues);
  // Ends what is still open, and the JSON.
  void Finish();

  uint64_t events() const { return events_; }    // that were added
  uint64_t dropped() const { return dropped_; }  // of which Take said so

 private:
  // An asynchronous span that has begun.
  struct Span {
    const char* category;
    const char* name;
  };
  struct Track {
    uint32_t device = 0;
    uint32_t queue = 0;
    uint64_t last_ns = 0;
    uint64_t dropped = 0;
    std::optional<TraceCall> call;
    std::map<uint64_t, Span> open;
  };

  // Unique in the file: a viewer does not look at the track.
  static uint64_t UniqueId(const Track& track, uint64_t id);
  void AddEvent(Track* track, const TraceEvent& event);
  // One object; `more` is further members, each after a comma.
  void Put(const Track& track, char phase, absl::string_view name, absl::string_view more);
  void Begin(Track* track, uint64_t id, Span span, absl::string_view args);
  // Nothing when it has not begun, or was ended for lack of room.
  void End(Track* track, uint64_t id, absl::string_view args);
  void EndCall(Track* track);
  void Metadata(uint32_t process, uint32_t thread, absl::string_view what, absl::string_view name);

  std::string* const out_;
  std::vector<std::vector<Track>> devices_;
  bool first_ = true;
  uint64_t events_ = 0;
  uint64_t dropped_ = 0;
};

}  // namespace virtbay::trace

#endif  // VIRTBAY_HOSTIF_TRACE_CHROME_TRACE_H_
